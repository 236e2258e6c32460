"""MongoDB through its own tools: mongodump's archive, restored by mongorestore into a private mongod."""

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from controlplane.adapters.backup.children import Piped, program, run
from controlplane.adapters.backup.mongodb_archive import archive_notes, dumped
from controlplane.adapters.backup.mongodb_scratch import (
    ARCHIVE_NAME,
    INSTALL,
    OPLOG_ARCHIVE_NAME,
    SERVERS,
    STREAM,
    MongodbScratch,
    running,
)
from controlplane.adapters.backup.scratch import end_leftovers, filling, leftovers, write_stream
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import KIB
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    Restored,
    RestoreRequest,
    SilentWatch,
    SnapshotFacts,
    SnapshotSink,
    Source,
    StreamWriter,
    Watch,
)

_CONNECT_S: Final = 5.0
_VERSION_S: Final = 20.0
_SILENCE_S: Final = 600.0
"""mongodump writes nothing while the server prepares a large sorted scan."""
_HEAD_BYTES: Final = 64 * KIB
_DEFAULT_PORT: Final = 27017
_OPLOG_FACT: Final = "oplog"


@dataclass(frozen=True, slots=True, kw_only=True)
class MongodbDataset:
    """A DatasetAdapter. Always full copies."""

    url: str
    """`mongodb://` or `mongodb+srv://`; carries the password. `replicaSet=` in it makes copies of one moment."""
    now: Callable[[], datetime]
    search: str | None = None
    """Folders of MongoDB's programs, as in PATH; None: PATH itself."""

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.MONGODB

    def probe(self) -> Source:
        mongodump = program("mongodump", INSTALL, search=self.search)
        self._require_answer()
        said = run([mongodump, "--version"], SilentWatch(), deadline_s=_VERSION_S).out
        # The size needs a driver or a login; the first copy tells it.
        return Source(engine=" ".join(said.splitlines()[:1]) or "mongodb", size_bytes=0)

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        del parent
        mongodump = program("mongodump", INSTALL, search=self.search)
        oplog = self._is_replica_set()
        consistent_at = self.now()
        watch.step("copy")
        with self._configuration() as configuration:
            options = ["--oplog"] if oplog else []
            argv = [mongodump, f"--config={configuration}", "--archive", *options]
            child = Piped(argv, watch, _SILENCE_S)
            with sink.stream(STREAM) as writer:
                head = _Head(writer, watch)
                for piece in child.pieces():
                    head.put(piece)
                notes = archive_notes(bytes(head.head))
        return SnapshotFacts(
            engine=f"mongodb {notes.get('server_version', 'unknown')}",
            consistent_at=consistent_at,
            counts=dumped(child.err),
            facts=(
                (_OPLOG_FACT, "yes" if oplog else "no"),
                ("tool_version", notes.get("tool_version", "unknown")),
            ),
        )

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        source = request.chain[-1]
        oplog = source.manifest.fact(_OPLOG_FACT) == "yes"
        watch.step("restore", source.manifest.plain_bytes)
        with filling(request.into):
            name = OPLOG_ARCHIVE_NAME if oplog else ARCHIVE_NAME
            written = write_stream(source, STREAM, request.into / name, watch)
        return Restored(plain_bytes=written)

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator[MongodbScratch]:
        del to_time
        with running(into, watch, self.search) as scratch:
            yield scratch

    def leftovers(self, into: Path) -> tuple[str, ...]:
        return leftovers(into, SERVERS)

    def end_leftovers(self, into: Path) -> None:
        end_leftovers(into, SERVERS)

    def _is_replica_set(self) -> bool:
        return bool(parse_qs(urlsplit(self.url).query).get("replicaSet"))

    @contextmanager
    def _configuration(self) -> Iterator[Path]:
        """The URL in a file that only we can read: arguments of a program can be read by everybody."""
        with tempfile.TemporaryDirectory(prefix="quarterdeck-mongodb-") as folder:
            path = Path(folder) / "mongodump.yaml"
            path.touch(mode=0o600)
            path.write_text(f"uri: {json.dumps(self.url)}\n", encoding="utf-8")
            yield path

    def _require_answer(self) -> None:
        split = urlsplit(self.url)
        if split.scheme == "mongodb+srv":
            return  # the hosts are in DNS: mongodump looks there
        if split.scheme != "mongodb" or not split.netloc:
            raise TerminalError("the dataset's url cannot be read, expected mongodb://USER:PASSWORD@HOST:PORT")
        failures = []
        for host, port in _hosts(split.netloc):
            try:
                socket.create_connection((host, port), timeout=_CONNECT_S).close()
            except OSError as error:
                failures.append(f"{host}:{port}: {error}")
            else:
                return
        raise RetryableError(f"MongoDB does not answer: {'; '.join(failures)}")


def _hosts(netloc: str) -> Iterator[tuple[str, int]]:
    for place in netloc.rpartition("@")[2].split(","):
        host, colon, port = place.rpartition(":")
        if colon and port.isdecimal():
            yield host.strip("[]"), int(port)
        else:
            yield place.strip("[]"), _DEFAULT_PORT


@dataclass(slots=True)
class _Head:
    """The archive on its way through: its beginning is kept."""

    writer: StreamWriter
    watch: Watch
    head: bytearray = field(default_factory=bytearray)

    def put(self, piece: bytes) -> None:
        if len(self.head) < _HEAD_BYTES:
            self.head += piece[: _HEAD_BYTES - len(self.head)]
        self.writer.write(piece)
        self.watch.advance(len(piece))
