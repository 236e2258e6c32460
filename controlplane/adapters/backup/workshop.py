"""Copies, drills and streams as they are really made: the loops' `Workshop` over a vault."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

import controlplane
from controlplane.adapters.backup.archive_reader import ArchiveReader, open_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter
from controlplane.adapters.backup.inventory import NOTHING_KNOWN, ManifestSeen, inventory
from controlplane.adapters.backup.jobs import Jobs, JobWatch
from controlplane.adapters.backup.lengthening import lengthen_locks
from controlplane.adapters.backup.manifests import decode_manifest, point_prefix
from controlplane.adapters.backup.postgresql.wal_stream import WalStream
from controlplane.adapters.backup.postgresql.wal_trim import trim_log
from controlplane.adapters.backup.replication import replicate_archive
from controlplane.adapters.backup.survey import survey_bucket
from controlplane.adapters.backup.vault import Vault
from controlplane.adapters.evidence import record_evidence
from controlplane.domain.dataset import (
    BucketSpec,
    DatasetKind,
    DatasetSpec,
    KeyPurpose,
    LockMode,
    RecoverySpec,
    RetrievalTier,
    StorageClass,
    WalMode,
)
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes, Inventory
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import NotFoundError, QuarterdeckError, RetryableError, TerminalError
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.classes import is_archive
from controlplane.recovery.evidence import Objectives
from controlplane.recovery.locks import LockExtension, lock_until
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    FetchedLog,
    Lock,
    ObjectStore,
    RestoreRequest,
    SilentWatch,
    VerifyRequest,
    manifest_key,
)
from controlplane.recovery.workshop import (
    LEASE,
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
)

RESTORED: Final = "restored"
"""Folder inside a drill's scratch folder."""
THAWED_DAYS: Final = 2
"""How long a retrieved copy stays: a drill that was interrupted finds it again the next day."""
ROOM_LEFT_SHARE: Final = 0.05
"""Of the disk that a drill leaves free: it shares the disk with what it protects."""
_ENTERABLE: Final = 0o711
_FLOWING: Final = {"streaming": True, "catching up": True, "waiting": False, "stopped": False}
"""Of a stream's states; one that connects is neither yet."""
_END_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _StreamThread:
    stream: WalStream
    stop: threading.Event
    thread: threading.Thread
    until: datetime


@dataclass(slots=True)
class _Seen:
    """Remembered between looks: a manifest is read once."""

    known: dict[tuple[str, str], Mapping[str, ManifestSeen]] = field(default_factory=dict)


