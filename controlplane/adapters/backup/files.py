"""Plain files: a folder as a tar stream with an index of hashes beside it.

Each file is whole as of its own moment, the folder is not as of one: what must agree with itself (a database) is a
dataset of its own kind, or lies on a snapshot of the file system that is copied instead.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.assertions import listed
from controlplane.adapters.backup.files_index import INDEX_NAME, EntryType, IndexEntry, line_of
from controlplane.adapters.backup.files_restore import unpack
from controlplane.adapters.backup.files_tar import TarStream
from controlplane.adapters.backup.files_verify import counts_of, verify_folder
from controlplane.adapters.backup.files_walk import WalkNotes, excluded_patterns, nodes
from controlplane.adapters.backup.scratch import end_leftovers, filling, leftovers, write_stream
from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    Restored,
    RestoreRequest,
    SnapshotFacts,
    SnapshotSink,
    Source,
    Started,
    StreamWriter,
    VerifyRequest,
    Watch,
)

TREE_STREAM: Final = "tree"
INDEX_STREAM: Final = "index"
_ENGINE: Final = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesDataset:
    """A DatasetAdapter. Always full copies."""

    path: Path
    now: Callable[[], datetime]

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.FILES

    def probe(self) -> Source:
        self._require_folder()
        every = nodes(self.path, excluded_patterns(self.path), WalkNotes())
        return Source(engine=_ENGINE, size_bytes=sum(node.status.st_size for node in every))

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        del parent
        self._require_folder()
        consistent_at = self.now()
        tally = _Tally()
        watch.step("copy")
        with sink.stream(TREE_STREAM) as tree, sink.stream(INDEX_STREAM) as index:
            archive = TarStream(tree, watch)
            lines = _Lines(index)
            for node in nodes(self.path, excluded_patterns(self.path), tally.notes):
                entry = archive.add(node)
                if entry is None:
                    tally.notes.vanished.append(node.path)
                else:
                    tally.count(entry)
                    lines.put(line_of(entry))
            archive.finish()
            lines.flush()
        return SnapshotFacts(
            engine=_ENGINE, consistent_at=consistent_at, counts=counts_of(tally.types), facts=tuple(tally.facts())
        )

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        source = request.chain[-1]
        watch.step("restore", source.manifest.plain_bytes)
        with filling(request.into):
            written = unpack(source.read(TREE_STREAM), request.into, watch)
            written += write_stream(source, INDEX_STREAM, request.into / INDEX_NAME, watch)
        return Restored(plain_bytes=written)

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator["FilesScratch"]:
        del watch, to_time
        if not into.is_dir():
            raise TerminalError(f"there is no folder {into}: nothing was restored")
        yield FilesScratch(root=into)

    def leftovers(self, into: Path) -> tuple[str, ...]:
        return leftovers(into, frozenset())

    def end_leftovers(self, into: Path) -> None:
        end_leftovers(into, frozenset())

    def _require_folder(self) -> None:
        if not self.path.is_dir():
            raise TerminalError(f"no folder at {self.path}; correct the dataset's path")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesScratch:
    """A ScratchInstance: the restored folder."""

    root: Path

    @property
    def started(self) -> Started:
        return Started(newest_at=None)

    def verify(self, request: VerifyRequest, watch: Watch) -> tuple[CheckOutcome, ...]:
        return tuple(verify_folder(self.root, INDEX_STREAM, request, watch))


@dataclass(slots=True)
class _Tally:
    types: Counter[EntryType] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)
    notes: WalkNotes = field(default_factory=WalkNotes)

    def count(self, entry: IndexEntry) -> None:
        self.types[entry.type] += 1
        if entry.changed:
            self.changed.append(entry.path)

    def facts(self) -> Iterator[tuple[str, str]]:
        """Only what happened, with the first few names."""
        for name, paths in (
            ("changed_while_read", self.changed),
            ("vanished", self.notes.vanished),
            ("skipped", self.notes.skipped),
            ("maybe_a_live_database", self.notes.live),
        ):
            if paths:
                yield name, f"{len(paths)}: {listed(tuple(paths), between=', ')}"


class _Lines:
    """Short lines, written in long pieces."""

    _PIECE_BYTES: Final = 256 * 1024

    def __init__(self, writer: StreamWriter) -> None:
        self._writer = writer
        self._pending = bytearray()

    def put(self, line: bytes) -> None:
        self._pending += line
        if len(self._pending) >= self._PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._writer.write(bytes(self._pending))
            self._pending.clear()
