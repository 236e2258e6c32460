"""Copies made, put into further buckets, swept, removed, locked longer."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from controlplane.adapters.backup.archive_reader import ArchiveReader, open_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter
from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.jobs import JobWatch
from controlplane.adapters.backup.lengthening import lengthen_locks
from controlplane.adapters.backup.manifests import decode_manifest, point_prefix
from controlplane.adapters.backup.places import buckets_of, lock_in
from controlplane.adapters.backup.postgresql.wal_trim import trim_log
from controlplane.adapters.backup.removal import point_contents, remove_point
from controlplane.adapters.backup.replication import replicate_archive
from controlplane.adapters.backup.vault import Vault
from controlplane.domain.dataset import (
    BucketSpec,
    DatasetSpec,
    RecoverySpec,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import PointId
from controlplane.recovery.locks import LockExtension
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    Lock,
    SilentWatch,
    manifest_key,
)
from controlplane.recovery.workshop import (
    CopyMade,
    CopyOrder,
    PointContents,
)


class CopyWork:
    """Blocks: for worker threads."""

    def __init__(self, vault: Vault, *, clock: Clock, declared: Callable[[], RecoverySpec]) -> None:
        self._vault = vault
        self._clock = clock
        self._declared = declared

    def copy(self, order: CopyOrder, watch: JobWatch) -> CopyMade:
        dataset, begin_s = order.dataset, time.monotonic()
        first, *others = buckets_of(dataset, self._declared())
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
            lock=lock_in(first, order.locked_until),
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
                lock=lock_in(other, order.locked_until),
                watch=watch,
            )
        except QuarterdeckError as error:
            return f"{other.name}: {error}"
        return None

    def sweep(self, dataset: DatasetSpec, writing: frozenset[PointId]) -> list[str]:
        gone: list[str] = []
        for bucket in buckets_of(dataset, self._declared()):
            store = self._vault.store(bucket)
            found = inventory(store, dataset.name, keyring=None)
            for info in found.orphans:
                if not any(info.key.startswith(point_prefix(dataset.name, point)) for point in writing):
                    store.delete(info.key, version=info.version)
                    gone.append(info.key)
        return gone

    def remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        remove_point(self._vault.store(bucket), dataset.name, point)

    def contents(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> PointContents:
        return point_contents(self._vault.store(bucket), dataset.name, point)

    def lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        lock = Lock(mode=bucket.lock, until=extension.until)
        lengthen_locks(self._vault.store(bucket), dataset.name, extension.point, lock)

    def trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, since: datetime) -> int:
        store = self._vault.store(bucket)
        found = inventory(store, dataset.name, keyring=None)
        if found.unreadable:
            return 0  # What an unreadable copy needs, nobody knows.
        return trim_log(store, dataset.name, [seen.seen.manifest for seen in found.points], since=since)


def _parent_used(parent: Manifest | None, facts: Sequence[tuple[str, str]]) -> PointId | None:
    """An adapter may make a full copy although it was given a parent; then it says so."""
    if parent is None or dict(facts).get("copy") == "full":
        return None
    return parent.point