class ThreadWorkshop:
    """Implements `controlplane.recovery.workshop.Workshop`."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared
        self._copies: Jobs[CopyMade] = Jobs("copy")
        self._drills: Jobs[DrillMade] = Jobs("drill")
        self._streams: dict[str, _StreamThread] = {}
        self._seen = _Seen()

    # -- looking
    async def survey(self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None) -> Inventory:
        return await asyncio.to_thread(self._survey, dataset, bucket, before)

    def _survey(self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None) -> Inventory:
        now = self._clock.now()
        try:
            self._vault.keep_running(bucket)
            place = (dataset.name, bucket.name)
            found = survey_bucket(
                self._vault.store(bucket),
                self._vault.keyring(self._declared().keys),
                dataset,
                bucket,
                known=self._seen.known.get(place, NOTHING_KNOWN),
                before=before,
                now=now,
            )
            seen = found.inventory
            if dataset.kind is DatasetKind.PGBACKREST:
                seen = replace(seen, coverage=self._vault.pgbackrest_coverage(dataset))
        except QuarterdeckError as error:
            return Inventory(
                dataset=dataset.name,
                bucket=bucket.name,
                observed_at=before.observed_at if before is not None else now,
                points=before.points if before is not None else (),
                coverage=before.coverage if before is not None else None,
                problem=str(error),
            )
        self._seen.known[place] = found.known
        return seen

    # -- copies
    def makes_increments(self, dataset: DatasetSpec) -> bool:
        return dataset.kind is DatasetKind.POSTGRESQL

    def begin_copy(self, work: str, order: CopyOrder) -> None:
        self._copies.begin(work, lambda watch: self._copy(order, watch))

    def look_copy(self, work: str) -> Working | Finished[CopyMade] | Broken | Unknown:
        return self._copies.look(work)

    def _copy(self, order: CopyOrder, watch: JobWatch) -> CopyMade:
        dataset, begin_s = order.dataset, time.monotonic()
        first, *others = self._buckets(dataset)
        store, keyring = self._vault.store(first), self._vault.keyring(self._declared().keys)

        def open_point(manifest: Manifest) -> ArchiveReader:
            return open_archive(store, keyring, manifest_key(dataset.name, manifest.point), watch=SilentWatch())

        adapter = self._vault.adapter(dataset, open_point)
        parent = None
        if order.parent is not None:
            key = manifest_key(dataset.name, order.parent)
            parent = decode_manifest(key, store.get(key))
        writer = ArchiveWriter(
            store,
            keyring,
            dataset=dataset.name,
            kind=dataset.kind,
            point=order.point,
            storage_class=order.storage_class,
            lock=_lock(first, order.locked_until),
            watch=watch,
        )
        started_at = self._clock.now()
        try:
            facts = adapter.snapshot(writer, parent=parent, watch=watch)
            manifest = writer.commit(
                facts, started_at=started_at, finished_at=self._clock.now(), parent=_parent_used(parent, facts.facts)
            )
        except BaseException:
            writer.abandon()
            raise
        failed = [problem for other in others if (problem := self._replicate(order, first, other, watch))]
        return CopyMade(
            point=order.point,
            plain_bytes=manifest.plain_bytes,
            stored_bytes=manifest.stored_bytes,
            took_s=time.monotonic() - begin_s,
            buckets=(first.name, *(other.name for other in others if not any(other.name in one for one in failed))),
            failed_buckets=tuple(failed),
        )

    def _replicate(self, order: CopyOrder, first: BucketSpec, other: BucketSpec, watch: JobWatch) -> str | None:
        """What went wrong; None: it lies there too. The next copy, or a person, tries again."""
        watch.step(f"replicate to {other.name}")
        try:
            replicate_archive(
                self._vault.store(first),
                self._vault.store(other),
                self._vault.keyring(self._declared().keys),
                manifest_key(order.dataset.name, order.point),
                storage_class=order.storage_class,
                lock=_lock(other, order.locked_until),
                watch=watch,
            )
        except QuarterdeckError as error:
            return f"{other.name}: {error}"
        return None

    async def sweep(self, dataset: DatasetSpec, *, writing: frozenset[PointId]) -> Sequence[str]:
        return await asyncio.to_thread(self._sweep, dataset, writing)

    def _sweep(self, dataset: DatasetSpec, writing: frozenset[PointId]) -> list[str]:
        gone: list[str] = []
        for bucket in self._buckets(dataset):
            store = self._vault.store(bucket)
            found = inventory(store, dataset.name, keyring=None)
            for info in found.orphans:
                if not any(info.key.startswith(point_prefix(dataset.name, point)) for point in writing):
                    store.delete(info.key, version=info.version)
                    gone.append(info.key)
        return gone

    async def remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        await asyncio.to_thread(self._remove, dataset, bucket, point)

    def _remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        store, manifest = self._vault.store(bucket), manifest_key(dataset.name, point)
        found = list(store.versions(point_prefix(dataset.name, point)))
        for info in sorted(found, key=lambda one: one.key != manifest):
            store.delete(info.key, version=info.version)

    async def lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        await asyncio.to_thread(self._lengthen, dataset, bucket, extension)

    def _lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        lock = Lock(mode=bucket.lock, until=extension.until)
        key = lengthen_locks(self._vault.store(bucket), dataset.name, extension.point, lock)
        # Locking changes nothing that a listing shows: the next look has to read the manifest's lock again.
        place = (dataset.name, bucket.name)
        known = self._seen.known.get(place, NOTHING_KNOWN)
        self._seen.known[place] = {name: seen for name, seen in known.items() if name != key}

    async def trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, *, since: datetime) -> int:
        return await asyncio.to_thread(self._trim_log, dataset, bucket, since)

    def _trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, since: datetime) -> int:
        store = self._vault.store(bucket)
        found = inventory(store, dataset.name, keyring=None)
        if found.unreadable:
            return 0  # What an unreadable copy needs, nobody knows.
        return trim_log(store, dataset.name, [seen.seen.manifest for seen in found.points], open_since=since)

    # -- drills
    async def reserve(self, drill: Drill, *, needed_bytes: int) -> str:
        return await asyncio.to_thread(self._reserve, drill, needed_bytes)

    def _reserve(self, drill: Drill, needed_bytes: int) -> str:
        root = self._vault.scratch_root()
        _make_enterable(root)
        disk = psutil.disk_usage(str(root))
        free_bytes = disk.free - int(disk.total * ROOM_LEFT_SHARE)
        if free_bytes < needed_bytes:
            raise TerminalError(
                f"{root} has room for {format_bytes(max(free_bytes, 0))}, the drill needs "
                f"{format_bytes(needed_bytes)}: free some, or give the state folder a larger disk"
            )
        folder = root / drill.drill
        _make_enterable(folder)
        return str(folder)

    async def thaw(self, order: DrillOrder) -> Thawing:
        return await asyncio.to_thread(self._thaw, order)

    def _thaw(self, order: DrillOrder) -> Thawing:
        store = self._vault.store(order.bucket)
        pending, archived = 0, 0
        for point in order.chain:
            for info in store.objects(point_prefix(order.dataset.name, point)):
                if not is_archive(info.storage_class):
                    continue
                archived += 1
                head = store.head(info.key, version=info.version)
                if head.thaw is None:
                    store.thaw(info.key, version=info.version, tier=RetrievalTier.STANDARD, days=THAWED_DAYS)
                pending += head.thaw is None or head.thaw.ongoing
        sentence = f"{archived - pending} of {archived} archived objects are back"
        return Thawing(pending=pending, archived=archived, sentence=sentence)

    def begin_drill(self, drill: Drill, order: DrillOrder) -> None:
        self._drills.begin(f"{drill.drill}/{drill.attempt}", lambda watch: self._drill(drill, order, watch))

    def look_drill(self, drill: Drill) -> Working | Finished[DrillMade] | Broken | Unknown:
        return self._drills.look(f"{drill.drill}/{drill.attempt}")

    def _drill(self, drill: Drill, order: DrillOrder, watch: JobWatch) -> DrillMade:
        dataset, into = order.dataset, Path(order.scratch) / RESTORED
        adapter, keys = self._vault.adapter(dataset), self._declared().keys
        only = KeyPurpose.BREAK_GLASS if drill.key is KeyPurpose.BREAK_GLASS else KeyPurpose.SITE
        watch.enter(DrillPhase.RESTORING)
        begin_s = time.monotonic()
        store, keyring = self._vault.store(order.bucket), self._vault.keyring(keys)
        chain = tuple(
            open_archive(store, keyring, manifest_key(dataset.name, point), only=only, watch=watch)
            for point in order.chain
        )
        _require_chain([one.manifest for one in chain])
        log = self._vault.log_reader(dataset, order.bucket, keys, only=only)
        restored = adapter.restore(RestoreRequest(chain=chain, into=into, log=log, to_time=drill.to_time), watch)
        restored_s = time.monotonic()
        watch.enter(DrillPhase.STARTING)
        with adapter.start(into, watch, to_time=drill.to_time) as instance:
            started_s = time.monotonic()
            watch.enter(DrillPhase.VERIFYING)
            newest_at = _newest(instance.started.newest_at, restored.log, chain, drill.to_time)
            checks = instance.verify(
                VerifyRequest(
                    manifest=chain[-1].manifest,
                    checks=dataset.checks,
                    exact_counts=dataset.wal is WalMode.OFF,
                    point_at=drill.to_time or newest_at,
                ),
                watch,
            )
            verified_s = time.monotonic()
        log_bytes = restored.log.stored_bytes if restored.log is not None else 0
        return DrillMade(
            key_id=chain[-1].opened_by.key_id,
            storage_classes=self._classes(store, dataset, order.chain),
            fetched_bytes=sum(one.manifest.stored_bytes for one in chain) + log_bytes,
            plain_bytes=sum(one.manifest.plain_bytes for one in chain),
            times=DrillTimes(
                fetch_and_restore_s=restored_s - begin_s,
                start_and_replay_s=started_s - restored_s,
                verify_s=verified_s - started_s,
            ),
            newest_at=newest_at,
            checks=tuple(checks),
        )

    def _classes(self, store: ObjectStore, dataset: DatasetSpec, chain: Sequence[PointId]) -> tuple[StorageClass, ...]:
        found = {
            info.storage_class
            for point in chain
            for info in store.objects(point_prefix(dataset.name, point))
            if info.key != manifest_key(dataset.name, point)
        }
        return tuple(sorted(found))

    async def clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        return await asyncio.to_thread(self._clean, drill, dataset)

    def _clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        """Also when no folder is written in the row: a crash may have come between the two."""
        if not self._drills.cancel_all(_END_WAIT_S, prefix=f"{drill.drill}/"):
            raise RetryableError(f"the work of drill {drill.drill} has not ended yet")
        folder = self._vault.scratch_root() / drill.drill
        into = folder / RESTORED
        if dataset is not None:
            adapter = self._vault.adapter(dataset)
            adapter.end_leftovers(into)
            left = adapter.leftovers(into)
            if left:
                raise RetryableError(f"of drill {drill.drill} there is still: {'; '.join(left)}")
        if folder.exists():
            shutil.rmtree(folder)
        programs = "" if dataset is None else f"no process of {dataset.kind} runs in {into.parent.name}; "
        return (f"{programs}the folder {folder.name} is gone",)

    async def record(self, drill: Drill) -> str:
        return await asyncio.to_thread(self._record, drill)

    def _record(self, drill: Drill) -> str:
        declared = self._declared()
        bucket, dataset = declared.bucket(drill.bucket), declared.dataset(drill.dataset)
        if bucket is None or dataset is None:
            raise TerminalError(f"{drill.dataset} or {drill.bucket} is no longer declared: no place for its evidence")
        store = self._vault.store(bucket)
        manifest = None
        if drill.point is not None:
            key = manifest_key(drill.dataset, drill.point)
            try:
                manifest = decode_manifest(key, store.get(key))
            except (NotFoundError, TerminalError):
                manifest = None  # The drill failed for it, and says so itself.
        recorded = record_evidence(
            store,
            self._vault.signer(),
            drill,
            manifest,
            objectives=Objectives(rpo=dataset.rpo, rto=dataset.rto),
            recorded_at=self._clock.now(),
            software=f"quarterdeck {controlplane.__version__}",
        )
        return recorded.key

    def evidence(self, drill: Drill) -> bytes:
        """The bundle, from the bucket."""
        bucket = self._declared().bucket(drill.bucket)
        if bucket is None or drill.evidence_key is None:
            raise NotFoundError(f"drill {drill.drill} has no evidence that can be read from {drill.bucket}")
        return self._vault.store(bucket).get(drill.evidence_key)

    # -- logs
    async def stream(self, dataset: DatasetSpec, *, until: datetime) -> Streaming:
        return await asyncio.to_thread(self._stream, dataset, until)

    def _stream(self, dataset: DatasetSpec, until: datetime) -> Streaming:
        running = self._streams.get(dataset.name)
        if running is None or not running.thread.is_alive():
            running = self._streams[dataset.name] = self._begin_stream(dataset, until)
        running.until = until
        status = running.stream.status()
        sentence = f"{dataset.name}: the log is {status.state}{f', {status.sentence}' if status.sentence else ''}"
        return Streaming(running=_FLOWING.get(status.state), sentence=sentence)

    def _begin_stream(self, dataset: DatasetSpec, until: datetime) -> _StreamThread:
        bucket = self._buckets(dataset)[0]
        if dataset.embedded:
            self._vault.run_postgresql()
            self._vault.postgresql_adapter(dataset).apply_settings(dataset.wal)
        stream = WalStream(
            url=self._vault.postgresql_url(dataset),
            dataset=dataset.name,
            store=self._vault.store(bucket),
            keyring=self._vault.keyring(self._declared().keys),
            clock=self._clock,
            rpo=dataset.rpo,
            synchronous=dataset.wal is WalMode.SYNCHRONOUS,
            lock_until=lambda: _lock(bucket, lock_until(dataset.retention, self._clock.now())),
        )
        stop = threading.Event()
        thread = threading.Thread(target=stream.run, args=(stop,), name=f"wal-{dataset.name}", daemon=True)
        running = _StreamThread(stream=stream, stop=stop, thread=thread, until=until)
        thread.start()
        return running

    async def end_idle(self) -> None:
        """What nobody asks for any more: another instance has it now, or it is no longer declared."""
        self._copies.cancel_idle(LEASE)
        self._drills.cancel_idle(LEASE)
        now = self._clock.now()
        for name, running in list(self._streams.items()):
            if running.until < now:
                running.stop.set()
                await asyncio.to_thread(running.thread.join, _END_WAIT_S)
                del self._streams[name]

    def end(self) -> None:
        """Everything of this process: streams flush what they have, copies and drills are given up."""
        for running in self._streams.values():
            running.stop.set()
        for running in self._streams.values():
            running.thread.join(_END_WAIT_S)
        self._streams.clear()
        self._copies.cancel_all(_END_WAIT_S)
        self._drills.cancel_all(_END_WAIT_S)

    def _buckets(self, dataset: DatasetSpec) -> list[BucketSpec]:
        found = [bucket for name in dataset.buckets if (bucket := self._declared().bucket(name)) is not None]
        if not found:
            raise TerminalError(f"{dataset.name}: none of its buckets ({', '.join(dataset.buckets)}) is declared")
        return found


def _make_enterable(folder: Path) -> None:
    """For PostgreSQL's own account, whatever the umask says; what is restored inside is private to it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(_ENTERABLE)


