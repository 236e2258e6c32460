"""One open transaction, as the row modules see it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import CursorResult, Executable, Row, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.adapters.db.engine import POSTGRESQL

type Insert = postgresql.Insert | sqlite.Insert
type Parameters = dict[str, Any] | Sequence[dict[str, Any]]

_COUNT_ROWS: Final = {"preserve_rowcount": True}
"""SQLAlchemy forgets the count of an INSERT otherwise; one that meets a conflict may have changed nothing."""


class Session:
    """Statements on one connection, inside one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.is_postgresql = connection.dialect.name == POSTGRESQL

    async def run(self, statement: Executable, parameters: Parameters | None = None) -> int:
        """Rows changed."""
        result = await self._connection.execute(statement, parameters, execution_options=_COUNT_ROWS)
        assert isinstance(result, CursorResult), f"{statement} changes nothing"
        return result.rowcount

    async def rows(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Row[Any]]:
        return (await self._connection.execute(statement, parameters)).all()

    async def row(self, statement: Executable, parameters: Parameters | None = None) -> Row[Any] | None:
        return (await self._connection.execute(statement, parameters)).one_or_none()

    def insert(self, table: Table) -> Insert:
        """An INSERT that knows ON CONFLICT."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What fails inside is undone alone; the transaction goes on."""
        async with self._connection.begin_nested():
            yield
