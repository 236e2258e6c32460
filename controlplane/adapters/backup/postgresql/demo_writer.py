"""A small, bounded write load: orders of a shop, a few rows a second, so that a demo has something to lose."""

import threading
from datetime import timedelta
from typing import Final

import psycopg

RATE_PER_S: Final = 3.0
ROWS_MAX: Final = 200_000
"""Some 25 MB; beyond it the oldest go, so a demo that is left alone for a year fills no disk."""

TRIM_EVERY: Final = 1_000
"""Rows between two looks at the bound."""
_RECONNECT: Final = timedelta(seconds=1)
_CONNECT_S: Final = 5
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    placed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    customer text NOT NULL,
    amount numeric(10, 2) NOT NULL CHECK (amount >= 0),
    note text NOT NULL
)"""
_INSERT: Final = """
INSERT INTO orders (customer, amount, note)
VALUES ('customer-' || floor(random() * 500)::int, round((random() * 200)::numeric, 2), md5(random()::text))
RETURNING id"""


class DemoWriter:
    """One row a commit. `written` counts what PostgreSQL acknowledged."""

    def __init__(
        self, url: str, *, rate_per_s: float = RATE_PER_S, rows_max: int = ROWS_MAX, trim_every: int = TRIM_EVERY
    ) -> None:
        self._url = url
        self._pause_s = 1 / rate_per_s
        self._rows_max = rows_max
        self._trim_every = trim_every
        self.written = 0
        self.newest_id = 0
        self.last_error = ""

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; whatever happens to the server, it connects again.

        A commit of a synchronous site waits for the bucket: ending the server ends that wait.
        """
        while not stop.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_S) as connection:
                    connection.execute(_TABLE)
                    self._write(connection, stop)
            except psycopg.Error as error:
                self.last_error = str(error).strip()
                stop.wait(_RECONNECT.total_seconds())

    def _write(self, connection: psycopg.Connection, stop: threading.Event) -> None:
        while not stop.wait(self._pause_s):
            row = connection.execute(_INSERT).fetchone()
            assert row is not None, "INSERT ... RETURNING gives a row"
            self.newest_id = int(row[0])
            self.written += 1
            if self.written % self._trim_every == 0:
                connection.execute("DELETE FROM orders WHERE id <= %s", (self.newest_id - self._rows_max,))
