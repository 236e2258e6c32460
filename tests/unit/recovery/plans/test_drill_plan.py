"""Which drills begin, and why the others wait."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import Cadence, DrillSelection, DrillSpec, KeyPurpose, RecoverySpec
from controlplane.domain.recovery import Drill, DrillPhase, RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.recovery.drill_plan import DrillPlan, bucket_of, plan_drills, stale_at
from controlplane.testing.effects import START as NOW
from controlplane.testing.recovery_points import BUCKET, DATASET, DAY, make_dataset, make_drill, make_point

HOUR = timedelta(hours=1)
DAILY = DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=DAY))
RANDOM = replace(DAILY, name="orders-random", selection=DrillSelection.RANDOM)
POINTS = (make_point(NOW - 2 * DAY), make_point(NOW - DAY))


def plan(
    *specs: DrillSpec,
    drills: tuple[Drill, ...] = (),
    points: tuple[RecoveryPoint, ...] = POINTS,
    keys: frozenset[KeyPurpose] = frozenset({KeyPurpose.SITE}),
    draws: dict[str, float] | None = None,
) -> DrillPlan:
    spec = RecoverySpec(datasets=(make_dataset(),), drills=specs)
    return plan_drills(spec, points, drills, NOW, draws=draws or {}, keys=keys)


def waits(found: DrillPlan) -> str:
    assert found.due == ()
    (one,) = found.waiting
    return one.sentence


def test_the_first_is_due_as_soon_as_there_is_a_point() -> None:
    (due,) = plan(DAILY).due
    assert (due.spec, due.bucket) == (DAILY, BUCKET)
    assert due.selected.point == POINTS[1]
    assert "there is no recovery point yet" in waits(plan(DAILY, points=()))


def test_not_before_its_time() -> None:
    found = plan(DAILY, drills=(make_drill(NOW - 23 * HOUR),))
    assert waits(found) == "orders-daily: next at 2026-01-05 09:00:00 UTC"
    assert found.waiting[0].until == NOW + HOUR
    (late,) = plan(DAILY, drills=(make_drill(NOW - 30 * HOUR),)).due
    assert "6h00m late" in late.sentence


def test_one_drill_of_a_dataset_at_a_time() -> None:
    running = make_drill(NOW - HOUR, name="by hand", phase=DrillPhase.FETCHING)
    assert f"due, but {running.drill} runs" in waits(plan(DAILY, drills=(running,)))
    elsewhere = replace(running, dataset=DatasetName("other"))
    assert len(plan(DAILY, drills=(elsewhere,)).due) == 1


def test_of_two_that_are_due_the_one_that_waits_longer_goes_first() -> None:
    history = (make_drill(NOW - 30 * HOUR), make_drill(NOW - 40 * HOUR, name=RANDOM.name))
    found = plan(DAILY, RANDOM, drills=history)
    assert [due.spec for due in found.due] == [RANDOM]
    assert "orders-random comes first" in found.waiting[0].sentence


def test_one_that_cannot_run_is_in_nobodys_way() -> None:
    cold = replace(DAILY, name="orders-cold", selection=DrillSelection.QUARTERLY)
    found = plan(cold, DAILY)
    assert [due.spec for due in found.due] == [DAILY]
    assert "kept by a quarterly or yearly rule" in found.waiting[0].sentence


def test_a_key_that_is_not_here() -> None:
    offline = replace(DAILY, key=KeyPurpose.BREAK_GLASS)
    assert "the break-glass key is not here" in waits(plan(offline))
    assert len(plan(offline, keys=frozenset(KeyPurpose)).due) == 1


def test_the_draw_decides_for_random() -> None:
    picked = [plan(RANDOM, draws={RANDOM.name: draw}).due[0].selected.point for draw in (0.0, 0.9)]
    assert picked == list(POINTS)


def test_the_second_region_is_read_where_it_says_so() -> None:
    far = BucketName("far")
    there = make_point(NOW - DAY, bucket=far)
    (due,) = plan(replace(DAILY, bucket=far), points=(*POINTS, there)).due
    assert (due.bucket, due.selected.point) == (far, there)
    assert "orders in far: there is no recovery point yet" in waits(plan(replace(DAILY, bucket=far)))


def test_a_dataset_that_is_gone() -> None:
    gone = replace(DAILY, dataset=DatasetName("gone"))
    assert "its dataset gone is not declared" in waits(plan(gone))
    assert bucket_of(gone, RecoverySpec()) is None


@pytest.mark.parametrize(("failures", "wait"), [(1, HOUR / 2), (2, HOUR), (3, 2 * HOUR), (5, 8 * HOUR), (9, DAY)])
def test_a_failed_one_is_tried_again_before_its_cadence(failures: int, wait: timedelta) -> None:
    monthly = replace(DAILY, cadence=Cadence(every=30 * DAY))
    last = NOW - wait + timedelta(minutes=1)
    failed = tuple(
        make_drill(last - number * timedelta(minutes=1), phase=DrillPhase.FAILED) for number in range(failures)
    )
    found = plan(monthly, drills=(*failed, make_drill(NOW - 20 * DAY)))
    assert found.due == ()
    assert found.waiting[0].until == last + wait
    sooner = tuple(replace(drill, phase_since=drill.phase_since - timedelta(minutes=1)) for drill in failed)
    assert len(plan(monthly, drills=sooner).due) == 1


def test_the_cadence_comes_before_a_long_wait() -> None:
    hourly = replace(DAILY, cadence=Cadence(every=HOUR))
    failed = tuple(make_drill(NOW - (number + 1) * HOUR, phase=DrillPhase.FAILED) for number in range(9))
    assert len(plan(hourly, drills=failed).due) == 1


def test_what_failed_is_forgotten_with_a_pass() -> None:
    history = (make_drill(NOW - 30 * HOUR, phase=DrillPhase.FAILED), make_drill(NOW - 20 * HOUR))
    assert plan(DAILY, drills=history).waiting[0].until == NOW + 4 * HOUR


def test_proof_goes_stale_at_the_second_occurrence_or_by_its_own_word() -> None:
    assert stale_at(DAILY, NOW) == NOW + 2 * DAY
    assert stale_at(replace(DAILY, stale_after=HOUR), NOW) == NOW + HOUR
    nightly = replace(DAILY, cadence=Cadence(cron="0 3 * * *"))
    assert stale_at(nightly, NOW) == NOW.replace(hour=3) + 2 * DAY
