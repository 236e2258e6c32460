"""One stream of a copy on its way: cut into chunks, sealed by worker threads, packed in order, sent by other threads.

Who writes waits when sealing or sending lags behind. Work goes round in few hands: the writing thread copies a chunk
once and puts sealed chunks in order; one thread hashes the plaintext; a worker compresses and seals one chunk in one
go; a sender hashes and uploads a whole pack. zstd, AES and SHA-256 work on memory in place, and the buffers go round.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import zstandard

from controlplane.adapters.backup.packing import LENGTH, PACK_HEADER, chunk_place, stream_purpose
from controlplane.adapters.backup.sealing import OVERHEAD_BYTES, Sealer
from controlplane.domain.dataset import StorageClass
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import PointId
from controlplane.recovery.manifest import PackRecord, StreamRecord
from controlplane.recovery.ports import CancelledWorkError, Lock, ObjectStore, Watch, pack_key

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

SENDERS: Final = 3
"""Packs on their way at a time: one connection to S3 carries about 100 MB/s (AWS, performance guidelines)."""
CHUNKS_AHEAD: Final = 3
"""For each worker: one being sealed, and two that wait while the writing thread hashes or reads its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePlace:
    """Where a copy goes, and how it is cut."""

    store: ObjectStore
    dataset: str
    point: PointId
    data_key: bytes = field(repr=False)
    storage_class: StorageClass
    lock: Lock | None
    level: int
    chunk_bytes: int
    pack_bytes: int


