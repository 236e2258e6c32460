"""The loop that makes copies: each transition, and what becomes of a copy whose worker is gone."""

from dataclasses import replace

import pytest

from controlplane.domain.dataset import BucketSpec, LockMode, RecoverySpec
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupCause, BackupPhase
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, DatasetName, InstanceId
from controlplane.recovery.backups import ATTEMPTS_MAX
from controlplane.recovery.workshop import LOST_AFTER
from controlplane.testing.recovery_points import BUCKET, DATASET
from tests.unit.recovery.loops.bench import FAR, HOUR, MINUTE, ORDERS, SECOND, Bench, site_of


async def begun(bench: Bench) -> None:
    """Looked into the bucket, decided, begun."""
    await bench.look()
    await bench.tick(bench.backups)
    await bench.tick(bench.backups)


async def test_nothing_begins_before_the_bucket_was_looked_into() -> None:
    bench = Bench()
    report = await bench.tick(bench.backups)
    assert "waits for a look" in report.sentence
    assert await bench.runs() == []


async def test_what_a_person_asked_for_waits_as_well_while_the_bucket_does_not_answer() -> None:
    bench = Bench()
    bench.site.buckets[BUCKET].problem = "503"
    await bench.look()
    await bench.ask_backup()
    assert "waits for a look" in (await bench.tick(bench.backups)).sentence
    bench.site.buckets[BUCKET].problem = ""
    await bench.look()
    await bench.tick(bench.backups)
    assert [run.phase for run in await bench.runs()] == [BackupPhase.COPYING]


async def test_pending_copying_done_each_told_once() -> None:
    bench = Bench()
    await bench.look()
    await bench.tick(bench.backups)
    (run,) = await bench.runs()
    assert (run.phase, run.cause, run.attempt) == (BackupPhase.PENDING, BackupCause.SCHEDULE, 0)
    await bench.tick(bench.backups)
    (run,) = await bench.runs()
    assert (run.phase, run.attempt) == (BackupPhase.COPYING, 1)
    assert run.point is not None
    await bench.tick(bench.backups, after=2 * SECOND)
    (run,) = await bench.runs()
    assert run.done_bytes > 0
    await bench.tick(bench.backups, after=2 * SECOND)
    (run,) = await bench.runs()
    assert run.phase is BackupPhase.DONE
    assert bench.hints.hinted.count("recovery-points") == 1
    assert [row.point for row in bench.site.rows(DATASET, BUCKET)] == [run.point]
    assert [event.reason for event in await bench.events()] == [Reason.BACKUP_STARTED, Reason.BACKUP_DONE]
    assert bench.site.broken == []


async def test_the_next_comes_when_it_is_due_and_not_before() -> None:
    bench = Bench()
    await bench.copied()
    report = await bench.tick(bench.backups)
    assert report.again_after is not None
    assert 4 * MINUTE < report.again_after <= 5 * MINUTE
    bench.clock.jump(report.again_after - SECOND)
    await bench.look()
    assert not (await bench.tick(bench.backups)).changed
    assert (await bench.tick(bench.backups, after=SECOND)).changed
    assert [run.cause for run in await bench.runs()] == [BackupCause.SCHEDULE, BackupCause.PERSON]


async def test_a_source_that_refuses_fails_the_run_and_the_next_waits() -> None:
    bench = Bench()
    bench.source.refusal = "role backup may not replicate"
    await begun(bench)
    await bench.tick(bench.backups, after=5 * SECOND)
    (run,) = await bench.runs()
    assert (run.phase, run.sentence) == (BackupPhase.FAILED, "role backup may not replicate")
    await bench.look()
    assert "the next at" in (await bench.tick(bench.backups)).sentence
    assert bench.site.scraps()
    bench.source.refusal = ""
    await bench.look()
    done = await bench.copied()
    assert done.phase is BackupPhase.DONE
    assert bench.site.scraps() == [], "what the failed one left is swept by the next"
    started = await bench.events(Reason.BACKUP_STARTED)
    assert "unfinished copy were removed" in started[-1].sentence


async def test_a_worker_that_is_gone_is_waited_for_then_the_copy_begins_again() -> None:
    bench = Bench()
    await begun(bench)
    bench.clock.jump(2 * SECOND)
    bench.restart()
    bench.holder = InstanceId("two")
    first = (await bench.runs())[0].point
    assert "waits until nobody elsewhere" in (await bench.tick(bench.backups)).sentence
    assert (await bench.runs())[0].phase is BackupPhase.COPYING
    await bench.tick(bench.backups, after=LOST_AFTER)
    (run,) = await bench.runs()
    assert (run.phase, run.point, run.attempt) == (BackupPhase.PENDING, None, 1)
    await bench.tick(bench.backups)
    (run,) = await bench.runs()
    assert (run.phase, run.attempt) == (BackupPhase.COPYING, 2)
    assert run.point != first
    await bench.tick(bench.backups, after=5 * SECOND)
    assert (await bench.runs())[0].phase is BackupPhase.DONE
    assert bench.site.scraps() == []
    assert [row.point for row in bench.site.rows(DATASET, BUCKET)] == [run.point]
    told = [event.reason for event in await bench.events()]
    assert told == [Reason.BACKUP_STARTED, Reason.BACKUP_LOST, Reason.BACKUP_STARTED, Reason.BACKUP_DONE]


