"""The loop that deletes what no rule keeps: first a plan, then, a look later and if it still holds, the deletion.

Before that it lengthens the locks of what rules promise to keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec, LockMode, RecoverySpec
from controlplane.domain.recovery import Inventory, RiskyAction
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import PointId
from controlplane.recovery.deletions import Deletions, Stays, points_in_use
from controlplane.recovery.gate import Permission
from controlplane.recovery.lineage import Lineage
from controlplane.recovery.locks import plan_locks
from controlplane.recovery.phrases import count_of
from controlplane.recovery.retention import RetentionPlan, log_needed_since, plan_retention
from controlplane.recovery.standing import permission_now
from controlplane.recovery.streams import streams_log
from controlplane.recovery.workshop import Workshop
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "retention"

DELETIONS_MAX: Final = 20
"""Of one tick: a rule shortened by mistake is noticed in the events before everything is gone."""
LOCKS_MAX: Final = 20
"""Of one tick and bucket: each is some requests for every pack of the point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One dataset in one of its buckets."""

    dataset: DatasetSpec
    bucket: BucketSpec
    inventory: Inventory


class Pruner:
    """Locks recovery points for longer, and deletes them."""

    name: Final = LOOP

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._deletions = Deletions(store=store, workshop=workshop, clock=clock)
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
        held: list[str] = []
        planned = 0
        for inventory in inventories:
            bucket = declared.bucket(inventory.bucket)
            if bucket is None:
                continue
            plan = plan_retention(
                inventory.points, dataset.retention, self._clock.now(), in_use=in_use, unread=inventory.unread
            )
            place = _Place(dataset=dataset, bucket=bucket, inventory=inventory)
            told += await self._lengthen(place, plan)
            told += await self._delete(place, plan, claim, allowed=allowed.allowed)
            if allowed.allowed and not in_use:
                told += await self._trim_log(place, plan)
            planned += len(plan.deletions)
            held += [f"{inventory.bucket}: {why}" for why in plan.held if inventory.unread]
        if told:
            return TickReport(sentence="; ".join(told), changed=True)
        return TickReport(sentence=_quiet_sentence(allowed, held, planned))

    async def _lengthen(self, place: _Place, plan: RetentionPlan) -> list[str]:
        """Before anything is deleted, and whatever the gate says: a longer lock loses nothing."""
        if place.bucket.lock is LockMode.NONE or place.inventory.problem:
            return []
        extensions = plan_locks(plan, place.dataset.retention, self._clock.now())[:LOCKS_MAX]
        for extension in extensions:
            await self._workshop.lengthen(place.dataset, place.bucket, extension)
        return [extension.sentence for extension in extensions]

    async def _delete(self, place: _Place, plan: RetentionPlan, claim: Claim, *, allowed: bool) -> list[str]:
        """Children come before their parents. One that its bucket does not give up keeps those that it needs."""
        key = (place.dataset.name, place.bucket.name)
        before = self._planned.get(key, frozenset())
        self._planned[key] = frozenset(deletion.point.point for deletion in plan.deletions)
        if not allowed:
            return []
        lineage = Lineage(place.inventory.points)
        needed: set[PointId] = set()
        told: list[str] = []
        for deletion in [one for one in plan.deletions if one.point.point in before][:DELETIONS_MAX]:
            point = deletion.point
            stays: Stays | None = Stays(why="")
            if point.point not in needed:
                stays = await self._deletions.delete(
                    place.dataset, place.bucket, point.point, deletion.sentence, claim=claim
                )
            if stays is None:
                told.append(deletion.sentence)
                continue
            needed.update(link.point for link in lineage.ancestors(point))
            told += [f"{point.point} stays: {stays.why}"] if stays.why else []
        return told

    async def _trim_log(self, place: _Place, plan: RetentionPlan) -> list[str]:
        """By the copies in that bucket: each has the log for its own."""
        since = log_needed_since(plan, place.dataset.retention)
        if not streams_log(place.dataset) or since is None:
            return []
        gone = await self._workshop.trim_log(place.dataset, place.bucket, since=since)
        return [f"{place.bucket.name}: {count_of(gone, 'object')} of log that no copy needs deleted"] if gone else []


def _quiet_sentence(allowed: Permission, held: Sequence[str], planned: int) -> str:
    """Of a look after which nothing was deleted."""
    if not allowed.allowed:
        return f"nothing is deleted while {allowed.reasons[0]}"
    if held:
        return f"nothing is deleted: {'; '.join(held)}"
    if planned:
        return f"{count_of(planned, 'recovery point')} to go, if the next look says so too"
    return "every recovery point is kept by a rule"


LOOK_EVERY: Final = timedelta(minutes=10)
