"""Copies to read, damage and rotate: small chunks and packs, so that a few kilobytes make many of them."""

from collections.abc import Mapping
from datetime import timedelta
from random import Random
from typing import Final

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter
from controlplane.adapters.backup.keyring import BreakGlassPrivate, SiteKeyring
from controlplane.domain.dataset import DatasetKind, KeyPurpose, StorageClass
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import Count, Manifest
from controlplane.recovery.ports import Lock, ObjectStore, SilentWatch, SnapshotFacts, Watch, manifest_key
from controlplane.testing.effects import START

DATASET: Final = DatasetName("orders")
POINT: Final = PointId("20260105T080000.000Z-0a1b")
LATER: Final = PointId("20260105T090000.000Z-0a1c")
SITE_KEY: Final = bytes(range(32))
BREAK_GLASS: Final = BreakGlassPrivate(bytes(range(96)))
KEYRING: Final = SiteKeyring(SITE_KEY, break_glass_public=BREAK_GLASS.public)
CHUNK: Final = 1000
PACK: Final = 3000
FACTS: Final = SnapshotFacts(
    engine="files 1", consistent_at=START, counts=(Count(name="files", rows=2),), facts=(("root", "data"),)
)


def mixed_bytes(size: int, seed: int = 7) -> bytes:
    """Half of it packs well, half does not at all."""
    rng = Random(seed)
    return b"".join(rng.randbytes(50) + b"quarterdeck " * 5 for _ in range(size // 110 + 1))[:size]


STREAMS: Final[Mapping[str, bytes]] = {"base.tar": mixed_bytes(12_345), "wal/0001": mixed_bytes(4_000, 8), "empty": b""}


def make_writer(
    store: ObjectStore,
    *,
    keyring: SiteKeyring = KEYRING,
    point: PointId = POINT,
    lock: Lock | None = None,
    watch: Watch | None = None,
    storage_class: StorageClass = StorageClass.STANDARD,
) -> ArchiveWriter:
    return ArchiveWriter(
        store,
        keyring,
        dataset=DATASET,
        kind=DatasetKind.FILES,
        point=point,
        storage_class=storage_class,
        lock=lock,
        watch=watch or SilentWatch(),
        chunk_bytes=CHUNK,
        pack_bytes=PACK,
    )


def write_copy(
    store: ObjectStore,
    streams: Mapping[str, bytes] = STREAMS,
    *,
    keyring: SiteKeyring = KEYRING,
    point: PointId = POINT,
    parent: PointId | None = None,
    lock: Lock | None = None,
    storage_class: StorageClass = StorageClass.STANDARD,
) -> Manifest:
    writer = make_writer(store, keyring=keyring, point=point, lock=lock, storage_class=storage_class)
    for name, body in streams.items():
        with writer.stream(name) as stream:
            stream.write(body)
    return commit(writer, parent=parent)


def commit(writer: ArchiveWriter, *, parent: PointId | None = None) -> Manifest:
    return writer.commit(FACTS, started_at=START, finished_at=START + timedelta(minutes=1), parent=parent)


def read_copy(
    store: ObjectStore,
    *,
    keyring: SiteKeyring = KEYRING,
    point: PointId = POINT,
    only: KeyPurpose | None = None,
) -> dict[str, bytes]:
    archive = open_archive(store, keyring, manifest_key(DATASET, point), only=only, watch=SilentWatch())
    return {stream.name: b"".join(archive.read(stream.name)) for stream in archive.manifest.streams}
