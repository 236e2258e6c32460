"""A workshop in memory over a site that outlives it: buckets with points, sources that grow, scratch copies.

The `RecoverySite` is the world; a `FakeWorkshop` is what one process knows of it. When that process is killed its copies
and drills stop where they are, what they wrote stays, and a new workshop remembers nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec, KeyPurpose, LockMode, RecoverySpec, WalMode
from controlplane.domain.recovery import (
    CheckOutcome,
    Drill,
    DrillPhase,
    DrillTimes,
    Inventory,
    LogCoverage,
    RecoveryPoint,
    Verdict,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, TerminalError
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.kernel.units import GIB, MIB
from controlplane.recovery.classes import is_archive
from controlplane.recovery.locks import LockExtension
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.workshop import (
    Broken,
    CopyMade,
    CopyOrder,
    DrillMade,
    DrillOrder,
    Finished,
    Streaming,
    Thawing,
    Unknown,
    Working,
    Workshop,
)

PACKS: Final = 4
"""Objects of a copy beside its manifest."""
_STARTED_AT: Final = 0.5
_VERIFYING_AT: Final = 0.7
"""Shares of a drill's time."""
_STORED_SHARE: Final = 0.5


class HexIds:
    """Implements `controlplane.kernel.effects.IdSource`: each begins with digits that no other has."""

    def __init__(self) -> None:
        self._made = 0

    def new_id(self) -> str:
        self._made += 1
        return f"{self._made:04x}-0000"


@dataclass(slots=True, kw_only=True)
class FakeSource:
    """The live data of a dataset, and how work on it goes."""

    begin_bytes: int = GIB
    bytes_per_s: int = MIB
    copy_takes: timedelta = timedelta(seconds=3)
    drill_takes: timedelta = timedelta(seconds=4)
    increments: bool = False
    refusal: str = ""
    """Copies break half way with these words."""
    red: str = ""
    """What a drill's check finds wrong."""
    restore_breaks: Broken | None = None
    flows: bool = True
    """Its log reaches the bucket."""
    stubborn: int = 0
    """So many clean-ups find something that is still there."""


@dataclass(slots=True, kw_only=True)
class StoredPoint:
    row: RecoveryPoint
    packs: int = PACKS
    manifest: bool = True
    thawed_at: datetime | None = None
    """When what was asked back from an archive class can be read."""

    @property
    def problems(self) -> tuple[str, ...]:
        gone = PACKS - self.packs
        return (f"{gone} packs are not there, its manifest names them",) if gone else ()


@dataclass(slots=True, kw_only=True)
class FakeBucket:
    points: dict[tuple[DatasetName, PointId], StoredPoint] = field(default_factory=dict)
    problem: str = ""
    """It does not answer."""


