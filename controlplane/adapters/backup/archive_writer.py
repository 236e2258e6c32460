"""Writes a copy: streams to chunks to sealed packs to a bucket, and a manifest last. No manifest, no copy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from controlplane.adapters.backup.manifests import encode_manifest, key_context, mac_of, point_prefix, utc
from controlplane.adapters.backup.packing import CHUNK_BYTES, PACK_BYTES, valid_stream
from controlplane.adapters.backup.sealing import FAST_LEVEL
from controlplane.adapters.backup.stream_writer import ArchivePlace, Pipeline, SealedStream
from controlplane.domain.dataset import DatasetKind, StorageClass
from controlplane.kernel.errors import ConflictError, QuarterdeckError
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import FORMAT, Manifest
from controlplane.recovery.ports import Keyring, Lock, ObjectStore, SnapshotFacts, Watch, manifest_key


class ArchiveWriter:
    """A SnapshotSink. End it with `commit` or with `abandon`.

    Counts plaintext bytes on the watch, so an adapter that writes into it only names steps. Memory: for each open
    stream three chunks for each worker and the pack being filled, and three packs on their way.
    """

    def __init__(
        self,
        store: ObjectStore,
        keyring: Keyring,
        *,
        dataset: DatasetName,
        kind: DatasetKind,
        point: PointId,
        storage_class: StorageClass,
        lock: Lock | None,
        watch: Watch,
        workers: int = 2,
        level: int = FAST_LEVEL,
        chunk_bytes: int = CHUNK_BYTES,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        """`workers`: threads that compress and seal; one for each core that the copy may have."""
        data_key, self._keys = keyring.new_data_key(key_context(dataset, point))
        self._dataset, self._kind = dataset, kind
        self._place = ArchivePlace(
            store=store,
            dataset=dataset,
            point=point,
            data_key=data_key,
            storage_class=storage_class,
            lock=lock,
            level=level,
            chunk_bytes=chunk_bytes,
            pack_bytes=pack_bytes,
        )
        self._pipeline = Pipeline(self._place, workers=workers, watch=watch)
        self._mutex = threading.Lock()
        self._streams: dict[str, SealedStream] = {}
        self._dropped: dict[str, SealedStream] = {}

    @contextmanager
    def stream(self, name: str, *, size_hint: int | None = None) -> Iterator[SealedStream]:
        del size_hint  # Packs are filled as bytes come: nothing is sized ahead.
        assert valid_stream(name), (
            f"found the stream name {name!r}, expected letters, digits and ._+=@- between slashes"
        )
        with self._mutex:
            assert name not in self._streams | self._dropped, f"the stream {name} was written already"
            stream = self._streams[name] = SealedStream(self._pipeline, name)
        try:
            yield stream
            stream.finish()
        except BaseException:
            with self._mutex:
                self._dropped[name] = self._streams.pop(name)
            raise

    def commit(
        self, facts: SnapshotFacts, *, started_at: datetime, finished_at: datetime, parent: PointId | None
    ) -> Manifest:
        """Wait until every pack is durable, then write the manifest, which makes the copy exist.

        What an upload raised is raised here. After any error: `abandon`.
        """
        self._pipeline.check()
        records = tuple(stream.record() for stream in self._streams.values())
        dropped = [pack for stream in self._dropped.values() for pack in stream.sent_packs()]
        self._pipeline.close()
        manifest = Manifest(
            format=FORMAT,
            point=self._place.point,
            dataset=self._dataset,
            kind=self._kind,
            engine=facts.engine,
            started_at=utc(started_at),
            consistent_at=utc(facts.consistent_at),
            finished_at=utc(finished_at),
            parent=parent,
            compression="zstd",
            streams=records,
            counts=facts.counts,
            facts=facts.facts,
            keys=self._keys,
        )
        manifest = replace(manifest, mac=mac_of(manifest, self._place.data_key))
        publish_manifest(self._place.store, manifest, self._place.lock)
        for pack in dropped:
            self._delete(pack.key, pack.version)
        return manifest

    def abandon(self) -> tuple[str, ...]:
        """Stop, and delete what was uploaded. What could not be deleted, with the reason; a sweep finds it later.

        A commit whose answer was lost may have written the manifest: it goes first, and where it is locked the copy
        exists and all of it stays.
        """
        self._pipeline.stop()
        manifest, prefix = (
            manifest_key(self._dataset, self._place.point),
            point_prefix(self._dataset, self._place.point),
        )
        try:
            found = sorted(self._place.store.versions(prefix), key=lambda info: info.key != manifest)
        except QuarterdeckError as error:
            return (f"{prefix}: {error}",)
        stays: list[str] = []
        for info in found:
            problem = self._delete(info.key, info.version)
            if problem is not None and info.key == manifest:
                return (problem,)
            stays.extend([problem] if problem is not None else [])
        return tuple(stays)

    def _delete(self, key: str, version: str | None) -> str | None:
        try:
            self._place.store.delete(key, version=version)
        except QuarterdeckError as error:
            return f"{key}: {error}"
        return None


def publish_manifest(store: ObjectStore, manifest: Manifest, lock: Lock | None) -> None:
    """Write it where there is none yet. ConflictError when another one is there."""
    key, body = manifest_key(manifest.dataset, manifest.point), encode_manifest(manifest)
    try:
        store.put(key, body, if_absent=True, lock=lock)
    except ConflictError:
        if store.get(key) != body:  # Ours is there when the answer to a first try was lost on the way.
            raise
