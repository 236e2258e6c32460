"""How a recovery point goes, whoever wants it gone: marked, so that no drill chooses it; taken away; told."""

from dataclasses import dataclass, replace
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.standing import inventory_in
from controlplane.recovery.workshop import Workshop

GOING: Final = "it is being deleted now"
"""The problem of a recovery point while it is deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stays:
    """A recovery point that could not be deleted."""

    why: str
    """Empty: a drill or a copy that began meanwhile needs it."""


class Deletions:
    """Decides nothing: what may go was judged before, by `retention` or by `removal`."""

    def __init__(self, *, store: Store, workshop: Workshop, clock: Clock) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock

    async def delete(
        self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId, sentence: str, *, claim: Claim | None
    ) -> Stays | None:
        """None: it is gone. Killed anywhere, the same again goes on: without its manifest it is no copy any more.

        `claim`: of the loop that does it; None: a person does, which is told in any case.
        """
        if not await self._mark(dataset, bucket, point, claim):
            return Stays(why="")
        try:
            await self._workshop.remove(dataset, bucket, point)
        except ConflictError as error:
            return Stays(why=str(error))
        await self._tell(dataset, bucket, point, sentence, claim)
        return None

    async def _mark(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId, claim: Claim | None) -> bool:
        """From this commit on no drill chooses it. False: one that has begun does, or a copy builds on it."""
        async with self._store.transaction() as tx:
            await _still(tx, claim)
            row = inventory_in(await tx.inventories(), dataset, bucket.name)
            if row is None or point in await points_in_use(tx, dataset.name):
                return False
            points = (replace(one, problems=(GOING,)) if one.point == point else one for one in row.points)
            await tx.put_inventory(replace(row, points=tuple(points)))
        return True

    async def _tell(
        self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId, sentence: str, claim: Claim | None
    ) -> None:
        event = NewEvent(
            at=self._clock.now(),
            kind=EventKind.RECOVERY,
            subject=dataset.name,
            reason=Reason.POINT_DELETED,
            sentence=f"{bucket.name}: {sentence}",
        )
        async with self._store.transaction() as tx:
            await _still(tx, claim)
            row = inventory_in(await tx.inventories(), dataset, bucket.name)
            listed = row is not None and row.find(point) is not None
            if not listed and claim is not None:
                return  # A look into the bucket came first, and told that it is gone.
            await tx.append_events([event])
            if row is not None and listed:
                await tx.put_inventory(replace(row, points=tuple(one for one in row.points if one.point != point)))


async def _still(tx: Transaction, claim: Claim | None) -> None:
    if claim is not None:
        await tx.require_claim(claim.resource, claim.token)


async def points_in_use(tx: Transaction, dataset: str) -> frozenset[PointId]:
    """What a drill restores now, and what a copy under way builds on: the newest one when it began."""
    drilled = {drill.point for drill in await tx.drills(DatasetName(dataset)) if not drill.ended}
    copying = {run.parent for run in await tx.backup_runs(DatasetName(dataset)) if not run.ended}
    return frozenset(point for point in drilled | copying if point is not None)
