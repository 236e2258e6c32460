"""A log as a stream writes it into a bucket, without a server: small segments, a few bytes each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.lsn import Position
from controlplane.adapters.backup.postgresql.wal_coverage import read_head, read_ranges, stretches_of
from controlplane.adapters.backup.postgresql.wal_keys import Epoch, EpochKeys, new_epoch
from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    WalRange,
    encode,
    head_key,
    history_key,
    history_prefix,
    parse_history_key,
    range_key,
)
from controlplane.adapters.backup.sealing import seal, unseal
from controlplane.recovery.ports import Lock, ObjectInfo, ObjectStore
from controlplane.testing.effects import START
from tests.unit.backup.bucket import MemoryBucket

DATASET: Final = "shop"
SEGMENT: Final = 1024
PIECE: Final = 256
RING: Final = SiteKeyring(bytes(range(32)))


def _unheard(_info: ObjectInfo) -> None:
    """Nobody listens."""


@dataclass
class WrittenLog:
    """What a stream does to its bucket, a call each. `wrote` hears of it as a stream's listener does."""

    store: ObjectStore
    wrote: Callable[[ObjectInfo], None] = _unheard
    dataset: str = DATASET
    ring: SiteKeyring = RING
    system_id: str = "7"
    timeline: int = 1
    lsn: int = 2 * SEGMENT
    epoch: Epoch | None = None
    pieces: list[ObjectInfo] = field(default_factory=list)
    """Of the segment that is not complete."""

    def begin_epoch(self) -> Epoch:
        self.epoch = new_epoch(
            self.store, self.ring, self.dataset, system_id=self.system_id, segment_bytes=SEGMENT, now=self.moment()
        )
        return self.epoch

    def piece(self, length: int = PIECE) -> str:
        """Its key."""
        info = self._put(self.lsn, self.lsn + length)
        self.pieces.append(info)
        self.lsn += length
        return info.key

    def whole(self, *, lock: Lock | None = None) -> str:
        """What is left of the segment, then all of it as one, then its pieces go; its key."""
        while self.lsn % SEGMENT:
            self.piece(min(PIECE, SEGMENT - self.lsn % SEGMENT))
        info = self._put(self.lsn - SEGMENT, self.lsn, lock=lock)
        for piece in self.pieces:
            self.store.delete(piece.key, version=piece.version)
        self.pieces.clear()
        return info.key

    def segment(self) -> str:
        """In pieces up to its end, then whole."""
        self.piece()
        return self.whole()

    def promote(self) -> str:
        """The next timeline begins where this one has come to; the key of its history."""
        fork, self.timeline = Position(self.timeline, self.lsn), self.timeline + 1
        self.lsn -= self.lsn % SEGMENT
        self.pieces.clear()
        epoch = self._sealed_under()
        key = history_key(self.dataset, self.timeline, epoch.name)
        text = f"{fork.timeline}\t{fork.lsn >> 32:X}/{fork.lsn & 0xFFFFFFFF:X}\tno recovery target\n"
        self.wrote(self.store.put(key, seal(epoch.data_key, key, text.encode())))
        return key

    def head(self, after: timedelta = timedelta(0)) -> HeadFile:
        epoch = self._sealed_under()
        at = str(Position(self.timeline, self.lsn))
        head = HeadFile(epoch=epoch.name, position=at, covered_at=self.moment() + after).sealed(epoch.data_key)
        self.wrote(self.store.put(head_key(self.dataset), encode(head)))
        return head

    def moment(self) -> datetime:
        """Of the last commit: a second for each 256 bytes."""
        return START + timedelta(seconds=self.lsn // PIECE)

    def _sealed_under(self) -> Epoch:
        return self.epoch or self.begin_epoch()

    def _put(self, start: int, end: int, lock: Lock | None = None) -> ObjectInfo:
        epoch = self._sealed_under()
        covered_us = int((START + timedelta(seconds=end // PIECE)).timestamp() * 1e6)
        key = range_key(
            self.dataset, timeline=self.timeline, start=start, end=end, segment_bytes=SEGMENT, covered_us=covered_us,
            epoch=epoch.name,
        )  # fmt: skip
        info = self.store.put(key, seal(epoch.data_key, key, log_bytes(start, end)), lock=lock)
        self.wrote(info)
        return info


def log_bytes(start: int, end: int) -> bytes:
    return bytes(at * 31 % 251 for at in range(start, end))


def readable(bucket: MemoryBucket, *, ring: SiteKeyring = RING) -> list[WalRange]:
    """All that a reader finds there, read to its last byte: it opens, and nothing vouches for what is not there."""
    store = bucket.twin()
    keys, ranges = EpochKeys(store, ring, DATASET), read_ranges(store, DATASET)
    for found in ranges:
        body = unseal(keys.key(found.epoch), found.key, store.get(found.key))
        assert body == log_bytes(found.start, found.end), found.key
    timelines = {found.timeline for found in ranges}
    for info in store.objects(history_prefix(DATASET)):
        history = parse_history_key(info.key)
        assert history is not None
        unseal(keys.key(history.epoch), info.key, store.get(info.key))
        timelines.discard(history.timeline)
    assert timelines <= {1}, "a timeline is there, and how one gets to it is not"
    head = read_head(store, DATASET, keys)
    if head is not None:
        assert head.at.lsn <= max(found.end for found in ranges if found.timeline == head.at.timeline)
    return list(ranges)


def holes(ranges: list[WalRange]) -> int:
    """Between those of one timeline."""
    return len(stretches_of(ranges)) - len({found.timeline for found in ranges})
