"""What stays, what goes, and why."""

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.dataset import RetentionPeriod, RetentionRule, StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.periods import mean_length, period_label, period_number, period_start
from controlplane.recovery.retention import (
    YOUNG_FOR,
    KeepCause,
    RetentionPlan,
    log_needed_since,
    plan_retention,
)
from controlplane.testing.recovery_points import DAILY, DAY, QUARTERLY, make_point

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
GFS = (DAILY, QUARTERLY)


def causes(plan: RetentionPlan, point: RecoveryPoint) -> set[KeepCause]:
    kept = plan.keeping(point.point)
    return set() if kept is None else {keep.cause for keep in kept.reasons}


def gone(plan: RetentionPlan) -> list[PointId]:
    return [deletion.point.point for deletion in plan.deletions]


def daily(days: int, *, until: datetime = NOW) -> list[RecoveryPoint]:
    """One a day, oldest first, the last one an hour before."""
    return [make_point(until - HOUR - age * DAY) for age in reversed(range(days))]


def test_thirty_days_and_seven_years_of_quarters() -> None:
    points = daily(3000)
    plan = plan_retention(points, GFS, NOW)
    days = [kept for kept in plan.kept if RetentionPeriod.DAILY in kept.kept_by]
    quarters = [kept for kept in plan.kept if RetentionPeriod.QUARTERLY in kept.kept_by]
    assert len(days) == 31  # the newest, and thirty days back from it
    assert len(quarters) == 29  # 28 that are over, and the one that runs
    assert len(plan.kept) == 31 + 28  # the running quarter's is a daily one too
    assert [f"{one.point.consistent_at:%Y-%m-%d}" for one in quarters[:2]] == ["2019-12-31", "2020-03-31"]
    assert len(plan.deletions) == 3000 - len(plan.kept)


def test_the_newest_of_a_period_stands_for_it() -> None:
    morning, evening = make_point(NOW - DAY - 10 * HOUR), make_point(NOW - DAY)
    newest = make_point(NOW - HOUR)
    plan = plan_retention([evening, newest, morning], [DAILY], NOW)
    assert gone(plan) == [morning.point]
    assert f"{evening.point} stands for 2026-11-21" in plan.deletions[0].sentence
    assert [kept.point for kept in plan.kept] == [evening, newest]


def test_every_reason_is_given() -> None:
    point = make_point(NOW - HOUR, drilled_at=NOW, locked_until=NOW + 9 * DAY)
    child = make_point(NOW - timedelta(minutes=5), parent=point.point, problems=("pack 3 is not there",))
    plan = plan_retention([point, child], GFS, NOW, in_use=frozenset({point.point}))
    assert causes(plan, point) == {
        KeepCause.RULE,
        KeepCause.NEWEST_USABLE,
        KeepCause.NEWEST_DRILLED,
        KeepCause.LOCKED,
        KeepCause.CHAIN,
        KeepCause.IN_USE,
    }
    kept = plan.keeping(point.point)
    assert kept is not None
    assert kept.kept_by == (RetentionPeriod.DAILY, RetentionPeriod.QUARTERLY)
    assert kept.sentence == (
        f"{point.point} stays: daily rule: the newest of 2026-11-22, kept 30 d; "
        "quarterly rule: the newest of 2026-Q4, kept 7 y; the newest complete recovery point is never deleted; "
        "the newest one that a drill has proven is never deleted; locked in the bucket until 2026-12-01 12:00:00 UTC; "
        f"in use by a restore, a drill or a backup; link of the chain of {child.point}"
    )


def test_a_lock_that_is_over_holds_nothing() -> None:
    old = make_point(NOW - 40 * DAY, locked_until=NOW)
    plan = plan_retention([old, *daily(3)], [DAILY], NOW)
    assert gone(plan) == [old.point]


def test_the_edge_of_a_rule_is_kept() -> None:
    newest = make_point(NOW)
    edge, beyond = make_point(NOW - DAILY.keep), make_point(NOW - DAILY.keep - timedelta(seconds=1) - DAY)
    plan = plan_retention([newest, edge, beyond], [DAILY], NOW)
    assert gone(plan) == [beyond.point]
    assert "older than 30 d" in plan.deletions[0].sentence


def test_when_backups_stop_nothing_ages_out() -> None:
    points = daily(30)
    assert plan_retention(points, GFS, NOW).deletions == ()
    assert plan_retention(points, GFS, NOW + 3650 * DAY).deletions == ()


def test_a_clock_that_jumped_ahead_deletes_nothing_until_it_made_a_backup() -> None:
    points = [*daily(20), make_point(NOW + 90 * DAY)]
    plan = plan_retention(points, [DAILY], NOW)
    assert plan.deletions == ()


def test_damaged_points_stand_only_where_nothing_better_is() -> None:
    damaged_alone = make_point(NOW - 5 * DAY, problems=("pack 1 is not there",))
    damaged_beside = make_point(NOW - 4 * DAY, problems=("pack 1 is not there",))
    beside = make_point(NOW - 4 * DAY - HOUR)
    newest = make_point(NOW - HOUR)
    plan = plan_retention([damaged_alone, damaged_beside, beside, newest], [DAILY], NOW)
    assert causes(plan, damaged_alone) == {KeepCause.NOTHING_BETTER}
    assert gone(plan) == [damaged_beside.point]
    assert "damaged (pack 1 is not there)" in plan.deletions[0].sentence
    kept = plan.keeping(damaged_alone.point)
    assert kept is not None
    assert kept.kept_by == ()


