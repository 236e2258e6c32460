"""The loop that looks into the buckets: what lies there is the truth about recovery points and their age."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec, RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Drill, DrillPhase, Inventory
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import BucketName, PointId
from controlplane.recovery.phrases import listed
from controlplane.recovery.proofs import proofs_in
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.rpo import RpoState, RpoTurn, RpoVerdict, turn_of
from controlplane.recovery.standing import DRILLS_READ, judge_inventory
from controlplane.recovery.workshop import Workshop
from controlplane.runtime.hints import Hints
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "recovery-points"

_LOOKS_PER_RPO: Final = 20
"""So often within the time that may be lost: the age is known to a twentieth of what matters."""
_LOOK_MIN: Final = timedelta(seconds=2)
"""A look costs some requests to the store, which bills each."""
_LOOK_MAX: Final = timedelta(seconds=60)

_PROBLEMS_TOLD: Final = 3
"""Of one recovery point, in an event; `backup show` has all."""
_TOLD: Final[Mapping[RpoTurn, Reason]] = {
    RpoTurn.RECOVERED: Reason.RPO_MET,
    RpoTurn.WARNED: Reason.RPO_AT_RISK,
    RpoTurn.BREACHED: Reason.RPO_BREACHED,
    RpoTurn.LOST_SIGHT: Reason.RPO_UNKNOWN,
}


def look_every(dataset: DatasetSpec) -> timedelta:
    return min(max(dataset.rpo / _LOOKS_PER_RPO, _LOOK_MIN), _LOOK_MAX)


class Surveyor:
    """Writes inventories and nothing else."""

    name: Final = LOOP

    def __init__(
        self, *, store: Store, workshop: Workshop, clock: Clock, hints: Hints, declared: Callable[[], RecoverySpec]
    ) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._hints = hints
        self._declared = declared

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        declared = self._declared()
        dataset = declared.dataset(resource)
        if dataset is None:
            return TickReport(sentence="no longer declared")
        async with self._store.transaction() as tx:
            known = _of(dataset, await tx.inventories())
            drills = await tx.drills(dataset.name, limit=DRILLS_READ)
        seen: list[Inventory] = []
        for bucket in (found for name in dataset.buckets if (found := declared.bucket(name)) is not None):
            proofs = proofs_in(bucket.name, dataset, declared.drills, drills)
            looked = await self._look(dataset, bucket, known.get(bucket.name), proofs)
            seen.append(annotated(looked, dataset, drills))
        verdict = judge_inventory(dataset, seen[0], self._clock.now())
        seen[0] = replace(seen[0], rpo_state=verdict.state)
        events = await self._apply(claim, dataset, seen, known, verdict)
        if events:
            self._hints.hint("backups")
        return TickReport(sentence=verdict.sentence, changed=bool(events), again_after=look_every(dataset))

    async def _look(
        self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None, proofs: Sequence[Drill]
    ) -> Inventory:
        seen = await self._workshop.survey(dataset, bucket, before, proofs=proofs)
        since = before.since if before is not None and before.since is not None else seen.observed_at
        return replace(seen, since=since)

    async def _apply(
        self,
        claim: Claim,
        dataset: DatasetSpec,
        seen: Sequence[Inventory],
        before: Mapping[BucketName, Inventory],
        verdict: RpoVerdict,
    ) -> Sequence[NewEvent]:
        """Told is what differs from the rows as they are now: the pruner may have deleted while this one looked."""
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            known = _of(dataset, await tx.inventories())
            rows = [_without_deleted(one, before.get(one.bucket), known.get(one.bucket)) for one in seen]
            events = [*self._turned(dataset, known.get(seen[0].bucket), verdict)]
            for one in rows:
                told = known.get(one.bucket)
                events += [*self._damaged(told, one), *self._vanished(told, one)]
                events += [*self._proven(told, one), *self._restored(told, one)]
                await tx.put_inventory(one)
            for bucket in known.keys() - {one.bucket for one in seen}:
                await tx.delete_inventory(dataset.name, bucket)
            if events:
                await tx.append_events(events)
        return events

    def _turned(self, dataset: DatasetSpec, before: Inventory | None, verdict: RpoVerdict) -> Iterator[NewEvent]:
        told = RpoState(before.rpo_state) if before is not None and before.rpo_state else None
        change = turn_of(told, verdict)
        if change is not None:
            yield self._event(dataset.name, _TOLD[change.turn], change.sentence)

    def _damaged(self, before: Inventory | None, seen: Inventory) -> Iterator[NewEvent]:
        told = set() if before is None else {one.point for one in before.points if one.problems}
        for point in seen.points:
            if point.problems and point.point not in told:
                told_problems = "; ".join(point.problems[:_PROBLEMS_TOLD])
                sentence = f"recovery point {point.point} of {point.dataset} in {seen.bucket}: {told_problems}"
                yield self._event(point.dataset, Reason.POINT_DAMAGED, sentence)

    def _vanished(self, before: Inventory | None, seen: Inventory) -> Iterator[NewEvent]:
        """What the pruner deletes it takes out of the row itself."""
        there = {point.point for point in seen.points}
        gone = [point.point for point in before.points if point.point not in there] if before is not None else []
        if gone:
            sentence = f"gone from {seen.bucket}, and no rule of retention told so: {listed(gone)} of {seen.dataset}"
            yield self._event(seen.dataset, Reason.POINT_DAMAGED, sentence)

    def _proven(self, before: Inventory | None, seen: Inventory) -> Iterator[NewEvent]:
        lost = set() if before is None else {one.drill for one in before.evidence if one.problem}
        for one in seen.evidence:
            if one.problem and one.drill not in lost:
                sentence = f"the drill {one.drill} of {seen.dataset} is no longer proven: {one.problem}"
                yield self._event(seen.dataset, Reason.EVIDENCE_LOST, sentence)
            elif one.drill in lost and not one.problem:
                sentence = f"the drill {one.drill} of {seen.dataset} is proven again: {one.key} is there and verifies"
                yield self._event(seen.dataset, Reason.EVIDENCE_FOUND, sentence)

    def _restored(self, before: Inventory | None, seen: Inventory) -> Iterator[NewEvent]:
        """A claim that ran out is no longer in the row, as one that was given back."""
        was = set() if before is None else {one.name for one in before.restoring}
        now = {one.name for one in seen.restoring}
        for name in sorted(now - was):
            sentence = f"{seen.dataset} is being restored from {seen.bucket} ({name})"
            yield self._event(seen.dataset, Reason.RESTORE_STARTED, sentence)
        for name in sorted(was - now):
            sentence = f"{seen.dataset} is no longer being restored from {seen.bucket} ({name})"
            yield self._event(seen.dataset, Reason.RESTORE_ENDED, sentence)

    def _event(self, dataset: str, reason: Reason, sentence: str) -> NewEvent:
        return NewEvent(
            at=self._clock.now(), kind=EventKind.RECOVERY, subject=dataset, reason=reason, sentence=sentence
        )


def _of(dataset: DatasetSpec, inventories: Sequence[Inventory]) -> Mapping[BucketName, Inventory]:
    return {one.bucket: one for one in inventories if one.dataset == dataset.name}


def _without_deleted(seen: Inventory, before: Inventory | None, now: Inventory | None) -> Inventory:
    """Less what was taken out of the row while the bucket was being looked into: the look may have come before that."""
    left = set() if now is None else {point.point for point in now.points}
    deleted = set() if before is None else {point.point for point in before.points} - left
    return replace(seen, points=tuple(point for point in seen.points if point.point not in deleted))


def annotated(inventory: Inventory, dataset: DatasetSpec, drills: Sequence[Drill]) -> Inventory:
    """Each point with the rules that keep it, and when a drill last proved it."""
    kept = {
        one.point.point: one.kept_by
        for one in plan_retention(inventory.points, dataset.retention, inventory.observed_at).kept
    }
    proven: dict[PointId, datetime] = {}
    for drill in drills:
        if drill.phase is DrillPhase.PASSED and drill.bucket == inventory.bucket and drill.point is not None:
            proven[drill.point] = max(drill.phase_since, proven.get(drill.point, drill.phase_since))
    points = tuple(
        replace(point, kept_by=kept.get(point.point, ()), drilled_at=proven.get(point.point))
        for point in inventory.points
    )
    return replace(inventory, points=points)
