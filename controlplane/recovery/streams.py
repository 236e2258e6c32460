"""The loop that keeps continuous logs flowing: one instance streams each, as long as it holds the claim."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import RecoverySpec, WalMode
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.recovery.workshop import Workshop
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "log-streams"

_LEASE: Final = timedelta(seconds=15)
"""A stream that is not asked for again for so long ends: another instance has the claim, and the slot is for one."""


class Streams:
    """Writes events alone."""

    name: Final = LOOP

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._flowed: dict[str, bool] = {}
        """As told last. Forgotten by a restart: then the first state is told again."""

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets if dataset.wal is not WalMode.OFF]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        dataset = self._declared().dataset(resource)
        if dataset is None or dataset.wal is WalMode.OFF:
            return TickReport(sentence="no longer declared")
        state = await self._workshop.stream(dataset, until=self._clock.now() + _LEASE)
        turned = state.running is not None and self._flowed.get(resource) is not state.running
        if turned and state.running is not None:
            await self._tell(
                resource, claim, Reason.LOG_STREAMING if state.running else Reason.LOG_STALLED, state.sentence
            )
            self._flowed[resource] = state.running
        return TickReport(sentence=state.sentence, changed=turned)

    async def _tell(self, dataset: str, claim: Claim, reason: Reason, sentence: str) -> None:
        event = NewEvent(
            at=self._clock.now(), kind=EventKind.RECOVERY, subject=dataset, reason=reason, sentence=sentence
        )
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.append_events([event])
