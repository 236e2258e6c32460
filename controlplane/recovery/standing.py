"""How recovery stands now, out of rows: what the loops, the API and the question `may_proceed` all start from."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from controlplane.domain.dataset import DatasetSpec, RecoverySpec
from controlplane.domain.recovery import Drill, Inventory, RiskyAction
from controlplane.domain.store import Transaction
from controlplane.kernel.ids import BucketName
from controlplane.recovery.gate import DatasetSituation, Permission, Situation, may_proceed
from controlplane.recovery.proofs import evidence_lost, evidence_unseen, restores_now
from controlplane.recovery.rates import Rates, learn_rates
from controlplane.recovery.rpo import RpoVerdict, judge_rpo

DRILLS_READ: Final = 500
"""Of one dataset, newest first: more than a year of daily ones. One that is rarer than this many others is due again,
since nobody remembers that it passed."""


def inventory_in(inventories: Sequence[Inventory], dataset: DatasetSpec, bucket: BucketName) -> Inventory | None:
    return next((one for one in inventories if (one.dataset, one.bucket) == (dataset.name, bucket)), None)


def judge_inventory(
    dataset: DatasetSpec, inventory: Inventory | None, now: datetime, *, bucket: BucketName | None = None
) -> RpoVerdict:
    """By what was seen last; a bucket that could not be read then counts as never read.

    `bucket`: of what was not seen yet; None: the dataset's first.
    """
    if inventory is None:
        return judge_rpo(dataset, (), None, now, None, bucket=bucket)
    observed_at = None if inventory.problem else inventory.observed_at
    return judge_rpo(dataset, inventory.points, inventory.coverage, now, observed_at, bucket=inventory.bucket)


def rates_of(dataset: DatasetSpec, drills: Sequence[Drill], inventories: Sequence[Inventory]) -> Rates:
    """Learned from the dataset's own drills."""
    own = [drill for drill in drills if drill.dataset == dataset.name]
    points = {point.point: point for one in inventories if one.dataset == dataset.name for point in one.points}
    return learn_rates(own, list(points.values()))


async def permission_now(
    tx: Transaction, declared: RecoverySpec, action: RiskyAction, now: datetime, *, only: str | None = None
) -> Permission:
    """The question that risky work asks, answered from the rows. `only`: as far as this dataset is concerned."""
    inventories = await tx.inventories()
    datasets = [
        _situation(dataset, declared, inventories, await tx.drills(dataset.name, limit=DRILLS_READ), now)
        for dataset in declared.datasets
        if only is None or dataset.name == only
    ]
    overrides = tuple(await tx.overrides(now=now))
    return may_proceed(action, Situation(now=now, datasets=tuple(datasets), overrides=overrides))


def _situation(
    dataset: DatasetSpec,
    declared: RecoverySpec,
    inventories: Sequence[Inventory],
    drills: Sequence[Drill],
    now: datetime,
) -> DatasetSituation:
    """`drills`: of this dataset."""
    first = inventory_in(inventories, dataset, dataset.buckets[0])
    own = [one for one in inventories if one.dataset == dataset.name]
    return DatasetSituation(
        spec=dataset,
        added_at=first.since if first is not None and first.since is not None else now,
        verdict=judge_inventory(dataset, first, now),
        drills=tuple(drill for drill in declared.drills if drill.dataset == dataset.name),
        history=tuple(drills),
        restoring=tuple(restores_now(own, now)),
        evidence_lost=frozenset(one.drill for one in evidence_lost(own)),
        evidence_unseen=frozenset(one.drill for one in evidence_unseen(own, now)),
    )
