"""The loop that looks into the buckets: what it tells, once each, and what unread buckets mean for risky work."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupPhase, RiskyAction
from controlplane.domain.store import Transaction
from controlplane.kernel.ids import BucketName
from controlplane.recovery.rpo import RpoState
from controlplane.recovery.surveyor import look_every
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import BUCKET, DATASET, make_point
from tests.unit.recovery.loops.bench import DAILY_DRILL, FAR, HOUR, MINUTE, ORDERS, SECOND, Bench, site_of

RPO_TOLD = (Reason.RPO_MET, Reason.RPO_AT_RISK, Reason.RPO_BREACHED, Reason.RPO_UNKNOWN)


@pytest.mark.parametrize(
    ("rpo", "every"), [(10 * SECOND, 2 * SECOND), (10 * MINUTE, 30 * SECOND), (24 * HOUR, 60 * SECOND)]
)
def test_the_age_is_looked_at_twenty_times_within_what_may_be_lost(rpo: timedelta, every: timedelta) -> None:
    assert look_every(replace(ORDERS, rpo=rpo)) == every


async def test_a_bucket_that_does_not_answer_is_unknown_and_no_empty_one() -> None:
    bench = Bench()
    await bench.copied()
    bench.clock.jump(16 * MINUTE)
    await bench.copied()
    assert (await bench.inventory()).rpo_state == RpoState.OK
    assert (await bench.permission()).allowed
    before = len(await bench.events(*RPO_TOLD))
    bench.site.buckets[BUCKET].problem = "the store does not answer"
    await bench.look()
    inventory = await bench.inventory()
    assert (inventory.problem, inventory.rpo_state) == ("the store does not answer", RpoState.UNKNOWN)
    assert len(inventory.points) == 2
    refused = await bench.permission()
    assert not refused.allowed
    assert "could not be read" in refused.reasons[0]
    assert "bucket plan" in refused.reasons[0]
    for _ in range(5):
        await bench.tick(bench.surveyor, after=SECOND)
    assert [event.reason for event in await bench.events(*RPO_TOLD)][before:] == [Reason.RPO_UNKNOWN]
    bench.site.buckets[BUCKET].problem = ""
    await bench.look()
    assert (await bench.permission()).allowed
    assert [event.reason for event in await bench.events(*RPO_TOLD)][before:] == [Reason.RPO_UNKNOWN, Reason.RPO_MET]


async def test_the_age_runs_through_its_states_and_each_turn_is_told_once() -> None:
    bench = Bench()
    await bench.copied()
    for _ in range(24):
        await bench.tick(bench.surveyor, after=30 * SECOND)
    await bench.copied()
    told = [event.reason for event in await bench.events(*RPO_TOLD)]
    # The first copy is a recovery too: before it nothing could be restored.
    assert told == [Reason.RPO_MET, Reason.RPO_AT_RISK, Reason.RPO_BREACHED, Reason.RPO_MET]
    assert "backups" in bench.hints.hinted


async def test_a_new_dataset_has_its_rpo_to_get_a_first_copy_then_risky_work_is_refused() -> None:
    bench = Bench()
    await bench.look()
    permission = await bench.permission()
    assert permission.allowed
    assert "its first copy may take until" in permission.notes[0]
    bench.clock.jump(15 * MINUTE)
    await bench.look()
    refused = await bench.permission()
    assert not refused.allowed
    assert "quarterdeck backup now orders" in refused.reasons[0]
    assert (await bench.inventory()).since == START


async def test_an_override_lets_one_action_pass_for_its_time() -> None:
    bench = Bench()
    await bench.look()
    bench.clock.jump(HOUR)
    await bench.look()
    assert not (await bench.permission()).allowed
    await bench.override(RiskyAction.DEPLOY, HOUR)
    passed = await bench.permission()
    assert passed.allowed
    assert passed.overridden_by is not None
    assert passed.reasons, "the reasons against it stay to be read"
    assert not (await bench.permission(RiskyAction.MIGRATION)).allowed
    bench.clock.jump(HOUR)
    assert not (await bench.permission()).allowed


async def test_damage_is_told_once_and_names_the_point() -> None:
    bench = Bench()
    run = await bench.copied()
    assert run.point is not None
    bench.site.damage(ORDERS, BUCKET, run.point)
    for _ in range(3):
        await bench.look()
    (event,) = await bench.events(Reason.POINT_DAMAGED)
    assert run.point in event.sentence
    assert "are not there" in event.sentence


async def test_what_vanishes_without_retention_is_told_once() -> None:
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR))))
    run = await bench.copied()
    bench.site.buckets[FAR].points.clear()
    for _ in range(3):
        await bench.look()
    (event,) = await bench.events(Reason.POINT_DAMAGED)
    assert event.sentence == f"gone from far, and no rule of retention told so: {run.point} of orders"


async def test_what_is_deleted_while_it_looks_does_not_come_back() -> None:
    """The look was answered before the deletion, the row is written after it."""
    bench = Bench()
    run = await bench.copied()

    async def deleted(tx: Transaction) -> None:
        (row,) = await tx.inventories()
        await tx.put_inventory(replace(row, points=()))

    bench.between_transactions = deleted
    await bench.look()
    bench.between_transactions = None
    held = bench.site.buckets[BUCKET].points.pop((DATASET, run.point or ""))  # type: ignore[arg-type]  # it is done
    assert held.manifest
    await bench.look()
    assert (await bench.inventory()).points == ()
    assert await bench.events(Reason.POINT_DAMAGED) == []


async def test_a_bucket_that_is_no_longer_the_datasets_is_forgotten() -> None:
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR))))
    await bench.copied()
    assert len((await bench.inventory(FAR)).points) == 1
    bench.declare(site_of())
    await bench.look()
    async with bench.store.transaction() as tx:
        assert [one.bucket for one in await tx.inventories()] == [BUCKET]


async def test_points_tell_what_keeps_them_and_when_a_drill_proved_them() -> None:
    bench = Bench(site_of(drills=(DAILY_DRILL,)))
    bench.site.put(ORDERS, BUCKET, make_point(START - timedelta(minutes=5)))
    await bench.look()
    drill = await bench.drilled()
    await bench.look()
    (point,) = (await bench.inventory()).points
    assert point.kept_by == (ORDERS.retention[0].period,)
    assert point.drilled_at == drill.phase_since


async def test_copies_in_a_further_bucket_are_seen_there() -> None:
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR))))
    run = await bench.copied()
    assert run.phase is BackupPhase.DONE
    for bucket in (BUCKET, BucketName("far")):
        assert [point.point for point in (await bench.inventory(bucket)).points] == [run.point]
    assert (await bench.inventory(FAR)).rpo_state == "", "the first bucket alone is judged"
