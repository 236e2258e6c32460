"""What lies in a bucket, seen in the bucket itself: which copies are whole, which are not, what belongs to none."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from controlplane.adapters.backup.keyring import wrapping_problems
from controlplane.adapters.backup.manifests import check_mac, decode_manifest, key_context, point_prefix
from controlplane.domain.dataset import StorageClass
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.errors import DeniedError, NotFoundError, TerminalError
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.manifest import Manifest, PackRecord
from controlplane.recovery.ports import Keyring, ObjectInfo, ObjectStore, manifest_key

NOTHING_KNOWN: Final[Mapping[str, "ManifestSeen"]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSeen:
    """Remembered from look to look, since a manifest is read once."""

    manifest: Manifest
    file: ObjectInfo
    """As listed then: another time or size means another manifest."""
    locked_until: datetime | None
    """Of the manifest, when it was read; its packs were locked with it."""
    problems: tuple[str, ...]
    """Of its keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSeen:
    seen: ManifestSeen
    storage_classes: frozenset[StorageClass]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    dataset: DatasetName
    points: tuple[PointSeen, ...]
    """Oldest first."""
    unreadable: tuple[tuple[PointId, str], ...]
    """Points whose manifest cannot be used, and why. Nothing of theirs is an orphan."""
    orphans: tuple[ObjectInfo, ...]
    """Objects that no manifest names: of a copy under way, or of one that never ended. Their age tells which."""
    known: Mapping[str, ManifestSeen]
    """For the next look."""


def inventory(
    store: ObjectStore,
    dataset: DatasetName,
    *,
    keyring: Keyring | None,
    known: Mapping[str, ManifestSeen] = NOTHING_KNOWN,
) -> Inventory:
    """One listing, and the manifests that are new. Reads no data: that is `verify_archive`.

    `keyring`: proves new manifests, so that nobody who can only write to the bucket makes a dataset look protected;
    None: their fields are believed. RetryableError when the store cannot tell now.
    """
    listed: dict[PointId, dict[str, ObjectInfo]] = defaultdict(dict)
    prefix = f"{dataset}/points/"
    for info in store.objects(prefix):
        listed[PointId(info.key[len(prefix) :].partition("/")[0])][info.key] = info
    points: list[PointSeen] = []
    unreadable: list[tuple[PointId, str]] = []
    orphans: list[ObjectInfo] = []
    for point, objects in sorted(listed.items()):
        file = objects.get(manifest_key(dataset, point))
        named: set[str] = set()
        try:
            if file is None:
                _refuse_hidden(store, dataset, point)
            else:
                seen = _seen(store, file, keyring, known)
                points.append(_point(store, seen, objects))
                named = {file.key, *(pack.key for pack in _packs(seen.manifest))}
        except (TerminalError, NotFoundError) as error:
            unreadable.append((point, str(error)))
        else:
            orphans.extend(info for key, info in objects.items() if key not in named)
    return Inventory(
        dataset=dataset,
        points=tuple(points),
        unreadable=tuple(unreadable),
        orphans=tuple(orphans),
        known={point.seen.file.key: point.seen for point in points},
    )


def recovery_points(inventory: Inventory, bucket: BucketName) -> Sequence[RecoveryPoint]:
    """Rows of what was seen, oldest first. An increment is as whole as the copies that it stands on."""
    rows: dict[PointId, RecoveryPoint] = {}
    for point in inventory.points:
        manifest, problems = point.seen.manifest, point.problems
        parent = rows.get(manifest.parent) if manifest.parent is not None else None
        if manifest.parent is not None and parent is None:
            problems = (*problems, f"stands on {manifest.parent}, which is not in the bucket")
        elif parent is not None and parent.problems:
            problems = (*problems, f"stands on {manifest.parent}: {parent.problems[0]}")
        rows[manifest.point] = RecoveryPoint(
            point=manifest.point,
            dataset=manifest.dataset,
            bucket=bucket,
            consistent_at=manifest.consistent_at,
            finished_at=manifest.finished_at,
            plain_bytes=manifest.plain_bytes,
            stored_bytes=manifest.stored_bytes,
            parent=manifest.parent,
            storage_classes=point.storage_classes,
            key_ids=tuple(key.key_id for key in manifest.keys),
            locked_until=point.seen.locked_until,
            problems=problems,
        )
    return tuple(rows.values())


def _seen(
    store: ObjectStore, file: ObjectInfo, keyring: Keyring | None, known: Mapping[str, ManifestSeen]
) -> ManifestSeen:
    before = known.get(file.key)
    if before is not None and before.file == file:
        return before
    manifest = decode_manifest(file.key, store.get(file.key))
    context = key_context(manifest.dataset, manifest.point)
    problems = wrapping_problems(manifest.keys, context)
    if keyring is not None:
        try:
            data_key, _ = keyring.open(manifest.keys, context)
            check_mac(manifest, data_key)
        except DeniedError as error:
            problems.append(str(error))
    lock = store.head(file.key).lock
    return ManifestSeen(
        manifest=manifest, file=file, locked_until=lock.until if lock else None, problems=tuple(problems)
    )


def _refuse_hidden(store: ObjectStore, dataset: DatasetName, point: PointId) -> None:
    """TerminalError when the manifest is only hidden: its packs are no orphans, and sweeping them would finish it."""
    key = manifest_key(dataset, point)
    if any(info.key == key and not info.deleted for info in store.versions(point_prefix(dataset, point))):
        raise TerminalError(f"{key}: is hidden by a delete marker; remove the marker to have the copy back")


def _point(store: ObjectStore, seen: ManifestSeen, listed: Mapping[str, ObjectInfo]) -> PointSeen:
    problems = list(seen.problems)
    classes: set[StorageClass] = set()
    for pack in _packs(seen.manifest):
        info = _as_recorded(store, pack, listed.get(pack.key))
        if info is None:
            problems.append(f"{pack.key}: is not there, its manifest names it")
        elif info.size_bytes != pack.stored_bytes:
            problems.append(f"{pack.key}: found {info.size_bytes} bytes, expected {pack.stored_bytes}")
        if info is not None:
            classes.add(info.storage_class)
    return PointSeen(seen=seen, storage_classes=frozenset(classes), problems=tuple(problems))


def _as_recorded(store: ObjectStore, pack: PackRecord, listed: ObjectInfo | None) -> ObjectInfo | None:
    """The very version that the manifest names. It is asked for only where the listing shows another, or none."""
    same = listed is not None and listed.size_bytes == pack.stored_bytes
    if pack.version is None or (same and listed is not None and listed.version in {None, pack.version}):
        return listed
    try:
        return store.head(pack.key, version=pack.version)
    except NotFoundError:
        return None


def _packs(manifest: Manifest) -> Iterator[PackRecord]:
    for stream in manifest.streams:
        yield from stream.packs
