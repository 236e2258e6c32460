"""When a backup begins, why, and whether it is a full one."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.domain.dataset import Cadence, StorageClass
from controlplane.domain.recovery import BackupCause, BackupPhase, BackupRun, RecoveryPoint
from controlplane.kernel.ids import DatasetName
from controlplane.recovery.backup_plan import CHAIN_MAX, BackupDecision, plan_backup
from controlplane.recovery.rpo import judge_rpo
from controlplane.testing.effects import START as NOW
from controlplane.testing.recovery_points import DATASET, DAY, make_dataset, make_point

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SPEC = make_dataset(rpo=DAY, cadence=Cadence(every=8 * HOUR))


def run(
    asked_at: datetime,
    *,
    phase: BackupPhase = BackupPhase.DONE,
    took: timedelta = 10 * MINUTE,
    dataset: DatasetName = DATASET,
) -> BackupRun:
    return BackupRun(
        run=f"backup-{asked_at:%d%H%M}",
        dataset=dataset,
        cause=BackupCause.SCHEDULE,
        phase=phase,
        phase_since=asked_at + took,
        asked_at=asked_at,
        asked_by="schedule",
        sentence="the source does not answer" if phase is BackupPhase.FAILED else "",
    )


def plan(
    points: list[RecoveryPoint], *runs: BackupRun, asked_by: str | None = None, incremental: bool = False
) -> BackupDecision:
    verdict = judge_rpo(SPEC, points, None, NOW, NOW)
    return plan_backup(SPEC, points, runs, verdict, NOW, asked_by=asked_by, incremental=incremental)


def test_the_first_is_due_at_once() -> None:
    decision = plan([])
    assert decision.begins
    assert (decision.cause, decision.parent) == (BackupCause.SCHEDULE, None)


def test_between_two_nothing_begins() -> None:
    decision = plan([make_point(NOW - HOUR)], run(NOW - HOUR))
    assert not decision.begins
    assert decision.again_at == NOW + 7 * HOUR
    assert decision.sentence == "orders: next backup at 2026-01-05 15:00:00 UTC"


def test_due_by_schedule_and_late_by_how_much() -> None:
    decision = plan([make_point(NOW - 9 * HOUR)], run(NOW - 9 * HOUR))
    assert decision.cause is BackupCause.SCHEDULE
    assert "due by its schedule (every 8h00m), 1h00m late" in decision.sentence


def test_a_store_that_lost_its_rows_goes_by_the_bucket() -> None:
    assert not plan([make_point(NOW - HOUR)]).begins


def test_an_extra_one_when_the_age_warns() -> None:
    decision = plan([make_point(NOW - 13 * HOUR)], run(NOW - HOUR, took=MINUTE))
    assert decision.cause is BackupCause.RPO
    assert "13h00m would be lost" in decision.sentence


def test_no_second_extra_one_before_the_source_has_rested_as_long_as_it_took() -> None:
    point = make_point(NOW - 13 * HOUR)
    decision = plan([point], run(NOW - 3 * HOUR, took=2 * HOUR))
    assert not decision.begins
    assert "the last took 2h00m and ended 1h00m ago" in decision.sentence
    assert plan([point], run(NOW - 4 * HOUR, took=2 * HOUR)).cause is BackupCause.RPO


def test_blindness_asks_for_no_extra_one() -> None:
    blind = judge_rpo(SPEC, [make_point(NOW - 13 * HOUR)], None, NOW, None)
    assert not plan_backup(SPEC, [make_point(NOW - 13 * HOUR)], [run(NOW - HOUR)], blind, NOW).begins
    assert not plan_backup(SPEC, [make_point(NOW - HOUR)], [run(NOW - HOUR)], None, NOW).begins


def test_a_person_is_heard_first() -> None:
    decision = plan([make_point(NOW)], run(NOW - MINUTE), asked_by="ada")
    assert decision.cause is BackupCause.PERSON
    assert "ada asks" in decision.sentence


@pytest.mark.parametrize("phase", [BackupPhase.PENDING, BackupPhase.COPYING, BackupPhase.REPLICATING])
def test_one_at_a_time_whoever_asks(phase: BackupPhase) -> None:
    decision = plan([], run(NOW - HOUR, phase=phase), asked_by="ada")
    assert not decision.begins
    assert "runs since 1h00m" in decision.sentence
    assert decision.again_at is None


def test_another_datasets_run_is_in_nobodys_way() -> None:
    assert plan([], run(NOW, phase=BackupPhase.COPYING, dataset=DatasetName("other"))).begins


@pytest.mark.parametrize(
    ("failures", "wait"), [(1, MINUTE), (2, 2 * MINUTE), (3, 4 * MINUTE), (6, 32 * MINUTE), (7, HOUR), (90, HOUR)]
)
def test_after_failures_it_waits_twice_as_long_each_time(failures: int, wait: timedelta) -> None:
    runs = [run(NOW - (number + 1) * HOUR, phase=BackupPhase.FAILED) for number in range(1, failures)]
    last = replace(run(NOW - HOUR, phase=BackupPhase.FAILED), phase_since=NOW)
    waiting = plan([], *runs, last)
    assert not waiting.begins
    assert waiting.again_at == NOW + wait
    assert "the source does not answer" in waiting.sentence
    assert plan_backup(SPEC, [], [*runs, last], None, NOW + wait).begins
    assert plan([], *runs, last, asked_by="ada").begins


def test_a_success_ends_the_waiting() -> None:
    runs = [run(NOW - 30 * HOUR, phase=BackupPhase.FAILED), run(NOW - 9 * HOUR)]
    assert plan([make_point(NOW - 9 * HOUR)], *runs).begins


def test_a_short_rpo_is_retried_sooner() -> None:
    spec = make_dataset(rpo=20 * MINUTE, cadence=Cadence(every=10 * MINUTE))
    runs = [run(NOW - number * HOUR, phase=BackupPhase.FAILED, took=timedelta(0)) for number in range(9)]
    assert plan_backup(spec, [], runs, None, NOW).again_at == NOW + 5 * MINUTE


def chain(
    length: int, *, share: float = 0.01, storage_class: StorageClass = StorageClass.STANDARD
) -> list[RecoveryPoint]:
    """Its increments store together that share of the full copy."""
    full = make_point(NOW - 30 * DAY, storage_class=storage_class, plain_bytes=2_000_000)
    links = [full]
    for number in range(1, length):
        size = int(full.plain_bytes * share / (length - 1))
        parent = links[-1].point
        links.append(make_point(NOW - 30 * DAY + number * HOUR, parent=parent, plain_bytes=size))
    return links


@pytest.mark.parametrize(
    ("points", "incremental", "says"),
    [
        (chain(1), False, "a full copy: this source makes no increments"),
        ([], True, "a full copy: there is none to begin with"),
        (chain(CHAIN_MAX), True, f"a full copy: the chain has {CHAIN_MAX} copies"),
        (chain(1, storage_class=StorageClass.GLACIER), True, "a full copy: the last one lies in GLACIER"),
        (chain(3, share=0.6), True, "a full copy: the increments have grown to 60% of the full one"),
    ],
)
def test_a_full_copy_where_an_increment_would_not_do(points: list[RecoveryPoint], incremental: bool, says: str) -> None:
    decision = plan(points, incremental=incremental)
    assert decision.begins
    assert decision.parent is None
    assert says in decision.sentence


@pytest.mark.parametrize("length", range(1, CHAIN_MAX))
def test_an_increment_on_the_newest_usable_one(length: int) -> None:
    links = chain(length)
    damaged = make_point(NOW - 9 * DAY, parent=links[-1].point, problems=("empty",))
    decision = plan([*links, damaged], incremental=True)
    assert decision.parent == links[-1].point
    assert f"number {length} of its chain" in decision.sentence
