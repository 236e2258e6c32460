"""When a resource is due again: period, hints with a floor, back-off. Pure; all times are seconds of one clock."""

from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Final

from controlplane.runtime.reconciler import Pace

JITTER_LOW: Final = 0.75
"""Back-offs last 75 to 100 % of what doubling gives: enough to spread instances that failed together, and the cap
holds."""
_DOUBLINGS_MAX: Final = 30
"""Beyond, every pace has reached its cap; the power stays a small number."""


@dataclass(slots=True, kw_only=True)
class Schedule:
    """Of one resource. A new one is due at once."""

    pace: Pace
    failures: int = 0
    """In a row."""
    _due_s: float = -inf
    _hint_from_s: float = -inf
    """A hint is heard from this moment on."""
    _started_s: float = -inf
    _hinted: bool = False

    @property
    def next_s(self) -> float:
        return min(self._due_s, self._hint_from_s) if self._hinted else self._due_s

    def hint(self) -> None:
        """Any number of hints until the next start are one."""
        self._hinted = True

    def start(self, now_s: float) -> None:
        """Hints from now on ask for one more tick: this one may have read before what they are about."""
        self._started_s = now_s
        self._hinted = False

    def succeed(self, now_s: float, *, again_after: timedelta | None) -> None:
        """By period from start to start; a tick that took longer than the period still leaves the floor's pause."""
        self.failures = 0
        floor_s = self.pace.floor.total_seconds()
        self._due_s = max(self._started_s + self.pace.period.total_seconds(), now_s + floor_s)
        if again_after is not None:
            self._due_s = min(self._due_s, now_s + max(again_after.total_seconds(), floor_s))
        self._hint_from_s = self._started_s + floor_s

    def fail(self, now_s: float, *, jitter: float, after: timedelta | None = None) -> None:
        """Pause for the period, doubled by each further failure in a row; `after` is the failure's own advice.

        `jitter` is between JITTER_LOW and 1. The floor under hints doubles too, so that a stream of hints does not
        defeat the back-off, but a single one still comes through long before it ends.
        """
        doubled = 2.0 ** min(self.failures, _DOUBLINGS_MAX)
        self.failures += 1
        period_s, floor_s = self.pace.period.total_seconds(), self.pace.floor.total_seconds()
        cap_s = max(period_s, self.pace.backoff_max.total_seconds())
        pause_s = min(period_s * doubled, cap_s) * jitter
        if after is not None:
            pause_s = min(after.total_seconds(), cap_s)
        self._due_s = now_s + max(pause_s, floor_s)
        self._hint_from_s = min(now_s + floor_s * doubled, self._due_s)