def _require_chain(links: Sequence[Manifest]) -> None:
    """The order came from rows; what the manifests say now counts."""
    for before, link in zip((None, *links), links, strict=False):
        wanted = None if before is None else before.point
        if link.parent != wanted:
            found, expected = link.parent or "nothing", wanted or "nothing"
            raise TerminalError(f"recovery point {link.point} builds on {found}, expected {expected}; use another copy")


def _parent_used(parent: Manifest | None, facts: Sequence[tuple[str, str]]) -> PointId | None:
    """An adapter may make a full copy although it was given a parent; then it says so."""
    if parent is None or dict(facts).get("copy") == "full":
        return None
    return parent.point


def _lock(bucket: BucketSpec, until: datetime | None) -> Lock | None:
    if until is None or bucket.lock is LockMode.NONE:
        return None
    return Lock(mode=bucket.lock, until=until)


def _newest(
    engine: datetime | None, log: FetchedLog | None, chain: Sequence[ArchiveReader], to_time: datetime | None
) -> datetime:
    """The later of what the engine tells and what the copy is of: a quiet database has no newer commit to tell of.

    Log beyond the moment that was asked for was fetched and not replayed.
    """
    known = (engine, log.newest_at if log is not None else None, chain[-1].manifest.consistent_at)
    newest = max(moment for moment in known if moment is not None)
    return newest if to_time is None else min(newest, to_time)
