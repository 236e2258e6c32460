"""The schema's version: looked at on every start, changed by Alembic when it is not ours."""

from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from controlplane.adapters.db.engine import POSTGRESQL

HEAD: Final = "0002"
"""The newest migration; a test compares it with the folder."""

_MIGRATION_LOCK: Final = 0x51446D67
"""PostgreSQL's advisory lock of migrators: `QDmg`."""


async def bring_up_to_date(engine: AsyncEngine) -> None:
    """Create or migrate the schema in one transaction, so that it is whole or untouched. TerminalError when newer."""
    async with engine.connect() as connection:
        if engine.dialect.name == POSTGRESQL:
            # Each statement must see what the instance before it did while this one waited for the lock.
            await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            await _lock(connection)
            if await connection.run_sync(current_version) != HEAD:
                await connection.run_sync(_upgrade)


def current_version(connection: Connection) -> str | None:
    """The migration that the database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


async def _lock(connection: AsyncConnection) -> None:
    """Until the end of the transaction. SQLite's transaction holds the whole file by itself."""
    if connection.dialect.name == POSTGRESQL:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def _upgrade(connection: Connection) -> None:
    # Heavy (Mako, half a second of imports) and not needed when the schema is up to date: nearly every start.
    from controlplane.adapters.db.migrate import upgrade  # noqa: PLC0415 - heavy, see above

    upgrade(connection)
