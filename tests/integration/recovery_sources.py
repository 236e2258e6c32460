"""What recovery copies in tests: databases and folders with contents that nobody has seen before."""

import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from controlplane.testing.effects import START

_STEP: Final = timedelta(seconds=5)


def fill(path: Path, *, seed: int = 1, rows: int = 600) -> None:
    """A database with an index, a foreign key, and contents that do not pack well."""
    chance = random.Random(seed)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);"
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer REFERENCES customers, body BLOB, placed_at TEXT);"
            "CREATE INDEX by_time ON orders (placed_at);"
        )
        connection.executemany("INSERT INTO customers VALUES (?, ?)", [(n, f"customer {n}") for n in range(1, 21)])
        connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?)",
            [
                (n, chance.randint(1, 20), chance.randbytes(chance.randint(50, 350)), f"{START - n * _STEP:%F %T}")
                for n in range(rows)
            ],
        )
        connection.commit()


def content(database: bytes | Path) -> str:
    """A hash of all there is, whatever pages it lies in."""
    with closing(sqlite3.connect(":memory:")) as connection:
        if isinstance(database, Path):
            with closing(sqlite3.connect(database)) as file:
                file.backup(connection)
        else:
            connection.deserialize(database)
        return sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def plant(folder: Path, chance: random.Random) -> None:
    """Files of all sizes in folders, links, an empty one, a name that is no ASCII."""
    for number in range(chance.randint(1, 12)):
        place = folder / f"part {chance.randint(1, 3)}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file {number}").write_bytes(chance.randbytes(chance.randint(0, 30_000)))
    (folder / "leer").touch()
    (folder / "größe.txt").write_text("two and forty")
    (folder / "link").symlink_to("leer")
