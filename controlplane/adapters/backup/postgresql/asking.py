"""A live server asked, its errors told as what is to do about them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from controlplane.adapters.backup.postgresql.replication import CONNECT_S
from controlplane.kernel.errors import RetryableError, TerminalError

SIZE: Final = (
    b"SELECT sum(pg_database_size(oid)) FROM pg_database "
    b"WHERE has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')"
)
"""Of everything in the cluster that may be asked about, in bytes."""


@contextmanager
def asking(url: str) -> Iterator[psycopg.Connection]:
    """RetryableError when it does not answer or breaks off; TerminalError for what the role may not do."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S) as connection:
            yield connection
    except psycopg.errors.InsufficientPrivilege as error:
        raise TerminalError(f"the role of the dataset's url may not ask: {error.diag.message_primary}") from error
    except psycopg.Error as error:
        raise RetryableError(f"PostgreSQL does not answer: {str(error).strip()}") from error


def whole_size(connection: psycopg.Connection) -> int:
    row = connection.execute(SIZE).fetchone()
    return int(row[0] or 0) if row else 0
