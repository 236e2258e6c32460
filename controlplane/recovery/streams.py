"""The loop that keeps continuous logs flowing: one instance streams each, as long as it holds the claim."""

from collections.abc import Callable, Mapping, Sequence
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
_FLOWS: Final[Mapping[Reason, bool]] = {Reason.LOG_STREAMING: True, Reason.LOG_STALLED: False}


class Streams:
    """Writes events alone."""

    name: Final = LOOP

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._told: dict[str, tuple[ClaimToken, bool | None]] = {}
        """As told last, known under one claim: another instance may have told something since."""

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets if streams_log(dataset)]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        dataset = self._declared().dataset(resource)
        if dataset is None or not streams_log(dataset):
            return TickReport(sentence="no longer declared")
        state = await self._workshop.stream(dataset, until=self._clock.now() + _LEASE)
        turned = state.running is not None and state.running is not await self._told_last(resource, claim)
        if turned and state.running is not None:
            reason = Reason.LOG_STREAMING if state.running else Reason.LOG_STALLED
            await self._tell(resource, claim, reason, state.sentence)
            self._told[resource] = (claim.token, state.running)
        return TickReport(sentence=state.sentence, changed=turned)

    async def _told_last(self, resource: str, claim: Claim) -> bool | None:
        """Read from the events once under each claim. None: nothing is told of it any more, or never was."""
        token, told = self._told.get(resource, (None, None))
        if token != claim.token:
            async with self._store.transaction() as tx:
                events = await tx.events(kind=EventKind.RECOVERY, limit=_EVENTS_READ, newest_first=True)
            reasons = (one.event.reason for one in events if one.event.subject == resource)
            told = next((_FLOWS[reason] for reason in reasons if reason in _FLOWS), None)
            self._told[resource] = (claim.token, told)
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
