"""Puts pieces of the log into the bucket side by side, and tells a waiting loop about each that is durable."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from controlplane.adapters.backup.postgresql.lsn import Position, segment_name
from controlplane.adapters.backup.postgresql.wal_keys import Epoch
from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    WalRange,
    encode,
    head_key,
    history_key,
    range_key,
)
from controlplane.adapters.backup.postgresql.wal_pieces import FullSegment, Piece
from controlplane.adapters.backup.sealing import seal
from controlplane.kernel.errors import ConflictError, NotFoundError, QuarterdeckError, RetryableError
from controlplane.recovery.ports import Lock, ObjectInfo, ObjectStore

UPLOADS: Final = 4
"""Side by side. A store answers a small PUT in 10 to 100 ms: four keep a commit rate of some hundred a second."""
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0
_COMPACT_BACKLOG: Final = 4
"""Complete segments that wait to be written whole (each 16 MiB of memory); further ones stay in pieces."""


class WalUploader:
    """Its methods but `completed` are for one thread; the work is done by its own."""

    def __init__(
        self,
        store: ObjectStore,
        dataset: str,
        *,
        segment_bytes: int,
        lock_until: Callable[[], Lock | None],
        wrote: Callable[[ObjectInfo], None] = lambda _info: None,
    ) -> None:
        """`lock_until`: asked for each whole segment; pieces are never locked, since they are deleted soon.

        `wrote`: called from its threads with every object that is durable.
        """
        self._store = store
        self._dataset = dataset
        self._segment_bytes = segment_bytes
        self._lock_until = lock_until
        self._wrote = wrote
        self._pieces = ThreadPoolExecutor(UPLOADS, thread_name_prefix=f"wal-{dataset}")
        self._segments = ThreadPoolExecutor(1, thread_name_prefix=f"wal-segments-{dataset}")
        self._done: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._give_up = threading.Event()
        self._failure: QuarterdeckError | None = None
        self._epoch: Epoch | None = None
        self._written: dict[str, list[WalRange]] = {}
        self._in_pieces: dict[str, int] = {}
        self._written_lock = threading.Lock()
        self._backlog = 0
        self._head_busy = False
        self._head_version: str | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stored_bytes = 0
        self.objects = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Waits for what is on its way; a store that is down is waited for only until `give_up`."""
        self._pieces.shutdown(wait=True)
        self._segments.shutdown(wait=True)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def fileno(self) -> int:
        """Readable when something was completed or failed."""
        return self._wake_read

    @property
    def failure(self) -> QuarterdeckError | None:
        """What no repetition will heal; None: nothing."""
        return self._failure

    @property
    def backlog(self) -> int:
        return self._backlog

    def use(self, epoch: Epoch) -> None:
        """Seal with this key from now on."""
        self._epoch = epoch

    def know(self, ranges: list[WalRange]) -> None:
        """Pieces that an earlier stream left: removed too when their segment is written whole."""
        with self._written_lock:
            for found in ranges:
                self._written.setdefault(found.segment, []).append(found)

    def give_up(self) -> None:
        """Stop repeating what the store refuses."""
        self._give_up.set()

    def send(self, piece: Piece) -> None:
        self._pieces.submit(self._send, piece, self._sealed_with())

    def compact(self, segment: FullSegment) -> None:
        """Write it whole, then remove its pieces. Only after all of these are durable."""
        if self._backlog < _COMPACT_BACKLOG:
            self._backlog += 1
            self._segments.submit(self._compact, segment, self._sealed_with())

    def send_history(self, timeline: int, text: str) -> None:
        """Durable when it returns."""
        epoch = self._sealed_with()
        key = history_key(self._dataset, timeline, epoch.name)
        self._put(key, seal(epoch.data_key, key, text.encode()))

    def send_head(self, at: Position, covered_at: datetime) -> bool:
        """False: the one before is still on its way."""
        if self._head_busy:
            return False
        self._head_busy = True
        self._pieces.submit(self._send_head, at, covered_at, self._sealed_with())
        return True

    def completed(self) -> Iterator[Piece]:
        """Pieces that became durable since the last call, in any order."""
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while True:
            try:
                yield self._done.get_nowait()
            except queue.Empty:
                return

    def _sealed_with(self) -> Epoch:
        assert self._epoch is not None, "an epoch is chosen before anything is sent"
        return self._epoch

    def _send(self, piece: Piece, epoch: Epoch) -> None:
        try:
            self._write(piece.timeline, piece.start, piece.end, piece.covered_us, piece.data, epoch)
            self._done.put(piece)
        except QuarterdeckError as error:
            self._failure = self._failure or error
        self._wake()

    def _compact(self, segment: FullSegment, epoch: Epoch) -> None:
        name = segment_name(segment.timeline, segment.start, self._segment_bytes)
        try:
            with self._written_lock:
                pieces = list(self._written.get(name, ()))
            covered_us = max((piece.covered_ms for piece in pieces), default=0) * 1000
            self._write(segment.timeline, segment.start, segment.end, covered_us, segment.data, epoch)
            for piece in pieces:
                # Locked by a bucket's own default: it stays, and its lifecycle removes it later.
                with suppress(ConflictError, NotFoundError, RetryableError):
                    self._store.delete(piece.key, version=piece.version)
            with self._written_lock:
                self._written.pop(name, None)
        except QuarterdeckError as error:
            self._failure = self._failure or error
        finally:
            self._backlog -= 1
        self._wake()

    def _send_head(self, at: Position, covered_at: datetime, epoch: Epoch) -> None:
        key = head_key(self._dataset)
        head = HeadFile(epoch=epoch.name, position=str(at), covered_at=covered_at).sealed(epoch.data_key)
        try:
            info = self._store.put(key, encode(head))
            self._wrote(info)
            if self._head_version is not None and self._head_version != info.version:
                # A versioned bucket would keep one for every second of every day.
                self._store.delete(key, version=self._head_version)
            self._head_version = info.version
        except QuarterdeckError:
            # The next one comes within a second, and until then the coverage is honestly older.
            pass
        finally:
            self._head_busy = False
        self._wake()

    def _write(
        self,
        timeline: int,
        start: int,
        end: int,
        covered_us: int,
        data: memoryview,
        epoch: Epoch,
    ) -> None:
        """Also a piece may be a whole segment, when the stream catches up: nothing will take its place."""
        whole = end - start == self._segment_bytes
        key = range_key(
            self._dataset,
            timeline=timeline,
            start=start,
            end=end,
            segment_bytes=self._segment_bytes,
            covered_us=covered_us,
            epoch=epoch.name,
        )
        blob = seal(epoch.data_key, key, data)
        version = self._put(key, blob, self._lock_until() if whole else None)
        segment = segment_name(timeline, start, self._segment_bytes)
        with self._written_lock:
            self.stored_bytes += len(blob)
            self.objects += 1
            if not whole:
                self._written.setdefault(segment, []).append(
                    WalRange(
                        key=key,
                        timeline=timeline,
                        segment=segment,
                        start=start,
                        end=end,
                        covered_ms=covered_us // 1000,
                        epoch=epoch.name,
                        stored_bytes=len(blob),
                        version=version,
                    )
                )

    def _put(self, key: str, blob: bytes, lock: Lock | None = None) -> str | None:
        """Repeated while the store is away: these bytes may exist nowhere else any more."""
        pause_s = _BACKOFF_FIRST_S
        while True:
            try:
                info = self._store.put(key, blob, lock=lock)
            except RetryableError:
                if self._give_up.wait(pause_s):
                    raise
                pause_s = min(pause_s * 2, _BACKOFF_MAX_S)
            else:
                self._wrote(info)
                return info.version

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"x")
