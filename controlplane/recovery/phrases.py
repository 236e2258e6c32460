"""How recovery prints moments and spans of time to people."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from controlplane.kernel.units import format_duration

_DAY: Final = timedelta(days=1)
_YEAR: Final = timedelta(days=365)
_HOURS_UP_TO: Final = timedelta(hours=48)
"""Longer spans are said in days: nobody reads `720h00m`."""


def span(duration: timedelta) -> str:
    """`4h00m`, `30 d`, `12.5 d`, `7 y`."""
    if abs(duration) <= _HOURS_UP_TO:
        return format_duration(duration)
    if duration >= 2 * _YEAR and duration % _YEAR == timedelta():
        return f"{duration // _YEAR} y"
    return f"{duration / _DAY:.1f}".removesuffix(".0") + " d"


def seconds(duration_s: float) -> str:
    return span(timedelta(seconds=duration_s))


def moment(at: datetime) -> str:
    """To the second: recovery points of one minute differ."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def count_of(number: int, noun: str) -> str:
    """`1 point`, `3 points`."""
    return f"{number} {noun}" + "s" * (number != 1)


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
