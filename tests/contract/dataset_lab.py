"""Live datasets for the contract suite of adapters: small, real, and with a write that would show a torn copy."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import redis

from controlplane.adapters.backup.files import FilesDataset
from controlplane.adapters.backup.files_index import INDEX_NAME
from controlplane.adapters.backup.redis import RedisDataset
from controlplane.adapters.backup.redis_scratch import RDB_NAME
from controlplane.adapters.backup.sqlite import SqliteDataset
from controlplane.domain.dataset import CheckSpec
from controlplane.recovery.ports import DatasetAdapter
from tests.redis_server import running_redis

SEEDED = 400
"""Things in a fresh dataset."""
type Damage = Callable[[Path], None]


class Bench(Protocol):
    """One live dataset of a kind."""

    @property
    def adapter(self) -> DatasetAdapter: ...

    @property
    def absent(self) -> DatasetAdapter:
        """The same kind where nothing answers."""
        ...

    @property
    def source_folder(self) -> Path | None:
        """Where a snapshot might leave something beside the data."""
        ...

    def write(self, number: int) -> None:
        """One acknowledged change of two things at once, both of which a consistent copy has or has not."""
        ...

    def content(self) -> object:
        """All there is, comparable."""
        ...

    def restored_content(self, into: Path) -> object:
        """The same of a restored copy, while it is started."""
        ...

    def newest(self, content: object) -> int:
        """The number of the newest write in a content; AssertionError when half of one is in it."""
        ...

    def checks(self) -> tuple[tuple[CheckSpec, bool], ...]:
        """Assertions about the seeded data, and whether they hold."""
        ...

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        """What may happen to a restored copy before it is started."""
        ...


def utc_now() -> datetime:
    return datetime.now(UTC)


def flip(path: Path, *, share: float) -> None:
    """Another byte at this share of the file."""
    body = bytearray(path.read_bytes())
    body[int(len(body) * share)] ^= 0x41
    path.write_bytes(body)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def drop_last(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def file_damages(name: str) -> tuple[tuple[str, Damage], ...]:
    """What a disk does to one file."""
    return (
        ("flipped at the start", lambda into: flip(into / name, share=0.0)),
        ("flipped in the middle", lambda into: flip(into / name, share=0.5)),
        ("flipped at the end", lambda into: flip(into / name, share=0.999)),
        ("halved", lambda into: halve(into / name)),
        ("a byte short", lambda into: drop_last(into / name)),
        ("emptied", lambda into: os.truncate(into / name, 0)),
        ("gone", lambda into: (into / name).unlink()),
    )


@dataclass(slots=True)
class SqliteBench:
    path: Path
    adapter: SqliteDataset = field(init=False)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.adapter = SqliteDataset(path=self.path, now=utc_now)
        with closing(self._connect()) as connection:
            connection.executescript(
                "PRAGMA journal_mode=WAL; CREATE TABLE a(id INTEGER PRIMARY KEY, note TEXT, body BLOB);"
                "CREATE TABLE b(id INTEGER PRIMARY KEY REFERENCES a(id)) WITHOUT ROWID;"
                "CREATE INDEX n ON a(note, body); CREATE VIEW v AS SELECT max(id) AS newest FROM a;"
            )
            connection.execute("BEGIN")
            for number in range(SEEDED):
                _insert(connection, number)
            connection.execute("COMMIT")

    @property
    def absent(self) -> DatasetAdapter:
        return SqliteDataset(path=self.path.with_name("nowhere.sqlite3"), now=utc_now)

    @property
    def source_folder(self) -> Path:
        return self.path.parent

    def write(self, number: int) -> None:
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, number)
            connection.execute("COMMIT")

    def content(self) -> object:
        return _tables(self.path)

    def restored_content(self, into: Path) -> object:
        return _tables(into / self.path.name)

    def newest(self, content: object) -> int:
        assert isinstance(content, dict)
        assert [row[0] for row in content["a"]] == [row[0] for row in content["b"]]
        return int(content["a"][-1][0])

    def checks(self) -> tuple[tuple[CheckSpec, bool], ...]:
        return (
            (CheckSpec(name="rows", sql="SELECT count(*) FROM a", at_least=SEEDED, at_most=10 * SEEDED), True),
            (CheckSpec(name="note", sql="SELECT note FROM a WHERE id = 7", equals="note-7"), True),
            (CheckSpec(name="few", sql="SELECT count(*) FROM a", at_most=1), False),
            (CheckSpec(name="other note", sql="SELECT note FROM a WHERE id = 7", equals="note-8"), False),
            (CheckSpec(name="no such table", sql="SELECT * FROM nowhere"), False),
            (CheckSpec(name="nothing", sql="SELECT note FROM a WHERE id = -1", at_least=0), False),
            (CheckSpec(name="writes", sql="DELETE FROM a RETURNING id", at_least=0), False),
        )

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        name = self.path.name
        return (
            *file_damages(name),
            ("schema drift", lambda into: _execute(into / name, "ALTER TABLE a ADD COLUMN more TEXT")),
            ("a row less", lambda into: _execute(into / name, "DELETE FROM b WHERE id = 3")),
            ("a row changed", lambda into: _execute(into / name, "UPDATE a SET note = 'x' WHERE id = 3")),
            ("a table less", lambda into: _execute(into / name, "DROP TABLE b")),
            ("an orphan", lambda into: _execute(into / name, "DELETE FROM a WHERE id = 3")),
        )

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None)


def _insert(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("INSERT INTO a VALUES (?, ?, randomblob(300))", (number, f"note-{number}"))
    connection.execute("INSERT INTO b VALUES (?)", (number,))


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def _tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY id").fetchall() for table in ("a", "b")}


@dataclass(slots=True)
class FilesBench:
    """A write replaces a file whose first line must equal its last; a large file lies between the small ones."""

    root: Path
    adapter: FilesDataset = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = FilesDataset(path=self.root, now=utc_now)
        for folder in ("notes", "empty folder", "deep/er/est"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "m-large").write_bytes(os.urandom(6 * 1024 * 1024))
        (self.root / "deep/er/est/script").write_text("#!/bin/sh\n", encoding="utf-8")
        (self.root / "deep/er/est/script").chmod(0o750)
        (self.root / "notes/n\u00e4me with spaces").write_bytes(b"")
        (self.root / "to-notes").symlink_to("notes")
        (self.root / "dangling").symlink_to("/nowhere/at/all")
        (self.root / "twice").hardlink_to(self.root / "m-large")
        for number in range(0, SEEDED, 4):
            (self.root / "notes" / str(number)).write_text("x" * number, encoding="utf-8")
        self.write(SEEDED - 1)
        os.utime(self.root / "deep/er", ns=(1, 1_700_000_000_123_456_789))

    @property
    def absent(self) -> DatasetAdapter:
        return FilesDataset(path=self.root.with_name("nowhere"), now=utc_now)

    @property
    def source_folder(self) -> Path:
        return self.root

    def write(self, number: int) -> None:
        path = self.root / "notes" / "current"
        beside = path.with_name("current.new")
        beside.write_text(f"{number}\n" + "filling\n" * 1000 + f"{number}\n", encoding="utf-8")
        beside.replace(path)

    def content(self) -> object:
        return _tree(self.root)

    def restored_content(self, into: Path) -> object:
        tree = _tree(into)
        del tree[INDEX_NAME]
        return tree

    def newest(self, content: object) -> int:
        assert isinstance(content, dict)
        lines = content["notes/current"][-1].splitlines()
        assert lines[0] == lines[-1]
        return int(lines[0])

    def checks(self) -> tuple[tuple[CheckSpec, bool], ...]:
        newest = "SELECT max(mtime) FROM files WHERE path LIKE 'notes/%'"
        return (
            (CheckSpec(name="scripts", sql="SELECT count(*) FROM files WHERE mode = 488", equals="1"), True),
            (CheckSpec(name="fresh", sql=newest, fresh_within=timedelta(hours=1)), True),
            (CheckSpec(name="large", sql="SELECT max(size_bytes) FROM files", at_most=1), False),
            (CheckSpec(name="typo", sql="SELECT pth FROM files"), False),
        )

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        return (
            *file_damages("m-large"),
            *((f"index {name}", damage) for name, damage in file_damages(INDEX_NAME)),
            ("another mode", lambda into: (into / "deep/er/est/script").chmod(0o755)),
            ("another time", lambda into: os.utime(into / "deep/er", (1, 1))),
            ("a file more", lambda into: (into / "more").touch()),
            ("a folder less", lambda into: shutil.rmtree(into / "empty folder")),
            ("a link elsewhere", lambda into: _relink(into / "to-notes", "deep")),
            ("a file for a folder", lambda into: _fold(into / "empty folder")),
            ("a hard link parted", lambda into: _part(into / "twice")),
        )


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _fold(path: Path) -> None:
    path.rmdir()
    path.touch()


def _part(path: Path) -> None:
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body)


def _tree(root: Path) -> dict[str, tuple[object, ...]]:
    tree: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        body: object = ""
        if path.is_symlink():
            body = path.readlink()
        elif path.is_file():
            body = path.read_bytes()
        folder_time = None if path.is_dir() and path.name == "notes" else status.st_mtime_ns
        tree[str(path.relative_to(root))] = (status.st_mode, status.st_uid, folder_time, status.st_nlink, body)
    return tree


@dataclass(slots=True)
class RedisBench:
    url: str
    folder: Path
    adapter: RedisDataset = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = RedisDataset(url=self.url, now=utc_now)
        with self._client() as client:
            client.mset({f"note-{number}": f"body {number} " + "x" * 40 for number in range(SEEDED)})
            client.rpush("list", *range(200))
            client.hset("hash", mapping={f"f{number}": number for number in range(50)})
            client.set("soon gone", "x", px=1)
        with redis.Redis.from_url(self.url, db=3) as other:
            other.set("elsewhere", "3")
        self.write(SEEDED - 1)

    @property
    def absent(self) -> DatasetAdapter:
        return RedisDataset(url=f"unix://{self.folder}/nowhere.sock", now=utc_now)

    @property
    def source_folder(self) -> Path | None:
        return None

    def write(self, number: int) -> None:
        with self._client() as client, client.pipeline(transaction=True) as both:
            both.set("a", number)
            both.set("b", number)
            both.execute()

    def content(self) -> object:
        with self._client() as client:
            return _keys(client)

    def restored_content(self, into: Path) -> object:
        with redis.Redis(unix_socket_path=str(into / "redis.sock")) as client:
            return _keys(client)

    def newest(self, content: object) -> int:
        assert isinstance(content, dict)
        assert content[b"a"] == content[b"b"]
        return int(content[b"a"])

    def checks(self) -> tuple[tuple[CheckSpec, bool], ...]:
        return (
            (CheckSpec(name="keys", sql="DBSIZE", at_least=SEEDED), True),
            (CheckSpec(name="other database", sql="-n 3 GET elsewhere", equals="3"), True),
            (CheckSpec(name="list", sql="LRANGE list 0 2", equals="0 1 2"), True),
            (CheckSpec(name="few", sql="LLEN list", at_most=1), False),
            (CheckSpec(name="nothing", sql="GET nowhere", at_least=0), False),
            (CheckSpec(name="writes", sql="SET a 1"), False),
            (CheckSpec(name="no command", sql="NOSUCH x"), False),
            (CheckSpec(name="unquoted", sql="GET 'x"), False),
        )

    def damages(self) -> tuple[tuple[str, Damage], ...]:
        return file_damages(RDB_NAME)

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


def _keys(client: redis.Redis) -> dict[bytes, object]:
    readers: dict[bytes, Callable[[bytes], object]] = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"hash": client.hgetall,
    }
    found: dict[bytes, object] = {}
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        assert isinstance(kind, bytes)
        if kind in readers:  # a key that expired meanwhile has none
            found[key] = readers[kind](key)
    return found


@contextmanager
def open_bench(kind: str, folder: Path) -> Iterator[Bench]:
    """A fresh live dataset of the kind; skips where its server is not on this machine."""
    match kind:
        case "sqlite":
            yield SqliteBench(folder / "live" / "store.sqlite3")
        case "files":
            yield FilesBench(folder / "live")
        case "redis":
            with running_redis(folder / "live") as url:
                yield RedisBench(url, folder)
        case other:
            raise AssertionError(f"no bench for {other}")
