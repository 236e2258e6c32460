"""A data key opens for whom it was wrapped, in its place, and for nobody else."""

from base64 import b64decode, b64encode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.backup.keyring import (
    BREAK_GLASS_SCHEME,
    SITE_SCHEME,
    BreakGlassPrivate,
    SiteKeyring,
    site_key_id,
    wrapping_problems,
)
from controlplane.domain.dataset import KeyPurpose
from controlplane.kernel.errors import DeniedError, TerminalError
from tests.unit.backup.copies import BREAK_GLASS, KEYRING, SITE_KEY

CONTEXT = "orders/points/20260105T080000.000Z-0a1b"
OFFLINE = SiteKeyring(None, break_glass_private=BREAK_GLASS)


def test_both_holders_open_the_same_key() -> None:
    data_key, wrapped = KEYRING.new_data_key(CONTEXT)

    assert KEYRING.open(wrapped, CONTEXT) == (data_key, wrapped[0])
    assert OFFLINE.open(wrapped, CONTEXT) == (data_key, wrapped[1])
    assert [(key.key_id, key.scheme) for key in wrapped] == [
        (site_key_id(SITE_KEY), SITE_SCHEME),
        (BREAK_GLASS.public.key_id, BREAK_GLASS_SCHEME),
    ]
    assert not any(data_key in b64decode(key.blob) for key in wrapped)


def test_keys_are_fresh_each_time() -> None:
    keys = {KEYRING.new_data_key(CONTEXT)[0] for _ in range(10)}

    assert len(keys) == 10
    assert {len(key) for key in keys} == {32}


def test_one_purpose_alone() -> None:
    _, wrapped = KEYRING.new_data_key(CONTEXT)
    both = SiteKeyring(SITE_KEY, break_glass_public=BREAK_GLASS.public, break_glass_private=BREAK_GLASS)

    assert both.open(wrapped, CONTEXT, only=KeyPurpose.BREAK_GLASS)[1].purpose is KeyPurpose.BREAK_GLASS
    assert both.open(wrapped, CONTEXT, only=KeyPurpose.SITE)[1].purpose is KeyPurpose.SITE
    with pytest.raises(DeniedError, match=rf"opens with {BREAK_GLASS.public.key_id}; here is none of that kind"):
        KEYRING.open(wrapped, CONTEXT, only=KeyPurpose.BREAK_GLASS)


def test_a_retired_key_opens_and_does_not_wrap() -> None:
    _, old = KEYRING.new_data_key(CONTEXT)
    rotated = SiteKeyring(bytes(32), retired=[SITE_KEY])

    assert rotated.open(old, CONTEXT)[1].key_id == site_key_id(SITE_KEY)
    assert [key.key_id for key in rotated.new_data_key(CONTEXT)[1]] == [site_key_id(bytes(32))]


def test_without_a_site_key_nothing_is_written() -> None:
    with pytest.raises(DeniedError, match=r"has no site key, so it opens copies and writes none"):
        OFFLINE.new_data_key(CONTEXT)


def test_a_site_without_break_glass_says_so() -> None:
    plain = SiteKeyring(SITE_KEY)
    _, wrapped = plain.new_data_key(CONTEXT)

    with pytest.raises(DeniedError, match=r"opens with no key of that kind; here is none of that kind"):
        plain.open(wrapped, CONTEXT, only=KeyPurpose.BREAK_GLASS)


@pytest.mark.parametrize("keyring", [KEYRING, OFFLINE], ids=["site", "break-glass"])
def test_another_place_does_not_open_it(keyring: SiteKeyring) -> None:
    _, wrapped = KEYRING.new_data_key(CONTEXT)

    with pytest.raises(TerminalError, match=r"data key of orders/points/other|wrapped for break-glass"):
        keyring.open(wrapped, "orders/points/other")


@given(at=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7), holder=st.sampled_from([0, 1]))
def test_any_flipped_bit_of_a_wrapped_key_is_refused_and_shows_without_any_key(at: int, bit: int, holder: int) -> None:
    _, wrapped = KEYRING.new_data_key(CONTEXT)
    raw = bytearray(b64decode(wrapped[holder].blob))
    raw[at % len(raw)] ^= 1 << bit
    damaged = [replace(wrapped[holder], blob=b64encode(raw).decode())]

    with pytest.raises(
        TerminalError, match=f"{CONTEXT}: its data key, wrapped for {wrapped[holder].key_id}, was changed"
    ):
        (KEYRING, OFFLINE)[holder].open(damaged, CONTEXT)
    assert wrapping_problems(wrapped, CONTEXT) == []
    assert len(wrapping_problems(damaged, CONTEXT)) == 1


def test_a_damaged_copy_of_the_key_does_not_keep_the_other_holder_out() -> None:
    data_key, wrapped = KEYRING.new_data_key(CONTEXT)
    damaged = (replace(wrapped[0], blob="AAAA"), wrapped[1])
    both = SiteKeyring(SITE_KEY, break_glass_private=BREAK_GLASS)

    assert both.open(damaged, CONTEXT) == (data_key, wrapped[1])


def test_the_public_half_opens_nothing_and_another_pair_neither() -> None:
    _, wrapped = KEYRING.new_data_key(CONTEXT)
    other = BreakGlassPrivate.generate()

    with pytest.raises(DeniedError, match=rf"here {other.public.key_id}"):
        SiteKeyring(None, break_glass_private=other).open(wrapped, CONTEXT)
    with pytest.raises(DeniedError, match=r"here is none of that kind"):
        SiteKeyring(None, break_glass_public=BREAK_GLASS.public).open(wrapped, CONTEXT)


def test_a_wrong_scheme_is_no_way_in() -> None:
    """A site's blob that passes for a break-glass one, and the reverse."""
    _, wrapped = KEYRING.new_data_key(CONTEXT)
    both = SiteKeyring(SITE_KEY, break_glass_private=BREAK_GLASS)

    for key, scheme in ((wrapped[0], BREAK_GLASS_SCHEME), (wrapped[1], SITE_SCHEME), (wrapped[0], "none")):
        with pytest.raises(DeniedError):
            both.open([replace(key, scheme=scheme)], CONTEXT)


def test_private_keys_are_not_printed() -> None:
    assert "raw" not in repr(BREAK_GLASS)
    assert SITE_KEY.hex() not in repr(KEYRING)
