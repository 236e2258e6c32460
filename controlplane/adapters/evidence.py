"""Evidence of drills: signed with ML-DSA-87 (FIPS 204), chained by SHA3-512, verified offline.

A bundle is one canonical JSON file: the document of `controlplane.recovery.evidence`, the signer's public key, and a
signature over everything else. `tools/verify_evidence.py` checks the same without any of our code.
"""

import json
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha3_512
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey

from controlplane.adapters.backup.keyfiles import KeyFile, create, create_private, format_key, read_key
from controlplane.domain.recovery import Drill
from controlplane.kernel.errors import ConflictError, NotFoundError, TerminalError
from controlplane.recovery.evidence import (
    EVIDENCE_FORMAT,
    EVIDENCE_PREFIX,
    Json,
    Objectives,
    Previous,
    canonical,
    digest,
    evidence_key,
    evidence_of,
)
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import Lock, ObjectStore

ALGORITHM: Final = "ML-DSA-87"
PRIVATE_KIND: Final = "EVIDENCE PRIVATE KEY"
PUBLIC_KIND: Final = "EVIDENCE PUBLIC KEY"
_PUBLIC_BYTES: Final = 2592
"""FIPS 204, table 2."""
_SEED_BYTES: Final = 32
_HEADS_MAX: Final = 8
"""Newest bundles that are read to find the end of the chain: a store's times have whole seconds, drills take longer."""
_PARTS: Final = frozenset({"content", "digests", "format", "previous", "sequence", "signature", "signer"})


