"""Which storage class a recovery point belongs in under its rules, and which points should move."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec, RetentionRule, StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.classes import CLASS_FACTS, coldest, rank
from controlplane.recovery.phrases import listed, span
from controlplane.recovery.retention import Keep, KeepCause, Kept, RetentionPlan

STANDARD_AT_LEAST: Final = timedelta(days=30)
"""In STANDARD before STANDARD_IA: S3-compatible stores refuse a lifecycle that is quicker, AWS charges for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMove:
    point: PointId
    before: StorageClass
    after: StorageClass
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiering:
    moves: tuple[ClassMove, ...]
    """Towards colder classes; a move the other way is a restore and a new copy."""
    too_cold: tuple[str, ...]
    """Points in a class colder than their rules say: the RTO of those rules is not held. Sentences."""


def rule_rto(rule: RetentionRule, spec: DatasetSpec) -> timedelta:
    return spec.rto if rule.rto is None else rule.rto


def strictest(rules: Iterable[RetentionRule], spec: DatasetSpec) -> RetentionRule | None:
    """The rule with the shortest RTO; among equals the one with the hottest class. None of none."""
    return min(rules, key=lambda rule: (rule_rto(rule, spec), rank(rule.storage_class)), default=None)


def class_of_new(spec: DatasetSpec) -> StorageClass:
    """For a copy that is written now: every rule keeps the newest, so the strictest of all says."""
    rule = strictest(spec.retention, spec)
    return StorageClass.STANDARD if rule is None else rule.storage_class


def plan_tiering(plan: RetentionPlan, spec: DatasetSpec, now: datetime) -> Tiering:
    """What of the kept points lies in another class than it should.

    A link of a chain belongs where the strictest of the points that need it belongs. What no rule keeps (a lock, a
    drill) stays where it is.
    """
    rules = _rules_of_points(plan)
    moves: list[ClassMove] = []
    too_cold: list[str] = []
    for kept in plan.kept:
        keeps = rules.get(kept.point.point, [])
        rule = strictest((keep.rule for keep in keeps if keep.rule is not None), spec)
        if rule is None:
            continue
        found, wanted = coldest(kept.point.storage_classes), rule.storage_class
        if rank(found) > rank(wanted):
            too_cold.append(_too_cold(kept.point, found, rule, spec))
        elif rank(found) < rank(wanted) and _pays(kept.point, found, wanted, keeps, now):
            moves.append(_move(kept.point, found, rule))
    return Tiering(moves=tuple(moves), too_cold=tuple(too_cold))


def _rules_of_points(plan: RetentionPlan) -> dict[PointId, list[Keep]]:
    """The keeps by rules of each point, and of all that need it."""
    own = {kept.point.point: [keep for keep in kept.reasons if keep.cause is KeepCause.RULE] for kept in plan.kept}
    return {kept.point.point: [*own[kept.point.point], *_lent(kept, own)] for kept in plan.kept}


def _lent(kept: Kept, own: dict[PointId, list[Keep]]) -> Iterator[Keep]:
    for keep in kept.reasons:
        for child in keep.needed_by:
            yield from own.get(child, ())


def _pays(
    point: RecoveryPoint, found: StorageClass, wanted: StorageClass, keeps: Iterable[Keep], now: datetime
) -> bool:
    """It has been in its class, and will be in the next, for as long as these are billed at least."""
    stays_until = max((keep.until for keep in keeps if keep.until is not None), default=now)
    at_least = max(CLASS_FACTS[found].minimum, STANDARD_AT_LEAST if wanted is StorageClass.STANDARD_IA else timedelta())
    return now - point.finished_at >= at_least and stays_until - now >= CLASS_FACTS[wanted].minimum


def _move(point: RecoveryPoint, found: StorageClass, rule: RetentionRule) -> ClassMove:
    sentence = f"{point.point}: {found} -> {rule.storage_class}, where the {rule.period} rule keeps it"
    return ClassMove(point=point.point, before=found, after=rule.storage_class, sentence=sentence)


def _too_cold(point: RecoveryPoint, found: StorageClass, rule: RetentionRule, spec: DatasetSpec) -> str:
    rto = span(rule_rto(rule, spec))
    return (
        f"{point.point} lies in {found}, the {rule.period} rule says {rule.storage_class} (RTO {rto}): "
        f"take a new copy into {listed([rule.storage_class])}, or give the rule a longer RTO"
    )
