"""SQLite: a consistent copy of a live database, the control plane's own store among them.

The live file is opened by SQLite alone. Opening and closing it by hand would drop every POSIX lock that this process
holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2), and the store is open in this very process.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.scratch import (
    end_leftovers,
    filling,
    leftovers,
    plain_file_name,
    write_stream,
)
from controlplane.adapters.backup.sqlite_content import content_of
from controlplane.adapters.backup.sqlite_copy import BUSY_TIMEOUT_S, copied, engine, open_read_only, translated
from controlplane.adapters.backup.sqlite_verify import verify_file
from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB
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

STREAM: Final = "database"
_READ_BYTES: Final = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteDataset:
    """A DatasetAdapter. Always full copies: a database that fits one file is read at the speed of the disk."""

    path: Path
    now: Callable[[], datetime]
    work: Path | None = None
    """Where the copy lies while it is sent; None: beside the database, which shares its disk."""
    busy_s: float = BUSY_TIMEOUT_S
    """Waiting for another's lock."""

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.SQLITE

    def probe(self) -> Source:
        with translated(self.path), closing(open_read_only(self.path, self.busy_s)) as connection:
            pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
            page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return Source(engine=engine(), size_bytes=pages * page_bytes)

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        del parent
        with copied(self.path, work=self.work, now=self.now, watch=watch, busy_s=self.busy_s) as copy:
            watch.step("count", copy.path.stat().st_size)
            content = content_of(copy.path, watch)
            watch.step("copy", copy.path.stat().st_size)
            with sink.stream(STREAM, size_hint=copy.path.stat().st_size) as writer:
                _send(copy.path, writer, watch)
        return SnapshotFacts(
            engine=engine(),
            consistent_at=copy.consistent_at,
            counts=content.counts,
            facts=(("file", self.path.name), ("journal_mode", copy.journal_mode), *content.facts),
        )

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        source = request.chain[-1]
        name = plain_file_name(source.manifest, "file")
        watch.step("restore", source.manifest.plain_bytes)
        with filling(request.into):
            written = write_stream(source, STREAM, request.into / name, watch)
        return Restored(plain_bytes=written)

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator["SqliteScratch"]:
        del watch, to_time
        files = sorted(path for path in into.iterdir() if path.is_file()) if into.is_dir() else []
        if len(files) != 1:
            raise TerminalError(f"{into} holds {len(files)} files, expected the one restored database")
        yield SqliteScratch(path=files[0])

    def leftovers(self, into: Path) -> tuple[str, ...]:
        return leftovers(into, frozenset())

    def end_leftovers(self, into: Path) -> None:
        end_leftovers(into, frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteScratch:
    """A ScratchInstance: the restored file, opened for reading only."""

    path: Path

    @property
    def started(self) -> Started:
        return Started(newest_at=None)

    def verify(self, request: VerifyRequest, watch: Watch) -> tuple[CheckOutcome, ...]:
        return tuple(verify_file(self.path, STREAM, request, watch))


def _send(path: Path, writer: StreamWriter, watch: Watch) -> None:
    with path.open("rb") as file:  # the copy, never the live file
        while piece := file.read(_READ_BYTES):
            writer.write(piece)
            watch.advance(len(piece))
