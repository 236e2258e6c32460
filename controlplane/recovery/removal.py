"""May one recovery point be deleted because a person says so? Also one that nobody can read any more."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec
from controlplane.domain.recovery import Inventory, Override, RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.gate import Permission
from controlplane.recovery.lineage import Lineage
from controlplane.recovery.phrases import count_of, listed, moment
from controlplane.recovery.ports import manifest_key
from controlplane.recovery.retention import Keep, KeepCause, RetentionPlan, plan_retention
from controlplane.recovery.rpo import SKEW_MAX
from controlplane.recovery.workshop import PointContents

_OVERRIDE: Final = '`quarterdeck recovery override retention --reason "..."` lets it go all the same'


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalSituation:
    """All that the question needs."""

    dataset: DatasetSpec
    bucket: BucketSpec
    inventory: Inventory
    point: PointId
    contents: PointContents
    in_use: frozenset[PointId]
    """As for retention."""
    writing: frozenset[PointId]
    """Points that copies under way write now."""
    permission: Permission
    """To delete copies of this dataset, as the loop of retention has to ask for it."""
    override: Override | None
    """Of retention, in force now."""
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalPlan:
    situation: RemovalSituation
    row: RecoveryPoint | None
    """None: no list of recovery points has it, e.g. because its name is none of ours."""
    dependants: tuple[PointId, ...]
    """What builds on it, oldest first."""
    refusals: tuple[str, ...]
    """Nothing lets it go while one of these holds."""
    objections: tuple[str, ...]
    """An override lets it go in spite of these."""

    @property
    def allowed(self) -> bool:
        return not self.refusals and (not self.objections or self.situation.override is not None)

    @property
    def why_not(self) -> str:
        """Of one that is not allowed."""
        last = () if self.refusals or not self.objections else (_OVERRIDE,)
        return "; ".join((*self.refusals, *self.objections, *last))

    @property
    def state(self) -> str:
        contents = self.situation.contents
        if contents.manifest_problem:
            return f"unreadable: {contents.manifest_problem}"
        if self.row is not None and self.row.problems:
            return f"damaged: {self.row.problems[0]}"
        return "readable, and whole as far as a look can tell"

    @property
    def size(self) -> str:
        contents = self.situation.contents
        return f"{count_of(contents.objects, 'object')}, {format_bytes(contents.stored_bytes)}"

    def done_sentence(self, by: str, reason: str) -> str:
        point, override = self.situation.point, self.situation.override
        over = (
            f", over {count_of(len(self.objections), 'objection')}" if override is not None and self.objections else ""
        )
        return f"{point} deleted by {by}{over}: {reason} (it was {self.state}; {self.size})"


def plan_removal(situation: RemovalSituation) -> RemovalPlan:
    lineage = Lineage(situation.inventory.points)
    row = lineage.by_id.get(situation.point)
    dependants = tuple(
        point for point in lineage.points if any(link.point == situation.point for link in lineage.ancestors(point))
    )
    # Unread on purpose: what hides elsewhere holds the rules' own deletions, and not one that a person judged.
    retention = plan_retention(
        situation.inventory.points, situation.dataset.retention, situation.now, in_use=situation.in_use
    )
    usable = [point.point for point in dependants if point.point in lineage.usable_ids]
    return RemovalPlan(
        situation=situation,
        row=row,
        dependants=tuple(point.point for point in dependants),
        refusals=tuple(dict.fromkeys(_refusals(situation, retention, usable))),
        objections=tuple(dict.fromkeys(_objections(situation, retention))),
    )


def _refusals(situation: RemovalSituation, retention: RetentionPlan, usable: list[PointId]) -> Iterator[str]:
    contents, point = situation.contents, situation.point
    if situation.inventory.problem:
        yield f"{situation.bucket.name} could not be read lately ({situation.inventory.problem}); try again when it can"
    if point in situation.writing:
        yield "it is being written; wait for its end (`quarterdeck backup runs`)"
    if point in situation.in_use:
        yield "a drill restores it, or a copy builds on it; wait for its end (`quarterdeck drill list`, `backup runs`)"
    if contents.locked_until is not None and contents.locked_until > situation.now:
        yield f"it is locked in the bucket until {moment(contents.locked_until)}, and nothing deletes it before"
    if usable:
        yield f"it is a link of the chain of {listed(usable)}, which can be restored; delete what builds on it first"
    kept = retention.keeping(point)
    reasons = {} if kept is None else {keep.cause: keep for keep in kept.reasons}
    row = situation.inventory.find(point)
    if KeepCause.NEWEST_USABLE in reasons or (row is not None and row.consistent_at > situation.now + SKEW_MAX):
        # Said once; and of a name that is ahead of the clock: no copy would ever be newer, and this one stay for good.
        reasons.pop(KeepCause.NEWEST, None)
    for keep in reasons.values():
        yield from _standing_out(situation, keep)


def _standing_out(situation: RemovalSituation, keep: Keep) -> Iterator[str]:
    dataset = situation.dataset.name
    match keep.cause:
        case KeepCause.NEWEST | KeepCause.NEWEST_USABLE:
            yield f"{keep.sentence}; `quarterdeck backup now {dataset}` makes a newer one, then it may go"
        case KeepCause.NEWEST_DRILLED:
            yield f"{keep.sentence}; `quarterdeck drill run {dataset}` proves a newer one, then it may go"
        case KeepCause.LOCKED:
            assert keep.until is not None, "a lock ends"
            yield f"it is locked in the bucket until {moment(keep.until)}, and nothing deletes it before"
        case _:
            return


def _objections(situation: RemovalSituation, retention: RetentionPlan) -> Iterator[str]:
    yield from situation.permission.reasons
    if situation.contents.sound_version is not None:
        key = manifest_key(situation.dataset.name, situation.point)
        yield (
            f"a version of its manifest below can be read ({situation.contents.sound_version or 'unnamed'}): delete "
            f"what lies above it in {situation.bucket.bucket}, {situation.bucket.prefix}{key}, to have the copy back"
        )
    unreadable = bool(situation.contents.manifest_problem)
    kept = retention.keeping(situation.point)
    for keep in () if kept is None else kept.reasons:
        match keep.cause:
            case KeepCause.RULE:
                yield f"retention promises it: {keep.sentence}"
            case KeepCause.NOTHING_BETTER | KeepCause.YOUNG if not unreadable:
                # Parts of it may still be had by hand; of one without a manifest nothing can.
                yield keep.sentence
            case KeepCause.HELD:
                yield from retention.held
            case _:
                pass