@dataclass(slots=True, kw_only=True)
class Scratch:
    dataset: DatasetName
    process: bool = False
    """A restored engine runs in it."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Copy:
    order: CopyOrder
    begun_at: datetime
    owner: "FakeWorkshop"
    done: int = 0
    """Of its effects."""
    alive: bool = True
    ended: Finished[CopyMade] | Broken | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _DrillWork:
    drill: Drill
    order: DrillOrder
    begun_at: datetime
    owner: "FakeWorkshop"
    alive: bool = True
    phase: DrillPhase = DrillPhase.RESTORING
    ended: Finished[DrillMade] | Broken | None = None


@dataclass(slots=True, kw_only=True)
class _Log:
    until: datetime
    owner: "FakeWorkshop"
    covered_at: datetime


class RecoverySite:
    """Everything that a crash of the control plane leaves as it is. `broken`: every rule broken so far."""

    def __init__(self, clock: Clock, declared: RecoverySpec) -> None:
        self.clock = clock
        self.declared = declared
        self.begun_at = clock.now()
        self.sources: dict[str, FakeSource] = {one.name: FakeSource() for one in declared.datasets}
        self.buckets: dict[str, FakeBucket] = {one.name: FakeBucket() for one in declared.buckets}
        self.scratch: dict[str, Scratch] = {}
        self.scratch_room_bytes: int = 1000 * GIB
        self.evidence: dict[str, Drill] = {}
        self.thaw_takes = timedelta(hours=4)
        self.trimmed: list[datetime] = []
        self.broken: list[str] = []
        self.copies: list[_Copy] = []
        self.drills: list[_DrillWork] = []
        self.logs: dict[str, _Log] = {}

    # -- what people and misfortune do
    def put(self, dataset: DatasetSpec, bucket: str, row: RecoveryPoint) -> None:
        self.buckets[bucket].points[dataset.name, row.point] = StoredPoint(row=row)

    def damage(self, dataset: DatasetSpec, bucket: str, point: PointId) -> None:
        self.buckets[bucket].points[dataset.name, point].packs -= 1

    def end_process(self, workshop: "FakeWorkshop") -> None:
        """SIGKILL: nothing of it goes on. Engines that it started in scratch folders do."""
        self.settle()
        for work in (*self.copies, *self.drills):
            if work.owner is workshop and work.ended is None:
                work.alive = False
        self.logs = {name: log for name, log in self.logs.items() if log.owner is not workshop}

    def rows(self, dataset: DatasetName, bucket: str) -> tuple[RecoveryPoint, ...]:
        found = [stored for (name, _), stored in self.buckets[bucket].points.items() if name == dataset]
        rows = [replace(stored.row, problems=stored.problems) for stored in found if stored.manifest]
        return tuple(sorted(rows, key=lambda row: (row.consistent_at, row.point)))

    def scraps(self) -> list[str]:
        """Objects that no manifest names and no living copy writes."""
        self.settle()
        writing = {copy.order.point for copy in self.living_copies()}
        return [
            f"{bucket}/{name}/{point}"
            for bucket, held in self.buckets.items()
            for (name, point), stored in held.points.items()
            if not stored.manifest and point not in writing
        ]

    def living_copies(self) -> list[_Copy]:
        return [copy for copy in self.copies if copy.alive and copy.ended is None]

    # -- time
    def settle(self) -> None:
        """Bring everything that runs by itself to the present."""
        now = self.clock.now()
        for copy in self.living_copies():
            self._go_on_copy(copy, now)
        for work in self.drills:
            if work.alive and work.ended is None:
                self._go_on_drill(work, now)
        for name, log in self.logs.items():
            if self.sources[name].flows:
                log.covered_at = max(log.covered_at, min(now, log.until))

    def _go_on_copy(self, copy: _Copy, now: datetime) -> None:
        order, source = copy.order, self.sources[copy.order.dataset.name]
        effects = list(self._effects(copy))
        share = (now - copy.begun_at) / source.copy_takes
        due = min(int(share * len(effects)), len(effects))
        while copy.done < due and copy.ended is None:
            bucket, manifest = effects[copy.done]
            held = self.buckets[bucket]
            if held.problem:
                copy.ended = Broken(sentence=f"{bucket}: {held.problem}", hopeless=False)
            elif source.refusal and copy.done >= len(effects) // 2:
                copy.ended = Broken(sentence=source.refusal, hopeless=True)
            else:
                self._write_object(copy, bucket, manifest=manifest)
                copy.done += 1
        if copy.done == len(effects) and copy.ended is None:
            row = self.buckets[order.dataset.buckets[0]].points[order.dataset.name, order.point].row
            copy.ended = Finished(
                made=CopyMade(
                    point=order.point,
                    plain_bytes=row.plain_bytes,
                    stored_bytes=row.stored_bytes,
                    took_s=source.copy_takes.total_seconds(),
                    buckets=tuple(order.dataset.buckets),
                )
            )

    def _effects(self, copy: _Copy) -> Iterator[tuple[str, bool]]:
        """Objects in the order in which they are written, each manifest after its packs."""
        for bucket in copy.order.dataset.buckets:
            yield from [(bucket, False)] * PACKS
            yield bucket, True

    def _write_object(self, copy: _Copy, bucket: str, *, manifest: bool) -> None:
        order = copy.order
        points = self.buckets[bucket].points
        key = (order.dataset.name, order.point)
        if key not in points:
            points[key] = StoredPoint(row=self._row(copy, bucket), packs=0, manifest=False)
        stored = points[key]
        if not manifest:
            stored.packs += 1
            return
        if stored.packs != PACKS:
            self.broken.append(f"{order.point} in {bucket} has a manifest and {stored.packs} of {PACKS} packs")
        stored.manifest = True

    def _row(self, copy: _Copy, bucket: str) -> RecoveryPoint:
        order, source = copy.order, self.sources[copy.order.dataset.name]
        grown = int((copy.begun_at - self.begun_at).total_seconds()) * source.bytes_per_s
        plain_bytes = grown // 10 if order.parent is not None else source.begin_bytes + grown
        spec = self.declared.bucket(bucket)
        locks = spec is not None and spec.lock is not LockMode.NONE
        return RecoveryPoint(
            point=order.point,
            dataset=order.dataset.name,
            bucket=BucketName(bucket),
            consistent_at=copy.begun_at,
            finished_at=self.clock.now(),
            plain_bytes=plain_bytes,
            stored_bytes=int(plain_bytes * _STORED_SHARE),
            parent=order.parent,
            storage_classes=frozenset({order.storage_class}),
            key_ids=("site:00000000",),
            locked_until=order.locked_until if locks else None,
        )

    def _go_on_drill(self, work: _DrillWork, now: datetime) -> None:
        source, scratch = self.sources[work.order.dataset.name], self.scratch[work.drill.drill]
        share = (now - work.begun_at) / source.drill_takes
        if share >= _STARTED_AT and work.phase is DrillPhase.RESTORING:
            if source.restore_breaks is not None:
                work.ended = source.restore_breaks
                return
            work.phase, scratch.process = DrillPhase.STARTING, True
        if share >= _VERIFYING_AT:
            work.phase = DrillPhase.VERIFYING
        if share >= 1.0:
            scratch.process = False
            work.ended = self._drilled(work, source)

    def _drilled(self, work: _DrillWork, source: FakeSource) -> Finished[DrillMade] | Broken:
        dataset, bucket = work.order.dataset.name, work.order.bucket.name
        rows = {row.point: row for row in self.rows(dataset, bucket)}
        missing = [point for point in work.order.chain if point not in rows]
        if missing:
            return Broken(sentence=f"{missing[0]} is not in {bucket}", hopeless=True)
        chain = [rows[point] for point in work.order.chain]
        log = self.logs.get(dataset)
        newest_at = chain[-1].consistent_at if log is None else max(chain[-1].consistent_at, log.covered_at)
        wrong = source.red or next((problem for row in chain for problem in row.problems), "")
        check = CheckOutcome(
            name="rows", verdict=Verdict.FAILED if wrong else Verdict.PASSED, sentence=wrong or "as the manifest says"
        )
        took_s = source.drill_takes.total_seconds()
        return Finished(
            made=DrillMade(
                key_id="break-glass:00000000" if work.drill.key is KeyPurpose.BREAK_GLASS else "site:00000000",
                storage_classes=tuple(sorted(frozenset().union(*(row.storage_classes for row in chain)))),
                fetched_bytes=sum(row.stored_bytes for row in chain),
                plain_bytes=sum(row.plain_bytes for row in chain),
                times=DrillTimes(
                    fetch_and_restore_s=took_s * _STARTED_AT,
                    start_and_replay_s=took_s * (_VERIFYING_AT - _STARTED_AT),
                    verify_s=took_s * (1.0 - _VERIFYING_AT),
                ),
                newest_at=newest_at,
                checks=(check,),
            )
        )

    # -- rules
    def check_begins_alone(self, order: CopyOrder) -> None:
        others = [copy.order.point for copy in self.living_copies() if copy.order.dataset.name == order.dataset.name]
        if others:
            self.broken.append(f"{order.point} begins while {others[0]} of {order.dataset.name} is made")

    def check_may_go(self, dataset: DatasetSpec, bucket: str, point: PointId) -> None:
        """By what is in the bucket now, and by what is read there now."""
        reading = {one for work in self.drills if work.alive and work.ended is None for one in work.order.chain}
        building = {copy.order.parent for copy in self.living_copies() if copy.order.parent is not None}
        plan = plan_retention(
            self.rows(dataset.name, bucket), dataset.retention, self.clock.now(), in_use=frozenset(reading | building)
        )
        kept = plan.keeping(point)
        if kept is not None:
            self.broken.append(f"deleted from {bucket} although {kept.sentence}")


class FakeWorkshop:
    """Implements `controlplane.recovery.workshop.Workshop` for one process.

    `moment` is called just before and just after each effect, and in the middle of those that have one.
    """

    def __init__(self, site: RecoverySite, moment: Callable[[], None] = lambda: None) -> None:
        self.site = site
        self._moment = moment
        self._copies: dict[str, _Copy] = {}
        self._drills: dict[str, _DrillWork] = {}

    # -- looking
    async def survey(self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None) -> Inventory:
        self.site.settle()
        now, held = self.site.clock.now(), self.site.buckets[bucket.name]
        rows, coverage = self.site.rows(dataset.name, bucket.name), self._coverage(dataset, bucket)
        # The answer travels: what happens meanwhile is not in it.
        await asyncio.sleep(0)
        if held.problem:
            blank = Inventory(dataset=dataset.name, bucket=bucket.name, observed_at=now, points=())
            return replace(before or blank, problem=held.problem, rpo_state="", since=None)
        return Inventory(dataset=dataset.name, bucket=bucket.name, observed_at=now, points=rows, coverage=coverage)

    def _coverage(self, dataset: DatasetSpec, bucket: BucketSpec) -> LogCoverage | None:
        log = self.site.logs.get(dataset.name)
        if dataset.wal is WalMode.OFF or log is None or bucket.name != dataset.buckets[0]:
            return None
        return LogCoverage(position="1:0/0", covered_at=log.covered_at, segments=1, stored_bytes=MIB)

    # -- copies
    def makes_increments(self, dataset: DatasetSpec) -> bool:
        return self.site.sources[dataset.name].increments

    def begin_copy(self, run: str, order: CopyOrder) -> None:
        if run in self._copies and self._copies[run].order == order:
            return
        self._moment()
        self.site.settle()
        self.site.check_begins_alone(order)
        copy = _Copy(order=order, begun_at=self.site.clock.now(), owner=self)
        self._copies[run] = copy
        self.site.copies.append(copy)
        self._moment()

    def look_copy(self, run: str) -> Working | Finished[CopyMade] | Broken | Unknown:
        self.site.settle()
        copy = self._copies.get(run)
        if copy is None:
            return Unknown()
        return copy.ended or Working(phase=None, step="copy", done_bytes=copy.done * MIB, total_bytes=None)

    async def sweep(self, dataset: DatasetSpec, *, writing: frozenset[PointId]) -> Sequence[str]:
        gone: list[str] = []
        for name in dataset.buckets:
            held = self._answering(name)
            living = {copy.order.point for copy in self.site.living_copies()}
            for (owner, point), stored in list(held.points.items()):
                if owner != dataset.name or stored.manifest or point in writing:
                    continue
                if point in living:
                    self.site.broken.append(f"{point} in {name} is swept away while it is written")
                self._moment()
                del held.points[owner, point]
                gone.append(f"{name}/{point}")
                self._moment()
        await asyncio.sleep(0)
        return gone

    async def remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        held = self._answering(bucket.name)
        await asyncio.sleep(0)
        stored = held.points.get((dataset.name, point))
        if stored is None:
            return
        until = stored.row.locked_until
        if until is not None and until > self.site.clock.now():
            raise ConflictError(f"{point} is locked until {until}")
        self._moment()
        self.site.check_may_go(dataset, bucket.name, point)
        stored.manifest = False
        self._moment()
        del held.points[dataset.name, point]
        self._moment()

    async def lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        held = self._answering(bucket.name)
        await asyncio.sleep(0)
        stored = held.points.get((dataset.name, extension.point))
        if stored is None:
            raise NotFoundError(f"{extension.point} is not in {bucket.name}")
        until = stored.row.locked_until
        self._moment()
        longer = extension.until if until is None else max(until, extension.until)
        stored.row = replace(stored.row, locked_until=longer)
        self._moment()

    async def trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, *, since: datetime) -> int:
        self._answering(bucket.name)
        del dataset
        self._moment()
        await asyncio.sleep(0)
        self.site.trimmed.append(since)
        self._moment()
        return 0

    # -- drills
    async def reserve(self, drill: Drill, *, needed_bytes: int) -> str:
        await asyncio.sleep(0)
        if needed_bytes > self.site.scratch_room_bytes:
            raise TerminalError(f"room for {self.site.scratch_room_bytes} bytes, the drill needs {needed_bytes}")
        self._moment()
        self.site.scratch.setdefault(drill.drill, Scratch(dataset=drill.dataset))
        self._moment()
        return f"/scratch/{drill.drill}"

    async def thaw(self, order: DrillOrder) -> Thawing:
        held, now = self._answering(order.bucket.name), self.site.clock.now()
        await asyncio.sleep(0)
        stored = [held.points[order.dataset.name, point] for point in order.chain]
        archived = [one for one in stored if any(map(is_archive, one.row.storage_classes))]
        for one in archived:
            if one.thawed_at is None:
                self._moment()
                one.thawed_at = now + self.site.thaw_takes
                self._moment()
        pending = sum(one.thawed_at is not None and one.thawed_at > now for one in archived)
        sentence = f"{len(archived) - pending} of {len(archived)} archived objects are back"
        return Thawing(pending=pending, archived=len(archived), sentence=sentence)

    def begin_drill(self, drill: Drill, order: DrillOrder) -> None:
        name = f"{drill.drill}/{drill.attempt}"
        if name in self._drills:
            return
        self._moment()
        self.site.settle()
        if self.site.scratch[drill.drill].process:
            self.site.broken.append(f"drill {drill.drill} begins in a folder where an engine runs")
        work = _DrillWork(drill=drill, order=order, begun_at=self.site.clock.now(), owner=self)
        self._drills[name] = work
        self.site.drills.append(work)
        self._moment()

    def look_drill(self, drill: Drill) -> Working | Finished[DrillMade] | Broken | Unknown:
        self.site.settle()
        work = self._drills.get(f"{drill.drill}/{drill.attempt}")
        if work is None:
            return Unknown()
        return work.ended or Working(phase=work.phase, step=work.phase.value, done_bytes=0, total_bytes=None)

    async def clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        del dataset
        self.site.settle()
        await asyncio.sleep(0)
        for work in self.site.drills:
            if work.drill.drill == drill.drill and work.owner is self:
                work.alive = False
        source = self.site.sources[drill.dataset]
        if source.stubborn:
            source.stubborn -= 1
            raise RetryableError(f"of drill {drill.drill} there is still: an engine")
        self._moment()
        if drill.drill in self.site.scratch:
            self.site.scratch[drill.drill].process = False
            self._moment()
            del self.site.scratch[drill.drill]
        self._moment()
        return ("the folder is gone",)

    async def record(self, drill: Drill) -> str:
        declared = self.site.declared
        if declared.bucket(drill.bucket) is None or declared.dataset(drill.dataset) is None:
            raise TerminalError(f"{drill.dataset} or {drill.bucket} is no longer declared: no place for its evidence")
        self._answering(drill.bucket)
        await asyncio.sleep(0)
        key = f"evidence/{drill.drill}.json"
        if not drill.ended or drill.drill in self.site.scratch:
            self.site.broken.append(f"evidence of {drill.drill} is written in {drill.phase}, before it is cleaned up")
        self._moment()
        self.site.evidence[key] = drill
        self._moment()
        return key

    # -- logs
    async def stream(self, dataset: DatasetSpec, *, until: datetime) -> Streaming:
        self.site.settle()
        await asyncio.sleep(0)
        now, log = self.site.clock.now(), self.site.logs.get(dataset.name)
        if log is None or log.until < now:
            self._moment()
            log = self.site.logs[dataset.name] = _Log(until=until, owner=self, covered_at=now)
            self._moment()
            return Streaming(running=None, sentence=f"{dataset.name}: begins")
        log.until = max(log.until, until)
        flows = self.site.sources[dataset.name].flows
        return Streaming(running=flows, sentence=f"{dataset.name}: the log is {'streaming' if flows else 'waiting'}")

    def _answering(self, bucket: str) -> FakeBucket:
        self.site.settle()
        held = self.site.buckets[bucket]
        if held.problem:
            raise RetryableError(held.problem)
        return held


def _conforms(workshop: FakeWorkshop) -> Workshop:
    """Checked by the type checker."""
    return workshop
