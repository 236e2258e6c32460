"""PostgreSQL's streaming replication protocol, spoken through libpq: commands, copies out, the log both ways.

Source: chapters "Streaming Replication Protocol" and "Message Formats" of PostgreSQL's manual.
"""

import select
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import psycopg
from psycopg import pq, sql
from psycopg.rows import TupleRow

from controlplane.adapters.backup.postgresql.lsn import Position, Switch, format_lsn, parse_history, parse_lsn
from controlplane.adapters.backup.postgresql.programs import MAJOR_MIN
from controlplane.kernel.errors import RetryableError, TerminalError

CONNECT_S: Final = 10
SILENCE_S: Final = 120.0
"""A server that says nothing for so long in the middle of an answer is gone (its own wal_sender_timeout is 60)."""
WAL_REMOVED: Final = "58P01"
"""SQLSTATE undefined_file: what a walsender says for a segment that is no longer there."""

_EPOCH_2000_US: Final = 946_684_800 * 1_000_000
"""PostgreSQL counts its microseconds from 2000-01-01 UTC."""
_DATA_HEADER: Final = struct.Struct(">cQQq")
_KEEPALIVE: Final = struct.Struct(">cQqB")
_STATUS: Final = struct.Struct(">cQQQqB")
_UNITS: Final = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3}
_BATCH_BYTES: Final = 1024 * 1024
"""So much is taken off the socket before other work gets its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    system_id: str
    timeline: int
    flushed: int
    """LSN."""
    version: int
    """As `server_version_num`: 180006."""
    segment_bytes: int

    @property
    def major(self) -> int:
        return self.version // 10_000

    @property
    def engine(self) -> str:
        return f"postgresql {self.major}.{self.version % 10_000}"


@dataclass(frozen=True, slots=True)
class WalData:
    """Bytes of the log. Times are microseconds since 1970 by the server's clock."""

    start: int
    server_end: int
    """How far the server had flushed when it sent this."""
    sent_at_us: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Keepalive:
    server_end: int
    sent_at_us: int
    reply_wanted: bool


class WalRemovedError(Exception):
    """The server no longer has the log from where it was asked for: there will be a gap."""


class TimelineEndedError(Exception):
    """Everything of the timeline was sent; the log goes on in another one."""


