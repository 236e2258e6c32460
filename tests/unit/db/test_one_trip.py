"""The SQLite connection that makes one trip per statement: same answers, nothing left open, nothing lost."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controlplane.adapters.db.engine import sqlite_url
from controlplane.adapters.db.one_trip import OneTripConnection
from controlplane.adapters.db.store import open_store
from controlplane.testing.builders import make_node_spec


class CountedConnection(OneTripConnection):
    def __init__(self, database: str) -> None:
        super().__init__(database)
        self.trips = 0

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self.trips += 1
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]  # aiosqlite's, untyped


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[CountedConnection]:
    opened = CountedConnection(str(tmp_path / "file.sqlite3"))
    await opened
    await opened.cursor().execute("CREATE TABLE t (n INTEGER PRIMARY KEY, word TEXT)")
    yield opened
    await opened.close()


async def test_a_query_and_all_of_its_rows_are_one_trip(connection: CountedConnection) -> None:
    await connection.cursor().executemany("INSERT INTO t VALUES (?, ?)", [(n, str(n)) for n in range(100)])
    before = connection.trips
    cursor = await connection.cursor().execute("SELECT n, word FROM t WHERE n < ? ORDER BY n", (50,))
    assert [name for name, *_ in cursor.description] == ["n", "word"]
    assert await cursor.fetchall() == [(n, str(n)) for n in range(50)]
    assert await cursor.fetchall() == []
    await cursor.close()
    assert connection.trips == before + 1


async def test_counts_and_row_ids_are_kept(connection: CountedConnection) -> None:
    cursor = await connection.cursor().execute("INSERT INTO t VALUES (7, 'seven')")
    assert (cursor.lastrowid, cursor.rowcount, cursor.description) == (7, 1, None)
    assert (await connection.cursor().execute("UPDATE t SET word = 'x'")).rowcount == 1


async def test_a_rollback_is_a_trip_only_after_something_was_sent(connection: CountedConnection) -> None:
    await connection.commit()
    before = connection.trips
    await connection.rollback()
    assert connection.trips == before
    await connection.cursor().execute("INSERT INTO t VALUES (1, 'one')")
    await connection.rollback()
    assert await (await connection.cursor().execute("SELECT * FROM t")).fetchall() == []


async def test_after_an_error_the_rollback_is_made(connection: CountedConnection) -> None:
    await connection.commit()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await connection.cursor().execute("SELECT * FROM missing")
    before = connection.trips
    await connection.rollback()
    assert connection.trips == before + 1


async def test_a_transaction_cancelled_while_it_waits_for_the_file_leaves_the_store_usable(tmp_path: Path) -> None:
    """The statement goes on in its thread after its waiter is gone: what it began must not stay open."""
    path = tmp_path / "store.sqlite3"
    store = await open_store(sqlite_url(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async def write() -> None:
            async with store.transaction() as tx:
                await tx.put_node_spec(make_node_spec("node-1"))

        waiting = asyncio.create_task(write())
        await asyncio.sleep(0.05)
        waiting.cancel()
        other.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with store.transaction() as tx:
        assert list(await tx.nodes()) == []
        await tx.put_node_spec(make_node_spec("node-2"))
    async with store.transaction() as tx:
        assert [node.name for node in await tx.nodes()] == ["node-2"]
    await store.close()
