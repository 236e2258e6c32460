"""What was written by format 1 must open for as long as anybody keeps it: frozen bytes, and the keys to them.

Also whether a new release of `cryptography` still speaks the same HPKE: its hybrid KEM is a draft of the IETF.
"""

import json
from base64 import b64decode
from pathlib import Path

import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.sealing import unseal
from controlplane.adapters.evidence import verify_bundle
from controlplane.domain.dataset import KeyPurpose
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import BREAK_GLASS, SITE_KEY, mixed_bytes, read_copy
from tools.verify_evidence import problems_of

FROZEN = Path(__file__).parents[3] / "golden" / "backup_format_1.json"


@pytest.fixture
def frozen() -> dict[str, dict[str, str]]:
    parts: dict[str, dict[str, str]] = json.loads(FROZEN.read_text())
    return parts


@pytest.mark.parametrize(
    "keyring",
    [SiteKeyring(SITE_KEY), SiteKeyring(None, break_glass_private=BREAK_GLASS)],
    ids=list(KeyPurpose),
)
def test_an_archive_of_format_1(frozen: dict[str, dict[str, str]], keyring: SiteKeyring) -> None:
    store = MemoryBucket()
    for key, body in frozen["archive"].items():
        store.put(key, b64decode(body))

    assert read_copy(store, keyring=keyring) == {"base.tar": mixed_bytes(2_500), "empty": b""}


def test_sealed_blobs_of_format_1(frozen: dict[str, dict[str, str]]) -> None:
    for context, body in frozen["blobs"].items():
        assert unseal(SITE_KEY, context, b64decode(body)) == context.encode() * 20


def test_evidence_of_format_1(frozen: dict[str, dict[str, str]]) -> None:
    for body in frozen["evidence"].values():
        assert verify_bundle(b64decode(body)) == ()
        assert problems_of(b64decode(body), None) == []
