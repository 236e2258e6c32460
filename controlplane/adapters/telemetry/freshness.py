"""How far a last value may be trusted: a pure function of its age."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.telemetry import Fresh, Missing, Reading, Stale

GONE_AFTER_FACTOR: Final = 12
"""A value this many times older than stale is no longer shown: nothing is decided on it, it only confuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held[T]:
    """The last value of one source, if there ever was one, and what went wrong since, if anything did."""

    source: str
    """Where it came from; another source under the same name is another thing, whose past does not count."""
    value: T | None
    at: datetime
    """Of the value; of the first failure where there is none."""
    failure: str = ""

    def reading(self, now: datetime, *, stale_after: timedelta) -> Reading[T]:
        """Fresh up to `stale_after`, then Stale, after GONE_AFTER_FACTOR times as long Missing."""
        if self.value is None:
            return Missing(self.failure)
        age = now - self.at
        if age <= stale_after:
            return Fresh(self.value)
        if age <= GONE_AFTER_FACTOR * stale_after:
            return Stale(self.value, age)
        why = f": {self.failure}" if self.failure else ""
        return Missing(f"last seen {age.total_seconds():.0f} s ago{why}")


def hold[T](before: Held[T] | None, result: T | Missing, *, source: str, at: datetime) -> Held[T]:
    """What to keep after a scrape: the new value, or the last one beside the failure."""
    if not isinstance(result, Missing):
        return Held(source=source, value=result, at=at)
    if before is None or before.source != source or before.value is None:
        return Held(source=source, value=None, at=at, failure=result.why)
    return Held(source=source, value=before.value, at=before.at, failure=result.why)
