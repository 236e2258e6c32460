"""The log as it lies in a further bucket: what is there, and putting more of it there, the same again being fine."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Final

from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    HistoryObject,
    WalRange,
    encode,
    epoch_key,
    head_key,
)
from controlplane.adapters.backup.postgresql.wal_proven import ProvenLog
from controlplane.kernel.errors import ConflictError, DeniedError, NotFoundError, TerminalError
from controlplane.recovery.ports import Keyring, Lock, ObjectInfo, ObjectStore

_SEGMENTS_KNOWN: Final = 16
"""The newest, of which it is remembered what is there. Others are listed when they are needed."""


class FurtherLog:
    """For one thread."""

    def __init__(self, store: ObjectStore, keyring: Keyring, dataset: str) -> None:
        self._store = store
        self._dataset = dataset
        self._log = ProvenLog(store, keyring, dataset)
        self._segments: dict[str, list[WalRange]] = {}
        self._ends: dict[int, int] = {}
        self._epochs: set[str] = set()
        self._given: set[str] = set()
        self._head: HeadFile | None = None
        self._head_version: str | None = None

    # -- what is there
    def look(self) -> str | None:
        """Forget what was known, but for what is asked now; of which cluster the log there is."""
        for known in (self._segments, self._ends, self._epochs, self._given):
            known.clear()
        self._given.update(self._log.epochs())
        # Nobody can believe a head that was changed, nor one without its key: it is written anew.
        self._head = None
        with suppress(TerminalError, DeniedError, NotFoundError):
            self._head = self._log.head()
        return self._log.system()

    def histories(self) -> set[str]:
        return {history.key for history in self._log.histories()}

    def ranges(self) -> Iterator[WalRange]:
        for found in self._log.ranges():
            self._note(found)
            yield found

    def remember(self, segment: str, there: list[WalRange]) -> None:
        self._segments[segment] = there
        if len(self._segments) > _SEGMENTS_KNOWN:
            del self._segments[min(name for name in self._segments if name != segment)]

    def segment(self, segment: str) -> list[WalRange]:
        if segment not in self._segments:
            self.remember(segment, self._log.segment(segment))
        return self._segments[segment]

    def keys_missing(self) -> list[str]:
        """Epochs under which its log is sealed, and whose wrapped key is not there."""
        return sorted(self._epochs - self._given)

    def has_key(self, epoch: str) -> bool:
        return epoch in self._given

    def wants(self, head: HeadFile) -> bool:
        if self._head is None:
            return True
        newer = (head.at.timeline, head.covered_at) >= (self._head.at.timeline, self._head.covered_at)
        return newer and head != self._head

    def reaches(self, head: HeadFile) -> bool:
        """All that it vouches for may be there: only then may it be."""
        return head.at.lsn <= self._ends.get(head.at.timeline, 0)

    # -- more of it
    def give_key(self, epoch: str, body: bytes) -> None:
        """What is there stays: it may have been rewrapped for another site key."""
        with suppress(ConflictError):
            self._store.put(epoch_key(self._dataset, epoch), body, if_absent=True)
        self._given.add(epoch)

    def give_history(self, history: HistoryObject, body: bytes) -> None:
        self._put(history.key, body, None)

    def give_range(self, found: WalRange, body: bytes, lock: Lock | None) -> None:
        assert self.has_key(found.epoch), "a range comes after the key that opens it"
        there = self.segment(found.segment)
        version = self._put(found.key, body, lock).version
        there[:] = [one for one in there if one.key != found.key]
        there.append(replace(found, version=version, stored_bytes=len(body)))
        self._note(found)

    def remove(self, gone: WalRange) -> None:
        """Something longer has replaced it there."""
        with suppress(ConflictError):  # Locked by the bucket's own default: its lifecycle removes it later.
            self._store.delete(gone.key, version=gone.version)
        there = self.segment(gone.segment)
        there[:] = [one for one in there if one.key != gone.key]

    def give_head(self, head: HeadFile) -> None:
        key = head_key(self._dataset)
        info = self._store.put(key, encode(head))
        before, self._head, self._head_version = self._head_version, head, info.version
        if before is not None and before != info.version:
            # A versioned bucket would keep one for every second of every day.
            with suppress(ConflictError):
                self._store.delete(key, version=before)

    def _put(self, key: str, body: bytes, lock: Lock | None) -> ObjectInfo:
        """The same that is there already stays; damage gets a new version on top."""
        try:
            return self._store.put(key, body, if_absent=True, lock=lock)
        except ConflictError:
            there = self._store.head(key)
            if there.sha256 == sha256(body).hexdigest():
                return there
            return self._store.put(key, body, lock=lock)

    def _note(self, found: WalRange) -> None:
        self._ends[found.timeline] = max(self._ends.get(found.timeline, 0), found.end)
        self._epochs.add(found.epoch)
