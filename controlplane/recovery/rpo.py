"""The recovery-point age: what would be lost if the source were gone now, by what is in the store and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never

from controlplane.domain.dataset import DatasetSpec, WalMode
from controlplane.domain.recovery import LogCoverage, RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.lineage import Lineage, lineage_of
from controlplane.recovery.phrases import moment, span

SKEW_MAX: Final = timedelta(minutes=1)
"""A copy whose moment is further in the future than this was dated by a wrong clock: it counts nothing."""
STALE_SHARE: Final = 0.25
STALE_MIN: Final = timedelta(seconds=30)
STALE_MAX: Final = timedelta(minutes=15)
"""What was seen in the bucket counts for a quarter of the RPO, within these bounds; later nobody knows."""
EXTRA_BACKUP_FROM: Final = timedelta(minutes=1)
"""Younger, an extra snapshot helps nobody: it takes longer than the log needs to catch up."""


class RpoState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BREACHED = "breached"
    UNKNOWN = "unknown"
    """The bucket was not seen, or not lately: not green."""
    NEVER = "never"
    """The bucket was seen, and nothing in it can be restored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpoVerdict:
    dataset: DatasetName
    bucket: BucketName
    state: RpoState
    rpo: timedelta
    judged_at: datetime
    covered_at: datetime | None
    """The newest moment that surely can be restored; None: none."""
    base: PointId | None
    """The recovery point that a restore would begin with."""
    by_log: bool
    """The log reaches further than the base alone."""
    sentence: str
    wants_backup: bool
    """An extra snapshot would lower the age."""
    notes: tuple[str, ...] = ()
    """What did not count, and why."""

    @property
    def age(self) -> timedelta | None:
        """When it was judged. With the state UNKNOWN this is the most it can be."""
        return self.age_at(self.judged_at)

    def age_at(self, now: datetime) -> timedelta | None:
        return None if self.covered_at is None else max(timedelta(), now - self.covered_at)

    @property
    def share(self) -> float | None:
        """Of the RPO; above 1 it is breached."""
        return None if self.age is None else self.age / self.rpo


class RpoTurn(StrEnum):
    """What is worth an event."""

    WARNED = "warned"
    BREACHED = "breached"
    LOST_SIGHT = "lost sight"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpoChange:
    turn: RpoTurn
    before: RpoState | None
    after: RpoState
    sentence: str


def judge_rpo(
    spec: DatasetSpec,
    points: Sequence[RecoveryPoint],
    coverage: LogCoverage | None,
    now: datetime,
    observed_at: datetime | None,
    *,
    bucket: BucketName | None = None,
    stale_after: timedelta | None = None,
) -> RpoVerdict:
    """`points` and `coverage` as seen in the bucket (the dataset's first, where none is named) at `observed_at`.

    None for that: it was never read, or the last reading failed. The log counts only from a usable copy on and without
    gaps; `coverage` is to be computed from the newest usable copy on, so that a gap before it does not count.
    """
    place = spec.buckets[0] if bucket is None else bucket
    seen = _seen(lineage_of(points, spec.name, place), spec, coverage, now)
    state, sentence = _judge(spec, seen, now, observed_at, stale_after or _stale_after(spec.rpo))
    age = None if seen.covered_at is None else now - seen.covered_at
    return RpoVerdict(
        dataset=spec.name,
        bucket=place,
        state=state,
        rpo=spec.rpo,
        judged_at=now,
        covered_at=seen.covered_at,
        base=None if seen.base is None else seen.base.point,
        by_log=seen.by_log,
        sentence=f"{spec.name}: {sentence}",
        wants_backup=_wants_backup(state, age),
        notes=seen.notes,
    )


def turn_of(before: RpoState | None, verdict: RpoVerdict) -> RpoChange | None:
    """The event for a change of state; None: nothing to tell, as of a first verdict that is ok or without any copy."""
    after = verdict.state
    if before is after or (before is None and after in {RpoState.OK, RpoState.NEVER}):
        return None
    return RpoChange(turn=_TURNS[after], before=before, after=after, sentence=verdict.sentence)


