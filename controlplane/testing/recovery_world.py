"""A control plane's recovery loops under fake time, run by real drivers, killed and begun anew.

After every step the checkers look at the site itself and at the rows, not at what was called. `broken` lists every rule
broken so far.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final

from controlplane.domain.dataset import RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupRun, Drill, DrillPhase, Inventory
from controlplane.domain.store import Store
from controlplane.kernel.ids import InstanceId
from controlplane.recovery.backups import Backups
from controlplane.recovery.deletions import GOING
from controlplane.recovery.drills import Drills
from controlplane.recovery.pruner import Pruner
from controlplane.recovery.rpo import RpoState
from controlplane.recovery.streams import Streams
from controlplane.recovery.surveyor import Surveyor
from controlplane.runtime.driver import Driver
from controlplane.runtime.hints import HintBoard
from controlplane.runtime.reconciler import Pace, Reconciler
from controlplane.testing.effects import CountingIds, FakeClock, SeededRng, settle
from controlplane.testing.killswitch import KillableStore, KillSwitch
from controlplane.testing.recovery_site import RecoverySite
from controlplane.testing.workshop import FakeWorkshop, HexIds

STEP: Final = timedelta(seconds=1)
_AWAY: Final = timedelta(seconds=2)
"""A killed control plane comes back after so long."""
_CLAIM: Final = timedelta(seconds=10)
_DEADLINE: Final = timedelta(seconds=5)
_EVENTS_MAX: Final = 10_000

_RPO_TURNS: Final = frozenset({Reason.RPO_MET, Reason.RPO_AT_RISK, Reason.RPO_BREACHED, Reason.RPO_UNKNOWN})
_LOG_TURNS: Final = frozenset({Reason.LOG_STREAMING, Reason.LOG_STALLED})
_FURTHER_TURNS: Final = frozenset({Reason.LOG_REPLICATED, Reason.LOG_NOT_REPLICATED})
_BACKUP_ENDS: Final = frozenset({Reason.BACKUP_DONE, Reason.BACKUP_FAILED})
_DRILL_ENDS: Final = frozenset({Reason.DRILL_PASSED, Reason.DRILL_FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instance:
    """One control plane."""

    drivers: Sequence[Driver]
    tasks: Sequence[asyncio.Task[None]]
    workshop: FakeWorkshop
    switch: KillSwitch


class RecoveryWorld:
    """One control plane or several over one store and one site; `run` moves the world on."""

    def __init__(self, store: Store, declared: RecoverySpec, *, seed: int = 0, kill_at: int | None = None) -> None:
        self.store = store
        self.clock = FakeClock()
        self.site = RecoverySite(self.clock, declared)
        self.kills = 0
        self.moments = 0
        """Of control planes that ended, and of the present ones."""
        self._rng = SeededRng(seed)
        self._ids = HexIds()
        self._kill_at = kill_at
        self._begun = 0
        self._instances: dict[str, _Instance] = {}

    @property
    def broken(self) -> list[str]:
        return self.site.broken

    # -- control planes
    async def begin(self) -> str:
        """Another control plane; its name."""
        self._begun += 1
        name = f"cp-{self._begun}"
        switch = KillSwitch(self._kill_at)
        self._kill_at = None
        workshop = FakeWorkshop(self.site, switch.moment)
        drivers = self._drivers(name, workshop, switch)
        tasks = [asyncio.create_task(driver.run(), name=f"{name}/{driver.name}") for driver in drivers]
        self._instances[name] = _Instance(drivers=drivers, tasks=tasks, workshop=workshop, switch=switch)
        await settle()
        return name

    def _drivers(self, name: str, workshop: FakeWorkshop, switch: KillSwitch) -> list[Driver]:
        store, clock = KillableStore(self.store, switch), self.clock
        hints = HintBoard(frozenset({"recovery-points", "backups", "drills", "log-streams", "retention"}))

        def declared() -> RecoverySpec:
            return self.site.declared

        loops: Mapping[Reconciler, timedelta] = {
            Surveyor(store=store, workshop=workshop, clock=clock, hints=hints, declared=declared): timedelta(minutes=1),
            Backups(
                store=store, workshop=workshop, clock=clock, ids=self._ids, hints=hints, declared=declared
            ): timedelta(seconds=5),
            Drills(
                store=store, workshop=workshop, clock=clock, rng=self._rng, ids=self._ids, declared=declared
            ): timedelta(seconds=5),
            Streams(store=store, workshop=workshop, clock=clock, declared=declared): timedelta(seconds=2),
            Pruner(store=store, workshop=workshop, clock=clock, declared=declared): timedelta(seconds=30),
        }
        drivers = []
        for loop, period in loops.items():
            pace = Pace(period=period, deadline=_DEADLINE, floor=timedelta(milliseconds=200), claim_ttl=_CLAIM)
            driver = Driver(
                reconciler=loop, pace=pace, store=self.store, clock=clock, rng=self._rng,
                ids=CountingIds(f"{name}-{loop.name}"), instance=InstanceId(name),
            )  # fmt: skip
            hints.subscribe(loop.name, driver.hint)
            drivers.append(driver)
        return drivers

    async def kill(self, name: str) -> None:
        """SIGKILL: nothing is given back, no claim and no folder."""
        instance = self._instances.pop(name)
        for task in instance.tasks:
            task.cancel()
        await asyncio.gather(*instance.tasks, return_exceptions=True)
        self.site.end_process(instance.workshop)
        self.moments += instance.switch.moments
        self.kills += 1

    async def stop(self) -> None:
        """In order, all of them."""
        for instance in self._instances.values():
            for driver in instance.drivers:
                driver.stop()
        await self.clock.advance(timedelta(0))
        for name in list(self._instances):
            self.kills -= 1
            await self.kill(name)

    # -- time
    async def run(self, duration: timedelta, *, step: timedelta = STEP) -> None:
        end = self.clock.now() + duration
        while self.clock.now() < end:
            await self.clock.advance(min(step, end - self.clock.now()))
            for name, instance in list(self._instances.items()):
                if instance.switch.tripped:
                    await self.kill(name)
                    await self.clock.advance(_AWAY)
                    await self.begin()
                elif dead := [task for task in instance.tasks if task.done()]:
                    self.broken.append(f"{dead[0].get_name()} ended: {dead[0].exception()!r}")
            await self._check()

    async def run_until_well(self, *, most: timedelta = timedelta(hours=2)) -> None:
        """Nothing on its way, every RPO met, every dataset's last drill passed, nothing left over; or a broken rule."""
        end = self.clock.now() + most
        while why := await self._unwell():
            if self.clock.now() >= end:
                self.broken.append(f"not well after {most}: {why}")
                return
            await self.run(STEP * 5)

    # -- rows
    async def runs(self) -> Sequence[BackupRun]:
        async with self.store.transaction() as tx:
            return await tx.backup_runs(limit=_EVENTS_MAX)

    async def drills(self) -> Sequence[Drill]:
        async with self.store.transaction() as tx:
            return await tx.drills(limit=_EVENTS_MAX)

    async def inventories(self) -> Sequence[Inventory]:
        async with self.store.transaction() as tx:
            return await tx.inventories()

    async def events(self) -> Sequence[NewEvent]:
        async with self.store.transaction() as tx:
            return [one.event for one in await tx.events(kind=EventKind.RECOVERY, limit=_EVENTS_MAX)]

    # -- rules
    async def _check(self) -> None:
        self.site.settle()
        runs, drills, inventories = await self.runs(), await self.drills(), await self.inventories()
        copying = Counter(copy.order.dataset.name for copy in self.site.living_copies())
        self.broken.extend(f"{count} copies of {name} at once" for name, count in copying.items() if count > 1)
        drilling = Counter(work.order.dataset.name for work in self.site.living_drills())
        self.broken.extend(f"{count} drills of {name} at once" for name, count in drilling.items() if count > 1)
        begun = Counter(run.dataset for run in runs if not run.ended and run.attempt > 0)
        self.broken.extend(f"{count} runs of {name} under way" for name, count in begun.items() if count > 1)
        for drill in drills:
            if drill.ended and drill.drill in self.site.scratch:
                self.broken.append(f"drill {drill.drill} ended as {drill.phase} and its folder is still there")
            if drill.ended and drill.evidence_key is not None and drill.evidence_key not in self.site.evidence:
                self.broken.append(f"drill {drill.drill} names evidence that is not there")
            if drill.phase is DrillPhase.PASSED and drill.evidence_key is None:
                self.broken.append(f"drill {drill.drill} passed without evidence")
        for inventory in inventories:
            halves = [point.point for point in inventory.points if point.problems and point.problems != (GOING,)]
            known_damaged = {
                point for (_, point), one in self.site.buckets[inventory.bucket].points.items() if one.problems
            }
            self.broken.extend(
                f"{point} is half visible in {inventory.bucket}" for point in halves if point not in known_damaged
            )
        self.broken.extend(await self._told_twice())

    async def _told_twice(self) -> Sequence[str]:
        events = await self.events()
        return [
            *_repeated(events, "run", _BACKUP_ENDS),
            *_repeated(events, "drill", _DRILL_ENDS),
            *_repeated(events, "drill", frozenset({Reason.DRILL_STARTED})),
            *_same_again(events, _RPO_TURNS),
            *_same_again(events, _LOG_TURNS),
            *_same_again(events, _FURTHER_TURNS),
            *_said_twice(events, Reason.POINT_DELETED),
        ]

    async def _unwell(self) -> str:
        self.site.settle()
        running = [f"run {run.run} is {run.phase}" for run in await self.runs() if not run.ended]
        drills = await self.drills()
        running += [f"drill {drill.drill} is {drill.phase}" for drill in drills if not drill.ended]
        if running:
            return running[0]
        for dataset in self.site.declared.datasets:
            last = next((drill for drill in drills if drill.dataset == dataset.name), None)
            if last is None or last.phase is not DrillPhase.PASSED:
                return f"{dataset.name}: its last drill is {last and last.sentence}"
        states = {f"{one.dataset} in {one.bucket}": one.rpo_state for one in await self.inventories() if one.rpo_state}
        bad = [f"{place} is {state}" for place, state in states.items() if state != RpoState.OK]
        leftovers = [*self.site.scratch, *self.site.scraps()]
        return next(iter((*bad, *leftovers)), "")


def _repeated(events: Sequence[NewEvent], of: str, reasons: frozenset[Reason]) -> Iterator[str]:
    told = Counter(dict(event.data).get(of) for event in events if event.reason in reasons)
    yield from (f"{of} {name}: {sorted(reasons)} told {count} times" for name, count in told.items() if count > 1)


def _same_again(events: Sequence[NewEvent], reasons: frozenset[Reason]) -> Iterator[str]:
    for subject in {event.subject for event in events}:
        own = [event for event in events if event.subject == subject and event.reason in reasons]
        yield from (
            f"{subject}: {two.reason} told twice in a row" for one, two in pairwise(own) if one.reason is two.reason
        )


def _said_twice(events: Sequence[NewEvent], reason: Reason) -> Iterator[str]:
    """By the words up to what goes or stays: the place and the point."""
    told = Counter(event.sentence.partition(" goes")[0] for event in events if event.reason is reason)
    yield from (f"{reason} told {count} times: {said}" for said, count in told.items() if count > 1)
