"""The loop that deletes what no rule keeps: first a plan, then, a look later and if it still holds, the deletion."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec, RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Inventory, RiskyAction
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.retention import RetentionPlan, plan_retention
from controlplane.recovery.standing import permission_now
from controlplane.recovery.workshop import Workshop
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "retention"

DELETIONS_MAX: Final = 20
"""Of one tick: a rule shortened by mistake is noticed in the events before everything is gone."""


class Pruner:
    """Deletes recovery points in buckets."""

    name: Final = LOOP

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._planned: dict[tuple[str, str], frozenset[PointId]] = {}
        """By the look before this one. Only what was to go then as well goes."""

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        declared = self._declared()
        dataset = declared.dataset(resource)
        if dataset is None:
            return TickReport(sentence="no longer declared")
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            inventories = [one for one in await tx.inventories() if one.dataset == resource]
            in_use = await points_in_use(tx, resource)
            allowed = await permission_now(tx, declared, RiskyAction.RETENTION, self._clock.now(), only=resource)
        told: list[str] = []
        for inventory in inventories:
            plan = plan_retention(
                inventory.points, dataset.retention, self._clock.now(), in_use=in_use, unread=inventory.unread
            )
            told += await self._carry_out(dataset, inventory, plan, claim, allowed=allowed.allowed)
        if told:
            return TickReport(sentence="; ".join(told), changed=True)
        if not allowed.allowed:
            return TickReport(sentence=f"nothing is deleted while {allowed.reasons[0]}")
        return TickReport(sentence="every recovery point is kept by a rule")

    async def _carry_out(
        self, dataset: DatasetSpec, inventory: Inventory, plan: RetentionPlan, claim: Claim, *, allowed: bool
    ) -> list[str]:
        place = (inventory.dataset, inventory.bucket)
        wanted = {deletion.point.point: deletion.sentence for deletion in plan.deletions}
        before = self._planned.get(place, frozenset())
        self._planned[place] = frozenset(wanted)
        bucket = self._declared().bucket(inventory.bucket)
        if bucket is None or inventory.problem or not allowed:
            return []
        told: list[str] = []
        for point, sentence in [(point, why) for point, why in wanted.items() if point in before][:DELETIONS_MAX]:
            try:
                await self._workshop.remove(dataset, bucket, point)
            except ConflictError as error:
                sentence = f"{point} stays: {error}"  # noqa: PLW2901 - the same sentence, with another end
                told.append(sentence)
                continue
            told.append(sentence)
            await self._tell(claim, dataset, sentence, point)
        return told

    async def _tell(self, claim: Claim, dataset: DatasetSpec, sentence: str, point: PointId) -> None:
        event = NewEvent(
            at=self._clock.now(),
            kind=EventKind.RECOVERY,
            subject=dataset.name,
            reason=Reason.POINT_DELETED,
            sentence=sentence,
        )
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.append_events([event])
            # Not offered any more, even before the next look into the bucket.
            for inventory in await tx.inventories():
                if inventory.dataset == dataset.name and any(one.point == point for one in inventory.points):
                    left = tuple(one for one in inventory.points if one.point != point)
                    await tx.put_inventory(replace(inventory, points=left))


async def points_in_use(tx: Transaction, dataset: str) -> frozenset[PointId]:
    """What a drill restores now, and what a copy under way builds on: the newest one when it began."""
    drilled = {drill.point for drill in await tx.drills(DatasetName(dataset)) if not drill.ended}
    copying = {run.parent for run in await tx.backup_runs(DatasetName(dataset)) if not run.ended}
    return frozenset(point for point in drilled | copying if point is not None)


LOOK_EVERY: Final = timedelta(minutes=10)
