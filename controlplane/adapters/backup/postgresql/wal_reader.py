"""The log out of the bucket, as the files that PostgreSQL replays."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.postgresql.lsn import (
    SEGMENT_BYTES,
    Position,
    Switch,
    format_lsn,
    parse_history,
    segment_start,
)
from controlplane.adapters.backup.postgresql.wal_coverage import WalListing, read_head, read_ranges
from controlplane.adapters.backup.postgresql.wal_keys import EpochKeys
from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    WalRange,
    history_prefix,
    moment,
    parse_history_key,
    sorted_ranges,
)
from controlplane.adapters.backup.sealing import unseal
from controlplane.domain.dataset import KeyPurpose
from controlplane.kernel.errors import DeniedError, NotFoundError, TerminalError
from controlplane.recovery.ports import FetchedLog, Keyring, ObjectStore, Watch

DOWNLOADS: Final = 6
"""Segments fetched side by side; each holds two of them in memory."""
_PAST_TARGET: Final = timedelta(seconds=5)
"""Commits carry the time of their beginning: a little more log than up to the asked moment is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A part of the way from a copy to the newest timeline."""

    timeline: int
    start: int
    end: int | None
    """Where the next timeline forks off; None: the last leg."""


class WalReader:
    """Implements `recovery.ports.LogReader`."""

    def __init__(self, store: ObjectStore, dataset: str, keyring: Keyring, *, only: KeyPurpose | None = None) -> None:
        """`only`: keys of other holders are not used, as in a drill of the break-glass key."""
        self._store = store
        self._dataset = dataset
        self._keys = EpochKeys(store, keyring, dataset, only=only)

    def fetch(self, *, since: str, into: Path, to_time: datetime | None, watch: Watch) -> FetchedLog:
        """TerminalError when a part of the way is missing or is not what was written."""
        at = Position.parse(since)
        listing = WalListing(ranges=read_ranges(self._store, self._dataset), head=self._head())
        histories = self._histories(into)
        wanted: list[WalRange] = []
        for leg in way(at, histories, listing.ranges):
            segment_bytes = self._segment_bytes(leg, listing)
            wanted += ranges_for(leg, listing.ranges, to_time, segment_bytes=segment_bytes)
        watch.step("fetch log", sum(found.stored_bytes for found in wanted))
        files = [list(group) for _, group in groupby(wanted, key=lambda found: found.segment)]
        with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="wal-read") as pool:
            for stored_bytes in pool.map(lambda parts: self._write_segment(parts, into), files):
                watch.advance(stored_bytes)
        return FetchedLog(
            files=len(files),
            stored_bytes=sum(found.stored_bytes for found in wanted),
            newest_at=_newest(at, wanted, listing),
        )

    def _head(self) -> HeadFile | None:
        """Believed only when it is proven. It restores nothing, so a damaged one must not stand in a restore's way."""
        with suppress(TerminalError, DeniedError, NotFoundError):
            return read_head(self._store, self._dataset, self._keys)
        return None

    def _segment_bytes(self, leg: Leg, listing: WalListing) -> int:
        epoch = next((found.epoch for found in listing.ranges if found.timeline == leg.timeline), None)
        return self._keys.file(epoch).segment_bytes if epoch else SEGMENT_BYTES

    def _histories(self, into: Path) -> dict[int, tuple[Switch, ...]]:
        """Written to the folder too: PostgreSQL finds its way by them."""
        found: dict[int, tuple[Switch, ...]] = {}
        for info in self._store.objects(history_prefix(self._dataset)):
            history = parse_history_key(info.key)
            if history is None:
                continue
            text = self._opened(history.key, history.epoch)
            (into / f"{history.timeline:08X}.history").write_bytes(text)
            found[history.timeline] = parse_history(text.decode())
        return found

    def _write_segment(self, parts: Sequence[WalRange], into: Path) -> int:
        """Padded with zeros to its full length, as PostgreSQL expects it: there its replay ends."""
        first = parts[0]
        segment_bytes = self._keys.file(first.epoch).segment_bytes
        base = segment_start(first.start, segment_bytes)
        body = bytearray(segment_bytes)
        for part in parts:
            data = self._opened(part.key, part.epoch)
            if len(data) != part.end - part.start:
                raise TerminalError(f"{part.key}: found {len(data)} bytes, expected {part.end - part.start}")
            body[part.start - base : part.end - base] = data
        draft = into / f".{first.segment}.partial"
        draft.write_bytes(body)
        draft.rename(into / first.segment)
        return sum(part.stored_bytes for part in parts)

    def _opened(self, key: str, epoch: str) -> bytes:
        return unseal(self._keys.key(epoch), key, self._store.get(key))


