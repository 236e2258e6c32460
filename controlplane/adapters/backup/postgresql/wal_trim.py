"""Log that no kept copy is rolled forward with. Each copy carries what makes it consistent itself."""

from collections.abc import Sequence
from datetime import datetime

from controlplane.adapters.backup.postgresql.wal_coverage import obsolete_ranges, ranges_in
from controlplane.adapters.backup.postgresql.wal_layout import wal_prefix
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import ObjectStore


def trim_log(store: ObjectStore, dataset: str, manifests: Sequence[Manifest], *, since: datetime) -> int:
    """Delete the log of before the oldest copy of that moment or later; how many objects.

    Nothing where no copy says from where on it needs the log. A locked object raises ConflictError: it is left for the
    day on which its lock ends.
    """
    keep_since = kept_since(manifests, since=since)
    if keep_since is None:
        return 0
    found = obsolete_ranges(ranges_in(store.objects(wal_prefix(dataset))), keep_since=keep_since)
    for gone in found:
        store.delete(gone.key, version=gone.version)
    return len(found)


def kept_since(manifests: Sequence[Manifest], *, since: datetime) -> str | None:
    """From which position on the log has to stay; None: nobody knows, so all of it."""
    rolled = [one for one in manifests if one.consistent_at >= since and one.fact("log_since") is not None]
    return min(rolled, key=lambda one: one.consistent_at).fact("log_since") if rolled else None
