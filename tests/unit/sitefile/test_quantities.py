from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.sitefile.quantities import parse_duration, parse_size, write_duration, write_size
from controlplane.kernel.units import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1.5s", 1.5), ("5m", 300), ("24h", 86400), ("1h30m", 5400), ("7d", 604800), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "5 s", "s", "-5s", "5S", "1e3s", "\u0665s", "5sm", "9" * 40 + "d", "999999999999d"]
)
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(("text", "size"), [("1KiB", KIB), ("64MiB", 64 * MIB), ("1.5GiB", 3 * GIB // 2)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64", "64MB", "64 MiB", "64mib", "-1KiB", "1" * 40 + "KiB"])
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None


@given(st.integers(min_value=0, max_value=30 * 86_400_000))
def test_a_written_duration_is_read_back(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(write_duration(duration)) == duration


@given(st.integers(min_value=1, max_value=2**30))
def test_a_written_size_is_read_back(kibibytes: int) -> None:
    assert parse_size(write_size(kibibytes * KIB)) == kibibytes * KIB
