"""How long to wait after failures, the same for backups and drills."""

from datetime import timedelta
from typing import Final

_DOUBLINGS_MAX: Final = 20
"""2^20 is beyond every limit here, and far from overflowing a duration."""


def wait_after(failures: int, *, first: timedelta, most: timedelta) -> timedelta:
    """Twice as long after each further failure in a row, up to a limit; zero without failures."""
    if failures == 0:
        return timedelta()
    return min(first * (1 << min(failures - 1, _DOUBLINGS_MAX)), most)