def way(at: Position, histories: dict[int, tuple[Switch, ...]], ranges: Sequence[WalRange]) -> list[Leg]:
    """Timelines from the copy to the newest that descends from it. Pure."""
    newest = max((found.timeline for found in ranges), default=at.timeline)
    for timeline in sorted({*histories, newest}, reverse=True):
        legs = _legs(at, timeline, histories.get(timeline, ()))
        if legs is not None:
            return legs
    return [Leg(timeline=at.timeline, start=at.lsn, end=None)]


def _legs(at: Position, timeline: int, history: Sequence[Switch]) -> list[Leg] | None:
    """None: it does not descend from the copy."""
    if timeline == at.timeline:
        return [Leg(timeline=timeline, start=at.lsn, end=None)]
    own = next((index for index, switch in enumerate(history) if switch.ancestor == at.timeline), None)
    if own is None or history[own].lsn < at.lsn:
        return None
    legs = [Leg(timeline=at.timeline, start=at.lsn, end=history[own].lsn)]
    for before, switch in pairwise(history[own:]):
        legs.append(Leg(timeline=switch.ancestor, start=before.lsn, end=switch.lsn))
    return [*legs, Leg(timeline=timeline, start=history[-1].lsn, end=None)]


def ranges_for(leg: Leg, ranges: Sequence[WalRange], to_time: datetime | None, *, segment_bytes: int) -> list[WalRange]:
    """What to fetch of a leg, in order. TerminalError, naming it, when something in the middle is missing. Pure."""
    chosen: list[WalRange] = []
    reached = segment_start(leg.start, segment_bytes)  # PostgreSQL reads a segment from its first byte
    enough_ms = (to_time + _PAST_TARGET).timestamp() * 1000 if to_time else None
    for found in sorted_ranges([found for found in ranges if found.timeline == leg.timeline]):
        if found.end <= reached:
            continue  # before the leg, or a piece of a segment that is there whole
        if leg.end is not None and found.start >= leg.end:
            break
        if found.start > reached:
            raise TerminalError(
                f"the log of timeline {leg.timeline} is missing from {format_lsn(reached)} to "
                f"{format_lsn(found.start)}: choose an earlier moment, or a newer copy"
            )
        chosen.append(found)
        reached = found.end
        if enough_ms is not None and found.covered_ms > enough_ms:
            return chosen
    if leg.end is not None and reached < leg.end:
        raise TerminalError(
            f"the log of timeline {leg.timeline} ends at {format_lsn(reached)}, before the next timeline "
            f"forks off at {format_lsn(leg.end)}"
        )
    return chosen


def _newest(since: Position, wanted: Sequence[WalRange], listing: WalListing) -> datetime | None:
    """Of what was fetched; the head counts when all there is was fetched."""
    covered_ms = max((found.covered_ms for found in wanted), default=0)
    end = Position(wanted[-1].timeline, wanted[-1].end) if wanted else since
    head = listing.head
    if head is not None and head.at.timeline == end.timeline and head.at.lsn <= end.lsn:
        covered_ms = max(covered_ms, int(head.covered_at.timestamp() * 1000))
    return moment(covered_ms) if covered_ms else None
