"""A person deletes a recovery point: looked at first, judged by `removal`, taken away as retention takes its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec, RecoverySpec
from controlplane.domain.recovery import Inventory, RiskyAction
from controlplane.domain.refusals import not_found
from controlplane.domain.store import Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, Problem
from controlplane.kernel.ids import PointId
from controlplane.recovery.deletions import Deletions, points_in_use
from controlplane.recovery.gate import override_in_force
from controlplane.recovery.phrases import listed
from controlplane.recovery.removal import RemovalPlan, RemovalSituation, plan_removal
from controlplane.recovery.standing import permission_now
from controlplane.recovery.workshop import Workshop

_LISTED_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalWish:
    """What a person points at."""

    point: str
    dataset: str | None = None
    """Needed for one that no list of recovery points has."""
    bucket: str | None = None
    """Needed for one that lies in several."""


class Removals:
    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._declared = declared
        self._deletions = Deletions(store=store, workshop=workshop, clock=clock)

    async def plan(self, wish: RemovalWish) -> RemovalPlan:
        """What it is, and what speaks against deleting it. Deletes nothing.

        NotFoundError: nothing of it lies anywhere. InvalidError: it lies in several buckets, and none was named.
        """
        declared, point = self._declared(), _named(wish.point)
        async with self._store.transaction() as tx:
            inventories = await tx.inventories()
        dataset, bucket, inventory = _place(declared, inventories, wish, point)
        contents = await self._workshop.contents(dataset, bucket, point)
        if not contents.objects:
            raise NotFoundError(
                f"nothing of a recovery point {point} of {dataset.name} lies in {bucket.name}; "
                "`quarterdeck backup list` shows what does"
            )
        now = self._clock.now()
        async with self._store.transaction() as tx:
            return plan_removal(
                RemovalSituation(
                    dataset=dataset,
                    bucket=bucket,
                    inventory=inventory,
                    point=point,
                    contents=contents,
                    in_use=await points_in_use(tx, dataset.name),
                    writing=frozenset(
                        run.point for run in await tx.backup_runs(dataset.name) if run.point and not run.ended
                    ),
                    permission=await permission_now(tx, declared, RiskyAction.RETENTION, now, only=dataset.name),
                    override=override_in_force(RiskyAction.RETENTION, await tx.overrides(now=now), now),
                    now=now,
                )
            )

    async def remove(self, wish: RemovalWish, *, by: str, reason: str) -> RemovalPlan:
        """Judged anew, and gone when this returns. ConflictError with every reason when it may not go.

        Killed anywhere, the same again goes on.
        """
        plan = await self.plan(wish)
        situation = plan.situation
        if not plan.allowed:
            raise ConflictError(f"{situation.point} stays in {situation.bucket.name}: {plan.why_not}")
        sentence = plan.done_sentence(by, reason)
        stays = await self._deletions.delete(situation.dataset, situation.bucket, situation.point, sentence, claim=None)
        if stays is not None:
            why = stays.why or "a drill or a copy that began meanwhile needs it; wait for its end"
            raise ConflictError(f"{situation.point} stays in {situation.bucket.name}: {why}")
        return plan


def _named(point: str) -> PointId:
    if not point or "/" in point:
        raise InvalidError(
            [Problem(field="point", found=repr(point), expected="a recovery point's name, without a slash")]
        )
    return PointId(point)


def _place(
    declared: RecoverySpec, inventories: Sequence[Inventory], wish: RemovalWish, point: PointId
) -> tuple[DatasetSpec, BucketSpec, Inventory]:
    """The one dataset and bucket that is meant."""
    if wish.dataset is not None and declared.dataset(wish.dataset) is None:
        raise not_found("dataset", wish.dataset, [one.name for one in declared.datasets])
    if wish.bucket is not None and declared.bucket(wish.bucket) is None:
        raise not_found("bucket", wish.bucket, [one.name for one in declared.buckets])
    asked = [
        one
        for one in inventories
        if wish.dataset in (None, one.dataset) and wish.bucket in (None, one.bucket) and _declares(declared, one)
    ]
    found = [one for one in asked if one.find(point) is not None]
    if not found and wish.dataset is not None:
        found = asked  # Not in any list: the bucket itself is asked.
    if not found:
        known = [row.point for one in asked for row in one.points]
        error = not_found("recovery point", point, known[-_LISTED_MAX:])
        raise NotFoundError(f"{error}; add --dataset NAME for one that no list shows")
    if len(found) > 1:
        places = [f"{one.dataset} in {one.bucket}" for one in found]
        raise InvalidError(
            [
                Problem(
                    field="--bucket",
                    found=f"{point} in {len(found)} places: {listed(places, most=_LISTED_MAX)}",
                    expected="one of them, by --dataset and --bucket",
                )
            ]
        )
    (one,) = found
    dataset, bucket = declared.dataset(one.dataset), declared.bucket(one.bucket)
    assert dataset is not None, "of what is declared"
    assert bucket is not None, "of what is declared"
    return dataset, bucket, one


def _declares(declared: RecoverySpec, inventory: Inventory) -> bool:
    return declared.dataset(inventory.dataset) is not None and declared.bucket(inventory.bucket) is not None
