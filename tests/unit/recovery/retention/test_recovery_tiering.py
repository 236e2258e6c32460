"""Which class a copy is written in, and when it moves."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from controlplane.domain.dataset import DatasetSpec, RetentionPeriod, RetentionRule, StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.tiering import Tiering, class_of_new, plan_tiering
from controlplane.testing.recovery_points import DAILY, DAY, QUARTERLY, make_dataset, make_point

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
YEARLY = RetentionRule(
    period=RetentionPeriod.YEARLY,
    keep=10 * 365 * DAY,
    storage_class=StorageClass.DEEP_ARCHIVE,
    rto=timedelta(hours=24),
)
SPEC = make_dataset(retention=(YEARLY, QUARTERLY, DAILY))


def tiering(points: list[RecoveryPoint], spec: DatasetSpec = SPEC) -> Tiering:
    return plan_tiering(plan_retention(points, spec.retention, NOW), spec, NOW)


def test_a_new_copy_goes_where_the_strictest_rule_says() -> None:
    assert class_of_new(SPEC) is StorageClass.STANDARD
    assert class_of_new(make_dataset(retention=(YEARLY,))) is StorageClass.DEEP_ARCHIVE
    strict = replace(QUARTERLY, rto=timedelta(hours=1))
    assert class_of_new(make_dataset(retention=(DAILY, strict))) is StorageClass.GLACIER_IR
    assert class_of_new(make_dataset(retention=())) is StorageClass.STANDARD


def test_a_quarters_point_moves_when_the_daily_rule_lets_go() -> None:
    old = make_point(datetime(2026, 9, 30, tzinfo=UTC))
    found = tiering([old, make_point(NOW)])
    assert [(move.point, move.after) for move in found.moves] == [(old.point, StorageClass.GLACIER_IR)]
    assert "quarterly rule" in found.moves[0].sentence
    young = make_point(NOW - 29 * DAY)
    assert tiering([young, make_point(NOW)]).moves == ()


def test_the_year_moves_on_only_when_the_quarter_is_over_too() -> None:
    year = make_point(datetime(2018, 12, 31, tzinfo=UTC), storage_class=StorageClass.GLACIER_IR)
    assert [move.after for move in tiering([year, make_point(NOW)]).moves] == [StorageClass.DEEP_ARCHIVE]
    newer = make_point(datetime(2022, 12, 31, tzinfo=UTC), storage_class=StorageClass.GLACIER_IR)
    assert tiering([newer, make_point(NOW)]).moves == ()


def test_a_move_that_would_be_billed_for_longer_than_it_stays_is_not_made() -> None:
    year = make_point(NOW - YEARLY.keep + 100 * DAY, storage_class=StorageClass.GLACIER_IR)
    assert tiering([year, make_point(NOW)]).moves == ()


def test_standard_ia_waits_thirty_days() -> None:
    weekly = RetentionRule(
        period=RetentionPeriod.WEEKLY, keep=365 * DAY, storage_class=StorageClass.STANDARD_IA, rto=timedelta(hours=12)
    )
    spec = make_dataset(retention=(replace(DAILY, keep=7 * DAY), weekly))
    young, old = make_point(datetime(2026, 11, 1, tzinfo=UTC)), make_point(datetime(2026, 10, 4, tzinfo=UTC))
    moved = [move.point for move in tiering([young, old, make_point(NOW)], spec).moves]
    assert moved == [old.point]


def test_a_link_stays_where_what_needs_it_belongs() -> None:
    full = make_point(datetime(2026, 9, 30, tzinfo=UTC))
    increment = make_point(NOW - DAY, parent=full.point)
    assert tiering([full, increment, make_point(NOW)]).moves == ()


def test_a_point_that_is_too_cold_is_told_not_moved() -> None:
    frozen = make_point(NOW - DAY, storage_class=StorageClass.GLACIER)
    found = tiering([frozen, make_point(NOW)])
    assert found.moves == ()
    assert len(found.too_cold) == 1
    assert f"{frozen.point} lies in GLACIER, the daily rule says STANDARD (RTO 4h00m)" in found.too_cold[0]


def test_what_no_rule_keeps_stays_where_it_is() -> None:
    locked = make_point(NOW - 400 * DAY, locked_until=NOW + DAY)
    assert (
        tiering([locked, make_point(NOW - 399 * DAY), make_point(NOW)]).moves
        == tiering([make_point(NOW - 399 * DAY), make_point(NOW)]).moves
    )
