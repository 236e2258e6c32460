"""A PostgreSQL that the control plane runs itself: made once, started when it is down, adopted when it runs.

It outlives the control plane: after any death of that, `ensure_running` finds it by its data folder.
"""

import json
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from controlplane.adapters.backup.postgresql.places import reachable
from controlplane.adapters.backup.postgresql.programs import (
    Programs,
    account,
    give,
    must_run,
    programs_for,
)
from controlplane.adapters.backup.postgresql.server import (
    is_alive,
    make_private,
    postmaster_of,
    socket_folder,
    start_server,
    stop_server,
    tail,
)
from controlplane.adapters.instance import ROLE_VARIABLE, SITE_VARIABLE
from controlplane.kernel.errors import RetryableError

ROLE: Final = "postgresql"
MAJOR: Final = 18
"""Of the wheel that the product is locked to."""
SUPERUSER: Final = "quarterdeck"
DATABASE: Final = "shop"

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "shared_buffers": "32MB",  # a demo, and sites that need no other: small beside the engines
        "max_connections": "30",
        "wal_level": "replica",
        "summarize_wal": "on",  # incremental copies
        "max_wal_senders": "6",
        "max_replication_slots": "6",
        "min_wal_size": "32MB",
        "max_wal_size": "256MB",
        # A bucket that is away for long must not fill the disk: past this the slot is given up, and a gap reported.
        "max_slot_wal_keep_size": "4GB",
        "log_min_messages": "warning",
        "lc_messages": "C",
        # An immediate shutdown of the machine loses nothing: the defaults, said aloud.
        "fsync": "on",
        "full_page_writes": "on",
    }
)

_INIT_DEADLINE_S: Final = 120.0
"""initdb takes two seconds on an idle machine."""
_START_TIMEOUT: Final = timedelta(seconds=60)
"""Crash recovery of at most `max_wal_size` included."""
_CONNECT_S: Final = 5
_POLL_S: Final = 0.05


class EmbeddedPostgreSQL:
    """Not safe for threads: one supervisor calls it."""

    def __init__(self, state_dir: Path, site_mark: str, *, settings: Mapping[str, str] | None = None) -> None:
        """`settings`: on top of `SETTINGS`, given on the command line, so no file overrides them."""
        self._site_mark = site_mark
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home = reachable(state_dir.resolve() / "postgresql", f"quarterdeck-{site_mark}-postgresql")
        self._settings = {**SETTINGS, **(settings or {})}

    @property
    def data(self) -> Path:
        return self._home / "data"

    @property
    def log(self) -> Path:
        return self._home / "log"

    @property
    def home(self) -> Path:
        """All of its files. Not below the state folder when root's is closed to PostgreSQL's account."""
        return self._home

    @property
    def url(self) -> str:
        """Over its Unix socket: no password, only its own account and ours can reach it."""
        place = quote(str(socket_folder(self._home)), safe="")
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={place}&port={self._port()}"

    @property
    def pid(self) -> int | None:
        process = postmaster_of(self.data)
        return process.pid if process else None

    def ensure_running(self) -> str:
        """Its URL, once it answers. RetryableError with its own last words when it does not."""
        programs = programs_for(MAJOR)
        if not (self._home / "made").exists():
            self._make(programs)
        process = postmaster_of(self.data)
        if process is None:
            make_private(socket_folder(self._home))
            process = start_server(
                programs, self.data, settings=self._all_settings(), log=self.log, marks=self._marks()
            )
        self._await_answer(process)
        return self.url

    def stop(self, grace: timedelta = timedelta(seconds=30)) -> None:
        """Fast shutdown: open transactions are rolled back, everything committed is on disk."""
        stop_server(self.data, grace_s=grace.total_seconds())

    def _make(self, programs: Programs) -> None:
        """Made once. A death in the middle leaves no `made` file: the next try begins anew."""
        shutil.rmtree(self.data, ignore_errors=True)
        who = account()
        make_private(self._home)
        password = self._home / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24) + "\n", encoding="utf-8")
        give(password, who)
        argv: list[str | Path] = [
            programs.path("initdb"),
            "-D",
            self.data,
            "-U",
            SUPERUSER,
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]
        argv += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}", "--data-checksums"]
        must_run(argv, cwd=self._home, deadline_s=_INIT_DEADLINE_S)
        (self._home / "made").touch()

    def _all_settings(self) -> dict[str, str]:
        places = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port()),
            "unix_socket_directories": str(socket_folder(self._home)),
        }
        return {**self._settings, **places}

    def _marks(self) -> dict[str, str]:
        return {SITE_VARIABLE: self._site_mark, ROLE_VARIABLE: ROLE}

    def _port(self) -> int:
        """Chosen once; remembered so that people's connection strings keep working."""
        note = self._home / "port.json"
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(note.read_text(encoding="utf-8"))["port"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        make_private(self._home)
        note.write_text(json.dumps({"port": port}), encoding="utf-8")
        return port

    def _await_answer(self, process: psutil.Process) -> None:
        admin = self.url.replace(f"/{DATABASE}?", "/postgres?")
        until = time.monotonic() + _START_TIMEOUT.total_seconds()
        while True:
            try:
                with psycopg.connect(admin, autocommit=True, connect_timeout=_CONNECT_S) as connection:
                    _ensure_database(connection)
                    return
            except psycopg.OperationalError as error:
                if not is_alive(process) or time.monotonic() > until:
                    said = tail(self.log)
                    raise RetryableError(f"PostgreSQL does not answer ({error}); see {self.log}: {said}") from error
            time.sleep(_POLL_S)


def _ensure_database(connection: psycopg.Connection) -> None:
    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
    if known is None:
        # Without this a synchronous site whose stream is not there yet could not make its first database.
        connection.execute("SET synchronous_commit = local")
        with suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
