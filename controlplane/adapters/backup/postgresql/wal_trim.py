"""Which parts of the log no kept copy needs any more."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from controlplane.adapters.backup.postgresql.lsn import parse_lsn
from controlplane.adapters.backup.postgresql.wal_coverage import ranges_in
from controlplane.adapters.backup.postgresql.wal_layout import WalRange, wal_prefix
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """From its start to its end, to be consistent; a copy that can be rolled forward needs all that follows."""

    timeline: int
    start: int
    stop: int | None
    """None: everything from the start on."""

    def covers(self, found: WalRange) -> bool:
        if self.stop is None:
            return found.timeline > self.timeline or (found.timeline == self.timeline and found.end > self.start)
        return found.timeline == self.timeline and found.end > self.start and found.start <= self.stop


def needs_of(manifests: Iterable[Manifest], *, open_since: datetime) -> Iterator[Need]:
    """`open_since`: copies of this moment or later can be rolled forward."""
    for manifest in manifests:
        start, stop, timeline = (manifest.fact(name) for name in ("start_lsn", "stop_lsn", "timeline"))
        if start is None or stop is None or timeline is None:
            continue
        forward = manifest.consistent_at >= open_since
        yield Need(timeline=int(timeline), start=parse_lsn(start), stop=None if forward else parse_lsn(stop))


def unneeded(ranges: Iterable[WalRange], needs: Sequence[Need]) -> Iterator[WalRange]:
    """Nothing when no copy says what it needs: then nobody knows."""
    if not needs:
        return
    yield from (found for found in ranges if not any(need.covers(found) for need in needs))


def trim_log(store: ObjectStore, dataset: str, manifests: Sequence[Manifest], *, open_since: datetime) -> int:
    """Delete those objects; how many. A locked one raises ConflictError, and is left for the day its lock ends."""
    needs = list(needs_of(manifests, open_since=open_since))
    gone = 0
    for found in unneeded(list(ranges_in(store.objects(wal_prefix(dataset)))), needs):
        store.delete(found.key, version=found.version)
        gone += 1
    return gone
