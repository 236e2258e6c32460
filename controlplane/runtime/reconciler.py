"""What a loop looks like to the driver. A tick takes no input: it reads everything and writes the difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from controlplane.domain.store import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class TickReport:
    """What a tick did, in a sentence."""

    sentence: str
    changed: bool = False
    again_after: timedelta | None = None
    """Wake sooner than the period; the driver's floor still holds."""


class Reconciler(Protocol):
    """A loop over resources of one kind."""

    @property
    def name(self) -> str:
        """The loop's name: the first part of its claims, e.g. `replicas` of `replicas/chat-8b`."""
        ...

    async def resources(self) -> Sequence[str]:
        """What there is to work on now, e.g. deployment names; a loop over the whole site returns `["site"]`."""
        ...

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        """One pass over one resource under a claim; each write transaction starts with `tx.require_claim(...)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a loop runs."""

    period: timedelta
    deadline: timedelta
    """A tick longer than this is cancelled, recorded as timed out, and tried again at the next one."""
    floor: timedelta
    """Hints never make it run more often than this."""
    backoff_max: timedelta = timedelta(seconds=30)
    """Failures in a row double the pause from the period up to this."""
    claim_ttl: timedelta = timedelta(seconds=15)
    """How long another instance waits before it takes over from one that died; longer than `deadline`."""
