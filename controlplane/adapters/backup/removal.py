"""A recovery point taken out of a bucket, object by object; and what there is of one, readable or not."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from controlplane.adapters.backup.manifests import decode_manifest, point_prefix
from controlplane.kernel.errors import NotFoundError, TerminalError
from controlplane.kernel.ids import PointId
from controlplane.recovery.ports import ObjectInfo, ObjectStore, manifest_key
from controlplane.recovery.workshop import PointContents

_LOCKS_LOOKED_MAX: Final = 64
"""Objects whose locks are asked for, each by a request: those of a copy were locked together, until the same moment."""
_VERSIONS_READ_MAX: Final = 16
"""Of a manifest: each rotation of the site key writes one more."""


def remove_point(store: ObjectStore, dataset: str, point: PointId) -> None:
    """Every version of everything, the manifest first. ConflictError while one is locked.

    Of the manifest's versions the oldest goes first, and a marker that hides them last: whoever reads meanwhile sees
    what was on top before, and no former version that looks like a copy.
    """
    manifests, others = _parted(store, dataset, point)
    oldest_first = manifests[::-1]
    for info in (*sorted(oldest_first, key=lambda one: one.deleted), *others):
        store.delete(info.key, version=info.version)


def point_contents(store: ObjectStore, dataset: str, point: PointId) -> PointContents:
    """Reads its manifest and asks for some locks; no data."""
    manifests, others = _parted(store, dataset, point)
    there = [info for info in (*manifests, *others) if not info.deleted]
    problem, sound = _manifest(store, manifests, manifest_key(dataset, point))
    locks = [store.head(info.key, version=info.version).lock for info in _sample(there)]
    return PointContents(
        objects=len(there),
        stored_bytes=sum(info.size_bytes for info in there),
        locked_until=max((lock.until for lock in locks if lock is not None), default=None),
        manifest_problem=problem,
        sound_version=sound,
    )


def _parted(store: ObjectStore, dataset: str, point: PointId) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """The manifest's versions, newest first, and all other objects."""
    key = manifest_key(dataset, point)
    found = list(store.versions(point_prefix(dataset, point)))
    return [info for info in found if info.key == key], [info for info in found if info.key != key]


def _manifest(store: ObjectStore, versions: Sequence[ObjectInfo], key: str) -> tuple[str, str | None]:
    """What is wrong with the one on top (empty: nothing), and a version below it that can be read."""
    if not versions:
        return "it has no manifest: a copy that never ended, or what a deletion left", None
    first, *below = versions
    problem = "its manifest is hidden by a delete marker" if first.deleted else _problem(store, first, key)
    if not problem:
        return "", None
    kept = (one for one in below if not one.deleted)
    sound = next((one for one in islice(kept, _VERSIONS_READ_MAX) if not _problem(store, one, key)), None)
    return problem, None if sound is None else sound.version or ""


def _problem(store: ObjectStore, info: ObjectInfo, key: str) -> str:
    try:
        decode_manifest(key, store.get(key, version=info.version))
    except (TerminalError, NotFoundError) as error:
        return str(error)
    return ""


def _sample(objects: Sequence[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Evenly over all of them, the first, a version of the manifest, among them."""
    step = max(1, -(-len(objects) // _LOCKS_LOOKED_MAX))
    yield from objects[::step]
