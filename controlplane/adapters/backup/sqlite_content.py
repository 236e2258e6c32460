"""What a SQLite file holds: rows and a content hash of each table, and its schema, object by object."""

import hashlib
import marshal
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.sqlite_copy import open_read_only
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import Watch

SCHEMA_FACT: Final = "schema/"
"""Before the type and name of each object of the schema; the value is the start of its definition's hash."""
FOREIGN_KEYS_FACT: Final = "foreign_key_violations"
"""Rows whose parent was missing in the live database already: a drill counts only new ones."""
_HASH_DIGITS: Final = 16
"""Of a definition's SHA-256: these are compared, not defended; the whole file has its full hash."""
_ROWS_AT_ONCE: Final = 2_000
"""Part of what is hashed: another number gives other hashes."""
_MARSHAL_VERSION: Final = 2
"""Of Python's own serialisation: the last one in which equal values always give equal bytes, unchanged since 2005. It
tells a text from a blob and an integer from a real, and is five times faster than writing literals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteContent:
    counts: tuple[Count, ...]
    facts: tuple[tuple[str, str], ...]


def content_of(path: Path, watch: Watch) -> SqliteContent:
    """Of a file that nobody writes. sqlite3.DatabaseError when it is not sound."""
    with closing(open_read_only(path)) as connection:
        return SqliteContent(
            counts=tuple(_count(connection, table, watch) for table in _tables(connection)),
            facts=(
                *schema_facts(connection),
                (FOREIGN_KEYS_FACT, foreign_key_violations(connection)),
            ),
        )


def schema_facts(connection: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
    """Each object of the schema with a hash of its definition, and the application's version number."""
    objects = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return (
        *((f"{SCHEMA_FACT}{kind} {name}", _short_hash(f"{table}\0{sql}")) for kind, name, table, sql in objects),
        (f"{SCHEMA_FACT}user_version", str(version)),
    )


def foreign_key_violations(connection: sqlite3.Connection) -> str:
    """How many rows name a parent that is not there; SQLite's words where the schema itself cannot be checked."""
    try:
        return str(sum(1 for _ in connection.execute("PRAGMA foreign_key_check")))
    except sqlite3.OperationalError as error:
        return str(error)


def _tables(connection: sqlite3.Connection) -> list[str]:
    # What virtual tables hold lies in ordinary tables beside them, which are counted.
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        "AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    )
    return [name for (name,) in rows]


def _count(connection: sqlite3.Connection, table: str, watch: Watch) -> Count:
    """Rows, and a SHA-256 over all values with their types in the order of the primary key (or the row id)."""
    connection.text_factory = str
    try:
        return _hashed(connection, table, watch)
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    # SQLite lets a text be no UTF-8. It is content as well; valid text hashes the same either way.
    connection.text_factory = _lenient
    return _hashed(connection, table, watch)


def _hashed(connection: sqlite3.Connection, table: str, watch: Watch) -> Count:
    digest = hashlib.sha256()
    rows = 0
    quoted = table.replace('"', '""')
    # NOT INDEXED: a scan of the table itself, in its own order; an index that holds all columns would have another.
    cursor = connection.execute(f'SELECT * FROM "{quoted}" NOT INDEXED')  # noqa: S608 - a name from its own schema
    while batch := cursor.fetchmany(_ROWS_AT_ONCE):
        digest.update(marshal.dumps(batch, _MARSHAL_VERSION))
        rows += len(batch)
        watch.advance(0)
    return Count(name=table, rows=rows, sha256=digest.hexdigest())


def _lenient(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_HASH_DIGITS]
