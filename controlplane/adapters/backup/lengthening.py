"""Locking a recovery point for longer: all of its objects, the manifest last."""

from controlplane.adapters.backup.manifests import decode_manifest
from controlplane.kernel.ids import PointId
from controlplane.recovery.ports import Lock, ObjectStore, manifest_key


def lengthen_locks(store: ObjectStore, dataset: str, point: PointId, lock: Lock) -> str:
    """The manifest's key, whose lock is the one that is looked at: killed before it, all of this is done again.

    Locks that last longer already stay.
    """
    key = manifest_key(dataset, point)
    manifest = decode_manifest(key, store.get(key))
    packs = [(pack.key, pack.version) for stream in manifest.streams for pack in stream.packs]
    for name, version in (*packs, (key, store.head(key).version)):
        held = store.head(name, version=version).lock
        if held is None or held.until < lock.until:
            store.retain(name, version=version, lock=lock)
    return key
