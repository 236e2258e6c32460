from datetime import timedelta

import pytest

from controlplane.kernel.units import GIB, format_bytes, format_duration


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (131.4 * GIB, "131.4 GiB")]
)
def test_bytes(size_bytes: float, shown: str) -> None:
    assert format_bytes(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "250ms"), (1.5, "1.5s"), (90, "1m30s"), (7200, "2h00m"), (7260, "2h01m")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == shown
