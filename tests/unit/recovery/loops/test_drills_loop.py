"""The loop that proves restores: every phase, every way to fail, and that nothing is left over."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import DrillSelection, KeyPurpose, StorageClass
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Drill, DrillPhase, RiskyAction
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.deletions import GOING
from controlplane.recovery.drills import ATTEMPTS_MAX
from controlplane.recovery.workshop import LOST_AFTER, Broken
from controlplane.testing.recovery_points import BUCKET, DATASET, make_point
from tests.unit.recovery.loops.bench import DAILY_DRILL, FAR, HOUR, MINUTE, ORDERS, SECOND, Bench, site_of


def by_hand(bench: Bench, **fields: object) -> Drill:
    now = bench.clock.now()
    drill = Drill(
        drill="drill-1", name="by hand", dataset=DATASET, selection=DrillSelection.LATEST, key=KeyPurpose.SITE,
        bucket=BUCKET, phase=DrillPhase.PENDING, phase_since=now, asked_at=now, asked_by="ann",
    )  # fmt: skip
    return replace(drill, **fields)  # type: ignore[arg-type]  # fields of Drill


async def with_copy(*, drills: bool = True) -> Bench:
    bench = Bench(site_of(drills=(DAILY_DRILL,) if drills else ()))
    await bench.copied()
    return bench


async def until(bench: Bench, phase: DrillPhase) -> Drill:
    for _ in range(40):
        await bench.tick(bench.drills, after=SECOND / 2)
        drills = await bench.all_drills()
        if drills and drills[0].phase is phase:
            return drills[0]
    raise AssertionError(f"{phase} never came: {[drill.phase for drill in await bench.all_drills()]}")


async def test_from_the_schedule_to_signed_evidence() -> None:
    bench = await with_copy()
    drill = await bench.drilled()
    (row,) = bench.site.rows(DATASET, BUCKET)
    assert (drill.phase, drill.point, drill.name) == (DrillPhase.PASSED, row.point, "orders-daily")
    assert (drill.key_id, drill.fetched_bytes, drill.failure) == ("site:00000000", row.stored_bytes, "")
    assert drill.times.rto_s == pytest.approx(4.0)
    assert drill.clean_proof
    assert drill.evidence_key in bench.site.evidence
    assert bench.site.scratch == {}
    told = [event.reason for event in await bench.events(Reason.DRILL_STARTED, Reason.DRILL_PASSED)]
    assert told == [Reason.DRILL_STARTED, Reason.DRILL_PASSED]
    report = await bench.tick(bench.drills)
    assert not report.changed
    assert "orders-daily: next at" in report.sentence
    await bench.look()
    assert (await bench.inventory()).points[0].drilled_at == drill.phase_since


async def test_what_a_check_finds_wrong_fails_it() -> None:
    bench = await with_copy()
    bench.source.red = "found 3 rows, expected 4"
    drill = await bench.drilled()
    assert (drill.phase, drill.failure) == (DrillPhase.FAILED, "rows: found 3 rows, expected 4")
    assert drill.evidence_key in bench.site.evidence
    assert bench.site.scratch == {}
    assert [event.reason for event in await bench.events(Reason.DRILL_FAILED)] == [Reason.DRILL_FAILED]
    assert not (await bench.permission()).allowed


async def test_a_restore_slower_than_the_rto_fails_it() -> None:
    bench = await with_copy()
    bench.source.drill_takes = ORDERS.rto + SECOND
    drill = await bench.drilled(ticks_max=700)
    assert (drill.phase, drill.failure) == (DrillPhase.FAILED, "it took 10m01s, the RTO is 10m00s")


async def test_data_older_than_the_rpo_when_it_was_asked_for_fail_it() -> None:
    bench = await with_copy(drills=False)
    bench.clock.jump(ORDERS.rpo)
    await bench.put_drill(by_hand(bench))
    drill = await bench.drilled()
    assert drill.phase is DrillPhase.FAILED
    assert "before the one that was asked for, the RPO is 10m00s" in drill.failure


async def test_a_moment_of_before_the_newest_copy_is_restored_from_an_older_one() -> None:
    bench = await with_copy(drills=False)
    older = bench.site.rows(DATASET, BUCKET)[0]
    moment = bench.clock.now()
    bench.clock.jump(MINUTE)
    await bench.copied()
    await bench.put_drill(by_hand(bench, to_time=moment))
    drill = await bench.drilled()
    assert (drill.point, drill.phase, drill.failure) == (older.point, DrillPhase.PASSED, "")


async def test_a_drill_that_takes_long_is_not_counted_as_loss() -> None:
    bench = await with_copy(drills=False)
    bench.source.drill_takes = ORDERS.rto
    await bench.put_drill(by_hand(bench))
    drill = await bench.drilled(ticks_max=700)
    assert (drill.phase, drill.failure) == (DrillPhase.PASSED, "")
    assert drill.achieved_rpo is not None
    assert drill.achieved_rpo < ORDERS.rpo / 2


async def test_hopeless_ends_at_once_and_what_may_pass_is_tried_again_from_an_empty_folder() -> None:
    bench = await with_copy()
    bench.source.restore_breaks = Broken(sentence="the store answers 503", hopeless=False)
    await until(bench, DrillPhase.RESERVING)
    drill = await until(bench, DrillPhase.RESERVING)
    assert (drill.attempt, drill.scratch, bench.site.scratch) == (1, None, {})
    bench.source.restore_breaks = None
    assert (await bench.drilled()).phase is DrillPhase.PASSED
    bench.clock.jump(timedelta(days=1))
    bench.source.restore_breaks = Broken(sentence="wrong key", hopeless=True)
    await bench.copied()
    drill = await bench.drilled()
    assert (drill.phase, drill.failure, drill.attempt) == (DrillPhase.FAILED, "wrong key", 1)


async def test_what_breaks_three_times_fails() -> None:
    bench = await with_copy()
    bench.source.restore_breaks = Broken(sentence="the store answers 503", hopeless=False)
    drill = await bench.drilled()
    assert (drill.phase, drill.attempt) == (DrillPhase.FAILED, ATTEMPTS_MAX)
    assert drill.failure == "the store answers 503, for the 3rd time"
    assert bench.site.scratch == {}


@pytest.mark.parametrize(
    "phase",
    [
        DrillPhase.PENDING,
        DrillPhase.RESERVING,
        DrillPhase.FETCHING,
        DrillPhase.RESTORING,
        DrillPhase.STARTING,
        DrillPhase.VERIFYING,
        DrillPhase.MEASURING,
        DrillPhase.CLEANING,
        DrillPhase.RECORDING,
    ],
)
async def test_killed_in_any_phase_it_ends_and_leaves_nothing(phase: DrillPhase) -> None:
    bench = await with_copy()
    await until(bench, phase)
    bench.restart()
    drill = await bench.drilled(ticks_max=120)
    assert drill.phase is DrillPhase.PASSED
    assert drill.attempt == (2 if phase in {DrillPhase.RESTORING, DrillPhase.STARTING, DrillPhase.VERIFYING} else 1)
    assert bench.site.scratch == {}
    assert bench.site.broken == []
    assert len(await bench.events(Reason.DRILL_STARTED)) == 1
    assert len(await bench.events(Reason.DRILL_PASSED)) == 1


async def test_a_worker_that_is_gone_three_times_fails_it() -> None:
    bench = await with_copy()
    for _ in range(ATTEMPTS_MAX):
        await until(bench, DrillPhase.STARTING)
        bench.restart()
        await bench.tick(bench.drills)
        await bench.tick(bench.drills, after=LOST_AFTER)
    drill = await bench.drilled()
    assert (drill.phase, drill.attempt) == (DrillPhase.FAILED, ATTEMPTS_MAX)
    assert drill.failure == "the control plane that restored it is gone, for the 3rd time"
    assert bench.site.scratch == {}


async def test_what_does_not_go_away_is_cleaned_again_until_it_does() -> None:
    bench = await with_copy()
    bench.source.stubborn = 3
    await until(bench, DrillPhase.CLEANING)
    for _ in range(3):
        with pytest.raises(RetryableError, match="there is still"):
            await bench.tick(bench.drills)
        assert bench.site.scratch != {}
    assert (await bench.drilled()).phase is DrillPhase.PASSED
    assert bench.site.scratch == {}


async def test_no_room_fails_it_with_the_numbers() -> None:
    bench = await with_copy()
    bench.site.scratch_room_bytes = 1000
    drill = await bench.drilled()
    assert drill.phase is DrillPhase.FAILED
    assert "room for 1000 bytes" in drill.failure


async def test_the_wait_for_an_archive_class_is_part_of_the_rto() -> None:
    bench = Bench(site_of(replace(ORDERS, rto=6 * HOUR)))
    bench.site.put(ORDERS, BUCKET, make_point(bench.clock.now(), storage_class=StorageClass.GLACIER))
    await bench.look()
    await bench.put_drill(by_hand(bench))
    await until(bench, DrillPhase.FETCHING)
    report = await bench.tick(bench.drills)
    assert (report.sentence, report.changed) == ("0 of 1 archived objects are back", False)
    bench.clock.jump(4 * HOUR)
    await bench.tick(bench.drills)
    await bench.tick(bench.drills)
    bench.restart()
    await bench.tick(bench.drills)
    drill = await bench.drilled(ticks_max=120)
    assert (drill.phase, drill.attempt) == (DrillPhase.PASSED, 2)
    assert drill.times.retrieval_wait_s == pytest.approx(4 * 3600, abs=5), "the second attempt found it thawed"


async def test_while_the_bucket_does_not_answer_it_waits() -> None:
    bench = await with_copy(drills=False)
    await bench.put_drill(by_hand(bench))
    bench.site.buckets[BUCKET].problem = "503"
    await bench.look()
    assert "waits until the bucket can be read" in (await bench.tick(bench.drills)).sentence
    bench.site.buckets[BUCKET].problem = ""
    await bench.look()
    assert (await bench.drilled()).phase is DrillPhase.PASSED


async def test_evidence_waits_for_the_bucket() -> None:
    bench = await with_copy()
    await until(bench, DrillPhase.RECORDING)
    bench.site.buckets[BUCKET].problem = "503"
    with pytest.raises(RetryableError):
        await bench.tick(bench.drills)
    bench.site.buckets[BUCKET].problem = ""
    assert (await bench.drilled()).phase is DrillPhase.PASSED


@pytest.mark.parametrize("phase", [DrillPhase.PENDING, DrillPhase.FETCHING, DrillPhase.VERIFYING, DrillPhase.RECORDING])
async def test_a_dataset_that_is_no_longer_declared_ends_it_failed_and_cleaned(phase: DrillPhase) -> None:
    bench = await with_copy()
    await until(bench, phase)
    bench.declare(site_of(replace(ORDERS, name=DatasetName("other"))))
    assert await bench.drills.resources() == ["orders", "other"]
    drill = await bench.drilled()
    assert drill.phase is DrillPhase.FAILED
    assert "no longer declared" in drill.failure
    assert bench.site.scratch == {}
    assert bench.site.living_drills() == []
    assert await bench.drills.resources() == ["other"]


async def test_a_bucket_that_is_no_longer_the_datasets_ends_it() -> None:
    bench = await with_copy(drills=False)
    await bench.put_drill(by_hand(bench, bucket=FAR))
    drill = await bench.drilled()
    assert drill.phase is DrillPhase.FAILED
    assert "far" in drill.failure


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"point": PointId("nowhere"), "named": True}, "nowhere is not in main"),
        ({"selection": DrillSelection.QUARTERLY}, "kept by a quarterly or yearly rule"),
    ],
)
async def test_none_that_qualifies_fails_it(fields: dict[str, object], words: str) -> None:
    bench = await with_copy(drills=False)
    await bench.put_drill(by_hand(bench, **fields))
    drill = await bench.drilled()
    assert drill.phase is DrillPhase.FAILED
    assert words in drill.failure
    assert await bench.events(Reason.DRILL_STARTED) == []


async def test_the_point_that_a_person_named_is_restored() -> None:
    bench = await with_copy(drills=False)
    first = bench.site.rows(DATASET, BUCKET)[0]
    bench.clock.jump(HOUR)
    await bench.copied()
    await bench.put_drill(by_hand(bench, point=first.point, named=True))
    drill = await bench.drilled()
    assert (drill.phase, drill.point, drill.achieved_rpo) == (DrillPhase.PASSED, first.point, timedelta(0))


async def test_a_point_that_retention_took_meanwhile_is_not_chosen() -> None:
    """Between reading the inventory and the commit that says which point is in use."""
    bench = await with_copy(drills=False)
    await bench.put_drill(by_hand(bench))
    inventory = await bench.inventory()
    going = replace(inventory, points=(replace(inventory.points[0], problems=(GOING,)),))
    bench.between_transactions = lambda tx: tx.put_inventory(going)
    report = await bench.tick(bench.drills)
    assert "was deleted meanwhile" in report.sentence
    assert [drill.phase for drill in await bench.all_drills()] == [DrillPhase.PENDING]
    assert await bench.events(Reason.DRILL_STARTED) == []
    bench.between_transactions = None
    await bench.look()
    assert (await bench.drilled()).phase is DrillPhase.PASSED


async def test_drills_of_many_others_hide_none_of_ours() -> None:
    """Rows of a dataset are read by themselves: what others do is no reason to run again, or to refuse."""
    bench = await with_copy()
    await bench.drilled()
    for number in range(600):
        other = by_hand(bench, drill=f"other-{number}", dataset=DatasetName("other"), phase=DrillPhase.PASSED)
        await bench.put_drill(replace(other, asked_at=bench.clock.now() + SECOND))
    assert not (await bench.tick(bench.drills)).changed
    assert (await bench.permission(RiskyAction.DEPLOY)).allowed


async def test_one_that_has_begun_comes_before_one_that_waits_whatever_their_clocks_say() -> None:
    bench = await with_copy()
    begun = await until(bench, DrillPhase.RESTORING)
    await bench.put_drill(by_hand(bench, asked_at=begun.asked_at - HOUR))
    for _ in range(6):
        await bench.tick(bench.drills, after=SECOND)
        assert len(bench.site.living_drills()) <= 1
    phases = {drill.drill: drill.phase for drill in await bench.all_drills()}
    assert phases[begun.drill] is DrillPhase.RECORDING or phases[begun.drill] is DrillPhase.PASSED


async def test_the_other_bucket_is_drilled_too() -> None:
    orders = replace(ORDERS, buckets=(BUCKET, FAR))
    bench = Bench(site_of(orders, drills=(replace(DAILY_DRILL, bucket=BucketName("far")),)))
    await bench.copied()
    drill = await bench.drilled()
    assert (drill.bucket, drill.phase) == (FAR, DrillPhase.PASSED)


async def test_a_drill_with_the_offline_key_waits_until_a_person_lends_it() -> None:
    bench = Bench(site_of(drills=(replace(DAILY_DRILL, key=KeyPurpose.BREAK_GLASS),)))
    await bench.copied()
    report = await bench.tick(bench.drills)
    assert "the break-glass key is not here" in report.sentence
    assert await bench.all_drills() == []
    bench.site.keys_at_hand = frozenset(KeyPurpose)
    drill = await bench.drilled()
    assert (drill.phase, drill.key_id) == (DrillPhase.PASSED, "break-glass:00000000")
