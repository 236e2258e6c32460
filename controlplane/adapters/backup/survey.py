"""A look into one bucket as a row: every recovery point with what is wrong with it, and how far the log reaches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from controlplane.adapters.backup.inventory import Inventory as Listing
from controlplane.adapters.backup.inventory import ManifestSeen, inventory, recovery_points
from controlplane.adapters.backup.postgresql.wal_coverage import wal_coverage
from controlplane.domain.dataset import BucketSpec, DatasetSpec, WalMode
from controlplane.domain.recovery import Inventory, LogCoverage, RecoveryPoint
from controlplane.kernel.ids import PointId
from controlplane.recovery.lineage import lineage_of
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import Keyring, ObjectStore
from controlplane.recovery.rpo import SKEW_MAX

_POINT_TIME: Final = "%Y%m%dT%H%M%S.%f"
"""As `controlplane.recovery.names.point_id` begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    inventory: Inventory
    known: Mapping[str, ManifestSeen]
    """For the next look: a manifest is read once."""


def survey_bucket(
    store: ObjectStore,
    keyring: Keyring,
    dataset: DatasetSpec,
    bucket: BucketSpec,
    *,
    known: Mapping[str, ManifestSeen],
    before: Inventory | None,
    now: datetime,
) -> Surveyed:
    """Errors of the store and the keyring are raised: a bucket that cannot be read is no empty one."""
    found = inventory(store, dataset.name, keyring=keyring, known=known)
    whole = recovery_points(found, bucket.name)
    points = (*whole, *_rows_of_unreadable(found, bucket, before))
    manifests = {seen.seen.manifest.point: seen.seen.manifest for seen in found.points}
    base = _base(whole, dataset, bucket, now)
    coverage = _coverage(store, keyring, dataset, None if base is None else manifests[base.point])
    seen = Inventory(
        dataset=dataset.name,
        bucket=bucket.name,
        observed_at=now,
        points=tuple(sorted(points, key=lambda point: (point.consistent_at, point.point))),
        coverage=coverage,
        unreadable=tuple(why for _, why in found.unreadable),
    )
    return Surveyed(inventory=seen, known=found.known)


def _rows_of_unreadable(found: Listing, bucket: BucketSpec, before: Inventory | None) -> Iterator[RecoveryPoint]:
    """What was known of it, or what its name tells: a copy whose manifest is lost must not vanish from every list."""
    known = {} if before is None else {point.point: point for point in before.points}
    for point, why in found.unreadable:
        row = known.get(point) or _row_by_name(point, found, bucket)
        if row is not None:
            yield replace(row, problems=(why,))


def _row_by_name(point: PointId, found: Listing, bucket: BucketSpec) -> RecoveryPoint | None:
    """None: the name is not one of ours; the inventory's `unreadable` still tells of it."""
    try:
        began_at = datetime.strptime(point.partition("Z-")[0], _POINT_TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return RecoveryPoint(
        point=point,
        dataset=found.dataset,
        bucket=bucket.name,
        consistent_at=began_at,
        finished_at=began_at,
        plain_bytes=0,
        stored_bytes=0,
        parent=None,
        storage_classes=frozenset(),
        key_ids=(),
    )


def _base(
    points: Sequence[RecoveryPoint], dataset: DatasetSpec, bucket: BucketSpec, now: datetime
) -> RecoveryPoint | None:
    """The copy that a restore would begin with, as the verdict about the RPO chooses it: the log counts from there."""
    usable = lineage_of(points, dataset.name, bucket.name).usable
    return next((point for point in reversed(usable) if point.consistent_at <= now + SKEW_MAX), None)


def _coverage(store: ObjectStore, keyring: Keyring, dataset: DatasetSpec, base: Manifest | None) -> LogCoverage | None:
    if dataset.wal is WalMode.OFF:
        return None
    return wal_coverage(store, dataset.name, keyring, since=None if base is None else base.fact("log_since"))
