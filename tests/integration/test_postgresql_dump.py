"""Logical dumps of the system's PostgreSQL, restored into the newest one here: portable across major versions."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from controlplane.adapters.backup.postgresql.dump import DumpScratch, PostgreSQLDump
from controlplane.adapters.backup.postgresql.embedded import MAJOR
from controlplane.adapters.backup.postgresql.programs import Programs, must_run, programs_for, programs_from
from controlplane.adapters.backup.postgresql.server import end_servers, make_private, start_server
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import Verdict
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import CancelledWorkError, RestoreRequest, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from tests.integration.postgresql_lab import eventually
from tests.processes import children_that_name

INSTALL: Final = "apt-get install postgresql (or `make components` as root)"
SYSTEM: Final = Path("/usr/lib/postgresql")
SHOP: Final = "Größe 北 'x'"
"""A database whose name needs every quoting that there is."""
PASSWORD: Final = "open sesame: \\ '"
SETTING: Final = "lock_timeout=7000"
SEED: Final = (
    "CREATE ROLE boss SUPERUSER",
    "CREATE ROLE clerk LOGIN",
    "CREATE ROLE team NOLOGIN",
    # As PostgreSQL 15 tells it, a superuser since then has no right to grant it.
    "SET ROLE boss",
    "GRANT team TO clerk",
    "RESET ROLE",
    f"ALTER ROLE clerk SET {SETTING}",
)
SHOP_SEED: Final = (
    "CREATE TABLE orders (id bigserial PRIMARY KEY, note text NOT NULL UNIQUE, placed_at timestamptz DEFAULT now())",
    "INSERT INTO orders (note) SELECT 'größe ' || g FROM generate_series(1, 500) g",
    "CREATE VIEW dear AS SELECT id, note FROM orders WHERE id > 490",
    "CREATE SEQUENCE tickets START 41 INCREMENT 3",
    "SELECT nextval('tickets'), nextval('tickets')",
    "CREATE TABLE ledger (id int PRIMARY KEY, of bigint REFERENCES orders)",
    "INSERT INTO ledger SELECT g, g FROM generate_series(1, 100) g",
    "ALTER TABLE ledger OWNER TO clerk",
    "CREATE EXTENSION pgcrypto",
    "SELECT lo_from_bytea(4711, 'a large object'::bytea)",
    f'ALTER DATABASE "{SHOP}" SET default_transaction_read_only = on',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Older:
    """A running server of the system's."""

    programs: Programs
    sockets: Path

    def url(self, database: str | None = None, **more: str) -> str:
        parts = {"host": str(self.sockets), "user": "quarterdeck"} | more
        return make_conninfo(**(parts | {"dbname": database} if database else parts))

    def sql(self, database: str, *statements: str) -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture(scope="module")
def older() -> Iterator[Older]:
    found = [one for one in programs_from(15, "postgres", sorted(SYSTEM.glob("*/bin"))) if one.major < MAJOR]
    if not found:
        pytest.skip(f"no PostgreSQL of the system's that is older than {MAJOR}; to have it: {INSTALL}")
    folder = make_private(Path(tempfile.mkdtemp(prefix="qd-dump-", dir="/var/tmp")))
    try:
        yield _made(found[0], folder)
    finally:
        end_servers(folder)
        shutil.rmtree(folder)


