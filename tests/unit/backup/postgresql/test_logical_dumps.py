"""Logical dumps without a server: who writes and who loads them, what they say of themselves, what is refused."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.backup.postgresql.dump import PostgreSQLDump
from controlplane.adapters.backup.postgresql.dump_cluster import check_whole, loader_for, without_role
from controlplane.adapters.backup.postgresql.dump_contents import (
    CONTENTS,
    FACT,
    GLOBALS,
    DumpContents,
    DumpedDatabase,
    Extension,
    read_contents,
)
from controlplane.adapters.backup.postgresql.dump_source import dumpers_for
from controlplane.adapters.backup.postgresql.login import login_of, named_database
from controlplane.adapters.backup.postgresql.programs import Programs
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.recovery.ports import RestoreRequest, SnapshotFacts
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from controlplane.testing.effects import START

URL = "postgresql://reader:open%20sesame@db.example:5433/shop?sslmode=verify-full"
POSTGIS = Extension(name="postgis", version="3.4")
SHOP = DumpedDatabase(
    name="shop", file="database-000.dump", encoding="UTF8", locale="de_DE.UTF-8 (libc)", extensions=()
)
CONTENTS_OF_SHOP = DumpContents(
    server="15.18",
    pg_dump="15.18",
    major=15,
    superuser="postgres",
    database="shop",
    size_bytes=1_000,
    databases=(SHOP,),
)


def dumped(contents: DumpContents | None = CONTENTS_OF_SHOP, *names: str) -> MemorySource:
    sink = MemorySink(kind=DatasetKind.POSTGRESQL_DUMP)
    for name in names or (GLOBALS, SHOP.file):
        with sink.stream(name) as writer:
            writer.write(f"the {name}".encode() * 1000)
    facts = () if contents is None else ((FACT, contents.model_dump_json()),)
    return sink.source(SnapshotFacts(engine="postgresql 15.18", consistent_at=START, facts=facts))


def restore(source: MemorySource, into: Path, **more: object) -> None:
    request = replace(RestoreRequest(chain=(source,), into=into), **more)  # type: ignore[arg-type] # as a test gives it
    PostgreSQLDump(url=URL).restore(request, RecordingWatch())


def installed(folder: Path, version: str, *programs: str, share: Path | None = None) -> Path:
    """A folder of programs that tell their version, as PostgreSQL's do."""
    folder.mkdir()
    for name in programs:
        said = share if name == "pg_config" else f"{name} (PostgreSQL) {version} (Debian {version}-1)"
        (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def with_extensions(folder: Path, *names: str) -> Path:
    (folder / "extension").mkdir(parents=True)
    for name in names:
        (folder / "extension" / f"{name}.control").touch()
    return folder


# -- the url


def test_no_secret_of_the_url_is_shown() -> None:
    login = login_of(URL)
    assert login.secret == {"PGPASSWORD": "open sesame"}
    assert login.to("größe 'x'") == "user=reader dbname='größe \\'x\\'' host=db.example port=5433 sslmode=verify-full"
    assert "password='open sesame'" in login.complete("shop")
    assert named_database(URL) == "shop"
    assert named_database("postgresql://reader@db.example") is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://reader:sesame@db", "expected postgresql://USER:PASSWORD@HOST/DATABASE"),
        ("postgresql://db/shop?sslpassword=sesame", "sslpassword without showing it"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_without_being_quoted(url: str, words: str) -> None:
    with pytest.raises(TerminalError, match=words) as refused:
        login_of(url)
    assert "sesame" not in str(refused.value)


def test_a_server_that_does_not_answer_is_named() -> None:
    adapter = PostgreSQLDump(url="postgresql://reader:sesame@/shop?host=/nowhere/at/all")
    sink = MemorySink()
    for ask in (adapter.probe, lambda: adapter.snapshot(sink, parent=None, watch=RecordingWatch())):
        with pytest.raises(RetryableError, match="/nowhere/at/all") as refused:
            ask()
        assert "sesame" not in str(refused.value)
    assert sink.streams == {}


# -- programs


def test_the_oldest_pg_dump_writes_the_databases_and_the_newest_pg_dumpall_the_roles(tmp_path: Path) -> None:
    both = ("pg_dump", "pg_dumpall")
    search = (
        installed(tmp_path / "new", "18.6", *both),
        installed(tmp_path / "older", "14.2", *both),
        installed(tmp_path / "same", "16.1", *both),
        installed(tmp_path / "half", "15.9", "pg_dump"),
        tmp_path / "absent",
    )
    dumpers = dumpers_for(15, search)
    assert (dumpers.databases.version, dumpers.globals.version) == ("16.1", "18.6")
    assert dumpers_for(17, search).databases.major == 18
    with pytest.raises(TerminalError, match=r"the server is PostgreSQL 19, .*apt-get install postgresql-client-19"):
        dumpers_for(19, search)


def test_the_newest_postgresql_that_has_the_extensions_loads(tmp_path: Path) -> None:
    programs = ("postgres", "pg_config")
    plain, gis = with_extensions(tmp_path / "a", "plpgsql"), with_extensions(tmp_path / "b", "plpgsql", "postgis")
    search = (
        installed(tmp_path / "17", "17.2", *programs, share=gis),
        installed(tmp_path / "18", "18beta1", *programs, share=plain),
        installed(tmp_path / "14", "14.2", *programs, share=gis),
    )
    needs = CONTENTS_OF_SHOP.model_copy(update={"databases": (SHOP.model_copy(update={"extensions": (POSTGIS,)}),)})
    assert loader_for(CONTENTS_OF_SHOP, search).version == "18beta1"
    assert loader_for(needs, search).major == 17
    with pytest.raises(TerminalError, match=r"18 in .* lacks the extension postgis 3.4, which the database shop needs"):
        loader_for(needs, search[1:])
    with pytest.raises(TerminalError, match="only PostgreSQL 15 or newer can load it; none was found here"):
        loader_for(CONTENTS_OF_SHOP, search[2:])


def test_a_damaged_archive_is_told_in_pg_restores_words(tmp_path: Path) -> None:
    words = "pg_restore: error: could not read from input file: end of file"
    bin_ = installed(tmp_path / "bin", "18.6", "postgres")
    (bin_ / "pg_restore").write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n", encoding="utf-8")
    (bin_ / "pg_restore").chmod(0o755)
    restore(dumped(), tmp_path / "into")
    with pytest.raises(TerminalError, match=f"database-000.dump, the database shop, is damaged: {words}"):
        check_whole(tmp_path / "into", CONTENTS_OF_SHOP, Programs(folder=bin_, major=18), RecordingWatch())


# -- roles


@pytest.mark.parametrize(
    ("role", "line"), [("postgres", "CREATE ROLE postgres;"), ('the "boss"', 'CREATE ROLE "the ""boss""";')]
)
def test_the_role_that_a_new_cluster_begins_with_is_not_made_again(role: str, line: str) -> None:
    script = f"SET x = 1;\n{line}\nALTER ROLE postgres WITH LOGIN;\nCREATE ROLE postgres2;\n"
    assert without_role(script.encode(), role).decode() == script.replace(f"{line}\n", "", 1)
    assert without_role(f"{line}\n".encode(), role) == b""
    assert without_role(script.encode(), "other") == script.encode()


# -- what is restored


def test_the_files_and_their_list_are_put_back(tmp_path: Path) -> None:
    source = dumped()
    restore(source, tmp_path / "into")
    assert {path.name for path in (tmp_path / "into").iterdir()} == {GLOBALS, SHOP.file, CONTENTS}
    assert (tmp_path / "into" / SHOP.file).read_bytes() == source.streams[SHOP.file]
    assert read_contents(tmp_path / "into") == CONTENTS_OF_SHOP


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (dumped(None), "does not say what it consists of"),
        (dumped(CONTENTS_OF_SHOP, GLOBALS), "lacks database-000.dump; use another copy"),
        (
            dumped(
                CONTENTS_OF_SHOP.model_copy(update={"databases": (SHOP.model_copy(update={"file": "../../etc/x"}),)})
            ),
            "does not say what it consists of",
        ),
        (dumped(CONTENTS_OF_SHOP.model_copy(update={"size_bytes": 2**62})), "has room for .* need 4294967296.0 GiB"),
    ],
)
def test_what_cannot_be_a_whole_dump_is_refused(tmp_path: Path, source: MemorySource, words: str) -> None:
    with pytest.raises(TerminalError, match=words):
        restore(source, tmp_path / "into")
    assert not (tmp_path / "into").exists() or list((tmp_path / "into").iterdir()) == []


def test_there_is_no_other_moment_than_the_dumps_own(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"a dump holds one moment and no log: .*--point .*, without --to-time"):
        restore(dumped(), tmp_path / "into", to_time=START + timedelta(minutes=1))
    restore(dumped(), tmp_path / "into", to_time=START + timedelta(milliseconds=500))


def test_a_live_cluster_is_never_restored_into(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("18\n", encoding="utf-8")
    with pytest.raises(ConflictError, match="data folder of a PostgreSQL cluster"):
        restore(dumped(), tmp_path)


def test_a_folder_without_a_dump_is_not_started(tmp_path: Path) -> None:
    with (
        pytest.raises(TerminalError, match=r"holds no restored dump \(no whole contents.json\)"),
        PostgreSQLDump(url=URL).start(tmp_path, RecordingWatch()),
    ):
        pass
