"""Rows of tables at a copy and in what was restored from it.

What the numbers mean: they are read in one snapshot per database right after the copy. When no transaction that writes
ran from before the copy until after the counting, they hold exactly for the copy (`exact`). Else they only tell the
order of magnitude (`moving`): rows may have come and gone between the copy's last byte and the counting.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from controlplane.adapters.backup.assertions import compare_counts, differences
from controlplane.domain.recovery import CheckOutcome
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import Watch

EXACT: Final = "exact"
MOVING: Final = "moving"

TABLE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Larger tables are not counted: a count reads all of it, on the live server."""
_TABLES_MAX: Final = 500
_COUNT_MS: Final = 10_000
"""For one table."""
_WANTED_COUNT_MS: Final = 1_800_000
"""For one table of a copy, which has nothing else to do: a terabyte off a slow disk."""
_ANY_BYTES: Final = 2**62
ONE_SNAPSHOT: Final = b"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_EMPTIED_ROWS_MIN: Final = 1_000
"""A table with so many rows at the copy and none afterwards was lost, not merely worked off like a queue."""
_TABLES: Final = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'  -- unlogged ones are empty after every crash
  AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema'
  AND has_table_privilege(c.oid, 'SELECT') AND pg_relation_size(c.oid) <= %s
ORDER BY pg_relation_size(c.oid), 1, 2 LIMIT %s"""


@dataclass(frozen=True, slots=True)
class WriteMark:
    """Two equal marks: no transaction got an id in between, so nothing was written."""

    next_xid: str
    running: bool

    def quiet_until(self, later: "WriteMark") -> bool:
        return self.next_xid == later.next_xid and not self.running and not later.running


def write_mark(connection: psycopg.Connection) -> WriteMark:
    row = connection.execute("SELECT pg_snapshot_xmin(s)::text, pg_snapshot_xmax(s)::text FROM pg_current_snapshot() s")
    found = row.fetchone()
    assert found is not None, "SELECT gives a row"
    return WriteMark(found[1], running=found[0] != found[1])


def databases(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate "
        "AND has_database_privilege(datname, 'CONNECT') ORDER BY datname"
    )
    return [str(row[0]) for row in rows]


def counts_of(url: str, names: Sequence[str], watch: Watch) -> tuple[Count, ...]:
    """Of all databases, smallest tables first; what may not be read, is too large or takes too long is left out."""
    watch.step("count rows")
    found = [count for name in names for count in _counts_of_database(url, name, watch)]
    return tuple(sorted(found, key=lambda count: count.name))


def verdict(expected: tuple[Count, ...], found: Sequence[Count], *, exact: bool) -> CheckOutcome:
    """Exactly the same where that can be demanded; else every table is there, and none lost all of many rows."""
    rows = {count.name: count.rows for count in found}
    if exact:
        return compare_counts(expected, rows)
    wrong = [
        f"{count.name}: not there, expected with about {count.rows} rows"
        if count.name not in rows
        else f"{count.name}: empty, expected about {count.rows} rows"
        for count in expected
        if rows.get(count.name) is None or (count.rows >= _EMPTIED_ROWS_MIN and rows[count.name] == 0)
    ]
    before, after = sum(count.rows for count in expected), sum(rows.values())
    held = f"all {len(expected)} counted tables are there, {after} rows (about {before} at the copy, it was written to)"
    return differences("counts", wrong, otherwise=held)


def counts_in(connection: psycopg.Connection, watch: Watch, *, wanted: frozenset[str] | None = None) -> Iterator[Count]:
    """Of the connection's database, inside its transaction. `wanted`: these tables, however large they are."""
    name = connection.info.dbname
    bounds = (TABLE_BYTES_MAX, _TABLES_MAX) if wanted is None else (_ANY_BYTES, None)
    timeout_ms = _COUNT_MS if wanted is None else _WANTED_COUNT_MS
    connection.execute(f"SET LOCAL statement_timeout = {timeout_ms}".encode())
    for schema, table in connection.execute(_TABLES, bounds).fetchall():
        watch.advance(0)
        full_name = f"{name}.{schema}.{table}"
        if wanted is not None and full_name not in wanted:
            continue
        try:
            with connection.transaction():
                statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
                row = connection.execute(statement).fetchone()
        except (psycopg.errors.QueryCanceled, psycopg.errors.InsufficientPrivilege):
            continue
        assert row is not None, "count gives a row"
        yield Count(name=full_name, rows=int(row[0]))


def _counts_of_database(url: str, name: str, watch: Watch) -> Iterator[Count]:
    with psycopg.connect(url, dbname=name, autocommit=True, connect_timeout=10) as connection:
        connection.execute(ONE_SNAPSHOT)
        yield from counts_in(connection, watch)