def _made(programs: Programs, folder: Path) -> Older:
    data = folder / "data"
    argv: list[str | Path] = [
        programs.path("initdb"),
        "-D",
        data,
        "-U",
        "quarterdeck",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    must_run([*argv, "--locale=C.UTF-8"], cwd=folder, deadline_s=60.0)
    sockets = make_private(folder / "s")
    settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), "fsync": "off"}
    start_server(programs, data, settings=settings, log=folder / "log")
    older = Older(programs=programs, sockets=sockets)

    def answers() -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(older.url("postgres")).close()
            return True
        return False

    eventually(answers)
    older.sql("postgres", *SEED, f'CREATE DATABASE "{SHOP}" OWNER clerk')
    older.sql(SHOP, *SHOP_SEED)
    return older


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to every account; what was restored there is ended after the test."""
    place = Path(tempfile.mkdtemp(prefix="qd-dumped-"))
    place.chmod(0o755)
    yield place
    for into in place.iterdir():
        if into.is_dir() and not into.is_symlink():
            PostgreSQLDump(url="").end_leftovers(into)
            assert PostgreSQLDump(url="").leftovers(into) == ()
    shutil.rmtree(place)


def taken(adapter: PostgreSQLDump) -> MemorySource:
    sink = MemorySink(kind=adapter.kind)
    return sink.source(adapter.snapshot(sink, parent=None, watch=RecordingWatch()))


@contextmanager
def restored(adapter: PostgreSQLDump, source: MemorySource, into: Path) -> Iterator[DumpScratch]:
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    with adapter.start(into, RecordingWatch()) as scratch:
        yield scratch


def test_everything_survives_into_a_newer_major_version(older: Older, folder: Path) -> None:
    adapter = PostgreSQLDump(url=older.url())
    source = taken(adapter)
    counts = {count.name: count.rows for count in source.manifest.counts}
    assert counts[f"{SHOP}.public.orders"] == 500
    assert counts[f"{SHOP}: large objects"] == 1
    assert source.manifest.fact("server_version") == older.programs.version
    assert "pgcrypto" in (source.manifest.fact("extensions") or "")
    assert f"{SHOP} (UTF8, C.UTF-8 (libc))" in (source.manifest.fact("databases") or "")
    checks = (
        CheckSpec(name="orders", sql="SELECT count(*) FROM orders", equals="500"),
        CheckSpec(name="view", sql="SELECT max(note) FROM dear", equals="größe 500"),
        CheckSpec(name="sequence", sql="SELECT last_value FROM tickets", equals="44"),
        CheckSpec(
            name="owner", sql="SELECT tableowner FROM pg_tables WHERE tablename = 'ledger'", equals="clerk"
        ),
        CheckSpec(name="large", sql="SELECT convert_from(lo_get(4711), 'UTF8')", equals="a large object"),
        CheckSpec(name="member", sql="SELECT pg_has_role('clerk', 'team', 'MEMBER')", equals="t"),
        CheckSpec(
            name="setting", sql="SELECT setconfig[1] FROM pg_db_role_setting WHERE setrole > 0", equals=SETTING
        ),
        CheckSpec(name="version", sql="SHOW server_version_num", at_least=MAJOR * 10_000),
        CheckSpec(name="fresh", sql="SELECT max(placed_at) FROM orders", fresh_within=timedelta(hours=1)),
        CheckSpec(name="too few", sql="SELECT count(*) FROM ledger", at_least=101),
    )  # fmt: skip
    with restored(adapter, source, folder / "into") as scratch:
        outcomes = scratch.verify(VerifyRequest(manifest=source.manifest, checks=checks), RecordingWatch())
        with psycopg.connect(scratch.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO orders (note) VALUES ('größe 7')")
    assert [outcome.name for outcome in outcomes if outcome.verdict is not Verdict.PASSED] == ["too few"]
    assert [outcome.name for outcome in outcomes[:3]] == ["bytes", "pg_restore", "counts"]


def test_one_database_alone_when_the_url_names_it(older: Older, folder: Path) -> None:
    adapter = PostgreSQLDump(url=older.url(SHOP), only=SHOP)
    source = taken(adapter)
    assert set(source.streams) == {"globals.sql", "database-000.dump"}
    with (
        restored(adapter, source, folder / "into") as scratch,
        psycopg.connect(scratch.cluster.url("postgres")) as connection,
    ):
        names = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1").fetchall()
    assert names == [(SHOP,), ("postgres",)]


def test_an_extension_that_is_missing_is_named_and_another_version_that_has_it_is_taken(
    older: Older, folder: Path
) -> None:
    """`adminpack` came with PostgreSQL until 16."""
    older.sql("postgres", "CREATE DATABASE needs")
    older.sql("needs", "CREATE EXTENSION adminpack")
    newest = programs_for(MAJOR)
    adapter = PostgreSQLDump(url=older.url("needs"), only="needs")
    source = taken(adapter)
    with restored(adapter, source, folder / "into") as scratch:
        assert scratch.programs.major == older.programs.major
    only_newest = replace(adapter, search=(newest.folder,))
    with (
        pytest.raises(TerminalError, match=rf"PostgreSQL {MAJOR} in .* lacks the extension adminpack .*database needs"),
        only_newest.start(folder / "into", RecordingWatch()),
    ):
        pass


def test_a_role_that_may_not_read_everything_is_told_what_it_needs(older: Older) -> None:
    older.sql("postgres", "CREATE ROLE intern LOGIN")
    adapter = PostgreSQLDump(url=older.url(SHOP, user="intern"), only=SHOP)
    sink = MemorySink()
    with pytest.raises(TerminalError, match=r"permission denied .*GRANT pg_read_all_data"):
        adapter.snapshot(sink, parent=None, watch=RecordingWatch())


@pytest.fixture
def spied(older: Older, tmp_path: Path) -> Path:
    """A folder of programs that write down how they were called, then do their work."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall"):
        path = folder / name
        note = f'echo "$0 $@" >> "{folder}/argv"; env >> "{folder}/env"'
        path.write_text(f'#!/bin/sh\n{note}\nexec "{older.programs.path(name)}" "$@"\n', encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_the_password_is_never_an_argument(older: Older, spied: Path) -> None:
    source = taken(PostgreSQLDump(url=older.url(SHOP, password=PASSWORD), only=SHOP, search=(spied,)))
    assert len(source.streams) == 2
    argv, env = (spied / "argv").read_text(encoding="utf-8"), (spied / "env").read_text(encoding="utf-8")
    assert "sesame" not in argv
    assert f"PGPASSWORD={PASSWORD}\n" in env
    assert {"--snapshot", "--compress", "--no-role-passwords"} <= {word.partition("=")[0] for word in argv.split()}
    stored = b"".join(source.streams.values()) + str(source.manifest).encode()
    assert b"sesame" not in stored
    assert os.fsencode(older.sockets) not in stored


def test_a_request_to_stop_ends_the_programs(older: Older, spied: Path) -> None:
    adapter = PostgreSQLDump(url=older.url(SHOP), only=SHOP, search=(spied,))
    for step in ("dump roles", f"dump {SHOP}"):
        sink = MemorySink()
        with pytest.raises(CancelledWorkError):
            adapter.snapshot(sink, parent=None, watch=RecordingWatch(cancel_at_step=step))
        assert children_that_name("pg_dump") == []
        assert "database-000.dump" not in sink.streams
