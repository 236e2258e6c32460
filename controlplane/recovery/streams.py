"""The loop that keeps continuous logs flowing: one instance streams each, as long as it holds the claim."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import DatasetKind, DatasetSpec, RecoverySpec, WalMode
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ClaimToken
from controlplane.recovery.workshop import Workshop
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "log-streams"

_LEASE: Final = timedelta(seconds=15)
"""A stream that is not asked for again for so long ends: another instance has the claim, and the slot is for one."""

_EVENTS_READ: Final = 1000
"""Newest first. A state that was told longer ago is told once more."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is told when one of the two flows again, or does not any more."""

    flows: Reason
    stalls: Reason

    def told_by(self, reason: Reason) -> bool | None:
        return {self.flows: True, self.stalls: False}.get(reason)


_FIRST: Final = _Turn(Reason.LOG_STREAMING, Reason.LOG_STALLED)
"""Into the first bucket."""
_FURTHER: Final = _Turn(Reason.LOG_REPLICATED, Reason.LOG_NOT_REPLICATED)
"""From there into the others."""


class Streams:
    """Writes events alone."""

    name: Final = LOOP

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._told: dict[tuple[str, _Turn], tuple[ClaimToken, bool | None]] = {}
        """As told last, known under one claim: another instance may have told something since."""

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets if streams_log(dataset)]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        dataset = self._declared().dataset(resource)
        if dataset is None or not streams_log(dataset):
            return TickReport(sentence="no longer declared")
        state = await self._workshop.stream(dataset, until=self._clock.now() + _LEASE)
        further = f"{resource}: {state.further_sentence}"
        turned = await self._turned(resource, claim, _FIRST, state.sentence, flows=state.running)
        turned = await self._turned(resource, claim, _FURTHER, further, flows=state.further) or turned
        sentence = f"{state.sentence}; {state.further_sentence}" if state.further_sentence else state.sentence
        return TickReport(sentence=sentence, changed=turned)

    async def _turned(self, resource: str, claim: Claim, turn: _Turn, sentence: str, *, flows: bool | None) -> bool:
        """Each turn is told once."""
        if flows is None or flows is await self._told_last(resource, claim, turn):
            return False
        await self._tell(resource, claim, turn.flows if flows else turn.stalls, sentence)
        self._told[resource, turn] = (claim.token, flows)
        return True

    async def _told_last(self, resource: str, claim: Claim, turn: _Turn) -> bool | None:
        """Read from the events once under each claim. None: nothing is told of it any more, or never was."""
        token, told = self._told.get((resource, turn), (None, None))
        if token != claim.token:
            async with self._store.transaction() as tx:
                events = await tx.events(kind=EventKind.RECOVERY, limit=_EVENTS_READ, newest_first=True)
            told_by = (turn.told_by(one.event.reason) for one in events if one.event.subject == resource)
            told = next((flows for flows in told_by if flows is not None), None)
            self._told[resource, turn] = (claim.token, told)
        return told

    async def _tell(self, dataset: str, claim: Claim, reason: Reason, sentence: str) -> None:
        event = NewEvent(
            at=self._clock.now(), kind=EventKind.RECOVERY, subject=dataset, reason=reason, sentence=sentence
        )
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.append_events([event])


def streams_log(dataset: DatasetSpec) -> bool:
    """PgBackRest archives by itself."""
    return dataset.kind is DatasetKind.POSTGRESQL and dataset.wal is not WalMode.OFF
