"""A second copy in another bucket: the same sealed packs, and a manifest of its own, since versions differ there."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from controlplane.adapters.backup.archive_reader import ahead, fetch_pack
from controlplane.adapters.backup.archive_writer import publish_manifest
from controlplane.adapters.backup.manifests import check_mac, decode_manifest, key_context, mac_of, point_prefix
from controlplane.adapters.backup.stream_writer import SENDERS, put_pack
from controlplane.domain.dataset import StorageClass
from controlplane.recovery.manifest import Manifest, PackRecord
from controlplane.recovery.ports import Keyring, Lock, ObjectInfo, ObjectStore, Watch


def replicate_archive(
    source: ObjectStore,
    target: ObjectStore,
    keyring: Keyring,
    manifest_key: str,
    *,
    storage_class: StorageClass,
    lock: Lock | None,
    watch: Watch,
) -> Manifest:
    """The manifest in the target, written last. Counts stored bytes on the watch.

    Packs are proven by their SHA-256 and not opened. Those that an interrupted call left in the target are taken as
    they are where the store tells their SHA-256. Raises what `open_archive` does, and ConflictError when the target has
    another manifest of the point.
    """
    manifest = decode_manifest(manifest_key, source.get(manifest_key))
    data_key, _ = keyring.open(manifest.keys, key_context(manifest.dataset, manifest.point))
    check_mac(manifest, data_key)
    there = {info.key: info for info in target.objects(point_prefix(manifest.dataset, manifest.point))}

    def copied(pack: PackRecord) -> PackRecord:
        found = _there(target, pack, there)
        if found is not None:
            return replace(pack, version=found.version)
        return put_pack(target, pack.key, fetch_pack(source, pack), pack.chunks, storage_class, lock)

    pool = ThreadPoolExecutor(SENDERS, "replicate")
    streams = []
    try:
        for stream in manifest.streams:
            packs = []
            for pack in ahead((pool.submit(copied, pack) for pack in stream.packs), SENDERS):
                packs.append(pack)
                watch.advance(pack.stored_bytes)
            streams.append(replace(stream, packs=tuple(packs)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    copy = replace(manifest, streams=tuple(streams))
    copy = replace(copy, mac=mac_of(copy, data_key))
    publish_manifest(target, copy, lock)
    return copy


def _there(target: ObjectStore, pack: PackRecord, there: Mapping[str, ObjectInfo]) -> ObjectInfo | None:
    listed = there.get(pack.key)
    if listed is None or listed.size_bytes != pack.stored_bytes:
        return None
    info = target.head(pack.key)
    return info if info.sha256 == pack.sha256 else None
