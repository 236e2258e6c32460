"""A live cluster written out by PostgreSQL's own programs, each database as of a snapshot that rows are counted in too.

Sources: https://www.postgresql.org/docs/current/app-pgdump.html (`--snapshot`), app-pg-dumpall.html, and
functions-admin.html (`pg_export_snapshot`). A snapshot can be shared within one database only, so each has its own; all
are taken before the first byte is written.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.children import Piped
from controlplane.adapters.backup.postgresql.asking import asking, whole_size
from controlplane.adapters.backup.postgresql.counting import EXACT, ONE_SNAPSHOT, counts_in, databases
from controlplane.adapters.backup.postgresql.dump_contents import (
    FACT,
    GLOBALS,
    DumpContents,
    DumpedDatabase,
    Extension,
)
from controlplane.adapters.backup.postgresql.login import Login, login_of
from controlplane.adapters.backup.postgresql.programs import Programs, programs_from
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import KIB
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import SnapshotFacts, SnapshotSink, Watch

FIRST_DATABASE: Final = "postgres"
"""In every cluster; asked where the dataset's url names none."""

_SILENCE_S: Final = 600.0
"""pg_dump writes nothing while it reads the catalogue of a large schema."""
_LOCK_WAIT: Final = "60s"
"""Behind somebody's ALTER TABLE; everybody else queues behind pg_dump meanwhile."""
_BLOCK_BYTES: Final = 64 * KIB
"""As much as a pipe holds."""
_DENIED: Final = re.compile(r"permission denied|must be superuser|row-level security")
_PATIENCE: Final = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN "
    "('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')"
)
_DESCRIBED: Final = """
SELECT pg_encoding_to_char(encoding),
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', datcollate),
       CASE to_jsonb(d) ->> 'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
       pg_database_size(oid)
FROM pg_database d WHERE datname = current_database()"""
"""Through JSON, since columns came and went: `datlocprovider` with 15, `daticulocale` became `datlocale` in 17."""
_LARGE_OBJECTS: Final = "SELECT count(*) FROM pg_largeobject_metadata"
_LEFT_OUT: Final = """
SELECT datname FROM pg_database WHERE NOT datistemplate
AND NOT (datallowconn AND has_database_privilege(datname, 'CONNECT')) ORDER BY datname"""
_SUPERUSER: Final = "SELECT rolname FROM pg_roles WHERE oid = 10"
"""BOOTSTRAP_SUPERUSERID of PostgreSQL's pg_authid.dat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumpers:
    """Which programs write."""

    databases: Programs
    """The oldest that can: what it writes can be read by the most servers."""
    globals: Programs
    """The newest: before 16 pg_dumpall names who granted a membership, which servers since then may refuse."""


def dumpers_for(major: int, search: Sequence[Path] | None) -> Dumpers:
    """For a server of that major version. TerminalError, saying how to get them."""
    found = [one for one in programs_from(major, "pg_dump", search) if one.has("pg_dumpall")]
    if not found:
        raise TerminalError(
            f"the server is PostgreSQL {major}, and only pg_dump of the same major version or a newer one can dump it; "
            f"none was found here. Install it, e.g. `apt-get install postgresql-client-{major}`"
        )
    return Dumpers(databases=found[0], globals=found[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A database in one snapshot, as long as the connection lives."""

    connection: psycopg.Connection
    snapshot: str
    size_bytes: int
    described: DumpedDatabase


