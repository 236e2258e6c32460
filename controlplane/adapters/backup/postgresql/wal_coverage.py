"""How far the log reaches, from the bucket alone: what is listed there, and the head that an idle stream writes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from controlplane.adapters.backup.postgresql.lsn import Position, format_lsn
from controlplane.adapters.backup.postgresql.wal_keys import EpochKeys
from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    WalRange,
    decode,
    head_key,
    moment,
    parse_range,
    sorted_ranges,
    wal_prefix,
)
from controlplane.kernel.errors import NotFoundError, TerminalError
from controlplane.recovery.ports import Keyring, LogCoverage, ObjectInfo, ObjectStore


@dataclass(slots=True, kw_only=True)
class Stretch:
    """A part of one timeline without a hole."""

    timeline: int
    start: int
    end: int
    covered_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WalListing:
    ranges: tuple[WalRange, ...]
    head: HeadFile | None


def wal_coverage(
    store: ObjectStore, dataset: str, keyring: Keyring | None = None, *, since: str | None = None
) -> LogCoverage | None:
    """None: there is no log of the dataset in the bucket.

    `since`: a position (`1:0/3000028`, the start of the newest copy): coverage counts from there, so it ends at the
    first gap after it. Without, it counts from the last gap on. With a keyring the head is authenticated: TerminalError
    when it was changed.
    """
    listing = read_listing(store, dataset, keyring)
    return coverage_of(listing, since=Position.parse(since) if since else None)


def read_listing(store: ObjectStore, dataset: str, keyring: Keyring | None = None) -> WalListing:
    keys = None if keyring is None else EpochKeys(store, keyring, dataset)
    return WalListing(ranges=read_ranges(store, dataset), head=read_head(store, dataset, keys))


def read_ranges(store: ObjectStore, dataset: str) -> tuple[WalRange, ...]:
    return tuple(ranges_in(store.objects(wal_prefix(dataset))))


def ranges_in(infos: Iterable[ObjectInfo]) -> Iterator[WalRange]:
    for info in infos:
        found = parse_range(info)
        if found is not None:
            yield found


def coverage_of(listing: WalListing, *, since: Position | None = None) -> LogCoverage | None:
    """Pure."""
    ranges = [found for found in listing.ranges if since is None or _may_follow(found, since)]
    if not listing.ranges:
        return None
    stretches = stretches_of(ranges)
    if since is not None and not stretches:
        # Nothing was written since the copy; the head may still vouch for that.
        stretches = [Stretch(timeline=since.timeline, start=since.lsn, end=since.lsn)]
    gaps = [_named_gap(before, after) for before, after in _holes(stretches)]
    if since is not None and stretches[0].start > since.lsn:
        # It begins too late for that copy: nothing after the copy itself can be reached.
        stretches.insert(0, Stretch(timeline=since.timeline, start=since.lsn, end=since.lsn))
        gaps.insert(0, _named_gap(*stretches[:2]))
    last = _reached(stretches) if since is not None else stretches[-1]
    covered_ms = last.covered_ms
    head = listing.head
    if head is not None and head.at.timeline == last.timeline and last.start <= head.at.lsn <= last.end:
        covered_ms = max(covered_ms, int(head.covered_at.timestamp() * 1000))
    return LogCoverage(
        position=str(Position(last.timeline, last.end)),
        covered_at=moment(covered_ms),
        segments=len({found.segment for found in ranges}),
        stored_bytes=sum(found.stored_bytes for found in ranges),
        gaps=tuple(gaps),
    )


def stretches_of(ranges: Sequence[WalRange]) -> list[Stretch]:
    """Overlapping and touching ranges joined, by timeline and position."""
    joined: list[Stretch] = []
    for found in sorted_ranges(ranges):
        last = joined[-1] if joined else None
        if last is not None and last.timeline == found.timeline and found.start <= last.end:
            last.end = max(last.end, found.end)
            last.covered_ms = max(last.covered_ms, found.covered_ms)
        else:
            joined.append(
                Stretch(timeline=found.timeline, start=found.start, end=found.end, covered_ms=found.covered_ms)
            )
    return joined


def obsolete_ranges(ranges: Iterable[WalRange], *, keep_since: str) -> tuple[WalRange, ...]:
    """What no copy from that position on needs: `log_since` of the oldest copy that is kept. Pure."""
    keep = Position.parse(keep_since)
    return tuple(found for found in ranges if is_obsolete(found, keep))


def is_obsolete(found: WalRange, keep_since: Position) -> bool:
    return found.timeline <= keep_since.timeline and found.end <= keep_since.lsn


def _may_follow(found: WalRange, since: Position) -> bool:
    if found.timeline == since.timeline:
        return found.end > since.lsn
    return found.timeline > since.timeline


def _holes(stretches: Sequence[Stretch]) -> Iterator[tuple[Stretch, Stretch]]:
    """Neighbours that do not meet. A timeline begins in a segment that an earlier one has up to the fork or beyond."""
    furthest = 0
    for before, after in pairwise(stretches):
        furthest = max(furthest, before.end)
        if before.timeline == after.timeline or after.start > furthest:
            yield before, after


def _reached(stretches: Sequence[Stretch]) -> Stretch:
    """The last stretch before the first hole."""
    first_hole = next(iter(_holes(stretches)), None)
    return first_hole[0] if first_hole is not None else stretches[-1]


def _named_gap(before: Stretch, after: Stretch) -> str:
    names = f"timeline {after.timeline}" if before.timeline == after.timeline else f"before timeline {after.timeline}"
    return f"{names}: {format_lsn(before.end)} to {format_lsn(after.start)}"


def read_head(store: ObjectStore, dataset: str, keys: EpochKeys | None) -> HeadFile | None:
    """None where there is none. With keys it is authenticated: TerminalError when somebody changed it."""
    key = head_key(dataset)
    try:
        head = decode(HeadFile, key, store.get(key))
    except NotFoundError:
        return None
    if keys is not None and not head.is_genuine(keys.key(head.epoch)):
        raise TerminalError(f"{key}: is not what the stream wrote: somebody changed it; the stream will write it anew")
    return head
