"""Which recovery point a drill restores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from controlplane.domain.dataset import DrillSelection, RetentionPeriod
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.lineage import BrokenChain, Chain, Lineage, lineage_of
from controlplane.recovery.phrases import count_of, moment

_LONG_TERM = frozenset({RetentionPeriod.QUARTERLY, RetentionPeriod.YEARLY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    chain: Chain
    sentence: str

    @property
    def point(self) -> RecoveryPoint:
        return self.chain.point


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneQualifies:
    sentence: str


def select_point(
    selection: DrillSelection,
    points: Sequence[RecoveryPoint],
    dataset: DatasetName,
    bucket: BucketName,
    *,
    draw: float = 0.0,
    wanted: PointId | None = None,
) -> Selected | NoneQualifies:
    """Of the usable points of a dataset in a bucket.

    `draw` is a random number from 0 to 1, for RANDOM. `wanted`: the one that a person named, in place of any selection.
    """
    assert 0.0 <= draw <= 1.0, "a draw is from 0 to 1"
    lineage = lineage_of(points, dataset, bucket)
    if wanted is not None:
        return _named(lineage, wanted, bucket)
    usable = lineage.usable
    if not usable:
        return NoneQualifies(sentence=f"{dataset} in {bucket}: {_why_none(lineage.points)}")
    found = _pick(selection, usable, draw)
    if found is None:
        none = f"none of {count_of(len(usable), 'usable recovery point')} is kept by a quarterly or yearly rule"
        return NoneQualifies(sentence=f"{dataset} in {bucket}: {none}")
    point, why = found
    chain = lineage.chain(point)
    assert not isinstance(chain, BrokenChain), "a usable point has a whole chain"
    return Selected(chain=chain, sentence=f"{point.point} of {moment(point.consistent_at)}, {why}")


def _pick(selection: DrillSelection, usable: Sequence[RecoveryPoint], draw: float) -> tuple[RecoveryPoint, str] | None:
    match selection:
        case DrillSelection.LATEST:
            return usable[-1], "the newest"
        case DrillSelection.OLDEST:
            return usable[0], "the oldest"
        case DrillSelection.RANDOM:
            return usable[min(int(draw * len(usable)), len(usable) - 1)], f"drawn from {len(usable)}"
        case DrillSelection.QUARTERLY:
            archived = next(_archived(usable), None)
            return None if archived is None else (archived, "the newest of the long term")
        case _ as unknown:
            assert_never(unknown)


def _named(lineage: Lineage, wanted: PointId, bucket: BucketName) -> Selected | NoneQualifies:
    point = lineage.by_id.get(wanted)
    if point is None:
        return NoneQualifies(sentence=f"{wanted} is not in {bucket}; `quarterdeck backup list` shows what is")
    chain = lineage.chain(point)
    if isinstance(chain, BrokenChain):
        return NoneQualifies(sentence=chain.problem)
    return Selected(chain=chain, sentence=f"{wanted} of {moment(point.consistent_at)}, by name")


def _archived(usable: Sequence[RecoveryPoint]) -> Iterator[RecoveryPoint]:
    """Kept for the long term, newest first: those that no finer rule keeps before those that one does."""
    kept = [point for point in reversed(usable) if _LONG_TERM.intersection(point.kept_by)]
    yield from (point for point in kept if _LONG_TERM.issuperset(point.kept_by))
    yield from kept


def _why_none(points: Sequence[RecoveryPoint]) -> str:
    if not points:
        return "there is no recovery point yet"
    newest = points[-1]
    reason = newest.problems[0] if newest.problems else f"{newest.parent}, which it needs, is damaged or not there"
    return f"none of {count_of(len(points), 'recovery point')} is usable; the newest is {newest.point}: {reason}"
