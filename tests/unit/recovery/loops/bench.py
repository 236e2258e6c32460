"""One control plane's recovery loops, ticked by hand under fake time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    DatasetKind,
    DatasetSpec,
    DrillSpec,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    WalMode,
)
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupCause, BackupPhase, BackupRun, Drill, Inventory, Override, RiskyAction
from controlplane.domain.store import Claim, Transaction
from controlplane.kernel.ids import BucketName, ClaimToken, InstanceId
from controlplane.recovery.backups import Backups
from controlplane.recovery.drills import Drills
from controlplane.recovery.gate import Permission
from controlplane.recovery.pruner import Pruner
from controlplane.recovery.standing import permission_now
from controlplane.recovery.streams import Streams
from controlplane.recovery.surveyor import Surveyor
from controlplane.runtime.reconciler import Reconciler, TickReport
from controlplane.testing.effects import FakeClock, SeededRng
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_points import BUCKET, DATASET
from controlplane.testing.recovery_site import FakeSource, RecoverySite
from controlplane.testing.workshop import FakeWorkshop, HexIds

SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
FAR: Final = BucketName("far")

ORDERS: Final = DatasetSpec(
    name=DATASET,
    kind=DatasetKind.POSTGRESQL,
    rpo=10 * MINUTE,
    rto=10 * MINUTE,
    cadence=Cadence(every=5 * MINUTE),
    retention=(RetentionRule(period=RetentionPeriod.HOURLY, keep=2 * HOUR),),
    buckets=(BUCKET,),
)
STREAMED: Final = replace(ORDERS, wal=WalMode.STREAMING)
DAILY_DRILL: Final = DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=timedelta(days=1)))


class CountedHints:
    """Implements `controlplane.runtime.hints.Hints`."""

    def __init__(self) -> None:
        self.hinted: list[str] = []

    def hint(self, loop: str) -> None:
        self.hinted.append(loop)


def site_of(*datasets: DatasetSpec, drills: tuple[DrillSpec, ...] = ()) -> RecoverySpec:
    buckets = (BucketSpec(name=BUCKET, bucket="main"), BucketSpec(name=FAR, bucket="far"))
    return RecoverySpec(buckets=buckets, datasets=datasets or (ORDERS,), drills=drills)


class _Interposed:
    """Implements `controlplane.domain.store.Store`: something else commits after each of a loop's transactions."""

    def __init__(self, bench: "Bench") -> None:
        self._bench = bench

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._bench.store.transaction() as tx:
            yield tx
        if self._bench.between_transactions is not None:
            async with self._bench.store.transaction() as tx:
                await self._bench.between_transactions(tx)

    async def close(self) -> None:
        await self._bench.store.close()


class Bench:
    """`restart` is a crash: the world stays, what the process knew is gone."""

    def __init__(self, declared: RecoverySpec | None = None) -> None:
        self.holder = InstanceId("one")
        self.store = MemoryStore()
        self.clock = FakeClock()
        self.site = RecoverySite(self.clock, declared or site_of())
        self.hints = CountedHints()
        self._ids = HexIds()
        self.between_transactions: Callable[[Transaction], Awaitable[None]] | None = None
        self._starts = 0
        self.workshop = FakeWorkshop(self.site)
        self.restart()

    @property
    def source(self) -> FakeSource:
        return self.site.sources[DATASET]

    def restart(self) -> None:
        self.site.end_process(self.workshop)
        self._starts += 1
        store, clock, declared = _Interposed(self), self.clock, self._declared
        self.workshop = shop = FakeWorkshop(self.site)
        self.surveyor = Surveyor(store=store, workshop=shop, clock=clock, hints=self.hints, declared=declared)
        self.backups = Backups(
            store=store, workshop=shop, clock=clock, ids=self._ids, hints=self.hints, declared=declared
        )
        self.drills = Drills(
            store=store, workshop=shop, clock=clock, rng=SeededRng(1), ids=self._ids, declared=declared
        )
        self.streams = Streams(store=store, workshop=shop, clock=clock, declared=declared)
        self.pruner = Pruner(store=store, workshop=shop, clock=clock, declared=declared)

    def _declared(self) -> RecoverySpec:
        return self.site.declared

    def declare(self, declared: RecoverySpec) -> None:
        self.site.declared = declared

    # -- ticks
    async def claim(self, loop: Reconciler, resource: str = DATASET) -> Claim:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                f"{loop.name}/{resource}", token=ClaimToken(f"token-{self._starts}"), holder=self.holder,
                now=now, expires_at=now + SECOND,
            )  # fmt: skip
        assert claim is not None
        return claim

    async def tick(self, loop: Reconciler, *, after: timedelta = timedelta(0)) -> TickReport:
        self.clock.jump(after)
        return await loop.tick(DATASET, await self.claim(loop))

    async def look(self) -> TickReport:
        return await self.tick(self.surveyor)

    async def copied(self) -> BackupRun:
        """A copy from the decision to its end, seen in the bucket."""
        await self.look()
        asked = await self.ask_backup()
        for _ in range(20):
            await self.tick(self.backups, after=SECOND)
            run = next(run for run in await self.runs() if run.run == asked.run)
            if run.ended:
                await self.look()
                return run
        raise AssertionError(f"still {[run.sentence for run in await self.runs()]}")

    async def ask_backup(self) -> BackupRun:
        now = self.clock.now()
        run = BackupRun(
            run=self._ids.new_id(), dataset=DATASET, cause=BackupCause.PERSON, phase=BackupPhase.PENDING,
            phase_since=now, asked_at=now, asked_by="ann",
        )  # fmt: skip
        async with self.store.transaction() as tx:
            await tx.put_backup_run(run)
        return run

    async def put_drill(self, drill: Drill) -> None:
        async with self.store.transaction() as tx:
            await tx.put_drill(drill)

    async def drilled(self, *, ticks_max: int = 60) -> Drill:
        """The newest drill, ticked until it ends."""
        for _ in range(ticks_max):
            await self.tick(self.drills, after=SECOND)
            drills = await self.all_drills()
            if drills and drills[0].ended:
                return drills[0]
        raise AssertionError(f"still {[drill.phase for drill in await self.all_drills()]}")

    # -- rows
    async def runs(self) -> Sequence[BackupRun]:
        async with self.store.transaction() as tx:
            return await tx.backup_runs()

    async def all_drills(self) -> Sequence[Drill]:
        async with self.store.transaction() as tx:
            return await tx.drills()

    async def inventory(self, bucket: BucketName = BUCKET) -> Inventory:
        async with self.store.transaction() as tx:
            return next(one for one in await tx.inventories() if one.bucket == bucket)

    async def events(self, *reasons: Reason) -> Sequence[NewEvent]:
        async with self.store.transaction() as tx:
            events = [one.event for one in await tx.events(kind=EventKind.RECOVERY, limit=1000)]
        return [event for event in events if not reasons or event.reason in reasons]

    async def permission(self, action: RiskyAction = RiskyAction.DEPLOY) -> Permission:
        async with self.store.transaction() as tx:
            return await permission_now(tx, self.site.declared, action, self.clock.now())

    async def override(self, action: RiskyAction, until: timedelta) -> None:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            await tx.append_override(Override(action=action, by="ann", reason="rollback", at=now, until=now + until))
