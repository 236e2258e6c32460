"""Engines for the two databases, and what their errors mean to a caller."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from controlplane.adapters.db.one_trip import OneTripConnection
from controlplane.kernel.errors import ConflictError, QuarterdeckError, RetryableError, TerminalError

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"

_POOL_TIMEOUT_S: Final = 10.0
"""Waiting for a connection. Transactions last milliseconds: whoever waits this long sees a store that is stuck."""
_SQLITE_BUSY_TIMEOUT_MS: Final = 5_000
"""Waiting for another process's lock on the file: a backup, a shell, a control plane that is just ending."""
_SQLITE_PRAGMAS: Final = (
    f"busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}",
    "journal_mode=WAL",
    # A commit survives the death of the process (kill -9); the last ones may be lost with the power, the file stays
    # whole. FULL would add an fsync to each commit to protect rows about local processes, which a power cut ends too.
    "synchronous=NORMAL",
    "foreign_keys=ON",
)
_SQLITE_VERSION_MIN: Final = (3, 24, 0)
"""The first with ON CONFLICT DO UPDATE."""

_POSTGRESQL_CONNECTIONS_MAX: Final = 8
"""Of one control plane. Loops hold one for milliseconds; a server's usual limit is 100 for all its clients."""
_POSTGRESQL_CONNECT_TIMEOUT_S: Final = 5
_POSTGRESQL_SETTINGS: Final = {
    # Longest statement: reading everything takes tens of milliseconds.
    "statement_timeout": "10s",
    # A row is locked for one short transaction; longer means that its owner is stuck.
    "lock_timeout": "3s",
    # An instance that stopped inside a transaction (SIGSTOP, a dead host) loses its locks after this.
    "idle_in_transaction_session_timeout": "10s",
}
_POSTGRESQL_TCP_TIMEOUT_MS: Final = 10_000
"""Data unacknowledged for so long ends the connection: a lost server must not hold a loop for the kernel's 15 min."""

_RETRYABLE_SQLSTATES: Final = frozenset(
    {
        "40001",  # serialization_failure: another transaction changed a row first
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "57014",  # query_canceled: statement_timeout
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "53300",  # too_many_connections
        "25P03",  # idle_in_transaction_session_timeout
        "25P02",  # in_failed_sql_transaction: the statement before failed
    }
)
_CONTENTION_SQLSTATES: Final = frozenset({"40001", "55P03"})
_SQLITE_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def sqlite_url(path: Path) -> str:
    """The store's URL for a SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string(hide_password=False)


def parse_url(text: str) -> URL:
    """The URL with our drivers; TerminalError for a database that is not supported. Never prints a password."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise TerminalError(
            "the store's URL cannot be read; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:///PATH"
        ) from error
    match url.get_backend_name():
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+psycopg")
        case "sqlite":
            return url.set(drivername="sqlite+aiosqlite")
        case other:
            raise TerminalError(f"the store's URL names {other!r}, expected postgresql or sqlite")


def create_engine(url: URL) -> AsyncEngine:
    """An engine whose transactions are serialisable in effect; nothing connects yet."""
    return _sqlite_engine(url) if url.get_backend_name() == SQLITE else _postgresql_engine(url)


def check_sqlite_file(url: URL) -> None:
    """TerminalError when the file cannot be opened or is something else; blocks for a moment.

    Before the engine tries: its driver leaves a thread behind, complaining, when opening fails.
    """
    path = url.database or ""
    try:
        with closing(sqlite3.connect(path, timeout=_SQLITE_BUSY_TIMEOUT_MS / 1000)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        raise TerminalError(
            f"the store's file {path} cannot be opened: {error}. Its folder must exist and be writable"
        ) from error
    except sqlite3.DatabaseError as error:
        raise TerminalError(f"the store's file {path} is not ours: {error}. Move it away, or name another") from error


def _sqlite_engine(url: URL) -> AsyncEngine:
    if sqlite3.sqlite_version_info < _SQLITE_VERSION_MIN:
        wanted = ".".join(map(str, _SQLITE_VERSION_MIN))
        raise TerminalError(f"this Python has SQLite {sqlite3.sqlite_version}, expected {wanted} or newer")
    # One connection: SQLite has one writer anyway, and waiting in a fair queue beats polling for its lock.
    engine = create_async_engine(
        url,
        async_creator=partial(_connect_sqlite, url.database or ""),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT_S,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: DBAPIConnection, _record: object) -> None:
        try:
            _configure_sqlite(connection)
        except BaseException:
            connection.close()  # the pool never sees it, and its thread would stay
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # IMMEDIATE: a transaction that reads first and writes later would otherwise fail when it upgrades its lock.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def _connect_sqlite(path: str) -> OneTripConnection:
    connection = OneTripConnection(path)
    await connection
    return connection


def _configure_sqlite(connection: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _postgresql_engine(url: URL) -> AsyncEngine:
    # REPEATABLE READ: one snapshot for all that a decision reads, and whoever writes a row second, having read it
    # before the first wrote, fails and retries (no lost update). What remains of write skew is closed by the unique
    # constraints and by the claim's lock; SERIALIZABLE would also abort transactions that merely read whole tables.
    return create_async_engine(
        url,
        isolation_level="REPEATABLE READ",
        pool_size=_POSTGRESQL_CONNECTIONS_MAX,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _POSTGRESQL_CONNECT_TIMEOUT_S,
            "options": " ".join(f"-c {name}={value}" for name, value in _POSTGRESQL_SETTINGS.items()),
            "tcp_user_timeout": _POSTGRESQL_TCP_TIMEOUT_MS,
            "application_name": "quarterdeck",
        },
    )


def is_contention(error: DBAPIError) -> bool:
    """Another transaction changed the row since this one's snapshot, or has it locked."""
    return getattr(error.orig, "sqlstate", None) in _CONTENTION_SQLSTATES


def meaning(error: SQLAlchemyError) -> QuarterdeckError:
    """What the caller should do about a database's error."""
    if isinstance(error, PoolTimeoutError):
        return RetryableError(f"the store was busy for {_POOL_TIMEOUT_S:.0f} s; try again")
    if isinstance(error, IntegrityError):
        return ConflictError(f"the store refused a row that contradicts another: {_first_line(error)}")
    if isinstance(error, DBAPIError) and _is_retryable(error):
        return RetryableError(f"the store could not finish the transaction: {_first_line(error)}; try again")
    return TerminalError(f"the store failed: {_first_line(error)}")


def _is_retryable(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_BUSY_CODES
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state in _RETRYABLE_SQLSTATES or state.startswith("08")
    # psycopg gives no state for a connection that could not be made or broke.
    return error.connection_invalidated or type(error.orig).__name__ == "OperationalError"


def _first_line(error: SQLAlchemyError) -> str:
    """The database's own words, without the statement and its parameters."""
    words = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    return words.strip().partition("\n")[0] or type(error).__name__
