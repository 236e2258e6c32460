"""The system's PostgreSQL, for a comparison on a version that every way can back up."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol
from urllib.parse import quote

import psycopg
from psycopg import sql

from controlplane.adapters.backup.postgresql.embedded import SETTINGS
from controlplane.adapters.backup.postgresql.programs import MAJOR_MIN, Programs, must_run, programs_for
from controlplane.adapters.backup.postgresql.server import make_private, socket_folder, start_server, stop_server, tail
from controlplane.kernel.errors import TerminalError

SUPERUSER: Final = "quarterdeck"
NOBODYS_ARCHIVE: Final = "true"
"""An archive_command that keeps nothing."""
PORT: Final = 5432
"""Names the socket; nothing listens on a network."""
_SYSTEM: Final = Path("/usr/lib/postgresql")
"""Debian's; a folder for each major version."""
_INSTALL: Final = "apt-get install postgresql pgbackrest"
_SINCE_17: Final = frozenset({"summarize_wal"})
_INIT_DEADLINE_S: Final = 120.0
_START_DEADLINE_S: Final = 300.0
"""What was restored replays its log first."""
_LOOK_S: Final = 0.03
_PLAIN: Final[Mapping[str, str]] = MappingProxyType({})


class Server(Protocol):
    """What is backed up, or had back."""

    @property
    def url(self) -> str: ...

    @property
    def home(self) -> Path:
        """All of its files."""

    def ensure_running(self) -> str:
        """Its URL, once it answers."""

    def stop(self) -> None: ...


def system_programs() -> Programs:
    """The newest of the system's. TerminalError when there is none that ours can copy."""
    folders = _SYSTEM.glob("*/bin/postgres")
    majors = [int(one.parent.parent.name) for one in folders if one.parent.parent.name.isdecimal()]
    if not majors or max(majors) < MAJOR_MIN:
        raise TerminalError(f"no PostgreSQL {MAJOR_MIN} or newer of the system's in {_SYSTEM}: {_INSTALL}")
    return programs_for(max(majors))


class SystemPostgreSQL:
    """Implements `Server`, set up as the embedded one is. A data folder that is there already is taken as it is."""

    def __init__(self, home: Path, programs: Programs, settings: Mapping[str, str] = _PLAIN) -> None:
        self.home: Final = make_private(home)
        self._programs = programs
        self._settings = settings

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def sockets(self) -> Path:
        return socket_folder(self.home)

    @property
    def url(self) -> str:
        return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(self.sockets), safe='')}&port={PORT}"

    def ensure_running(self) -> str:
        if not self.data.exists():
            choices = ("-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--data-checksums")
            initdb = self._programs.path("initdb")
            must_run([initdb, "-D", self.data, *choices], cwd=self.home, deadline_s=_INIT_DEADLINE_S)
        make_private(self.sockets)
        known = {name: value for name, value in SETTINGS.items() if name not in _SINCE_17}
        place = {"listen_addresses": "", "port": str(PORT), "unix_socket_directories": str(self.sockets)}
        start_server(self._programs, self.data, settings={**known, **place, **self._settings}, log=self.home / "log")
        self._await_answer()
        return self.url

    def stop(self) -> None:
        stop_server(self.data)

    @contextmanager
    def archiving(self, command: str) -> Iterator[None]:
        """Segments go there inside the block, and nowhere outside of it."""
        self.archive_to(command)
        try:
            yield
        finally:
            self.archive_to(NOBODYS_ARCHIVE)

    def archive_to(self, command: str) -> None:
        """From the next segment on."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(sql.Literal(command)))
            connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + _START_DEADLINE_S
        while self._shown("archive_command") != command:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server in {self.home} does not read its settings")
            time.sleep(_LOOK_S)

    def _shown(self, name: str) -> object:
        """As a new session has it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
        return None if row is None else row[0]

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return
            time.sleep(_LOOK_S)
        raise TimeoutError(f"the server in {self.home} does not answer: {tail(self.home / 'log')}")
