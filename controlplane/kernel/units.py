"""Units and their printing. Memory is in bytes inside; GiB only where people read."""

from datetime import timedelta
from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

_MINUTE_S: Final = 60.0
_HOUR_S: Final = 3600.0
_MILLI: Final = 1e-3


def format_bytes(size_bytes: float) -> str:
    """`1536` -> `1.5 KiB`; three significant digits or so."""
    magnitude = abs(size_bytes)
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if magnitude >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(duration: timedelta) -> str:
    """`0.25 s` -> `250ms`, 90 s -> `1m30s`, 2 h -> `2h00m`."""
    seconds = duration.total_seconds()
    if abs(seconds) < 1.0:
        return f"{seconds / _MILLI:.0f}ms"
    if abs(seconds) < _MINUTE_S:
        return f"{seconds:.1f}s"
    if abs(seconds) < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)}m{int(seconds % _MINUTE_S):02d}s"
    return f"{int(seconds // _HOUR_S)}h{int(seconds % _HOUR_S // _MINUTE_S):02d}m"
