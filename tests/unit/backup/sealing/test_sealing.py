"""One blob: what was sealed comes back, and nothing else ever does."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.backup.sealing import HEADER_BYTES, OVERHEAD_BYTES, derived_key, seal, unseal
from controlplane.kernel.errors import TerminalError

KEY = bytes(range(32))
CONTEXT = "orders/wal/000000010000000000000003 from 4096"


@given(plain=st.binary(max_size=5000), compress=st.booleans(), level=st.sampled_from([-5, -1, 1, 3]))
def test_what_was_sealed_comes_back(plain: bytes, compress: bool, level: int) -> None:
    sealed = seal(KEY, CONTEXT, plain, compress=compress, level=level)

    assert unseal(KEY, CONTEXT, sealed) == plain
    assert unseal(KEY, CONTEXT, memoryview(sealed)) == plain
    assert len(sealed) <= len(plain) + OVERHEAD_BYTES


@given(
    plain=st.binary(max_size=300),
    at=st.integers(min_value=0),
    bit=st.integers(min_value=0, max_value=7),
)
def test_any_flipped_bit_is_refused_by_name(plain: bytes, at: int, bit: int) -> None:
    sealed = bytearray(seal(KEY, CONTEXT, plain))
    sealed[at % len(sealed)] ^= 1 << bit

    with pytest.raises(TerminalError, match=r"^orders/wal/000000010000000000000003 from 4096: "):
        unseal(KEY, CONTEXT, bytes(sealed))


@given(plain=st.binary(max_size=200), kept=st.floats(min_value=0, max_value=1, exclude_max=True))
def test_any_truncation_is_refused(plain: bytes, kept: float) -> None:
    sealed = seal(KEY, CONTEXT, plain)

    with pytest.raises(TerminalError, match="orders/wal"):
        unseal(KEY, CONTEXT, sealed[: int(kept * len(sealed))])


@pytest.mark.parametrize("tail", [b"\x00", b"more"])
def test_bytes_behind_it_are_refused(tail: bytes) -> None:
    with pytest.raises(TerminalError, match="were changed"):
        unseal(KEY, CONTEXT, seal(KEY, CONTEXT, b"rows") + tail)


def test_another_place_or_key_does_not_open_it() -> None:
    sealed = seal(KEY, CONTEXT, b"rows")

    with pytest.raises(TerminalError, match=r"^elsewhere: its bytes were changed, or they were sealed"):
        unseal(KEY, "elsewhere", sealed)
    with pytest.raises(TerminalError, match="under another key"):
        unseal(os.urandom(32), CONTEXT, sealed)


def test_zstd_is_inside_only_when_that_is_smaller() -> None:
    rows, noise = b"row " * 10_000, os.urandom(40_000)

    assert len(seal(KEY, CONTEXT, rows)) < len(rows) / 20
    assert len(seal(KEY, CONTEXT, rows, compress=False)) == len(rows) + OVERHEAD_BYTES
    assert len(seal(KEY, CONTEXT, noise)) == len(noise) + OVERHEAD_BYTES


def test_the_same_bytes_never_look_the_same() -> None:
    first, second = seal(KEY, CONTEXT, b"rows"), seal(KEY, CONTEXT, b"rows")

    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


def test_a_newer_format_is_named() -> None:
    sealed = seal(KEY, CONTEXT, b"rows")

    with pytest.raises(TerminalError, match="found format 2, this program reads up to 1: use a newer one"):
        unseal(KEY, CONTEXT, sealed[:4] + b"\x02" + sealed[5:])


def test_keys_of_different_purposes_differ() -> None:
    assert derived_key(KEY, "stream/a") == derived_key(KEY, "stream/a")
    assert len({derived_key(KEY, "stream/a"), derived_key(KEY, "stream/b"), KEY}) == 3