_TURNS: Final[Mapping[RpoState, RpoTurn]] = {
    RpoState.OK: RpoTurn.RECOVERED,
    # Also down from a breach: better, but not yet good.
    RpoState.WARNING: RpoTurn.WARNED,
    RpoState.BREACHED: RpoTurn.BREACHED,
    RpoState.NEVER: RpoTurn.BREACHED,
    RpoState.UNKNOWN: RpoTurn.LOST_SIGHT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    base: RecoveryPoint | None
    covered_at: datetime | None
    by_log: bool
    notes: tuple[str, ...]


def _seen(lineage: Lineage, spec: DatasetSpec, coverage: LogCoverage | None, now: datetime) -> _Seen:
    latest = now + SKEW_MAX
    base = next((point for point in reversed(lineage.usable) if point.consistent_at <= latest), None)
    log_at = _log_reaches(base, coverage, latest)
    covered_at = log_at if log_at is not None else (None if base is None else base.consistent_at)
    notes = tuple(_notes(lineage, spec, base, coverage, latest))
    return _Seen(base=base, covered_at=covered_at, by_log=log_at is not None, notes=notes)


def _log_reaches(base: RecoveryPoint | None, coverage: LogCoverage | None, latest: datetime) -> datetime | None:
    """Further than the base; None: it does not count."""
    if base is None or coverage is None or coverage.gaps:
        return None
    reaches = base.consistent_at < coverage.covered_at <= latest
    return coverage.covered_at if reaches else None


def _notes(
    lineage: Lineage,
    spec: DatasetSpec,
    base: RecoveryPoint | None,
    coverage: LogCoverage | None,
    latest: datetime,
) -> Iterator[str]:
    newest = lineage.newest
    if newest is not None and newest is not base:
        yield f"{newest.point} does not count: {_why_not(lineage, newest, latest)}"
    if coverage is None:
        if spec.wal is not WalMode.OFF:
            yield "no log was seen in the bucket"
    elif coverage.gaps:
        yield f"the log does not count beyond the copy: {coverage.gaps[0]} is missing"
    elif base is None:
        yield "the log counts nothing without a copy to begin with"
    elif coverage.covered_at > latest:
        yield f"the log says it reaches {moment(coverage.covered_at)}, in the future: the source's clock is wrong"


def _why_not(lineage: Lineage, point: RecoveryPoint, latest: datetime) -> str:
    if point.problems:
        return point.problems[0]
    if point.point not in lineage.usable_ids:
        return f"{point.parent} or a link before it is damaged or not there"
    return f"it is dated {moment(point.consistent_at)}, after {moment(latest)}: a clock is wrong"


def _judge(
    spec: DatasetSpec, seen: _Seen, now: datetime, observed_at: datetime | None, stale_after: timedelta
) -> tuple[RpoState, str]:
    if observed_at is None:
        return RpoState.UNKNOWN, "the bucket could not be read, so nobody knows what could be restored"
    if now - observed_at > stale_after:
        last = "" if seen.covered_at is None else f"; then it held everything up to {moment(seen.covered_at)}"
        return RpoState.UNKNOWN, f"the bucket was last read {span(now - observed_at)} ago{last}"
    if seen.covered_at is None:
        return RpoState.NEVER, "nothing in the bucket can be restored; take a backup"
    age = max(timedelta(), now - seen.covered_at)
    means = "by the log" if seen.by_log else "by the newest copy"
    numbers = f"{span(age)} would be lost {means}, {age / spec.rpo:.0%} of the RPO of {span(spec.rpo)}"
    if age > spec.rpo:
        return RpoState.BREACHED, f"RPO blown: {numbers}"
    if age >= spec.rpo * spec.warn_at:
        return RpoState.WARNING, f"{numbers}; the warning is at {spec.warn_at:.0%}"
    return RpoState.OK, numbers


def _wants_backup(state: RpoState, age: timedelta | None) -> bool:
    match state:
        case RpoState.NEVER:
            return True
        case RpoState.WARNING | RpoState.BREACHED:
            return age is not None and age >= EXTRA_BACKUP_FROM
        case RpoState.OK | RpoState.UNKNOWN:
            return False
        case _ as unknown:
            assert_never(unknown)


def _stale_after(rpo: timedelta) -> timedelta:
    return min(max(rpo * STALE_SHARE, STALE_MIN), STALE_MAX)