class Pipeline:
    """The threads and their bounds, shared by the streams of one copy. The first error ends all of it."""

    def __init__(self, place: ArchivePlace, *, workers: int, watch: Watch) -> None:
        self.place, self.watch = place, watch
        self.chunks_ahead: Final = CHUNKS_AHEAD * workers
        self._sealing = ThreadPoolExecutor(workers, "seal")
        self._hashing = ThreadPoolExecutor(1, "hash")
        """One thread: the chunks of a stream are hashed in their order."""
        self._sending = ThreadPoolExecutor(SENDERS, "send")
        self._room = threading.BoundedSemaphore(SENDERS)
        self._spare: deque[bytearray] = deque(maxlen=SENDERS)
        self._own = threading.local()
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raise what has failed, here or in another thread."""
        if self._failure is not None:
            raise self._failure

    def pack_buffer(self) -> bytearray:
        """Room for a pack and the chunk that passes it; one that was sent already, while there is any."""
        try:
            return self._spare.pop()
        except IndexError:
            place = self.place
            return bytearray(len(PACK_HEADER) + place.pack_bytes + place.chunk_bytes + OVERHEAD_BYTES + LENGTH.size)

    def seal(self, sealer: Sealer, context: str, plain: memoryview) -> Future[bytearray]:
        return self._sealing.submit(self._seal, sealer, context, plain)

    def hash(self, digest: "Hash", plain: memoryview) -> Future[None]:
        return self._hashing.submit(digest.update, plain)

    def send(self, key: str, buffer: bytearray, size: int, chunks: int) -> Future[PackRecord]:
        """Takes the buffer. Waits while as many packs are on their way as may be."""
        self._room.acquire()
        return self._sending.submit(self._send, key, buffer, size, chunks)

    def stop(self) -> None:
        """Return when no thread works any more; nothing can be written after it."""
        if self._failure is None:
            self._failure = CancelledWorkError("the copy was given up")
        self.close()

    def close(self) -> None:
        for pool in (self._sealing, self._hashing, self._sending):
            pool.shutdown(wait=True, cancel_futures=True)

    def _seal(self, sealer: Sealer, context: str, plain: memoryview) -> bytearray:
        self.check()
        compressor = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = zstandard.ZstdCompressor(level=self.place.level)
        return sealer.close(context, plain, compressor.compress(plain))

    def _send(self, key: str, buffer: bytearray, size: int, chunks: int) -> PackRecord:
        try:
            self.check()
            body = memoryview(buffer)[:size]
            return put_pack(self.place.store, key, body, chunks, self.place.storage_class, self.place.lock)
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            raise
        finally:
            self._spare.append(buffer)
            self._room.release()


class SealedStream:
    """A StreamWriter. Written by one thread at a time."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self.name: Final = name
        self._pipeline, self._place = pipeline, pipeline.place
        self._sealer = Sealer(self._place.data_key, stream_purpose(name))
        self._sha256 = sha256()
        self._plain_bytes = 0
        self._free: list[memoryview] = []
        self._partial: memoryview | None = None
        self._partial_bytes = 0
        self._held: memoryview | None = None
        """The newest whole chunk: whether it is the last one shows only later."""
        self._sealing: deque[tuple[Future[bytearray], Future[None], memoryview]] = deque()
        self._index = 0
        self._pack: bytearray | None = None
        self._pack_bytes = 0
        self._pack_chunks = 0
        self._sent: list[Future[PackRecord]] = []
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """What fails, at any place of the copy, is raised here."""
        view = memoryview(data).cast("B")
        self._plain_bytes += len(view)
        fixed = isinstance(data, bytes)
        while view:
            view = view[self._take(view, fixed=fixed) :]

    def finish(self) -> None:
        """Return when everything is sealed and on its way."""
        if self._partial is not None:
            self._next(self._partial[: self._partial_bytes])
        self._submit(self._held if self._held is not None else memoryview(b""), last=True)
        while self._sealing:
            self._collect()
        self._ship()
        self._finished = True

    def record(self) -> StreamRecord:
        """Return when every pack is durable; raises what its upload raised."""
        assert self._finished, f"the stream {self.name} is still open"
        packs = tuple(sent.result() for sent in self._sent)
        return StreamRecord(
            name=self.name,
            plain_bytes=self._plain_bytes,
            stored_bytes=sum(pack.stored_bytes for pack in packs),
            sha256=self._sha256.hexdigest(),
            packs=packs,
        )

    def sent_packs(self) -> list[PackRecord]:
        """Those that arrived, of a stream that was given up."""
        return [sent.result() for sent in self._sent if sent.exception() is None]

    def _take(self, view: memoryview, *, fixed: bool) -> int:
        """At most to the end of the chunk. `fixed`: nobody can change the bytes, so a whole chunk is not copied."""
        whole = self._place.chunk_bytes
        if fixed and self._partial is None and len(view) >= whole:
            self._next(view[:whole])
            return whole
        if self._partial is None:
            self._partial, self._partial_bytes = self._free.pop() if self._free else memoryview(bytearray(whole)), 0
        taken = min(len(view), whole - self._partial_bytes)
        self._partial[self._partial_bytes : self._partial_bytes + taken] = view[:taken]
        self._partial_bytes += taken
        if self._partial_bytes == whole:
            self._next(self._partial)
            self._partial = None
        return taken

    def _next(self, chunk: memoryview) -> None:
        if self._held is not None:
            self._submit(self._held, last=False)
        self._held = chunk

    def _submit(self, chunk: memoryview, *, last: bool) -> None:
        self._pipeline.check()
        if len(self._sealing) >= self._pipeline.chunks_ahead:
            self._collect()
        context = chunk_place(self._place.dataset, self._place.point, self.name, self._index, last=last)
        sealing = self._pipeline.seal(self._sealer, context, chunk)
        self._sealing.append((sealing, self._pipeline.hash(self._sha256, chunk), chunk))
        self._index += 1

    def _collect(self) -> None:
        """The oldest chunk being sealed goes into the pack."""
        sealing, hashing, plain = self._sealing.popleft()
        sealed = sealing.result()
        hashing.result()
        if not plain.readonly and len(plain) == self._place.chunk_bytes:
            self._free.append(plain)
        if self._pack is None:
            self._pack = self._pipeline.pack_buffer()
            self._pack_bytes = 0
            self._append(PACK_HEADER)
        self._append(LENGTH.pack(len(sealed)))
        self._append(sealed)
        self._pack_chunks += 1
        if self._pack_bytes >= self._place.pack_bytes:
            self._ship()
        self._pipeline.watch.advance(len(plain))

    def _append(self, part: bytes | bytearray) -> None:
        assert self._pack is not None, "a pack is open"
        memoryview(self._pack)[self._pack_bytes : self._pack_bytes + len(part)] = part
        self._pack_bytes += len(part)

    def _ship(self) -> None:
        if self._pack is None:
            return
        key = pack_key(self._place.dataset, self._place.point, self.name, len(self._sent))
        self._sent.append(self._pipeline.send(key, self._pack, self._pack_bytes, self._pack_chunks))
        self._pack, self._pack_chunks = None, 0


def put_pack(
    store: ObjectStore, key: str, body: memoryview, chunks: int, storage_class: StorageClass, lock: Lock | None
) -> PackRecord:
    """TerminalError when the store says that it keeps less or more than it was given.

    A store that sends a SHA-256 along has computed it from this memory and had it verified at the other end; a second
    one here would cost a tenth of the whole copy.
    """
    info = store.put(key, body, storage_class=storage_class, lock=lock)
    if info.size_bytes != len(body):
        raise TerminalError(f"{key}: the store says it keeps {info.size_bytes} bytes, it was given {len(body)}")
    return PackRecord(
        key=key,
        version=info.version,
        stored_bytes=len(body),
        sha256=info.sha256 or sha256(body).hexdigest(),
        chunks=chunks,
    )
