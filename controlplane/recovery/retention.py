"""Which recovery points stay, and why; which go, and in what order. Grandfather, father, son over UTC's calendar.

Ages are counted back from the newest usable recovery point, not from the clock: when backups stop, or a clock jumps
ahead, nothing ages out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from controlplane.domain.dataset import RetentionPeriod, RetentionRule
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.classes import CLASS_FACTS, coldest
from controlplane.recovery.lineage import Lineage
from controlplane.recovery.periods import period_label, period_number
from controlplane.recovery.phrases import count_of, listed, moment, span

YOUNG_FOR: Final = timedelta(hours=24)
"""An incomplete point may be one that is being written, or copied to a further bucket: that takes less than this."""

_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


class KeepCause(StrEnum):
    RULE = "rule"
    """The newest usable point of a period that a rule keeps."""
    NOTHING_BETTER = "nothing better"
    """It is damaged, and yet all that there is of a period that a rule keeps."""
    NEWEST = "newest"
    NEWEST_USABLE = "newest usable"
    NEWEST_DRILLED = "newest drilled"
    LOCKED = "locked"
    CHAIN = "chain"
    """Something that stays needs it."""
    IN_USE = "in use"
    YOUNG = "young"
    HELD = "held"
    """Nothing at all is deleted this time; the plan says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """One reason to keep a point. Its sentence is made when somebody reads it."""

    cause: KeepCause
    rule: RetentionRule | None = None
    """Of RULE and NOTHING_BETTER."""
    until: datetime | None = None
    """As far as it is known today: the end of a rule's keep, of a lock, of a youth."""
    at: datetime | None = None
    """Of RULE and NOTHING_BETTER: a moment in the period that the point stands for."""
    needed_by: tuple[PointId, ...] = ()
    """Of CHAIN."""

    @property
    def sentence(self) -> str:
        match self.cause:
            case KeepCause.RULE | KeepCause.NOTHING_BETTER:
                assert self.rule is not None, "a rule's keep names the rule"
                assert self.at is not None, "a rule's keep names the period"
                damaged = "" if self.cause is KeepCause.RULE else "damaged, and still all there is: "
                label = period_label(self.rule.period, self.at)
                return f"{damaged}{self.rule.period} rule: the newest of {label}, kept {span(self.rule.keep)}"
            case KeepCause.CHAIN:
                return f"link of the chain of {listed(self.needed_by)}"
            case cause:
                return _SAID[cause] + ("" if self.until is None else moment(self.until))


