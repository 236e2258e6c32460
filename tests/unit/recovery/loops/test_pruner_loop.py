"""The loop that deletes: a plan first, then the deletion; never what must stay; and it lengthens locks."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.domain.dataset import BucketSpec, LockMode, RecoverySpec, RetentionPeriod, RetentionRule
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import DrillPhase, RecoveryPoint, RiskyAction
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import BucketName, PointId
from controlplane.recovery.pruner import DELETIONS_MAX
from controlplane.testing.recovery_points import BUCKET, DATASET, make_drill, make_point
from tests.unit.recovery.loops.bench import FAR, HOUR, MINUTE, ORDERS, STREAMED, Bench, site_of


async def filled(bench: Bench, *ages: timedelta, bucket: BucketName = BUCKET, **fields: object) -> list[PointId]:
    """Points of these ages in a bucket, seen."""
    rows = [replace(make_point(bench.clock.now() - age, bucket=bucket), **fields) for age in ages]  # type: ignore[arg-type]  # of RecoveryPoint
    for row in rows:
        bench.site.put(ORDERS, bucket, row)
    await bench.look()
    return [row.point for row in rows]


def there(bench: Bench, bucket: str = BUCKET) -> list[PointId]:
    return [row.point for row in bench.site.rows(DATASET, bucket)]


async def test_first_a_plan_then_if_it_still_holds_the_deletion() -> None:
    bench = Bench()
    old, _, newest = await filled(bench, 5 * HOUR, 1.5 * HOUR, MINUTE)
    report = await bench.tick(bench.pruner)
    assert report.sentence == "1 recovery point to go, if the next look says so too"
    assert old in there(bench)
    report = await bench.tick(bench.pruner)
    assert report.changed
    assert old not in there(bench)
    assert newest in there(bench)
    (event,) = await bench.events(Reason.POINT_DELETED)
    assert event.sentence.startswith(f"main: {old} goes: hourly rule: older than 2h00m")
    assert [point.point for point in (await bench.inventory()).points] == there(bench)
    await bench.look()
    report = await bench.tick(bench.pruner)
    assert report.sentence == "every recovery point is kept by a rule"
    assert len(await bench.events(Reason.POINT_DELETED)) == 1
    assert await bench.events(Reason.POINT_DAMAGED) == []
    assert bench.site.broken == []


async def test_a_restart_begins_with_a_plan_again() -> None:
    bench = Bench()
    old, _ = await filled(bench, 5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    bench.restart()
    await bench.tick(bench.pruner)
    assert old in there(bench)


async def test_so_many_at_a_time() -> None:
    bench = Bench()
    await filled(bench, *(5 * HOUR + minutes * MINUTE for minutes in range(30)), MINUTE)
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert len(there(bench)) == 31 - DELETIONS_MAX
    await bench.tick(bench.pruner)
    assert len(there(bench)) == 1


async def test_nothing_goes_while_recovery_is_not_well_unless_a_person_says_so() -> None:
    bench = Bench()
    old, _ = await filled(bench, 5 * HOUR, 2 * HOUR)
    await bench.tick(bench.pruner)
    report = await bench.tick(bench.pruner)
    assert report.sentence.startswith("nothing is deleted while orders: RPO blown")
    assert old in there(bench)
    await bench.override(RiskyAction.RETENTION, HOUR)
    await bench.tick(bench.pruner)
    assert old not in there(bench)


async def test_a_bucket_that_was_not_read_loses_nothing() -> None:
    bench = Bench()
    await filled(bench, 5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    bench.site.buckets[BUCKET].problem = "503"
    await bench.look()
    await bench.override(RiskyAction.RETENTION, HOUR)
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert len(there(bench)) == 2


async def test_a_bucket_that_does_not_answer_now_is_tried_again() -> None:
    bench = Bench()
    await filled(bench, 5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    bench.site.buckets[BUCKET].problem = "503"
    with pytest.raises(RetryableError):
        await bench.tick(bench.pruner)
    assert await bench.events(Reason.POINT_DELETED) == []
    bench.site.buckets[BUCKET].problem = ""
    await bench.look()
    await bench.tick(bench.pruner)
    assert len(there(bench)) == 1
    assert len(await bench.events(Reason.POINT_DELETED)) == 1


async def test_one_bucket_does_not_speak_for_the_other() -> None:
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR))))
    (old, _) = await filled(bench, 5 * HOUR, MINUTE)
    await filled(bench, 5 * HOUR, MINUTE, bucket=FAR, locked_until=bench.clock.now() + HOUR)
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert old not in there(bench)
    assert old in there(bench, FAR)
    assert old in [point.point for point in (await bench.inventory(FAR)).points]


async def test_what_a_drill_reads_stays_until_it_ends() -> None:
    bench = Bench()
    old, _ = await filled(bench, 5 * HOUR, MINUTE)
    drill = replace(make_drill(bench.clock.now(), phase=DrillPhase.RESTORING), point=old)
    await bench.put_drill(drill)
    for _ in range(3):
        await bench.tick(bench.pruner)
    assert old in there(bench)
    await bench.put_drill(replace(drill, phase=DrillPhase.PASSED, evidence_key="evidence/x"))
    await bench.look()
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert old in there(bench), "now it is the newest one that a drill has proven"
    (newest,) = [point for point in there(bench) if point != old]
    await bench.put_drill(replace(drill, phase=DrillPhase.PASSED, evidence_key="evidence/x", point=newest))
    await bench.look()
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert there(bench) == [newest]


async def test_a_drill_that_chooses_it_at_the_last_moment_has_it() -> None:
    bench = Bench()
    old, _ = await filled(bench, 5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    drill = replace(make_drill(bench.clock.now(), phase=DrillPhase.RESERVING), point=old)

    async def chosen(tx: Transaction) -> None:
        await tx.put_drill(drill)

    bench.between_transactions = chosen
    await bench.tick(bench.pruner)
    assert old in there(bench)
    assert not [point for point in (await bench.inventory()).points if point.problems]


def chain_of_two(bench: Bench, locked: datetime | None) -> list[RecoveryPoint]:
    now = bench.clock.now()
    full = make_point(now - 6 * HOUR)
    child = replace(make_point(now - 5 * HOUR), parent=full.point, locked_until=locked)
    return [full, child, make_point(now - MINUTE)]


async def test_children_go_before_their_parents() -> None:
    bench = Bench()
    for row in chain_of_two(bench, None):
        bench.site.put(ORDERS, BUCKET, row)
    await bench.look()
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    full, child, _ = chain_of_two(bench, None)
    told = [event.sentence.split()[1] for event in await bench.events(Reason.POINT_DELETED)]
    assert told == [child.point, full.point]


async def test_a_child_that_its_bucket_does_not_give_up_keeps_its_parents() -> None:
    """The lock was not seen: another tool made it after the look."""
    bench = Bench()
    rows = chain_of_two(bench, None)
    for row in rows:
        bench.site.put(ORDERS, BUCKET, row)
    await bench.look()
    stored = bench.site.buckets[BUCKET].points[DATASET, rows[1].point]
    stored.row = replace(stored.row, locked_until=bench.clock.now() + HOUR)
    await bench.tick(bench.pruner)
    report = await bench.tick(bench.pruner)
    assert "stays: " in report.sentence
    assert there(bench) == [row.point for row in rows]
    assert await bench.events(Reason.POINT_DELETED) == []


WEEKS = RetentionRule(period=RetentionPeriod.WEEKLY, keep=timedelta(days=60))


def locking() -> RecoverySpec:
    buckets = (BucketSpec(name=BUCKET, bucket="main", lock=LockMode.COMPLIANCE),)
    return RecoverySpec(buckets=buckets, datasets=(replace(ORDERS, retention=(*ORDERS.retention, WEEKS)),))


async def test_locks_are_lengthened_to_what_rules_promise_and_no_further() -> None:
    bench = Bench(locking())
    now = bench.clock.now()
    kept, _ = await filled(bench, timedelta(days=8), MINUTE, locked_until=now + MINUTE)
    report = await bench.tick(bench.pruner)
    assert f"{kept}: locked until" in report.sentence
    row = bench.site.rows(DATASET, BUCKET)[0]
    assert row.locked_until == row.consistent_at + WEEKS.keep
    await bench.look()
    assert (await bench.tick(bench.pruner)).sentence == "every recovery point is kept by a rule"
    assert bench.site.rows(DATASET, BUCKET)[0] == row


async def test_locks_are_lengthened_whatever_the_gate_says() -> None:
    bench = Bench(locking())
    now = bench.clock.now()
    await filled(bench, timedelta(days=8), 3 * HOUR, locked_until=now + MINUTE)
    assert not (await bench.permission(RiskyAction.RETENTION)).allowed
    assert (await bench.tick(bench.pruner)).changed


async def test_parents_are_locked_as_long_as_what_needs_them() -> None:
    bench = Bench(locking())
    now = bench.clock.now()
    full = make_point(now - timedelta(days=9))
    child = replace(make_point(now - timedelta(days=8)), parent=full.point)
    for row in (full, child, make_point(now - MINUTE)):
        bench.site.put(ORDERS, BUCKET, row)
    await bench.look()
    await bench.tick(bench.pruner)
    first, second, _ = bench.site.rows(DATASET, BUCKET)
    assert first.locked_until == second.locked_until == child.consistent_at + WEEKS.keep


async def test_a_bucket_without_locks_has_none_lengthened() -> None:
    bench = Bench(site_of(replace(ORDERS, retention=(*ORDERS.retention, WEEKS))))
    await filled(bench, timedelta(days=8), MINUTE)
    assert not (await bench.tick(bench.pruner)).changed
    assert [row.locked_until for row in bench.site.rows(DATASET, BUCKET)] == [None, None]


async def test_log_that_no_copy_needs_is_trimmed_from_the_oldest_of_the_finest_rule_on() -> None:
    bench = Bench(site_of(STREAMED))
    await filled(bench, 5 * HOUR, 1.5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    assert bench.site.trimmed == [bench.clock.now() - 1.5 * HOUR]
    await bench.put_drill(replace(make_drill(bench.clock.now(), phase=DrillPhase.RESTORING), point=None))
    await bench.put_drill(replace(make_drill(bench.clock.now(), phase=DrillPhase.RESTORING), point=there(bench)[-1]))
    await bench.tick(bench.pruner)
    assert len(bench.site.trimmed) == 1, "a drill may be reading it"


async def test_log_in_a_further_bucket_is_trimmed_by_the_copies_there() -> None:
    bench = Bench(site_of(replace(STREAMED, buckets=(BUCKET, FAR))))
    await filled(bench, 1.5 * HOUR, MINUTE)
    await filled(bench, 1.2 * HOUR, MINUTE, bucket=FAR)
    await bench.tick(bench.pruner)
    assert sorted(bench.site.trimmed) == [bench.clock.now() - 1.5 * HOUR, bench.clock.now() - 1.2 * HOUR]


async def test_without_a_log_there_is_nothing_to_trim() -> None:
    bench = Bench()
    await filled(bench, 5 * HOUR, MINUTE)
    await bench.tick(bench.pruner)
    assert bench.site.trimmed == []
