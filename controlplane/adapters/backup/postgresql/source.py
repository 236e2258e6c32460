"""The adapter of PostgreSQL: all that recovery asks of a dataset, over the server's own protocol and programs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.postgresql.asking import asking, whole_size
from controlplane.adapters.backup.postgresql.places import CopyPlaces, places_of
from controlplane.adapters.backup.postgresql.programs import MAJOR_MIN, Programs, programs_for
from controlplane.adapters.backup.postgresql.recovering import bring_up
from controlplane.adapters.backup.postgresql.remains import end_remains, remains
from controlplane.adapters.backup.postgresql.restore import (
    RestoreNote,
    major_of_point,
    read_note,
    restore_into,
)
from controlplane.adapters.backup.postgresql.server import stop_server
from controlplane.adapters.backup.postgresql.snapshot import SnapshotOptions, take_snapshot
from controlplane.adapters.backup.postgresql.verify import VerifyOptions, verify_files, verify_running
from controlplane.adapters.backup.postgresql.wal_stream import slot_name
from controlplane.domain.dataset import DatasetKind, WalMode
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import (
    Restored,
    RestoreRequest,
    SnapshotFacts,
    SnapshotSink,
    SnapshotSource,
    Source,
    Started,
    VerifyRequest,
    Watch,
)

_ASKED: Final = (
    "fsync",
    "full_page_writes",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "summarize_wal",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_level",
)
_SENDERS_MIN: Final = 3
"""One for the log, two for a copy while another starts."""
_STOP_S: Final = 60.0
"""For a restored copy to write its last checkpoint; then it is ended without."""


class PostgreSQLAdapter:
    """Implements `recovery.ports.DatasetAdapter`. Safe for threads: each call has its own connections."""

    def __init__(
        self,
        *,
        url: str,
        dataset: str,
        open_point: Callable[[Manifest], SnapshotSource] | None = None,
        snapshot: SnapshotOptions | None = None,
        verify: VerifyOptions | None = None,
    ) -> None:
        """`open_point`: reads an earlier recovery point; without it every copy is a full one."""
        self._url = url
        self._dataset = dataset
        self._open_point = open_point
        self._snapshot = snapshot or SnapshotOptions()
        self._verify = verify or VerifyOptions()

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.POSTGRESQL

    def probe(self) -> Source:
        with asking(self._url) as connection:
            version = connection.info.server_version
            if version // 10_000 < MAJOR_MIN:
                raise TerminalError(f"found PostgreSQL {version // 10_000}, expected {MAJOR_MIN} or newer: upgrade it")
            size_bytes = whole_size(connection)
        return Source(engine=f"postgresql {version // 10_000}.{version % 10_000}", size_bytes=size_bytes)

    def missing_settings(self, mode: WalMode) -> tuple[str, ...]:
        """What a person has to change on the server for such a promise, each as the statement that does it."""
        with asking(self._url) as connection:
            return tuple(_missing(connection, mode, slot_name(self._dataset)))

    def apply_settings(self, mode: WalMode) -> tuple[str, ...]:
        """Make the server keep the promise, where that needs no restart; what is left for a person comes back.

        For a server of our own, or where a person asked for it. Turning `synchronous` off is done here too.
        """
        name = slot_name(self._dataset)
        names = f'"{name}"' if mode is WalMode.SYNCHRONOUS else ""
        with asking(self._url) as connection:
            # This very statement must not wait for a stream that is not there yet.
            connection.execute("SET synchronous_commit = local")
            row = connection.execute("SHOW synchronous_standby_names").fetchone()
            if row is not None and row[0] != names and (names or name in row[0]):
                connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
                connection.execute("SELECT pg_reload_conf()")
        return tuple(found for found in self.missing_settings(mode) if "synchronous_standby_names" not in found)

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        """The fact `copy` says `full` or `incremental`: a parent that cannot be built upon gives a full copy."""
        return take_snapshot(self._url, sink, watch, parent=parent, open_point=self._open_point, options=self._snapshot)

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        programs = programs_for(major_of_point(request.chain[-1].manifest))
        return restore_into(request, programs, watch)

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator["RestoredCopy"]:
        places = places_of(into)
        note = read_note(places)
        programs = programs_for(note.major)
        begin_s = time.monotonic()
        files = verify_files(places, programs, self._verify, watch)
        checked_s = time.monotonic() - begin_s
        running = bring_up(places, note, programs, watch, to_time)
        started = replace(running.started, checked_s=checked_s)
        try:
            yield RestoredCopy(places, running.url, note, programs, self._verify, files=files, started=started)
        finally:
            stop_server(places.data, grace_s=_STOP_S)

    def leftovers(self, into: Path) -> Sequence[str]:
        return remains(into)

    def end_leftovers(self, into: Path) -> None:
        end_remains(into)


class RestoredCopy:
    """Implements `recovery.ports.ScratchInstance`."""

    def __init__(
        self,
        places: CopyPlaces,
        url: str,
        note: RestoreNote,
        programs: Programs,
        options: VerifyOptions,
        *,
        files: CheckOutcome,
        started: Started,
    ) -> None:
        self._places = places
        self._note = note
        self._programs = programs
        self._options = options
        self._files = files
        self._started = started
        self.url = url
        """Of the restored database, over its private socket."""

    @property
    def started(self) -> Started:
        return self._started

    def verify(self, request: VerifyRequest, watch: Watch) -> Sequence[CheckOutcome]:
        running = verify_running(self._places, self.url, self._note, self._programs, self._options, request, watch)
        return (self._files, *running)


def _missing(connection: psycopg.Connection, mode: WalMode, name: str) -> Iterator[str]:
    shown: dict[str, str] = dict(
        connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(_ASKED),)).fetchall()
    )
    yield from _missing_for_copies(shown)
    if mode is not WalMode.OFF and shown["max_slot_wal_keep_size"] == "-1":
        yield "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'  -- and reload; else a bucket away fills the disk"
    if mode is WalMode.SYNCHRONOUS:
        yield from _missing_synchronous(shown, name)


def _missing_for_copies(shown: dict[str, str]) -> Iterator[str]:
    for setting in ("max_wal_senders", "max_replication_slots"):
        if int(shown[setting]) < _SENDERS_MIN:
            yield f"ALTER SYSTEM SET {setting} = 10  -- and restart; found {shown[setting]}"
    if shown["wal_level"] == "minimal":
        yield "ALTER SYSTEM SET wal_level = replica  -- and restart; found minimal"
    for setting in ("fsync", "full_page_writes"):
        if shown[setting] != "on":
            yield f"ALTER SYSTEM SET {setting} = on  -- and reload; found {shown[setting]}"
    if shown.get("summarize_wal") == "off":
        yield "ALTER SYSTEM SET summarize_wal = on  -- and reload; without it every copy is a full one"


def _missing_synchronous(shown: dict[str, str], name: str) -> Iterator[str]:
    if name not in shown["synchronous_standby_names"]:
        found = shown["synchronous_standby_names"] or "nothing"
        yield f"ALTER SYSTEM SET synchronous_standby_names = '\"{name}\"'  -- and reload; found {found}"
    if shown["synchronous_commit"] in {"off", "local"}:
        yield f"ALTER SYSTEM SET synchronous_commit = on  -- and reload; found {shown['synchronous_commit']}"
