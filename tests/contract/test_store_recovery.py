"""Rows of recovery, on every store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DrillSelection, KeyPurpose, RetentionPeriod, StorageClass
from controlplane.domain.recovery import (
    BackupCause,
    BackupPhase,
    BackupRun,
    CheckOutcome,
    Drill,
    DrillPhase,
    DrillTimes,
    Inventory,
    LogCoverage,
    Override,
    RecoveryPoint,
    RiskyAction,
    Verdict,
)
from controlplane.domain.store import Store
from controlplane.kernel.ids import BucketName, DatasetName, PointId

START: Final = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ORDERS, STORE = DatasetName("orders"), DatasetName("control-plane")
MAIN, SECOND = BucketName("main"), BucketName("second")


def make_run(run: str = "r1", *, minutes: float = 0, dataset: DatasetName = ORDERS) -> BackupRun:
    return BackupRun(
        run=run,
        dataset=dataset,
        cause=BackupCause.SCHEDULE,
        phase=BackupPhase.COPYING,
        phase_since=START,
        asked_at=START + timedelta(minutes=minutes),
        asked_by="schedule",
        point=PointId("20260301T120000.123Z-0a1b"),
        total_bytes=10,
        sentence="copies 10 B",
    )


def make_drill(drill: str = "d1", *, minutes: float = 0) -> Drill:
    return Drill(
        drill=drill,
        name="orders-daily",
        dataset=ORDERS,
        selection=DrillSelection.RANDOM,
        key=KeyPurpose.BREAK_GLASS,
        bucket=SECOND,
        phase=DrillPhase.VERIFYING,
        phase_since=START,
        asked_at=START + timedelta(minutes=minutes),
        asked_by="schedule",
        storage_classes=(StorageClass.GLACIER_IR,),
        times=DrillTimes(fetch_and_restore_s=1.25),
        newest_at=START,
        achieved_rpo=timedelta(microseconds=1_500_001),
        checks=(CheckOutcome(name="has-orders", verdict=Verdict.PASSED, sentence="3 rows, at least 1"),),
        clean_proof=("no process", "no folder"),
    )


def make_inventory(bucket: BucketName = MAIN) -> Inventory:
    point = RecoveryPoint(
        point=PointId("20260301T120000.123Z-0a1b"),
        dataset=ORDERS,
        bucket=bucket,
        consistent_at=START,
        finished_at=START,
        plain_bytes=2**40,
        stored_bytes=2**39,
        parent=None,
        storage_classes=frozenset({StorageClass.STANDARD, StorageClass.GLACIER}),
        key_ids=("site:01234567",),
        kept_by=(RetentionPeriod.DAILY,),
        locked_until=START + timedelta(days=30),
        problems=("orders/points/x/base.tar/000001 is not there",),
    )
    coverage = LogCoverage(position="0/3000060", covered_at=START, segments=3, stored_bytes=9, gaps=("0/1-0/2",))
    return Inventory(dataset=ORDERS, bucket=bucket, observed_at=START, points=(point,), coverage=coverage)


async def test_runs_come_newest_first_and_are_replaced_whole(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.put_backup_run(make_run())
        await tx.put_backup_run(make_run("r2", minutes=5))
        await tx.put_backup_run(make_run("r3", minutes=3, dataset=STORE))
    done = replace(make_run(), phase=BackupPhase.DONE, done_bytes=10)
    async with store.transaction() as tx:
        await tx.put_backup_run(done)
        assert [run.run for run in await tx.backup_runs()] == ["r2", "r3", "r1"]
        assert await tx.backup_runs(ORDERS) == [make_run("r2", minutes=5), done]
        assert await tx.backup_runs(ORDERS, limit=1) == [make_run("r2", minutes=5)]


async def test_drills_keep_every_field(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.put_drill(make_drill())
        await tx.put_drill(make_drill("d2", minutes=1))
    async with store.transaction() as tx:
        assert await tx.drills() == [make_drill("d2", minutes=1), make_drill()]
        assert await tx.drills(STORE) == []


async def test_an_inventory_is_what_was_seen_last(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.put_inventory(make_inventory(SECOND))
        await tx.put_inventory(make_inventory())
        await tx.put_inventory(replace(make_inventory(), problem="the bucket did not answer"))
    async with store.transaction() as tx:
        main, second = await tx.inventories()
        assert main == replace(make_inventory(), problem="the bucket did not answer")
        assert second == make_inventory(SECOND)
        await tx.delete_inventory(ORDERS, MAIN)
        await tx.delete_inventory(ORDERS, MAIN)
        assert await tx.inventories() == [second]


async def test_overrides_end_by_themselves(store: Store) -> None:
    until = START + timedelta(hours=1)
    first = Override(action=RiskyAction.DEPLOY, by="ada", reason="a security fix", at=START, until=until)
    second = replace(first, by="grace", until=until + timedelta(hours=1))
    async with store.transaction() as tx:
        await tx.append_override(first)
        await tx.append_override(second)
    async with store.transaction() as tx:
        assert await tx.overrides(now=START) == [second, first]
        assert await tx.overrides(now=until) == [second]


async def test_ended_runs_and_overrides_are_pruned_with_the_events_of_their_time_and_drills_stay(store: Store) -> None:
    later = START + timedelta(minutes=1)
    async with store.transaction() as tx:
        await tx.put_backup_run(make_run())
        await tx.put_backup_run(replace(make_run("r2"), phase=BackupPhase.FAILED))
        await tx.put_drill(replace(make_drill(), phase=DrillPhase.PASSED))
        override = Override(action=RiskyAction.CHAOS, by="ada", reason="planned", at=START, until=START)
        await tx.append_override(override)
    async with store.transaction() as tx:
        assert await tx.prune(events_before=later, decisions_before=later, ticks_before=later) == 2
        assert [run.run for run in await tx.backup_runs()] == ["r1"]
        assert len(await tx.drills()) == 1
        assert await tx.overrides(now=START - timedelta(seconds=1)) == []
