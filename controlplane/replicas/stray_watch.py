"""The part of the loop that looks after processes without a row: observe, decide, tell, signal."""

from collections.abc import Mapping
from datetime import datetime

from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.observation import ObservationCache
from controlplane.replicas.ports import Launcher, Unseen
from controlplane.replicas.strays import Suspect, plan_strays
from controlplane.runtime.reconciler import TickReport


class StrayWatch:
    """Remembers since when a process has had no row; a restart begins the grace anew."""

    def __init__(self, *, store: Store, launcher: Launcher, sightings: ObservationCache, clock: Clock) -> None:
        self._store = store
        self._launcher = launcher
        self._sightings = sightings
        self._clock = clock
        self._suspects: Mapping[ReplicaName, Suspect] = {}
        self._acted_at_s = float("-inf")

    async def tick(self, claim: Claim) -> TickReport:
        """StaleClaimError when the claim has passed to another instance: then nothing was signalled."""
        sighting = await self._sightings.observe(not_before_s=self._acted_at_s)
        if isinstance(sighting, Unseen):
            return TickReport(sentence=f"what runs cannot be seen: {sighting.why}")
        async with self._store.transaction() as tx:
            rows = frozenset(replica.name for replica in await tx.replicas())
        now = self._clock.now()
        plan = plan_strays(sighting, rows, self._suspects, now)
        self._suspects = plan.suspects
        if not plan.terminate and not plan.kill:
            return TickReport(sentence=plan.sentence)
        events = [_event(name, "SIGTERM", now) for name in plan.terminate]
        events += [_event(name, "SIGKILL to its group", now) for name in plan.kill]
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.append_events(events)
        for name in plan.terminate:
            await self._launcher.terminate(name)
        for name in plan.kill:
            await self._launcher.kill(name)
        self._acted_at_s = self._clock.monotonic()
        return TickReport(sentence=plan.sentence, changed=True)


def _event(name: ReplicaName, signal: str, now: datetime) -> NewEvent:
    sentence = f"runs with this site's mark but has no row: {signal}"
    return NewEvent(at=now, kind=EventKind.REPLICA, subject=name, reason=Reason.STRAY, sentence=sentence)
