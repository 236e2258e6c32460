"""The world of recovery in memory: buckets with points, sources that grow, scratch copies, work that takes fake time.

It outlives every process that works on it (`controlplane.testing.workshop`). When one is killed its copies and drills
stop where they are, and what they wrote stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec, KeyPurpose, LockMode, RecoverySpec
from controlplane.domain.recovery import (
    CheckOutcome,
    Drill,
    DrillPhase,
    DrillTimes,
    RecoveryPoint,
    Verdict,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.kernel.units import GIB, MIB
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.workshop import LEASE, Broken, CopyMade, CopyOrder, DrillMade, DrillOrder, Finished

PACKS: Final = 4
"""Objects of a copy beside its manifest."""
_STARTED_AT: Final = 0.5
_VERIFYING_AT: Final = 0.7
"""Shares of a drill's time."""
_STORED_SHARE: Final = 0.5


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
    follows: bool = True
    """From there it reaches the further ones."""
    stubborn: int = 0
    """So many clean-ups find something that is still there."""


@dataclass(slots=True, kw_only=True)
class StoredPoint:
    row: RecoveryPoint
    packs: int = PACKS
    manifest: bool = True
    unreadable: str = ""
    """What is wrong with its manifest."""
    thawed_at: datetime | None = None
    """When what was asked back from an archive class can be read."""

    @property
    def problems(self) -> tuple[str, ...]:
        if self.unreadable:
            return (self.unreadable,)
        gone = PACKS - self.packs
        return (f"{gone} packs are not there, its manifest names them",) if gone else ()


@dataclass(slots=True, kw_only=True)
class FakeBucket:
    points: dict[tuple[DatasetName, PointId], StoredPoint] = field(default_factory=dict)
    problem: str = ""
    """It does not answer."""
    claims: dict[tuple[DatasetName, str], datetime] = field(default_factory=dict)
    """Of restores by hand, by their names: until when, unless they renew them."""


@dataclass(slots=True, kw_only=True)
class Scratch:
    dataset: DatasetName
    process: bool = False
    """A restored engine runs in it."""


@dataclass(slots=True, kw_only=True, eq=False)
class CopyWork:
    order: CopyOrder
    begun_at: datetime
    owner: object
    """The process that it lives in."""
    looked_at: datetime
    done: int = 0
    """Of its effects."""
    alive: bool = True
    ended: Finished[CopyMade] | Broken | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class DrillWork:
    drill: Drill
    order: DrillOrder
    begun_at: datetime
    owner: object
    """The process that it lives in."""
    looked_at: datetime
    alive: bool = True
    phase: DrillPhase = DrillPhase.RESTORING
    ended: Finished[DrillMade] | Broken | None = None


@dataclass(slots=True, kw_only=True)
class LogWork:
    until: datetime
    owner: object
    covered_at: datetime
    followed_at: datetime
    """As far as it is covered in the further buckets."""


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
        self.keys_at_hand = frozenset({KeyPurpose.SITE})
        self.evidence: dict[str, Drill] = {}
        self.thaw_takes = timedelta(hours=4)
        self.trimmed: list[datetime] = []
        self.broken: list[str] = []
        self.copies: list[CopyWork] = []
        self.drills: list[DrillWork] = []
        self.logs: dict[str, LogWork] = {}

    # -- what people and misfortune do
    def put(self, dataset: DatasetSpec, bucket: str, row: RecoveryPoint) -> None:
        self.buckets[bucket].points[dataset.name, row.point] = StoredPoint(row=row)

    def damage(self, dataset: DatasetSpec, bucket: str, point: PointId) -> None:
        self.buckets[bucket].points[dataset.name, point].packs -= 1

    def end_process(self, owner: object) -> None:
        """SIGKILL: nothing of it goes on. Engines that it started in scratch folders do."""
        self.settle()
        for copy in self.living_copies():
            copy.alive = copy.owner is not owner
        for work in self.living_drills():
            work.alive = work.owner is not owner
        self.logs = {name: log for name, log in self.logs.items() if log.owner is not owner}

    def rows(self, dataset: DatasetName, bucket: str) -> tuple[RecoveryPoint, ...]:
        found = [stored for (name, _), stored in self.buckets[bucket].points.items() if name == dataset]
        rows = [replace(stored.row, problems=stored.problems) for stored in found if stored.manifest]
        return tuple(sorted(rows, key=lambda row: (row.consistent_at, row.point)))

    def unreadable(self, dataset: DatasetName, bucket: str) -> tuple[str, ...]:
        found = [stored for (name, _), stored in self.buckets[bucket].points.items() if name == dataset]
        return tuple(stored.unreadable for stored in found if stored.manifest and stored.unreadable)

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

    def living_copies(self) -> list[CopyWork]:
        return [copy for copy in self.copies if copy.alive and copy.ended is None]

    def living_drills(self) -> list[DrillWork]:
        return [work for work in self.drills if work.alive and work.ended is None]

    # -- time
    def settle(self) -> None:
        """Bring everything that runs by itself to the present."""
        now = self.clock.now()
        for copy in self.living_copies():
            self._go_on_copy(copy, min(now, copy.looked_at + LEASE))
            copy.alive = now <= copy.looked_at + LEASE
        for work in self.living_drills():
            self._go_on_drill(work, min(now, work.looked_at + LEASE))
            work.alive = now <= work.looked_at + LEASE
        for name, log in self.logs.items():
            if self.sources[name].flows:
                log.covered_at = max(log.covered_at, min(now, log.until))
            if self.sources[name].follows:
                log.followed_at = log.covered_at

    def _go_on_copy(self, copy: CopyWork, now: datetime) -> None:
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

    def _effects(self, copy: CopyWork) -> Iterator[tuple[str, bool]]:
        """Objects in the order in which they are written, each manifest after its packs."""
        for bucket in copy.order.dataset.buckets:
            yield from [(bucket, False)] * PACKS
            yield bucket, True

    def _write_object(self, copy: CopyWork, bucket: str, *, manifest: bool) -> None:
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

    def _row(self, copy: CopyWork, bucket: str) -> RecoveryPoint:
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

    def _go_on_drill(self, work: DrillWork, now: datetime) -> None:
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

    def _drilled(self, work: DrillWork, source: FakeSource) -> Finished[DrillMade] | Broken:
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
        reading = {one for work in self.living_drills() for one in work.order.chain}
        building = {copy.order.parent for copy in self.living_copies() if copy.order.parent is not None}
        plan = plan_retention(
            self.rows(dataset.name, bucket), dataset.retention, self.clock.now(), in_use=frozenset(reading | building)
        )
        kept = plan.keeping(point)
        if kept is not None:
            self.broken.append(f"deleted from {bucket} although {kept.sentence}")