async def test_the_next_process_of_the_same_name_does_not_wait() -> None:
    bench = Bench()
    await begun(bench)
    bench.restart()
    await bench.tick(bench.backups)
    (run,) = await bench.runs()
    assert (run.phase, run.attempt) == (BackupPhase.PENDING, 1)


async def test_it_gives_up_after_three() -> None:
    bench = Bench()
    await begun(bench)
    for _ in range(ATTEMPTS_MAX):
        bench.restart()
        await bench.tick(bench.backups)
        await bench.tick(bench.backups, after=LOST_AFTER)
        await bench.tick(bench.backups)
    run = (await bench.runs())[-1]
    assert (run.phase, run.attempt) == (BackupPhase.FAILED, ATTEMPTS_MAX)
    assert "ask for it by hand" in run.sentence
    assert len(await bench.events(Reason.BACKUP_LOST)) == ATTEMPTS_MAX - 1
    assert len(await bench.events(Reason.BACKUP_FAILED)) == 1


async def test_the_one_that_is_made_comes_before_one_that_waits_whatever_their_clocks_say() -> None:
    bench = Bench()
    await begun(bench)
    (copying,) = await bench.runs()
    earlier = replace(
        copying, run="behind", phase=BackupPhase.PENDING, asked_at=copying.asked_at - HOUR, attempt=0, point=None
    )
    async with bench.store.transaction() as tx:
        await tx.put_backup_run(earlier)
    await bench.tick(bench.backups, after=SECOND)
    assert len(bench.site.living_copies()) == 1
    await bench.tick(bench.backups, after=5 * SECOND)
    await bench.tick(bench.backups)
    assert {run.run: run.phase for run in await bench.runs()} == {
        copying.run: BackupPhase.DONE,
        "behind": BackupPhase.COPYING,
    }
    assert bench.site.broken == []


async def test_a_claim_that_passed_on_begins_nothing() -> None:
    bench = Bench()
    await bench.look()
    claim = await bench.claim(bench.backups)
    stale = replace(claim, token=ClaimToken("old"))
    with pytest.raises(StaleClaimError):
        await bench.backups.tick(DATASET, stale)
    await bench.backups.tick(DATASET, claim)
    with pytest.raises(StaleClaimError):
        await bench.backups.tick(DATASET, stale)
    assert bench.site.living_copies() == []


async def test_an_increment_stands_on_the_newest_usable_copy() -> None:
    bench = Bench()
    bench.source.increments = True
    full = await bench.copied()
    second = await bench.copied()
    assert (full.parent, second.parent) == (None, full.point)
    assert second.point is not None
    bench.site.damage(ORDERS, BUCKET, second.point)
    await bench.look()
    assert (await bench.copied()).parent == full.point


@pytest.mark.parametrize("locking", [BUCKET, FAR])
async def test_copies_are_locked_in_the_bucket_that_locks(locking: str) -> None:
    orders = replace(ORDERS, buckets=(BUCKET, FAR))
    buckets = tuple(
        BucketSpec(name=name, bucket=name, lock=LockMode.COMPLIANCE if name == locking else LockMode.NONE)
        for name in orders.buckets
    )
    bench = Bench(RecoverySpec(buckets=buckets, datasets=(orders,)))
    await bench.copied()
    held = {name: bench.site.rows(DATASET, name)[0].locked_until is not None for name in orders.buckets}
    assert held == {name: name == locking for name in orders.buckets}


async def test_the_extra_copy_when_the_age_passes_its_warning_share() -> None:
    slow = replace(ORDERS, cadence=replace(ORDERS.cadence, every=8 * MINUTE), warn_at=0.5)
    bench = Bench(site_of(slow))
    await bench.copied()
    bench.clock.jump(6 * MINUTE)
    await bench.look()
    await bench.tick(bench.backups)
    assert (await bench.runs())[0].cause is BackupCause.RPO
    assert [event.reason for event in await bench.events(Reason.RPO_AT_RISK)] == [Reason.RPO_AT_RISK]


async def test_what_is_no_longer_declared_is_left_alone() -> None:
    bench = Bench()
    bench.declare(site_of(replace(ORDERS, name=DatasetName("other"))))
    for loop in (bench.backups, bench.surveyor, bench.streams, bench.pruner):
        assert (await bench.tick(loop)).sentence == "no longer declared"
