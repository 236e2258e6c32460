"""How long a recovery point is locked in its bucket (S3 Object Lock), and which locks have to be lengthened.

A lock is as long as the promise that it guards. A new point is locked as long as the finest rule keeps; when its
quarter is over and it is the one that stands for it, its lock is lengthened to the quarterly rule's keep. Locking all
points for the longest rule would fill the bucket with what no rule wants; locking all for the shortest leaves what is
to last for years to whoever has the credentials, once a few days have passed. An increment without its parents is
worth nothing, so theirs are lengthened with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import RetentionPeriod, RetentionRule
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.lineage import Chain, Lineage
from controlplane.recovery.periods import period_number
from controlplane.recovery.phrases import listed, moment
from controlplane.recovery.retention import KeepCause, RetentionPlan

_CLOSE_ENOUGH: Final = timedelta(minutes=1)
"""Stores keep whole seconds or less of a lock's end; a difference below this is not worth a request."""
_ORDER: Final = {period: index for index, period in enumerate(RetentionPeriod)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockExtension:
    point: PointId
    until: datetime
    sentence: str


def lock_until(rules: Sequence[RetentionRule], taken_at: datetime) -> datetime | None:
    """For the objects of a copy that is written now; None: no rule, no lock."""
    if not rules:
        return None
    finest = min(rules, key=lambda rule: _ORDER[rule.period]).period
    return taken_at + max(rule.keep for rule in rules if rule.period is finest)


def parents_to_extend(parents: Chain, until: datetime) -> tuple[LockExtension, ...]:
    """Before an increment on this chain is locked until then: the links that are locked for less."""
    why = f"an increment on it is locked until {moment(until)}"
    return tuple(
        LockExtension(point=link.point, until=until, sentence=f"{link.point}: {why}")
        for link in parents.links
        if _is_short(link, until)
    )


def plan_locks(plan: RetentionPlan, rules: Sequence[RetentionRule], now: datetime) -> tuple[LockExtension, ...]:
    """Every lock that is shorter than what rules promise of its point, or of an increment that needs it.

    Only for buckets that lock. Parents come before their increments: being killed in between leaves no increment with
    a lock longer than its parents'.
    """
    lineage = Lineage([kept.point for kept in plan.kept])
    wanted: dict[PointId, datetime] = {}
    needed_by: dict[PointId, list[PointId]] = {}
    for point, until in _promised(plan, rules, now):
        wanted[point.point] = max(until, wanted.get(point.point, until))
    for point in lineage.points:
        until = max(wanted.get(point.point, now), point.locked_until or now)
        for link in lineage.ancestors(point) if until > now else ():
            if until > wanted.get(link.point, now):
                wanted[link.point] = until
                needed_by.setdefault(link.point, []).append(point.point)
    short = [point for point in lineage.points if _is_short(point, wanted.get(point.point))]
    short.sort(key=lambda point: len(lineage.ancestors(point)))
    return tuple(_extension(point, wanted[point.point], needed_by.get(point.point, ())) for point in short)


def _promised(
    plan: RetentionPlan, rules: Sequence[RetentionRule], now: datetime
) -> Iterator[tuple[RecoveryPoint, datetime]]:
    """Of each point that a rule keeps: until when. A period that still runs promises nothing, but the finest rule's."""
    finest = min((_ORDER[rule.period] for rule in rules), default=0)
    for kept in plan.kept:
        for keep in kept.reasons:
            if keep.cause is not KeepCause.RULE or keep.rule is None or keep.until is None or keep.until <= now:
                continue
            period = keep.rule.period
            over = period_number(period, kept.point.consistent_at) < period_number(period, now)
            if over or _ORDER[period] == finest:
                yield kept.point, keep.until


def _is_short(point: RecoveryPoint, until: datetime | None) -> bool:
    if until is None:
        return False
    return point.locked_until is None or until - point.locked_until > _CLOSE_ENOUGH


def _extension(point: RecoveryPoint, until: datetime, needed_by: Sequence[PointId]) -> LockExtension:
    now = "not locked" if point.locked_until is None else f"locked until {moment(point.locked_until)}"
    why = f"{listed(needed_by)} needs it for so long" if needed_by else "its rule keeps it for so long"
    return LockExtension(
        point=point.point, until=until, sentence=f"{point.point}: {now}, to be locked until {moment(until)}: {why}"
    )
