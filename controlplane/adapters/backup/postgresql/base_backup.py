"""BASE_BACKUP: the server's own physical copy, as tars that go straight into a recovery point."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg
from psycopg import pq

from controlplane.adapters.backup.postgresql.lsn import Position, parse_lsn
from controlplane.adapters.backup.postgresql.replication import Replication
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import SnapshotSink, StreamWriter, Watch

MANIFEST: Final = "backup_manifest"
"""PostgreSQL's own list of the files with their checksums; its stream has the same name."""

_WRITE_BYTES: Final = 1024 * 1024
"""The server sends 32 KiB at a time; a sink is called less often."""
_LOOK_S: Final = 1.0
"""Between two looks at the server's clock while it copies."""
_BEFORE_STOP: Final = frozenset(
    {"initializing", "waiting for checkpoint to finish", "estimating backup size", "streaming database files"}
)
"""Phases of pg_stat_progress_basebackup that come before the position is fixed up to which the copy is consistent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    start: Position
    stop: Position
    """The copy is consistent once its log is replayed up to here."""
    consistent_at: datetime
    """The newest moment, by the server's clock, that was surely before `stop`."""
    archives: tuple[str, ...]


class ServerMoments:
    """Watches, over a second connection, how long the copy is surely not finished: later commits may not be in it."""

    def __init__(self, connection: psycopg.Connection, backend_pid: int) -> None:
        self._connection = connection
        self._pid = backend_pid
        self._looked_s = 0.0
        row = connection.execute("SELECT now()").fetchone()
        assert row is not None, "SELECT gives a row"
        self.newest: datetime = row[0].astimezone(UTC)

    def look(self, *, now_s: float, force: bool = False) -> None:
        if not force and now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        # now() is when the statement began: before the phase was read.
        row = self._connection.execute(
            "SELECT now(), phase FROM pg_stat_progress_basebackup WHERE pid = %s", (self._pid,)
        ).fetchone()
        if row is not None and row[1] in _BEFORE_STOP:
            self.newest = row[0].astimezone(UTC)


def copy_cluster(
    server: Replication,
    sink: SnapshotSink,
    watch: Watch,
    moments: ServerMoments,
    *,
    label: str,
    incremental: bool,
    rate_kib_s: int | None = None,
) -> Copied:
    """The log that makes the copy consistent is part of it: it can be restored without anything else.

    psycopg.Error, before any stream was opened, when the server refuses.
    """
    server.send(_command(label, incremental=incremental, rate_kib_s=rate_kib_s))
    start = _position(server.result())
    tablespaces = server.result()
    assert tablespaces is not None, "BASE_BACKUP lists its tablespaces after its start"
    sizes = [int(tablespaces.get_value(row, 2) or b"0") for row in range(tablespaces.ntuples)]
    watch.step("copy", sum(sizes) * 1024)
    copying = server.result()
    if copying is None or copying.status != pq.ExecStatus.COPY_OUT:
        raise TerminalError(
            "the server began no copy after BASE_BACKUP: its protocol is not that of version 15 or newer"
        )
    archives = _receive(server.copied(), sink, moments, watch)
    stop = _position(server.result())
    while server.result() is not None:
        pass
    return Copied(start=start, stop=stop, consistent_at=moments.newest, archives=tuple(archives))


def _command(label: str, *, incremental: bool, rate_kib_s: int | None) -> str:
    options = [
        f"LABEL '{label}'",
        "PROGRESS true",
        "CHECKPOINT 'fast'",
        # Its own log included, and no wait for an archiver of the site's: what we need is in the copy.
        "WAL true",
        "WAIT false",
        "MANIFEST 'yes'",
    ]
    if incremental:
        options.append("INCREMENTAL true")
    if rate_kib_s is not None:
        options.append(f"MAX_RATE {rate_kib_s:d}")
    return f"BASE_BACKUP ({', '.join(options)})"


def _position(result: pq.abc.PGresult | None) -> Position:
    assert result is not None, "BASE_BACKUP tells a position before and after the copy"
    lsn, timeline = result.get_value(0, 0), result.get_value(0, 1)
    assert lsn is not None, "the position is never null"
    assert timeline is not None, "the timeline is never null"
    return Position(int(timeline), parse_lsn(lsn.decode()))


def _receive(messages: Iterator[memoryview], sink: SnapshotSink, moments: ServerMoments, watch: Watch) -> list[str]:
    """One stream for each archive, the manifest last."""
    archives: list[str] = []
    with ExitStack() as open_streams:
        writer: _Gathering | None = None
        for message in messages:
            match chr(message[0]):
                case "d":
                    assert writer is not None, "data come after the name of their archive"
                    writer.add(message[1:])
                    watch.advance(len(message) - 1)
                    moments.look(now_s=time.monotonic())
                case "n" | "m" as kind:
                    name = bytes(message[1:]).split(b"\0", 1)[0].decode() if kind == "n" else MANIFEST
                    if writer is not None:
                        writer.end()
                        open_streams.close()
                    moments.look(now_s=time.monotonic(), force=True)
                    archives.append(name)
                    writer = _Gathering(open_streams.enter_context(sink.stream(name)))
                case _:  # progress, which is counted here already
                    moments.look(now_s=time.monotonic())
        if writer is not None:
            writer.end()
    return archives


class _Gathering:
    def __init__(self, stream: StreamWriter) -> None:
        self._write: Callable[[bytes], None] = stream.write
        self._parts: list[memoryview] = []
        self._bytes = 0

    def add(self, data: memoryview) -> None:
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= _WRITE_BYTES:
            self.end()

    def end(self) -> None:
        if self._parts:
            self._write(b"".join(self._parts))
            self._parts.clear()
            self._bytes = 0
