"""Locks as long as the promises that they guard, parents at least as long as their increments."""

from datetime import UTC, datetime, timedelta

from controlplane.domain.dataset import StorageClass
from controlplane.kernel.ids import PointId
from controlplane.recovery.lineage import Chain
from controlplane.recovery.locks import lock_until, parents_to_extend, plan_locks
from controlplane.recovery.retention import plan_retention
from controlplane.testing.recovery_points import DAILY, DAY, QUARTERLY, make_point

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GFS = (QUARTERLY, DAILY)


def test_a_new_point_is_locked_as_long_as_the_finest_rule_keeps() -> None:
    assert lock_until(GFS, NOW) == NOW + DAILY.keep
    assert lock_until((QUARTERLY,), NOW) == NOW + QUARTERLY.keep
    assert lock_until((), NOW) is None


def test_when_its_quarter_is_over_the_lock_is_lengthened_to_seven_years() -> None:
    at = datetime(2026, 9, 30, 3, 0, tzinfo=UTC)
    last = make_point(at, locked_until=at + DAILY.keep)
    newest = make_point(NOW - DAY, locked_until=NOW + 29 * DAY)
    plan = plan_retention([last, newest], GFS, NOW)
    (extension,) = plan_locks(plan, GFS, NOW)
    assert (extension.point, extension.until) == (last.point, at + QUARTERLY.keep)
    assert "its rule keeps it for so long" in extension.sentence


def test_a_quarter_that_runs_promises_nothing_yet() -> None:
    newest = make_point(NOW, locked_until=lock_until(GFS, NOW))
    assert plan_locks(plan_retention([newest], GFS, NOW), GFS, NOW) == ()


def test_parents_are_lengthened_with_their_increments_and_first() -> None:
    at = datetime(2026, 9, 30, 3, 0, tzinfo=UTC)
    full = make_point(at - 2 * DAY, locked_until=at + 28 * DAY)
    middle = make_point(at - DAY, parent=full.point, locked_until=at + 29 * DAY)
    last = make_point(at, parent=middle.point, locked_until=at + 30 * DAY)
    newest = make_point(NOW, locked_until=NOW + 30 * DAY)
    plan = plan_retention([full, middle, last, newest], GFS, NOW)
    extensions = plan_locks(plan, GFS, NOW)
    assert [one.point for one in extensions] == [full.point, middle.point, last.point]
    assert {one.until for one in extensions} == {at + QUARTERLY.keep}
    assert f"{last.point} needs it for so long" in extensions[0].sentence


def test_a_lock_that_a_person_lengthened_lengthens_its_parents() -> None:
    full = make_point(NOW - DAY, locked_until=NOW + 29 * DAY)
    held = make_point(NOW, parent=full.point, locked_until=NOW + 1000 * DAY)
    (extension,) = plan_locks(plan_retention([full, held], GFS, NOW), GFS, NOW)
    assert (extension.point, extension.until) == (full.point, NOW + 1000 * DAY)


def test_before_an_increment_its_chain_is_lengthened() -> None:
    full = make_point(NOW - 2 * DAY, locked_until=NOW + 28 * DAY)
    middle = make_point(NOW - DAY, parent=full.point, locked_until=NOW + 40 * DAY)
    bare = make_point(NOW - DAY / 2, parent=middle.point)
    until = NOW + 30 * DAY
    found = parents_to_extend(Chain(links=(full, middle, bare)), until)
    assert [one.point for one in found] == [full.point, bare.point]
    assert all(one.until == until for one in found)


def test_seconds_are_not_worth_a_request() -> None:
    newest = make_point(NOW, locked_until=NOW + DAILY.keep - timedelta(seconds=50))
    assert plan_locks(plan_retention([newest], GFS, NOW), GFS, NOW) == ()


def test_what_was_never_locked_is_locked_and_an_archived_one_too() -> None:
    old = make_point(datetime(2025, 12, 31, tzinfo=UTC), point=PointId("old"), storage_class=StorageClass.DEEP_ARCHIVE)
    newest = make_point(NOW, locked_until=NOW + 30 * DAY)
    (extension,) = plan_locks(plan_retention([old, newest], GFS, NOW), GFS, NOW)
    assert extension.point == "old"
    assert "not locked" in extension.sentence