def dump_cluster(
    url: str, only: str | None, sink: SnapshotSink, watch: Watch, search: Sequence[Path] | None
) -> SnapshotFacts:
    """RetryableError when the server breaks off; TerminalError with what a person must change."""
    login = login_of(url)
    first = only or FIRST_DATABASE
    with asking(login.complete(first)) as connection, ExitStack() as holding:
        version = connection.info.server_version
        dumpers = dumpers_for(version // 10_000, search)
        watch.step("snapshot")
        names = [only] if only else databases(connection)
        # By the server's clock, and before each of the snapshots: all that was committed by then is in them.
        consistent_at = _value(connection, "SELECT clock_timestamp()")
        assert isinstance(consistent_at, datetime), "clock_timestamp gives a time"
        superuser = str(_value(connection, _SUPERUSER))
        left_out = [] if only else [str(row[0]) for row in connection.execute(_LEFT_OUT).fetchall()]
        held = [holding.enter_context(_held(login, name, number)) for number, name in enumerate(names)]
        counts: list[Count] = []
        _dump_globals(dumpers.globals, login, first, sink, watch)
        for one in held:
            watch.step(f"count rows of {one.described.name}")
            counts += _counts(one, watch)
            _dump_database(dumpers.databases, login, one, sink, watch)
        contents = DumpContents(
            server=_version(version),
            pg_dump=dumpers.databases.version,
            major=dumpers.databases.major,
            superuser=superuser,
            database=only or _asked(names),
            size_bytes=sum(one.size_bytes for one in held),
            databases=tuple(one.described for one in held),
        )
        return SnapshotFacts(
            engine=f"postgresql {contents.server}",
            consistent_at=consistent_at.astimezone(UTC),
            counts=tuple(sorted(counts, key=lambda count: count.name)),
            facts=_facts(contents, dumpers, left_out),
        )


def source_size(login: Login, only: str | None) -> tuple[str, int]:
    """Version and bytes on the source's disk."""
    with asking(login.complete(only or FIRST_DATABASE)) as connection:
        version = _version(connection.info.server_version)
        if only is None:
            return version, whole_size(connection)
        return version, int(str(_value(connection, "SELECT pg_database_size(current_database())")))


@contextmanager
def _held(login: Login, name: str, number: int) -> Iterator[_Held]:
    with asking(login.complete(name)) as connection:
        connection.execute(_PATIENCE)
        connection.execute(ONE_SNAPSHOT)
        snapshot = str(_value(connection, "SELECT pg_export_snapshot()"))
        row = connection.execute(_DESCRIBED).fetchone()
        assert row is not None, "the database that we are in is there"
        encoding, locale, provider, size_bytes = row
        extensions = connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY extname").fetchall()
        described = DumpedDatabase(
            name=name,
            file=f"database-{number:03d}.dump",
            encoding=encoding,
            locale=f"{locale} ({provider})",
            extensions=tuple(Extension(name=one, version=of) for one, of in extensions),
        )
        yield _Held(connection=connection, snapshot=snapshot, size_bytes=int(size_bytes), described=described)


def _counts(one: _Held, watch: Watch) -> Iterator[Count]:
    yield from counts_in(one.connection, watch)
    yield Count(name=large_objects(one.described.name), rows=int(str(_value(one.connection, _LARGE_OBJECTS))))


def large_objects(database: str) -> str:
    """What their count goes by."""
    return f"{database}: large objects"


def _dump_globals(programs: Programs, login: Login, database: str, sink: SnapshotSink, watch: Watch) -> None:
    watch.step("dump roles")
    argv = [
        *(programs.path("pg_dumpall"), "--globals-only"),
        # Hashes of passwords are worth stealing for years, and are no longer the passwords by then.
        "--no-role-passwords",
        # Tablespaces are folders of one machine, on which a live cluster may still use them.
        "--no-tablespaces",
        *("--no-password", f"--lock-wait-timeout={_LOCK_WAIT}"),
        *(f"--dbname={login.to(database)}", f"--database={database}"),
    ]
    _pipe(argv, GLOBALS, login, sink, watch)


def _dump_database(programs: Programs, login: Login, one: _Held, sink: SnapshotSink, watch: Watch) -> None:
    watch.step(f"dump {one.described.name}")
    argv = [
        *(programs.path("pg_dump"), "--format=custom"),
        # Sealing compresses every chunk: 322 MB of rows came to 114 MB so, to 113 MB by pg_dump's own zstd, in the same
        # 4 s; by its gzip, all that it has before 16, to 135 MB in 9 s.
        "--compress=0",
        "--no-tablespaces",
        # They carry the publisher's password, and would take its changes from whoever has them now.
        "--no-subscriptions",
        *("--no-password", f"--lock-wait-timeout={_LOCK_WAIT}"),
        *(f"--snapshot={one.snapshot}", f"--dbname={login.to(one.described.name)}"),
    ]
    _pipe(argv, one.described.file, login, sink, watch)


def _pipe(argv: Sequence[str], stream: str, login: Login, sink: SnapshotSink, watch: Watch) -> None:
    """From the program into the bucket: nothing of it touches a disk here."""
    env = {"LC_ALL": "C.UTF-8", "PGAPPNAME": "quarterdeck", "PGCONNECT_TIMEOUT": "10", **login.secret}
    child = Piped(argv, watch, _SILENCE_S, env=env)
    try:
        with sink.stream(stream) as writer, closing(child.pieces()) as pieces:
            for block in _blocks(pieces):
                writer.write(block)
                watch.advance(len(block))
    except RetryableError as error:
        if _DENIED.search(child.err):
            raise TerminalError(
                f"{error}. The role of the dataset's url has to read everything: GRANT pg_read_all_data, BYPASSRLS "
                "where rows are secured, or a superuser"
            ) from error
        raise


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Of one size but for the last: the same dump is written in the same steps however the pipe was filled."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= _BLOCK_BYTES:
            yield bytes(waiting[:_BLOCK_BYTES])
            del waiting[:_BLOCK_BYTES]
    if waiting:
        yield bytes(waiting)


def _facts(contents: DumpContents, dumpers: Dumpers, left_out: Sequence[str]) -> tuple[tuple[str, str], ...]:
    extensions = {str(extension) for database in contents.databases for extension in database.extensions}
    told = {
        "version": contents.server.partition(".")[0],
        "server_version": contents.server,
        "pg_dump": contents.pg_dump,
        "pg_dumpall": dumpers.globals.version,
        "databases": ", ".join(f"{one.name} ({one.encoding}, {one.locale})" for one in contents.databases),
        "extensions": ", ".join(sorted(extensions)),
        "counts": EXACT,
        FACT: contents.model_dump_json(),
    }
    if left_out:
        told["left_out"] = ", ".join(left_out)
    return tuple(told.items())


def _asked(names: Sequence[str]) -> str:
    """Where assertions are asked when no database was named: in the only one that a site made, else in the first."""
    made = [name for name in names if name != FIRST_DATABASE]
    return made[0] if len(made) == 1 else FIRST_DATABASE


def _version(number: int) -> str:
    return f"{number // 10_000}.{number % 10_000}"


def _value(connection: psycopg.Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None, "the query gives a row"
    return row[0]