def test_an_unfinished_one_is_left_alone_while_it_may_be_written() -> None:
    young = make_point(NOW - HOUR, problems=("no manifest yet",))
    newest = make_point(NOW - HOUR / 2)
    assert causes(plan_retention([young, newest], [DAILY], NOW), young) == {KeepCause.YOUNG}
    later = NOW - HOUR + YOUNG_FOR
    assert gone(plan_retention([young, newest], [DAILY], later)) == [young.point]


def test_the_newest_usable_and_the_newest_proven_stay_whatever_came_after() -> None:
    proven = make_point(NOW - 300 * DAY, drilled_at=NOW - 299 * DAY)
    good = make_point(NOW - 200 * DAY)
    bad = [make_point(NOW - age * DAY, problems=("wrong checksum",)) for age in (100, 50)]
    plan = plan_retention([proven, good, *bad], [DAILY], NOW)
    assert KeepCause.NEWEST_DRILLED in causes(plan, proven)
    assert KeepCause.NEWEST_USABLE in causes(plan, good)
    assert KeepCause.NEWEST in causes(plan, bad[1])


def chain(length: int, *, start: datetime, step: timedelta = HOUR) -> list[RecoveryPoint]:
    links = [make_point(start)]
    for number in range(1, length):
        links.append(make_point(start + number * step, parent=links[-1].point))
    return links


def test_what_stays_keeps_its_chain_and_children_go_before_parents() -> None:
    kept_chain = chain(4, start=NOW - 20 * DAY, step=timedelta(minutes=1))
    dead_chain = chain(3, start=NOW - 90 * DAY, step=timedelta(minutes=1))
    newest = make_point(NOW - HOUR)
    plan = plan_retention([*dead_chain, *kept_chain, newest], [DAILY], NOW)
    for link in kept_chain[:-1]:
        assert causes(plan, link) == {KeepCause.CHAIN}
    assert gone(plan) == [link.point for link in reversed(dead_chain)]


def test_an_increment_without_its_full_copy_is_not_usable() -> None:
    orphan = make_point(NOW - HOUR, parent=PointId("gone"))
    whole = make_point(NOW - DAY)
    plan = plan_retention([orphan, whole], [DAILY], NOW)
    assert KeepCause.NEWEST_USABLE in causes(plan, whole)
    assert causes(plan, orphan) == {KeepCause.NEWEST, KeepCause.NOTHING_BETTER}


def test_parents_in_a_circle_end() -> None:
    one = make_point(NOW - 2 * HOUR, point=PointId("one"), parent=PointId("two"))
    two = make_point(NOW - HOUR, point=PointId("two"), parent=PointId("one"))
    plan = plan_retention([one, two, make_point(NOW)], [DAILY], NOW)
    assert set(gone(plan)) == {"one", "two"}


@pytest.mark.parametrize(
    ("points", "rules", "unread", "says"),
    [
        (daily(90), (), (), "no retention rule is declared"),
        (daily(90), GFS, ("orders/points/ beyond page 3",), "the inventory is not whole"),
        (
            [make_point(NOW - age * DAY, problems=("wrong checksum",)) for age in (90, 60, 58, 50)],
            (QUARTERLY,),
            (),
            "not one recovery point is usable",
        ),
    ],
)
def test_nothing_is_deleted_while_the_view_is_not_whole(
    points: list[RecoveryPoint], rules: tuple[RetentionRule, ...], unread: tuple[str, ...], says: str
) -> None:
    plan = plan_retention(points, rules, NOW, unread=unread)
    assert plan.deletions == ()
    assert len(plan.kept) == len(points)
    assert says in plan.sentence
    assert any(KeepCause.HELD in causes(plan, point) for point in points)
    assert log_needed_since(plan, rules) is None


def test_an_empty_bucket_is_an_empty_plan() -> None:
    plan = plan_retention([], GFS, NOW)
    assert (plan.kept, plan.deletions, plan.held) == ((), (), ())


def test_deleting_early_tells_the_fee() -> None:
    early = make_point(NOW - 40 * DAY, storage_class=StorageClass.DEEP_ARCHIVE)
    plan = plan_retention([early, make_point(NOW)], [DAILY], NOW)
    assert "DEEP_ARCHIVE is billed for 180 d all the same, this is 40 d old" in plan.deletions[0].sentence


def test_rules_of_absurd_length_keep_everything() -> None:
    rule = RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=999_999))
    assert plan_retention(daily(400), [rule], NOW).deletions == ()


def test_the_log_stays_back_to_the_oldest_of_the_finest_rule() -> None:
    points = daily(400)
    plan = plan_retention(points, GFS, NOW)
    assert log_needed_since(plan, GFS) == points[-1].consistent_at - 30 * DAY


@pytest.mark.parametrize("period", RetentionPeriod)
def test_periods_follow_each_other_without_a_gap(period: RetentionPeriod) -> None:
    number = period_number(period, NOW)
    for one in range(number - 60, number):
        start, end = period_start(period, one), period_start(period, one + 1)
        assert start < end
        assert period_number(period, start) == one
        assert period_number(period, end - timedelta(microseconds=1)) == one
        assert abs((end - start) / mean_length(period) - 1.0) < 0.1
    assert period_label(period, period_start(period, number)) == period_label(period, NOW)


def test_weeks_are_iso_weeks_and_time_zones_do_not_matter() -> None:
    sunday, monday = datetime(2027, 1, 3, 23, 59, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC)
    assert period_label(RetentionPeriod.WEEKLY, sunday) == "2026-W53"
    assert period_number(RetentionPeriod.WEEKLY, monday) == period_number(RetentionPeriod.WEEKLY, sunday) + 1
    elsewhere = monday.astimezone(datetime.now().astimezone().tzinfo)
    for period in RetentionPeriod:
        assert period_number(period, elsewhere) == period_number(period, monday)
