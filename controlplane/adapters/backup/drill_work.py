"""Drills as they are really done: room, thaw, restore, start, verify, clean up, evidence."""

import shutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

import controlplane
from controlplane.adapters.backup.archive_reader import ArchiveReader, open_archive
from controlplane.adapters.backup.jobs import JobWatch
from controlplane.adapters.backup.manifests import decode_manifest, point_prefix
from controlplane.adapters.backup.scratch_engines import end_scratch, scratch_left
from controlplane.adapters.backup.vault import Vault
from controlplane.adapters.evidence import record_evidence
from controlplane.domain.dataset import (
    DatasetSpec,
    KeyPurpose,
    RecoverySpec,
    RetrievalTier,
    StorageClass,
    WalMode,
)
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import NotFoundError, RetryableError, TerminalError
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.classes import is_archive
from controlplane.recovery.evidence import Objectives
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    FetchedLog,
    ObjectStore,
    RestoreRequest,
    VerifyRequest,
    manifest_key,
)
from controlplane.recovery.workshop import (
    DrillMade,
    DrillOrder,
    Thawing,
)

RESTORED: Final = "restored"
"""Folder inside a drill's scratch folder."""
THAWED_DAYS: Final = 2
"""How long a retrieved copy stays: a drill that was interrupted finds it again the next day."""
ROOM_LEFT_SHARE: Final = 0.05
"""Of the disk that a drill leaves free: it shares the disk with what it protects."""
_ENTERABLE: Final = 0o711


class DrillWork:
    """Blocks: for worker threads."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared

    def reserve(self, drill: Drill, needed_bytes: int) -> str:
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

    def thaw(self, order: DrillOrder) -> Thawing:
        return thaw_points(self._vault.store(order.bucket), order.dataset.name, order.chain)

    def drill(self, drill: Drill, order: DrillOrder, watch: JobWatch) -> DrillMade:
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
            loaded_s, checked_s = instance.started.loaded_s, instance.started.checked_s
        log_bytes = restored.log.stored_bytes if restored.log is not None else 0
        return DrillMade(
            key_id=chain[-1].opened_by.key_id,
            storage_classes=self._classes(store, dataset, order.chain),
            fetched_bytes=sum(one.manifest.stored_bytes for one in chain) + log_bytes,
            plain_bytes=sum(one.manifest.plain_bytes for one in chain),
            times=DrillTimes(
                fetch_and_restore_s=restored_s - begin_s + loaded_s,
                start_and_replay_s=started_s - restored_s - loaded_s - checked_s,
                verify_s=verified_s - started_s + checked_s,
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

    def clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        """Also when no folder is written in the row: a crash may have come between the two.

        By what is in the folder: the dataset may be declared no longer, or as another kind than was restored.
        """
        folder = self._vault.scratch_root() / drill.drill
        into = folder / RESTORED
        end_scratch(into)
        left = scratch_left(into)
        if left:
            raise RetryableError(f"of drill {drill.drill} there is still: {'; '.join(left)}")
        if folder.exists():
            shutil.rmtree(folder)
        engine = "an engine" if dataset is None else dataset.kind
        return (f"no process of {engine} runs in {folder.name}; the folder {folder.name} is gone",)

    def record(self, drill: Drill) -> str:
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


def thaw_points(store: ObjectStore, dataset: str, points: Sequence[PointId]) -> Thawing:
    """Ask for what lies in an archive class, and see how far it is back."""
    pending, archived = 0, 0
    for point in points:
        for info in store.objects(point_prefix(dataset, point)):
            if not is_archive(info.storage_class):
                continue
            archived += 1
            head = store.head(info.key, version=info.version)
            if head.thaw is None:
                store.thaw(info.key, version=info.version, tier=RetrievalTier.STANDARD, days=THAWED_DAYS)
            pending += head.thaw is None or head.thaw.ongoing
    sentence = f"{archived - pending} of {archived} archived objects are back"
    return Thawing(pending=pending, archived=archived, sentence=sentence)


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


def _newest(
    engine: datetime | None, log: FetchedLog | None, chain: Sequence[ArchiveReader], to_time: datetime | None
) -> datetime:
    """The later of what the engine tells and what the copy is of: a quiet database has no newer commit to tell of.

    Log beyond the moment that was asked for was fetched and not replayed.
    """
    known = (engine, log.newest_at if log is not None else None, chain[-1].manifest.consistent_at)
    newest = max(moment for moment in known if moment is not None)
    return newest if to_time is None else min(newest, to_time)
