"""Names of recovery points."""

from datetime import UTC, datetime

from controlplane.kernel.ids import PointId

_RANDOM_CHARACTERS = 4


def point_id(started_at: datetime, unique: str) -> PointId:
    """`20261122T031500.123Z-0a1b`: sorted by name they are sorted by time. `unique`: an identifier that is new."""
    moment = started_at.astimezone(UTC)
    digits = "".join(character for character in unique.lower() if character in "0123456789abcdef")
    assert len(digits) >= _RANDOM_CHARACTERS, f"{unique!r} has too few hexadecimal digits to tell two points apart"
    return PointId(f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z-{digits[:_RANDOM_CHARACTERS]}")
