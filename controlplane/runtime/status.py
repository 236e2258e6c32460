"""What is known of each loop's last ticks: for /readyz, `quarterdeck status` and metrics."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

SURVEY: Final = "@survey"
"""The resource under which a loop reports the finding of its resources and the sharing of them between instances."""


class TickOutcome(StrEnum):
    QUIET = "quiet"
    CHANGED = "changed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    STALE_CLAIM = "stale_claim"
    """The claim had passed to another instance: the result was dropped."""

    @property
    def is_failure(self) -> bool:
        return self in (TickOutcome.FAILED, TickOutcome.TIMED_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatus:
    """The last tick of one loop on one resource, in this instance."""

    loop: str
    resource: str
    """A resource that this instance works on, or SURVEY."""
    last_tick_at: datetime | None
    """When the last tick ended; None: none has yet."""
    outcome: TickOutcome | None
    sentence: str
    consecutive_failures: int
    duration: timedelta
    overdue: bool
    """Nothing has ended for much longer than the pace allows: the loop hangs, or this instance is starved."""


class TickObserver(Protocol):
    """Told of every tick, so that the composition root can count them. Must not wait, and not raise."""

    def on_tick(self, loop: str, resource: str, outcome: TickOutcome, duration: timedelta) -> None: ...


class SilentObserver:
    """Counts nothing."""

    def on_tick(self, loop: str, resource: str, outcome: TickOutcome, duration: timedelta) -> None:
        del loop, resource, outcome, duration