class Replication:
    """A connection to a walsender. Not safe for threads. Raises psycopg.OperationalError when it breaks."""

    def __init__(self, url: str, *, application_name: str) -> None:
        self._connection = psycopg.connect(
            url, autocommit=True, replication="true", application_name=application_name, connect_timeout=CONNECT_S
        )
        self._pg = self._connection.pgconn
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(psycopg.Error):
            self._pg.finish()
            self._connection.close()

    @property
    def backend_pid(self) -> int:
        return int(self._pg.backend_pid)

    def facts(self) -> ServerFacts:
        """TerminalError for a server that is too old for the protocol spoken here."""
        system, timeline, flushed, _ = self._row("IDENTIFY_SYSTEM")
        facts = ServerFacts(
            system_id=_text(system),
            timeline=int(timeline),
            flushed=parse_lsn(_text(flushed)),
            version=self._connection.info.server_version,
            segment_bytes=_size(_text(self._row("SHOW wal_segment_size")[0])),
        )
        if facts.major < MAJOR_MIN:
            raise TerminalError(f"found {facts.engine}, expected PostgreSQL {MAJOR_MIN} or newer: upgrade the server")
        return facts

    @property
    def is_standby(self) -> bool:
        return self._connection.info.parameter_status("in_hot_standby") == "on"

    def slot(self, name: str) -> Position | None:
        """From where on the slot keeps the log; None: there is no such slot."""
        kind, lsn, timeline = self._row(sql.SQL("READ_REPLICATION_SLOT {}").format(sql.Identifier(name)))
        if kind is None or lsn is None:
            return None
        return Position(int(timeline or 0), parse_lsn(_text(lsn)))

    def create_slot(self, name: str, *, temporary: bool = False) -> None:
        """Keeps the log from the last checkpoint on. Nothing happens when it is there."""
        kind = "TEMPORARY PHYSICAL" if temporary else "PHYSICAL"
        command = sql.SQL("CREATE_REPLICATION_SLOT {} " + kind + " (RESERVE_WAL)").format(sql.Identifier(name))
        with suppress(psycopg.errors.DuplicateObject):
            self._connection.execute(command)

    def drop_slot(self, name: str) -> None:
        with suppress(psycopg.errors.UndefinedObject):
            self._connection.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)))

    def history(self, timeline: int) -> tuple[str, tuple[Switch, ...]]:
        """The history file of a timeline above 1, as text and read."""
        _, content = self._row(f"TIMELINE_HISTORY {timeline:d}")
        text = _text(content)
        return text, parse_history(text)

    # -- a copy out, as of BASE_BACKUP
    def send(self, command: str) -> None:
        self._pg.send_query(command.encode())
        self._flush()

    def result(self) -> pq.abc.PGresult | None:
        """The next result of what was sent; None: that was all. psycopg.Error for one that is an error."""
        while self._pg.is_busy():
            self._await_input()
        found = self._pg.get_result()
        if found is not None and found.status == pq.ExecStatus.FATAL_ERROR:
            self._drain()
            raise psycopg.errors.error_from_result(found)
        return found

    def copied(self) -> Iterator[memoryview]:
        """Messages of a running copy, in order; each valid until the next is asked for."""
        while True:
            length, data = self._pg.get_copy_data(1)
            if length > 0:
                yield data
            elif length == 0:
                self._await_input()
            else:
                return

    def upload(self, data: Iterator[bytes]) -> None:
        """The server asked for a copy in (UPLOAD_MANIFEST): send it, and wait until it is taken."""
        for piece in data:
            self._put(piece)
        self._pg.put_copy_end()
        self._flush()
        while self.result() is not None:
            pass

    # -- the log, both ways
    def start_wal(self, slot: str, at: Position) -> None:
        command = sql.SQL("START_REPLICATION SLOT {} PHYSICAL ").format(sql.Identifier(slot)).as_string(None)
        self.send(f"{command}{format_lsn(at.lsn)} TIMELINE {at.timeline:d}")
        found = self.result()
        if found is None or found.status != pq.ExecStatus.COPY_BOTH:
            self._drain()
            raise TimelineEndedError

    def fileno(self) -> int:
        return int(self._pg.socket)

    def take(self) -> list[WalData | Keepalive]:
        """What has arrived, without waiting; about a megabyte at most."""
        taken: list[WalData | Keepalive] = []
        taken_bytes = 0
        tried = False
        while taken_bytes < _BATCH_BYTES:
            length, data = self._pg.get_copy_data(1)
            if length > 0:
                taken_bytes += length
                taken.append(_message(data))
            elif length == 0 and not tried:
                self._pg.consume_input()
                tried = True
            elif length == 0:
                break
            else:
                self._end_of_wal()
        return taken

    def report(self, durable: int, *, reply: bool = False) -> None:
        """Written, flushed and applied up to there: only what is durable in the bucket counts as any of them."""
        now_us = time.time_ns() // 1000 - _EPOCH_2000_US
        self._put(_STATUS.pack(b"r", durable, durable, durable, now_us, reply))
        self._flush()

    def _end_of_wal(self) -> None:
        """The server ended the copy: an error, a shutdown, or the end of a timeline."""
        try:
            self.result()
        except psycopg.Error as error:
            if error.sqlstate == WAL_REMOVED:
                raise WalRemovedError(str(error).strip()) from error
            raise
        with suppress(psycopg.Error):
            self._pg.put_copy_end()
            self._flush()
            self._drain()
        raise TimelineEndedError

    def _row(self, command: str | sql.Composed) -> TupleRow:
        text = command if isinstance(command, str) else command.as_string(None)
        row = self._connection.execute(text.encode()).fetchone()
        if row is None:
            raise RetryableError(f"the server answered nothing to {text}")
        return row

    def _put(self, data: bytes) -> None:
        while self._pg.put_copy_data(data) == 0:
            self._flush()

    def _flush(self) -> None:
        while self._pg.flush() != 0:
            self._await_input(select.POLLIN | select.POLLOUT)

    def _await_input(self, events: int = select.POLLIN) -> None:
        self._poll.modify(self._pg.socket, events)
        if not self._poll.poll(SILENCE_S * 1000):
            raise psycopg.OperationalError(f"the server said nothing for {SILENCE_S:.0f} s")
        self._pg.consume_input()

    def _drain(self) -> None:
        with suppress(psycopg.Error):
            while True:
                while self._pg.is_busy():
                    self._await_input()
                if self._pg.get_result() is None:
                    return


def _message(data: memoryview) -> WalData | Keepalive:
    kind = data[0]
    if kind == ord("w"):
        _, start, end, sent = _DATA_HEADER.unpack_from(data)
        return WalData(start, end, sent + _EPOCH_2000_US, data[_DATA_HEADER.size :])
    if kind == ord("k"):
        _, end, sent, wanted = _KEEPALIVE.unpack_from(data)
        return Keepalive(end, sent + _EPOCH_2000_US, bool(wanted))
    raise TerminalError(f"found a message of kind {chr(kind)!r} in the log of the server, expected w or k")


def _text(value: object) -> str:
    """A walsender may name no type that the driver knows: then it gives bytes."""
    return bytes(value).decode() if isinstance(value, bytes | memoryview) else str(value)


def _size(text: str) -> int:
    """`16MB` as SHOW prints it."""
    digits = text.rstrip("BkMG")
    return int(digits) * _UNITS[text[len(digits) :] or "B"]
