"""The store on SQLAlchemy Core: implements `controlplane.domain.store.Store` on SQLite and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.adapters.db.claim_rows import ClaimRows
from controlplane.adapters.db.deployment_rows import DeploymentRows, deployment_from_row
from controlplane.adapters.db.engine import SQLITE, check_sqlite_file, create_engine, meaning, parse_url
from controlplane.adapters.db.history_rows import HistoryRows
from controlplane.adapters.db.node_rows import NodeRows, node_from_row
from controlplane.adapters.db.recovery_rows import RecoveryRows
from controlplane.adapters.db.remembered import Remembered
from controlplane.adapters.db.replica_rows import ReplicaRows, replica_from_row
from controlplane.adapters.db.schema import bring_up_to_date
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.site_rows import SiteRows
from controlplane.domain.store import Store, Transaction


async def open_store(url: str) -> "SqlStore":
    """The store at `url` (`postgresql://...` or what `sqlite_url` gives), its schema created or migrated.

    Several instances may start at once: they migrate one after the other. RetryableError when the database cannot be
    reached; TerminalError when it was left by a newer version of this program.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        await asyncio.to_thread(check_sqlite_file, parsed)
    engine = create_engine(parsed)
    try:
        await bring_up_to_date(engine)
    except SQLAlchemyError as error:
        await engine.dispose()
        raise meaning(error) from error
    except BaseException:
        await engine.dispose()
        raise
    return SqlStore(engine)


class SqlTransaction(SiteRows, NodeRows, DeploymentRows, ReplicaRows, HistoryRows, RecoveryRows, ClaimRows):
    """One transaction: the row modules over one session."""

    def __init__(self, session: Session, memory: "RowMemory") -> None:
        self._session = session
        self._nodes = memory.nodes
        self._deployments = memory.deployments
        self._replicas = memory.replicas
        self._unwritten: dict[Table, list[dict[str, Any]]] = {}


class RowMemory:
    """What the store remembers of its rows between transactions."""

    def __init__(self) -> None:
        self.nodes = Remembered(node_from_row)
        self.deployments = Remembered(deployment_from_row)
        self.replicas = Remembered(replica_from_row)


class SqlStore:
    """Made by `open_store`; `close()` ends its connections and their threads."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._memory = RowMemory()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        try:
            async with self._engine.begin() as connection:
                transaction = SqlTransaction(Session(connection), self._memory)
                yield transaction
                await transaction.write_appended()
        except SQLAlchemyError as error:
            raise meaning(error) from error

    async def close(self) -> None:
        await self._engine.dispose()


def _conforms(store: SqlStore) -> Store:
    """The type checker's proof that the port is implemented whole."""
    return store
