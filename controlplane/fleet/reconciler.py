"""The fleet loop: reads rows and readings, writes what the verdict says."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final, assert_never

from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.ports import Telemetry
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.fleet.verdict import Delete, FleetLimits, FleetPlan, Step, Turn, plan_fleet
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, NotFoundError
from controlplane.runtime.reconciler import TickReport

_SITE: Final = "site"


class FleetReconciler:
    """Implements Reconciler over the whole site."""

    name = "fleet"

    def __init__(self, *, store: Store, telemetry: Telemetry, clock: Clock, limits: FleetLimits | None = None) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits or FleetLimits()
        self._watching_since = clock.now()

    async def resources(self) -> Sequence[str]:
        return [_SITE]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        assert resource == _SITE, f"the fleet loop works on {_SITE}, not on {resource}"
        plan = await self._plan()
        if plan.seen or plan.steps:
            await self._apply(plan, claim)
        told = [step.sentence for step in plan.steps] + [plan.blind] * bool(plan.blind)
        return TickReport(sentence="; ".join(told) or "every node is as it was", changed=bool(plan.steps))

    async def _plan(self) -> FleetPlan:
        readings = self._telemetry.snapshot().nodes
        async with self._store.transaction() as tx:
            nodes = await tx.nodes()
            replicas = await tx.replicas()
        return plan_fleet(
            nodes,
            readings,
            Counter(replica.node for replica in replicas),
            now=self._clock.now(),
            watching_since=self._watching_since,
            limits=self._limits,
        )

    async def _apply(self, plan: FleetPlan, claim: Claim) -> None:
        now = self._clock.now()
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            if plan.seen:
                await tx.set_nodes_seen(plan.seen)
            events = [event for step in plan.steps if (event := await _write(tx, step, now)) is not None]
            if events:
                await tx.append_events(events)


async def _write(tx: Transaction, step: Step, now: datetime) -> NewEvent | None:
    """The event that tells of it; None when there is nothing to tell. A row that changed meanwhile is left alone."""
    try:
        match step:
            case Turn(node=node, generation=generation, state=state, reason=reason, sentence=sentence):
                await tx.set_node_state(node, state, sentence, expected_generation=generation)
                return _event(now, node, reason, sentence)
            case Delete(node=node, sentence=sentence):
                # Replicas are placed by another loop: look again under this transaction.
                if any(replica.node == node for replica in await tx.replicas()):
                    return None
                await tx.delete_node(node)
                return _event(now, node, Reason.REMOVED_FROM_SITE, sentence)
            case _:
                assert_never(step)
    except (ConflictError, NotFoundError):
        return None


def _event(now: datetime, node: str, reason: Reason, sentence: str) -> NewEvent:
    return NewEvent(at=now, kind=EventKind.NODE, subject=node, reason=reason, sentence=sentence)
