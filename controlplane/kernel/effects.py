"""Time, randomness and identity as arguments, so that a week runs in seconds and a failure replays from its seed."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for durations."""

    def now(self) -> datetime:
        """The present time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    async def sleep(self, duration: timedelta) -> None:
        """Return after `duration`; a zero or negative duration still yields once."""
        ...


class Rng(Protocol):
    """A source of randomness that can be seeded."""

    def uniform(self, low: float, high: float) -> float: ...

    def choice[T](self, options: Sequence[T]) -> T: ...


class IdSource(Protocol):
    """A source of identifiers, unique within a site."""

    def new_id(self) -> str:
        """A fresh identifier, printable, at most 36 characters."""
        ...
