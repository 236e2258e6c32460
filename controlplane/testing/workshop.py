"""A workshop over a site in memory: what one process knows of its copies, drills and logs. A new one knows nothing."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from controlplane.domain.dataset import BucketSpec, DatasetSpec, KeyPurpose, WalMode
from controlplane.domain.recovery import Drill, EvidenceSeen, Inventory, LogCoverage, RestoreSeen
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, TerminalError
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import MIB
from controlplane.recovery.classes import is_archive
from controlplane.recovery.locks import LockExtension
from controlplane.recovery.workshop import (
    Broken,
    CopyMade,
    CopyOrder,
    DrillMade,
    DrillOrder,
    Finished,
    PointContents,
    Streaming,
    Thawing,
    Unknown,
    Working,
    Workshop,
)
from controlplane.testing.recovery_site import CopyWork, DrillWork, FakeBucket, LogWork, RecoverySite, Scratch


class HexIds:
    """Implements `controlplane.kernel.effects.IdSource`: each begins with digits that no other has."""

    def __init__(self) -> None:
        self._made = 0

    def new_id(self) -> str:
        self._made += 1
        return f"{self._made:04x}-0000"


class FakeWorkshop:
    """Implements `controlplane.recovery.workshop.Workshop` for one process.

    `moment` is called just before and just after each effect, and in the middle of those that have one.
    """

    def __init__(self, site: RecoverySite, moment: Callable[[], None] = lambda: None) -> None:
        self.site = site
        self._moment = moment
        self._copies: dict[str, CopyWork] = {}
        self._drills: dict[str, DrillWork] = {}

    # -- looking
    async def survey(
        self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None, *, proofs: Sequence[Drill]
    ) -> Inventory:
        self.site.settle()
        now, held = self.site.clock.now(), self.site.buckets[bucket.name]
        rows, coverage = self.site.rows(dataset.name, bucket.name), self._coverage(dataset, bucket)
        restoring, evidence = self._restoring(dataset, bucket), self._evidence(proofs)
        # The answer travels: what happens meanwhile is not in it.
        await asyncio.sleep(0)
        if held.problem:
            blank = Inventory(dataset=dataset.name, bucket=bucket.name, observed_at=now, points=())
            return replace(before or blank, problem=held.problem, rpo_state="", since=None)
        return Inventory(
            dataset=dataset.name,
            bucket=bucket.name,
            observed_at=now,
            points=rows,
            coverage=coverage,
            unreadable=self.site.unreadable(dataset.name, bucket.name),
            watched_at=now,
            restoring=restoring,
            evidence=evidence,
        )

    def _restoring(self, dataset: DatasetSpec, bucket: BucketSpec) -> tuple[RestoreSeen, ...]:
        now, claims = self.site.clock.now(), self.site.buckets[bucket.name].claims
        return tuple(
            RestoreSeen(name=name, until=until)
            for (owner, name), until in claims.items()
            if owner == dataset.name and until > now
        )

    def _evidence(self, proofs: Sequence[Drill]) -> tuple[EvidenceSeen, ...]:
        now = self.site.clock.now()
        return tuple(
            EvidenceSeen(
                drill=drill.drill,
                key=drill.evidence_key,
                seen_at=now,
                problem=""
                if drill.evidence_key in self.site.evidence
                else f"{drill.evidence_key} is not in the bucket",
            )
            for drill in proofs
            if drill.evidence_key is not None
        )

    def _coverage(self, dataset: DatasetSpec, bucket: BucketSpec) -> LogCoverage | None:
        log = self.site.logs.get(dataset.name)
        if dataset.wal is WalMode.OFF or log is None:
            return None
        covered_at = log.covered_at if bucket.name == dataset.buckets[0] else log.followed_at
        return LogCoverage(position="1:0/0", covered_at=covered_at, segments=1, stored_bytes=MIB)

    # -- copies
    def makes_increments(self, dataset: DatasetSpec) -> bool:
        return self.site.sources[dataset.name].increments

    def begin_copy(self, work: str, order: CopyOrder) -> None:
        if work in self._copies:
            return
        self._moment()
        self.site.settle()
        self.site.check_begins_alone(order)
        now = self.site.clock.now()
        copy = CopyWork(order=order, begun_at=now, looked_at=now, owner=self)
        self._copies[work] = copy
        self.site.copies.append(copy)
        self._moment()

    def look_copy(self, work: str) -> Working | Finished[CopyMade] | Broken | Unknown:
        self.site.settle()
        copy = self._copies.get(work)
        if copy is None:
            return Unknown()
        if not copy.alive and copy.ended is None:
            return Broken(sentence="stopped: nobody looked", hopeless=False)
        copy.looked_at = self.site.clock.now()
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

    async def contents(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> PointContents:
        stored = self._answering(bucket.name).points.get((dataset.name, point))
        await asyncio.sleep(0)
        if stored is None:
            return PointContents(objects=0, stored_bytes=0, locked_until=None, manifest_problem="it has no manifest")
        return PointContents(
            objects=stored.packs + stored.manifest,
            stored_bytes=stored.row.stored_bytes,
            locked_until=stored.row.locked_until,
            manifest_problem=stored.unreadable if stored.manifest else "it has no manifest",
        )

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
    def keys(self) -> frozenset[KeyPurpose]:
        return self.site.keys_at_hand

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
        now = self.site.clock.now()
        work = DrillWork(drill=drill, order=order, begun_at=now, looked_at=now, owner=self)
        self._drills[name] = work
        self.site.drills.append(work)
        self._moment()

    def look_drill(self, drill: Drill) -> Working | Finished[DrillMade] | Broken | Unknown:
        self.site.settle()
        work = self._drills.get(f"{drill.drill}/{drill.attempt}")
        if work is None:
            return Unknown()
        if not work.alive and work.ended is None:
            return Broken(sentence="stopped: nobody looked", hopeless=False)
        work.looked_at = self.site.clock.now()
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
            log = self.site.logs[dataset.name] = LogWork(until=until, owner=self, covered_at=now, followed_at=now)
            self._moment()
            return Streaming(running=None, sentence=f"{dataset.name}: begins")
        log.until = max(log.until, until)
        source, further = self.site.sources[dataset.name], dataset.buckets[1:]
        return Streaming(
            running=source.flows,
            sentence=f"{dataset.name}: the log is {'streaming' if source.flows else 'waiting'}",
            further=source.follows if further else None,
            further_sentence="; ".join(f"{name} {'follows' if source.follows else 'is away'}" for name in further),
        )

    def _answering(self, bucket: str) -> FakeBucket:
        self.site.settle()
        held = self.site.buckets[bucket]
        if held.problem:
            raise RetryableError(held.problem)
        return held


def _conforms(workshop: FakeWorkshop) -> Workshop:
    """Checked by the type checker."""
    return workshop