class EvidenceSigner:
    """Holds the signing key, which is made (mode 0600) on first use."""

    def __init__(self, private: MLDSA87PrivateKey) -> None:
        self._private = private
        self.public_key: Final = private.public_key().public_bytes_raw()
        self.fingerprint: Final = fingerprint(self.public_key)

    @staticmethod
    def from_file(path: Path) -> "EvidenceSigner":
        """TerminalError when the file is no whole signing key, or others may read it."""
        if not path.exists():
            seed = MLDSA87PrivateKey.generate().private_bytes_raw()
            with suppress(ConflictError):  # Another process was faster: its key counts.
                create_private(path, format_key(KeyFile(kind=PRIVATE_KIND, headers={}, payload=seed)))
        seed = read_key(path, PRIVATE_KIND, private=True).payload
        if len(seed) != _SEED_BYTES:
            raise TerminalError(f"{path}: found a key of {len(seed)} bytes, expected a seed of {_SEED_BYTES}")
        return EvidenceSigner(MLDSA87PrivateKey.from_seed_bytes(seed))

    def write_public_key(self, path: Path) -> None:
        """For auditors, who pin it. ConflictError when the file is there."""
        headers = {"Fingerprint": self.fingerprint}
        create(path, format_key(KeyFile(kind=PUBLIC_KIND, headers=headers, payload=self.public_key)))

    def sign(self, document: Mapping[str, Json]) -> bytes:
        """The bundle."""
        signer: Json = {
            "algorithm": ALGORITHM,
            "fingerprint": self.fingerprint,
            "public_key": b64encode(self.public_key).decode(),
        }
        unsigned: Mapping[str, Json] = {**document, "signer": signer}
        return canonical({**unsigned, "signature": b64encode(self._private.sign(canonical(unsigned))).decode()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    key: str
    sequence: int
    fingerprint: str
    bundle: bytes


def record_evidence(
    store: ObjectStore,
    signer: EvidenceSigner,
    drill: Drill,
    manifest: Manifest | None,
    *,
    objectives: Objectives,
    recorded_at: datetime,
    software: str,
    lock: Lock | None = None,
) -> Recorded:
    """Sign what the drill proved, and add it to the chain in the bucket.

    A second call for the same drill gives what the first one wrote. Two calls at the same moment would fork the chain:
    make them one after the other, under a claim. ConflictError when the key holds what this signer has not written.
    """
    key = evidence_key(drill.drill)
    with suppress(NotFoundError):
        return _recorded(key, store.get(key), signer)
    document = evidence_of(
        drill,
        manifest,
        objectives=objectives,
        previous=newest_evidence(store, signer),
        recorded_at=recorded_at,
        software=software,
    )
    bundle = signer.sign(document)
    try:
        store.put(key, bundle, if_absent=True, lock=lock)
    except ConflictError:
        return _recorded(key, store.get(key), signer)
    return _recorded(key, bundle, signer)


def newest_evidence(store: ObjectStore, signer: EvidenceSigner) -> Previous | None:
    """The end of the chain in the bucket. What does not verify under the signer's key is passed over."""
    listed = sorted(store.objects(EVIDENCE_PREFIX), key=lambda info: info.modified_at, reverse=True)
    ends: list[Previous] = []
    for info in listed[:_HEADS_MAX]:
        bundle = store.get(info.key)
        if not verify_bundle(bundle, signer.public_key):
            ends.append(
                Previous(key=info.key, sequence=sequence_of(bundle) or 0, sha3_512=sha3_512(bundle).hexdigest())
            )
    return max(ends, key=lambda end: end.sequence, default=None)


def read_public_key(path: Path) -> bytes:
    """What `write_public_key` wrote."""
    return read_key(path, PUBLIC_KIND).payload


def fingerprint(public_key: bytes) -> str:
    return sha3_512(public_key).hexdigest()


def verify_bundle(bundle: bytes, public_key: bytes | None = None) -> tuple[str, ...]:
    """What is wrong with it, in sentences; empty: every byte is as it was signed.

    `public_key`: the one that must have signed it. Without it only the bundle's own key is asked, so who changes a
    bundle can sign it anew: compare fingerprints, or pin.
    """
    try:
        document = json.loads(bundle)
        rewritten = canonical(document)
    except (ValueError, RecursionError) as error:
        return (f"is no JSON: {error}",)
    if not isinstance(document, dict) or document.keys() != _PARTS:
        return (f"is no evidence: expected a JSON object of {', '.join(sorted(_PARTS))}",)
    findings = []
    if document["format"] != EVIDENCE_FORMAT:
        findings.append(f"found format {document['format']!r}, this program knows {EVIDENCE_FORMAT}")
    if rewritten != bundle:
        findings.append("its bytes are not those that were written: spaces, order or spelling were changed")
    return (*findings, *_content_findings(document), *_signature_findings(document, public_key))


def verify_chain(bundles: Mapping[str, bytes], public_key: bytes | None = None) -> Mapping[str, tuple[str, ...]]:
    """Findings by name: each bundle by itself, and whether each one follows the one before it.

    The first bundle given may have predecessors that were not; from there on none may be missing.
    """
    findings = {name: list(verify_bundle(bundle, public_key)) for name, bundle in bundles.items()}
    numbered = sorted((sequence_of(bundle) or 0, name) for name, bundle in bundles.items())
    for (before_number, before), (number, name) in pairwise(numbered):
        if number == before_number:
            findings[name].append(f"has number {number}, as has {before}: the chain is forked")
        elif number != before_number + 1:
            findings[name].append(f"has number {number} and follows {before_number} ({before}): some are missing")
        elif not follows(bundles[name], bundles[before]):
            findings[name].append(f"does not follow {before}: that is not the bundle whose hash it carries")
        if public_key is None and _signer_of(bundles[name]) != _signer_of(bundles[before]):
            findings[name].append(f"is signed by another key than {before}; pin the key that counts")
    return {name: tuple(found) for name, found in findings.items()}


def sequence_of(bundle: bytes) -> int | None:
    """Its place in the chain, from 1; None where it tells none."""
    sequence = _part(bundle, "sequence")
    return sequence if isinstance(sequence, int) else None


def follows(bundle: bytes, before: bytes) -> bool:
    """The one is the bundle whose hash the other carries."""
    previous = _part(bundle, "previous")
    return isinstance(previous, dict) and previous.get("sha3_512") == sha3_512(before).hexdigest()


def previous_key(bundle: bytes) -> str | None:
    """Of the bundle before it; None: it is the first of its chain."""
    previous = _part(bundle, "previous")
    key = previous.get("key") if isinstance(previous, dict) else None
    return key if isinstance(key, str) else None


def proves(bundle: bytes, drill: Drill) -> bool:
    """It tells of this drill, and that it passed. Whether that is true says `verify_bundle`."""
    content = _part(bundle, "content")
    if not isinstance(content, dict):
        return False
    told, verdict = content.get("drill"), content.get("verdict")
    if not isinstance(told, dict) or not isinstance(verdict, dict):
        return False
    return (told.get("id"), told.get("dataset"), verdict.get("passed")) == (drill.drill, drill.dataset, True)


def _recorded(key: str, bundle: bytes, signer: EvidenceSigner) -> Recorded:
    findings = verify_bundle(bundle, signer.public_key)
    if findings:
        raise ConflictError(f"{key}: holds another file than this site's evidence: {findings[0]}")
    return Recorded(key=key, sequence=sequence_of(bundle) or 0, fingerprint=signer.fingerprint, bundle=bundle)


def _content_findings(document: Mapping[str, Json]) -> Sequence[str]:
    content, digests = document["content"], document["digests"]
    if not isinstance(content, dict) or not isinstance(digests, dict) or content.keys() != digests.keys():
        return ["its digests are not those of its content"]
    return [f"its section `{name}` was changed" for name in sorted(content) if digest(content[name]) != digests[name]]


def _signature_findings(document: Mapping[str, Json], pinned: bytes | None) -> Sequence[str]:
    signer = document["signer"]
    if not isinstance(signer, dict) or signer.keys() != {"algorithm", "fingerprint", "public_key"}:
        return ["its signer is not named as signers are"]
    key, signature = _unbase64(signer["public_key"]), _unbase64(document["signature"])
    findings = []
    if signer["algorithm"] != ALGORITHM:
        findings.append(f"found the algorithm {signer['algorithm']!r}, expected {ALGORITHM}")
    if signer["fingerprint"] != fingerprint(key):
        findings.append("its fingerprint is not that of its public key")
    if pinned is not None and key != pinned:
        findings.append(f"is signed by {fingerprint(key)[:16]}..., expected {fingerprint(pinned)[:16]}...")
    if len(key) != _PUBLIC_BYTES:
        return [*findings, f"its public key has {len(key)} bytes, expected {_PUBLIC_BYTES}"]
    unsigned = {name: part for name, part in document.items() if name != "signature"}
    try:
        MLDSA87PublicKey.from_public_bytes(key).verify(signature, canonical(unsigned))
    except (InvalidSignature, ValueError):
        findings.append("its signature does not fit: it was changed after it was signed")
    return findings


def _unbase64(text: Json) -> bytes:
    """Empty when it is not base64 exactly as it is written here."""
    if not isinstance(text, str):
        return b""
    try:
        raw = b64decode(text, validate=True)
    except (BinasciiError, ValueError):
        return b""
    return raw if b64encode(raw).decode() == text else b""


def _signer_of(bundle: bytes) -> Json:
    signer = _part(bundle, "signer")
    return signer.get("fingerprint") if isinstance(signer, dict) else None


def _part(bundle: bytes, name: str) -> Json:
    try:
        document: Json = json.loads(bundle)
    except (ValueError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None
