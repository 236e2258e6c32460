"""Copies kept in memory, with faults on request: what an adapter writes to, reads from and is watched by in tests."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final

from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import FORMAT, Manifest, PackRecord, StreamRecord
from controlplane.recovery.ports import CancelledWorkError, SnapshotFacts
from controlplane.testing.effects import START

POINT: Final = PointId("20260105T080000.000Z-0a1b")
_READ_BYTES: Final = 65_521
"""Of one piece that a source gives: a prime, so that no reader gets away with assuming a round one."""


class MemorySink:
    """A SnapshotSink. Only streams that were left without an exception are in `streams`, as in the real one."""

    def __init__(self, *, dataset: str = "data", kind: DatasetKind = DatasetKind.FILES, point: PointId = POINT) -> None:
        self.streams: dict[str, bytes] = {}
        self.writes = 0
        self._dataset = DatasetName(dataset)
        self._kind = kind
        self._point = point
        self._fail_at: int | None = None
        self._lock = Lock()

    def fail_at_write(self, number: int) -> None:
        """The store refuses the write of this number, counted from 1 over all streams, and each after it."""
        self._fail_at = number

    @contextmanager
    def stream(self, name: str, *, size_hint: int | None = None) -> Iterator["_MemoryWriter"]:
        del size_hint
        assert name not in self.streams, f"the stream {name} is written twice"
        writer = _MemoryWriter(self)
        yield writer
        self.streams[name] = bytes(writer.body)

    def count_write(self) -> None:
        with self._lock:
            self.writes += 1
            if self._fail_at is not None and self.writes >= self._fail_at:
                raise RetryableError(f"the store refuses write {self.writes}, as the test asked")

    def manifest(self, facts: SnapshotFacts, *, parent: PointId | None = None) -> Manifest:
        """Of everything written so far; one pack a stream."""
        return Manifest(
            format=FORMAT,
            point=self._point,
            dataset=self._dataset,
            kind=self._kind,
            engine=facts.engine,
            started_at=facts.consistent_at,
            consistent_at=facts.consistent_at,
            finished_at=facts.consistent_at,
            parent=parent,
            compression="none",
            streams=tuple(self._record(name, body) for name, body in self.streams.items()),
            counts=facts.counts,
            facts=facts.facts,
        )

    def source(self, facts: SnapshotFacts | None = None, *, parent: PointId | None = None) -> "MemorySource":
        """What was written, read back; without facts, those of no particular engine."""
        known = facts or SnapshotFacts(engine="none", consistent_at=START)
        return MemorySource(manifest=self.manifest(known, parent=parent), streams=dict(self.streams))

    def _record(self, name: str, body: bytes) -> StreamRecord:
        digest = hashlib.sha256(body).hexdigest()
        key = f"{self._dataset}/points/{self._point}/{name}/000000"
        pack = PackRecord(key=key, version=None, stored_bytes=len(body), sha256=digest, chunks=1)
        return StreamRecord(
            name=name, plain_bytes=len(body), stored_bytes=len(body), sha256=digest, packs=(pack,) if body else ()
        )


class _MemoryWriter:
    def __init__(self, sink: MemorySink) -> None:
        self.body = bytearray()
        self._sink = sink

    def write(self, data: bytes | memoryview) -> None:
        self._sink.count_write()
        self.body += data


@dataclass(slots=True, kw_only=True)
class MemorySource:
    """A SnapshotSource. Damage done through `replaced` is not noticed here: it plays bytes that reached the disk."""

    manifest: Manifest
    streams: Mapping[str, bytes]
    fail_at_read: int | None = None
    """The piece of this number, counted from 1 over all streams, is not what was written."""
    reads: int = 0

    def read(self, stream: str) -> Iterator[bytes]:
        body = self.streams.get(stream)
        if body is None:
            raise TerminalError(
                f"the recovery point has no stream {stream}; it has {', '.join(self.streams) or 'none'}"
            )
        for start in range(0, len(body), _READ_BYTES):
            self.reads += 1
            if self.fail_at_read is not None and self.reads >= self.fail_at_read:
                raise TerminalError(f"{stream}/000000: chunk {start // _READ_BYTES} does not authenticate")
            yield body[start : start + _READ_BYTES]

    def replaced(self, stream: str, body: bytes) -> "MemorySource":
        """The same recovery point with another body behind one stream; the manifest still tells the old one."""
        return replace(self, streams={**self.streams, stream: body}, reads=0)


@dataclass(slots=True)
class RecordingWatch:
    """A Watch that remembers, and that asks to stop once so many bytes are done or a named step begins."""

    cancel_after_bytes: int | None = None
    cancel_at_step: str | None = None
    steps: list[tuple[str, int | None]] = field(default_factory=list)
    done_bytes: int = 0
    _cancelled: bool = False
    _lock: Lock = field(default_factory=Lock)

    def step(self, name: str, total_bytes: int | None = None) -> None:
        with self._lock:
            self.steps.append((name, total_bytes))
            self._cancelled = self._cancelled or name == self.cancel_at_step

    def advance(self, plain_bytes: int) -> None:
        with self._lock:
            self.done_bytes += plain_bytes
            limit = self.cancel_after_bytes
            if self._cancelled or (limit is not None and self.done_bytes >= limit):
                raise CancelledWorkError("stopped by the test")
