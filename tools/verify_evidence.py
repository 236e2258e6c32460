"""Verifies evidence of restore drills offline, with none of quarterdeck's code but `cryptography` (50 has ML-DSA).

    python verify_evidence.py BUNDLE... [--public-key FILE]

For each bundle: its bytes are canonical JSON, each section has its digest, the ML-DSA-87 signature (FIPS 204) is over
all of it. For several: each carries the SHA3-512 of the one before it, and none between them is missing. Without
--public-key a bundle is checked against the key that it names itself: compare the fingerprint with one you trust.
"""

import argparse
import json
import sys
from base64 import b64decode, b64encode
from hashlib import sha3_512
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PublicKey

PARTS = {"content", "digests", "format", "previous", "sequence", "signature", "signer"}


def canonical(document: Any) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def unbase64(text: str) -> bytes:
    raw = b64decode(text, validate=True)
    if b64encode(raw).decode() != text:
        raise ValueError("base64 is not written as it should be")
    return raw


def problems_of(bundle: bytes, pinned: bytes | None) -> list[str]:
    try:
        document = json.loads(bundle)
        if set(document) != PARTS or document["format"] != "quarterdeck-evidence/1":
            return ["is not evidence of the format quarterdeck-evidence/1"]
        return list(checked(document, bundle, pinned))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return [f"is malformed: {error!r}"]


def checked(document: dict[str, Any], bundle: bytes, pinned: bytes | None) -> list[str]:
    content, digests, signer = document["content"], document["digests"], document["signer"]
    actual = {name: sha3_512(canonical(section)).hexdigest() for name, section in content.items()}
    changed = sorted(name for name in set(actual) | set(digests) if actual.get(name) != digests.get(name))
    problems = [f"section {name} was changed" for name in changed]
    if canonical(document) != bundle:
        problems.append("is not canonical JSON: its bytes were changed")
    key = unbase64(signer["public_key"])
    if signer["algorithm"] != "ML-DSA-87" or signer["fingerprint"] != sha3_512(key).hexdigest():
        problems.append("names another algorithm or fingerprint than those of its key")
    if pinned is not None and key != pinned:
        problems.append("is signed by another key than the one given")
    unsigned = {name: part for name, part in document.items() if name != "signature"}
    try:
        MLDSA87PublicKey.from_public_bytes(key).verify(unbase64(document["signature"]), canonical(unsigned))
    except InvalidSignature:
        problems.append("signature does not fit: it was changed after it was signed")
    return problems


def chain_problems(bundles: list[tuple[str, bytes]]) -> list[str]:
    problems = []
    chain = sorted((json.loads(bundle)["sequence"], name, bundle) for name, bundle in bundles)
    for (number, name, bundle), (next_number, next_name, next_bundle) in pairwise(chain):
        document = json.loads(next_bundle)
        if next_number != number + 1:
            problems.append(f"{next_name}: number {next_number} follows number {number} ({name})")
        elif (document["previous"] or {}).get("sha3_512") != sha3_512(bundle).hexdigest():
            problems.append(f"{next_name}: does not carry the hash of {name}")
        if document["signer"] != json.loads(bundle)["signer"]:
            problems.append(f"{next_name}: is signed by another key than {name}")
    return problems


def pinned_key(path: Path) -> bytes:
    """From the text file that quarterdeck writes: headers, an empty line, base64."""
    lines = path.read_text(encoding="ascii").strip().splitlines()
    return b64decode("".join(lines[lines.index("") + 1 : -1]), validate=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    options.add_argument("--public-key", type=Path, metavar="FILE", help="the key that must have signed them")
    chosen = options.parse_args()
    pinned = pinned_key(chosen.public_key) if chosen.public_key else None
    read = [(str(path), path.read_bytes()) for path in chosen.bundles]
    found = [f"{name}: {problem}" for name, bundle in read for problem in problems_of(bundle, pinned)]
    found = found or chain_problems(read)
    for line in found:
        print(line)
    if not found:
        last = json.loads(read[-1][1])
        print(f"{len(read)} bundle(s) verified, signed by {last['signer']['fingerprint']}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
