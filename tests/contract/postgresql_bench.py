"""A live PostgreSQL for the contract suite of adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from controlplane.adapters.backup.postgresql.dump import PostgreSQLDump
from controlplane.adapters.backup.postgresql.dump_contents import CONTENTS, GLOBALS, read_contents
from controlplane.adapters.backup.postgresql.login import named_database
from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.private import PORT
from controlplane.adapters.backup.postgresql.restore import read_note
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.domain.dataset import CheckSpec
from controlplane.recovery.ports import DatasetAdapter
from tests.contract.dataset_lab import SEEDED, Damage, file_damages, flip, halve
from tests.postgresql import new_database, running_postgresql


@dataclass(slots=True)
class PostgreSQLBench:
    """A write inserts into two tables in one transaction."""

    url: str
    adapter: DatasetAdapter = field(init=False)
    _file: str = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = self.adapter_of(self.url)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id bigint PRIMARY KEY, note text, body text)")
            connection.execute("CREATE TABLE b (id bigint PRIMARY KEY REFERENCES a (id))")
            connection.execute(
                "INSERT INTO a SELECT g, 'note-' || g, repeat(md5(g::text), 10) FROM generate_series(0, %s) g",
                (SEEDED - 1,),
            )
            connection.execute("INSERT INTO b SELECT id FROM a")
            row = connection.execute("SELECT pg_relation_filepath('a')").fetchone()
        assert row is not None
        self._file = row[0]

    def adapter_of(self, url: str) -> DatasetAdapter:
        return PostgreSQLAdapter(url=url, dataset="data")

    @property
    def absent(self) -> DatasetAdapter:
        return self.adapter_of("postgresql://nobody@/nowhere?host=/nowhere")

    @property
    def source_folder(self) -> Path | None:
        return None

    def write(self, number: int) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute("INSERT INTO a VALUES (%s, %s, '')", (number, f"note-{number}"))
            connection.execute("INSERT INTO b VALUES (%s)", (number,))

    def content(self) -> object:
        return _tables(self.url)

    def restored_content(self, into: Path) -> object:
        places = places_of(into)
        note = read_note(places)
        return _tables(f"postgresql://{note.superuser}@/{note.database}?host={places.sockets}&port={PORT}")

    def newest(self, content: object) -> int:
        assert isinstance(content, dict)
        assert [row[0] for row in content["a"]] == [row[0] for row in content["b"]]
        return int(content["a"][-1][0])

    def checks(self) -> tuple[tuple[CheckSpec, bool], ...]:
        return (
            (CheckSpec(name="rows", sql="SELECT count(*) FROM a", at_least=SEEDED, at_most=10 * SEEDED), True),
            (CheckSpec(name="note", sql="SELECT note FROM a WHERE id = 7", equals="note-7"), True),
            (CheckSpec(name="few", sql="SELECT count(*) FROM a", at_most=1), False),
            (CheckSpec(name="no such table", sql="SELECT * FROM nowhere"), False),
            (CheckSpec(name="nothing", sql="SELECT note FROM a WHERE id = -1", at_least=0), False),
            (CheckSpec(name="writes", sql="DELETE FROM b RETURNING id", at_least=0), False),
        )

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        return (
            *file_damages(f"data/{self._file}"),
            ("no control file", lambda into: (into / "data/global/pg_control").unlink()),
            ("a file more", lambda into: (into / "data/base/more").touch()),
            ("no log of its own", lambda into: next((into / "data/pg_wal").glob("0" * 7 + "*")).unlink()),
            ("the label of the copy gone", lambda into: (into / "data/backup_label").unlink()),
        )


@dataclass(slots=True)
class DumpBench(PostgreSQLBench):
    """The same, written out by pg_dump."""

    def adapter_of(self, url: str) -> DatasetAdapter:
        return PostgreSQLDump(url=url, only=named_database(url))

    def restored_content(self, into: Path) -> object:
        contents = read_contents(into)
        places = places_of(into)
        return _tables(f"postgresql://{contents.superuser}@/{contents.database}?host={places.sockets}&port={PORT}")

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        return (
            *file_damages("database-000.dump"),
            ("a byte of the roles flipped", lambda into: flip(into / GLOBALS, share=0.5)),
            ("the roles halved", lambda into: halve(into / GLOBALS)),
            ("the roles gone", lambda into: (into / GLOBALS).unlink()),
            ("no list", lambda into: (into / CONTENTS).unlink()),
            ("half a list", lambda into: halve(into / CONTENTS)),
        )


def _tables(url: str) -> dict[str, list[tuple[object, ...]]]:
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY id".encode()).fetchall() for table in ("a", "b")
        }


@contextmanager
def open_postgresql(folder: Path) -> Iterator[PostgreSQLBench]:
    """A fresh live server; skips where there is none on this machine. Copies restored in the folder go at the end."""
    with running_postgresql() as server:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            # Counts of a physical copy are exact only while nobody else writes.
            connection.execute("ALTER SYSTEM SET autovacuum = off")
            connection.execute("SELECT pg_reload_conf()")
        bench = PostgreSQLBench(new_database(server))
        try:
            yield bench
        finally:
            # Where root runs the tests, their files lie outside of the folder.
            for into in folder.iterdir():
                if into.is_dir() and not into.is_symlink():
                    bench.adapter.end_leftovers(into)