_SAID: Final[Mapping[KeepCause, str]] = {
    KeepCause.NEWEST: "the newest recovery point is never deleted",
    KeepCause.NEWEST_USABLE: "the newest complete recovery point is never deleted",
    KeepCause.NEWEST_DRILLED: "the newest one that a drill has proven is never deleted",
    KeepCause.LOCKED: "locked in the bucket until ",
    KeepCause.IN_USE: "in use by a restore, a drill or a backup",
    KeepCause.YOUNG: "incomplete, and may still be written: left alone until ",
    KeepCause.HELD: "nothing is deleted this time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    point: RecoveryPoint
    reasons: tuple[Keep, ...]

    @property
    def kept_by(self) -> tuple[RetentionPeriod, ...]:
        """The periods of rules that keep it for its own sake."""
        return tuple(keep.rule.period for keep in self.reasons if keep.cause is KeepCause.RULE and keep.rule)

    @property
    def sentence(self) -> str:
        return f"{self.point.point} stays: {'; '.join(keep.sentence for keep in self.reasons)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """Why a rule does not keep a point."""

    rule: RetentionRule
    at: datetime
    newer: PointId | None
    """The point that stands for its period; None: the period is older than the rule keeps."""

    @property
    def sentence(self) -> str:
        if self.newer is None:
            return f"{self.rule.period} rule: older than {span(self.rule.keep)}"
        return f"{self.rule.period} rule: {self.newer} stands for {period_label(self.rule.period, self.at)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    point: RecoveryPoint
    missed: tuple[Missed, ...]
    """One for each rule."""
    age: timedelta

    @property
    def sentence(self) -> str:
        damaged = f"damaged ({self.point.problems[0]}); " if self.point.problems else ""
        whys = "; ".join(missed.sentence for missed in self.missed)
        return f"{self.point.point} goes: {damaged}{whys}{self._fee()}"

    def _fee(self) -> str:
        storage_class = coldest(self.point.storage_classes)
        minimum = CLASS_FACTS[storage_class].minimum
        if self.age >= minimum:
            return ""
        return f"; {storage_class} is billed for {span(minimum)} all the same, this is {span(self.age)} old"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    kept: tuple[Kept, ...]
    """Oldest first."""
    deletions: tuple[Deletion, ...]
    """To be done in this order: children before parents, so that being killed in between breaks no chain."""
    held: tuple[str, ...] = ()
    """Why nothing is deleted although rules would; empty: the deletions are all that rules ask for."""

    def keeping(self, point: PointId) -> Kept | None:
        return next((kept for kept in self.kept if kept.point.point == point), None)

    @property
    def sentence(self) -> str:
        text = f"{count_of(len(self.kept), 'recovery point')} stay, {len(self.deletions)} go"
        return text if not self.held else f"{text}: {'; '.join(self.held)}"


def plan_retention(
    points: Sequence[RecoveryPoint],
    rules: Sequence[RetentionRule],
    now: datetime,
    *,
    in_use: frozenset[PointId] = frozenset(),
    unread: Sequence[str] = (),
) -> RetentionPlan:
    """What stays and what goes of the points of one dataset in one bucket.

    `in_use`: read by a restore or drill, or the parent of a backup that runs. `unread`: what of the inventory could not
    be listed or read; anything there holds all deletions.
    """
    view = _View(Lineage(points), rules, now)
    held = tuple(_reasons_to_hold(view, unread))
    reasons: dict[PointId, list[Keep]] = {}
    for point, keep in view.direct(in_use):
        reasons.setdefault(point.point, []).append(keep)
    if held:
        for point in view.lineage.points:
            reasons.setdefault(point.point, [Keep(cause=KeepCause.HELD)])
    for point, keep in _links(view.lineage, reasons):
        reasons.setdefault(point.point, []).append(keep)
    kept = [
        Kept(point=point, reasons=tuple(reasons[point.point]))
        for point in view.lineage.points
        if point.point in reasons
    ]
    gone = [point for point in view.lineage.points if point.point not in reasons]
    return RetentionPlan(
        kept=tuple(kept), deletions=tuple(view.deletion(point) for point in view.ordered(gone)), held=held
    )


def log_needed_since(plan: RetentionPlan, rules: Sequence[RetentionRule]) -> datetime | None:
    """From when on the continuous log has to stay; None: all of it.

    Any moment can be restored from the oldest copy of the finest rule on; older copies are restored to their own
    moment, with the log that they carry themselves.
    """
    if not rules or plan.held:
        return None
    finest = min(rules, key=lambda rule: _ORDER[rule.period]).period
    return min((kept.point.consistent_at for kept in plan.kept if finest in kept.kept_by), default=None)


_ORDER: Final = {period: index for index, period in enumerate(RetentionPeriod)}


@dataclass(slots=True)
class _View:
    """Recovery points under rules: who stands for which period."""

    lineage: Lineage
    rules: Sequence[RetentionRule]
    now: datetime
    _standing: list[dict[int, RecoveryPoint]] = field(init=False)
    """Of each rule, by number of the period: its newest usable point, or else its newest damaged one."""
    _cutoffs: list[datetime] = field(init=False)

    def __post_init__(self) -> None:
        usable = self.lineage.usable_ids
        newest = self.lineage.newest_usable
        as_of = self.now if newest is None else min(self.now, newest.consistent_at)
        self._cutoffs = [_earlier(as_of, rule.keep) for rule in self.rules]
        self._standing = [{} for _ in self.rules]
        damaged = [point for point in self.lineage.points if point.point not in usable]
        # Oldest first, so the newest stands in the end; usable ones last, so any of them stands before a damaged one.
        for point in (*damaged, *self.lineage.usable):
            for standing, rule in zip(self._standing, self.rules, strict=True):
                standing[period_number(rule.period, point.consistent_at)] = point

    def direct(self, in_use: frozenset[PointId]) -> Iterator[tuple[RecoveryPoint, Keep]]:
        """Every reason to keep a point for its own sake."""
        yield from self._by_rules()
        for point, cause in (
            (self.lineage.newest, KeepCause.NEWEST),
            (self.lineage.newest_usable, KeepCause.NEWEST_USABLE),
            (self.lineage.newest_drilled, KeepCause.NEWEST_DRILLED),
        ):
            if point is not None:
                yield point, Keep(cause=cause)
        for point in self.lineage.points:
            if point.locked_until is not None and point.locked_until > self.now:
                yield point, Keep(cause=KeepCause.LOCKED, until=point.locked_until)
            if point.point in in_use:
                yield point, Keep(cause=KeepCause.IN_USE)
            if point.problems and self.now - point.finished_at < YOUNG_FOR:
                yield point, Keep(cause=KeepCause.YOUNG, until=point.finished_at + YOUNG_FOR)

    def _by_rules(self) -> Iterator[tuple[RecoveryPoint, Keep]]:
        usable = self.lineage.usable_ids
        for rule, cutoff, standing in zip(self.rules, self._cutoffs, self._standing, strict=True):
            for point in standing.values():
                if point.consistent_at < cutoff:
                    continue
                cause = KeepCause.RULE if point.point in usable else KeepCause.NOTHING_BETTER
                yield point, Keep(cause=cause, rule=rule, at=point.consistent_at, until=point.consistent_at + rule.keep)

    def deletion(self, point: RecoveryPoint) -> Deletion:
        return Deletion(point=point, missed=tuple(self._missed(point)), age=self.now - point.finished_at)

    def _missed(self, point: RecoveryPoint) -> Iterator[Missed]:
        for rule, standing in zip(self.rules, self._standing, strict=True):
            stands = standing[period_number(rule.period, point.consistent_at)]
            newer = None if stands is point else stands.point
            yield Missed(rule=rule, at=point.consistent_at, newer=newer)

    def ordered(self, gone: Iterable[RecoveryPoint]) -> list[RecoveryPoint]:
        """Children before parents, oldest chains first among equals."""
        return sorted(gone, key=lambda point: -len(self.lineage.ancestors(point)))


def _reasons_to_hold(view: _View, unread: Sequence[str]) -> Iterator[str]:
    if not view.rules:
        yield "no retention rule is declared, so everything is kept"
    if unread:
        yield f"the inventory is not whole ({listed(list(unread))}): what is not seen cannot be judged"
    if view.lineage.points and not view.lineage.usable:
        yield "not one recovery point is usable: nothing is deleted before there is a good one"


def _links(lineage: Lineage, reasons: dict[PointId, list[Keep]]) -> Iterator[tuple[RecoveryPoint, Keep]]:
    """The links that points with reasons need."""
    needed_by: dict[PointId, list[PointId]] = {}
    for point in lineage.points:
        if point.parent is not None and point.point in reasons:
            for link in lineage.ancestors(point):
                needed_by.setdefault(link.point, []).append(point.point)
    for link_id, by in needed_by.items():
        yield lineage.by_id[link_id], Keep(cause=KeepCause.CHAIN, needed_by=tuple(by))


def _earlier(than: datetime, distance: timedelta) -> datetime:
    try:
        return than - distance
    except OverflowError:
        return _BEGINNING
