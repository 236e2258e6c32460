"""Moments as people type them."""

from datetime import UTC, datetime

import pytest

from controlplane.cli.moments import typed_moment
from controlplane.kernel.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-01-05T08:00:00", 8),
        ("2026-01-05 08:00", 8),
        ("2026-01-05T08:00:00Z", 8),
        ("2026-01-05T10:00:00+02:00", 8),
        ("2026-01-05T03:00:00-05:00", 8),
        ("2026-01-05", 0),
    ],
)
def test_utc_unless_a_zone_is_named(text: str, hour: int) -> None:
    moment = typed_moment("--to-time", text)
    assert moment == datetime(2026, 1, 5, hour, tzinfo=UTC)
    assert moment.tzinfo is UTC, "as it is printed"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "08:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidError, match=r"--to-time: found .*, expected a time such as 2026-01-31T12:00:00 \(UTC\)"):
        typed_moment("--to-time", text)
