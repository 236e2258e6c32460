"""SQLite in its thread, one trip for each statement.

aiosqlite makes four trips to its thread for a query (a cursor, the statement, the rows, the cursor's end), each two
switches of threads that cost more than the statement. A tick over a fleet is some hundred small transactions, so here
a statement and all of its rows are one trip, and the rollback with which a pool greets a finished transaction is none.
"""

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

import aiosqlite

_CHUNK: Final = 64
"""aiosqlite's own default; only for iteration, which nobody does here."""

type _Rows = list[Any]


class OneTripConnection(aiosqlite.Connection):
    """An aiosqlite connection as SQLAlchemy's dialect uses it. Await it to open the file."""

    def __init__(self, database: str) -> None:
        super().__init__(lambda: sqlite3.connect(database, check_same_thread=False), _CHUNK)
        # A thread that waits for a database on a stuck disk must not keep a process from ending.
        self._thread.daemon = True
        self._clean = False

    def cursor(self) -> "OneTripCursor":  # type: ignore[override]  # SQLAlchemy enters it, which makes no trip here
        return OneTripCursor(self)

    async def commit(self) -> None:
        await super().commit()
        self._clean = True

    async def rollback(self) -> None:
        """Nothing when nothing was sent since the last commit or rollback that came back."""
        if not self._clean:
            await super().rollback()
            self._clean = True

    async def in_thread[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run it where the database is. Whatever becomes of the wait, the connection counts as used from now on."""
        self._clean = False
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]  # aiosqlite's, untyped
        return result


class OneTripCursor:
    """What a statement left: all of its rows, fetched already."""

    def __init__(self, connection: OneTripConnection) -> None:
        self._connection = connection
        self._rows: _Rows = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> Self:
        """The statement and its rows; sqlite3's errors."""
        return await self._run(lambda cursor: cursor.execute(sql, tuple(parameters)))

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._run(lambda cursor: cursor.executemany(sql, list(map(tuple, parameters))))

    async def fetchall(self) -> _Rows:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []

    async def _run(self, statement: Callable[[sqlite3.Cursor], object]) -> Self:
        def work(connection: sqlite3.Connection) -> _Rows:
            cursor = connection.cursor()
            try:
                statement(cursor)
                rows = cursor.fetchall() if cursor.description else []
                self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
            finally:
                cursor.close()
            return rows

        self._rows = await self._connection.in_thread(work)
        return self
