"""What the recovery benchmark works with: a PostgreSQL, an object store, and over both ours and its peers."""

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final, LiteralString, Protocol

import psutil
import psycopg

from benchmarks import classic_pipe, pgbackrest
from benchmarks.servers import NOBODYS_ARCHIVE, Server, SystemPostgreSQL, system_programs
from controlplane.adapters.backup.postgresql.embedded import MAJOR, EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.programs import Programs, programs_for
from controlplane.adapters.backup.postgresql.server import end_servers
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.backup.workshop import ThreadWorkshop
from controlplane.adapters.objectstore.seaweedfs import FOLDER
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    CheckSpec,
    DatasetKind,
    DatasetSpec,
    DrillSelection,
    KeyPurpose,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
    WalMode,
)
from controlplane.domain.recovery import Drill, DrillPhase
from controlplane.domain.secret import SecretRef
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.names import point_id
from controlplane.recovery.workshop import (
    Broken,
    CopyMade,
    CopyOrder,
    DrillMade,
    DrillOrder,
    Finished,
    Unknown,
    Working,
)

ROWS_PER_MIB: Final = 5_600
"""Of the table below with its index: 187 bytes a row, measured."""
_DEADLINE_S: Final = 900.0
_LOOK_S: Final = 0.01
_FILL: Final = """
INSERT INTO events (tenant, at, kind, amount, note)
SELECT (random() * 900)::int, now() - random() * interval '400 days',
       (ARRAY['view', 'cart', 'order', 'refund'])[1 + (random() * 3)::int], round((random() * 900)::numeric, 2),
       md5(random()::text) || ' ' || left(repeat('delivered to the door ', 4), (random() * 60)::int)
FROM generate_series(1, %s)"""
"""Half of a row is random, half is words: it compresses as tables do, to a third or so."""
_TABLE: Final = """
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant int NOT NULL, at timestamptz NOT NULL,
    kind text NOT NULL, amount numeric(10, 2) NOT NULL, note text NOT NULL
)"""

BUCKET: Final = BucketSpec(name=BucketName("local"), bucket="benchmark", embedded=True)
DATASET: Final = DatasetSpec(
    name=DatasetName("events"),
    kind=DatasetKind.POSTGRESQL,
    rpo=timedelta(minutes=5),
    rto=timedelta(hours=1),
    cadence=Cadence(every=timedelta(hours=24)),
    retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=30)),),
    buckets=(BUCKET.name,),
    embedded=True,
    wal=WalMode.STREAMING,
    checks=(CheckSpec(name="has-events", sql="SELECT count(*) FROM events WHERE id < 1000", at_least=1),),
)
_URL: Final = SecretRef("env", "BENCHMARK_DATABASE")
_ENTERABLE: Final = 0o711
"""For PostgreSQL's account, where we are root."""
_BEHIND: Final = "SELECT coalesce(max(pg_current_wal_flush_lsn() - flush_lsn), -1) FROM pg_stat_replication"
"""Bytes of log that are not durable in the bucket; -1: nobody reads it."""
_QUESTION: Final = "SELECT count(*) FROM events WHERE id < 1000"
"""To a server that was had back."""
_ANSWER: Final = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    copy: CopyMade
    store_cpu_s: float
    """What the object store worked for the copy, on the same cores."""
    drills: tuple[DrillMade, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of one round trip."""

    backup_s: float
    """Until all of it is durable."""
    store_cpu_s: float
    """What the object store worked meanwhile."""
    restore_s: float
    """Until the started server has answered."""


class Peer(Protocol):
    """Another way to back the lab's server up and to have it back."""

    @property
    def name(self) -> str: ...

    def back_up(self) -> None:
        """Into the store; it need not be durable yet."""

    def restore(self, home: Path) -> Server:
        """In a server with its files in that folder, which is not there yet. It was started, and is not ended."""


@contextmanager
def lab(*, with_pgbackrest: bool) -> Iterator["Lab"]:
    """Gone at the end, with every process and folder."""
    folder = Path(tempfile.mkdtemp(prefix="quarterdeck-benchmark-", dir="/var/tmp"))
    folder.chmod(_ENTERABLE)
    made = Lab(folder)
    try:
        made.start(with_pgbackrest=with_pgbackrest)
        yield made
    finally:
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


def _awaited[M](look: Callable[[], Working | Finished[M] | Broken | Unknown]) -> M:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        match look():
            case Finished(made=made):
                return made
            case Broken(sentence=sentence):
                raise RuntimeError(sentence)
            case _:
                time.sleep(_LOOK_S)
    raise TimeoutError("the work did not end")


class Lab:
    """A PostgreSQL, an object store, and the workshop over both.

    The embedded server; or, where pgBackRest takes part, the system's, which all ways can back up.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        clock = SystemClock()
        place = VaultPlace(
            state_dir=folder,
            site_mark=f"benchmark-{uuid.uuid4().hex[:12]}",
            secret=lambda _: self._server.url,
            now=clock.now,
        )
        self.vault = Vault(place)
        self._workshop = ThreadWorkshop(self.vault, clock=clock, declared=self._declared)
        self._clock = clock
        self._server: Server = self.vault.postgresql()
        self._programs: Programs = programs_for(MAJOR)
        self._dataset = DATASET
        self._begun = ExitStack()
        """What must be ended before the store is."""
        self.peers: tuple[Peer, ...] = ()
        self.without = "pgBackRest"
        """What is not compared, and why; empty: all is."""

    def start(self, *, with_pgbackrest: bool) -> None:
        more: tuple[Peer, ...] = ()
        if with_pgbackrest:
            try:
                more = self._invite_pgbackrest()
            except TerminalError as error:
                self.without = f"pgBackRest: {error}"
        if not more:
            self._server.ensure_running()
        self.peers = (self._pipe(classic_pipe.DEFAULTS), self._pipe(classic_pipe.PLAIN), *more)
        self._stream()

    @property
    def server(self) -> str:
        return f"PostgreSQL {self._programs.major}"

    def _declared(self) -> RecoverySpec:
        return RecoverySpec(buckets=(BUCKET,), datasets=(self._dataset,))

    def _pipe(self, name: str) -> classic_pipe.ClassicPipe:
        return classic_pipe.ClassicPipe(
            name,
            server=self._server,
            programs=self._programs,
            client=self.vault.client(BUCKET),
            bucket=BUCKET.bucket,
            folder=self._folder / f"pipe-{uuid.uuid4().hex[:8]}",
            empty_server=self._empty_server,
        )

    def _empty_server(self, home: Path) -> Server:
        if not self._dataset.embedded:
            return SystemPostgreSQL(home, self._programs)
        home.mkdir()
        home.chmod(_ENTERABLE)
        return EmbeddedPostgreSQL(home, f"benchmark-{uuid.uuid4().hex[:12]}")

    def _invite_pgbackrest(self) -> tuple[Peer, ...]:
        """Its ways; the server that it knows takes the place of ours.

        TerminalError where it or the system's PostgreSQL is missing, or it does not know that version.
        """
        version, programs = pgbackrest.version(), system_programs()
        server = SystemPostgreSQL(self._folder / "system", programs, {"archive_mode": "on"})
        self._begun.callback(server.stop)
        server.ensure_running()
        server.archive_to(NOBODYS_ARCHIVE)
        self.vault.client(BUCKET).create_bucket(Bucket=pgbackrest.BUCKET)
        front = pgbackrest.HttpsFront(self._folder / FOLDER, self._folder)
        self._begun.callback(front.stop)
        invited = tuple(
            pgbackrest.PgBackRest(way, version, server=server, programs=programs, front=front, folder=self._folder)
            for way in pgbackrest.WAYS
        )
        for one in invited:
            one.create()
        self._server, self._programs, self.without = server, programs, ""
        self._dataset = replace(DATASET, embedded=False, url=_URL)
        return invited

    def _stream(self) -> None:
        """WAL into the bucket, as in the product: a restore needs what was written while the copy was made."""
        until = self._clock.now() + timedelta(days=1)
        while not asyncio.run(self._workshop.stream(self._dataset, until=until)).running:
            time.sleep(_LOOK_S)

    def end(self) -> None:
        self._workshop.end()
        self._begun.close()
        self.vault.stop()

    def fill(self, size_mib: int) -> None:
        """The table anew, of about that size."""
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS events")
            connection.execute(_TABLE)
            connection.execute(_FILL, (size_mib * ROWS_PER_MIB,))
            connection.execute("VACUUM ANALYZE events")
            connection.execute("CHECKPOINT")
        self._settle()

    def _settle(self) -> None:
        """Until the log of filling is in the bucket: sending it would take from whoever is timed next."""
        deadline = time.monotonic() + _DEADLINE_S
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            while (behind := _number_of(connection, _BEHIND)) != 0:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the log is {behind} bytes behind (-1: nobody reads it)")
                time.sleep(_LOOK_S)

    def database_bytes(self) -> int:
        with psycopg.connect(self._server.url) as connection:
            return _number_of(connection, "SELECT pg_database_size(current_database())")

    def ours(self, *, drills: int) -> Ours:
        point = point_id(self._clock.now(), uuid.uuid4().hex)
        order = CopyOrder(
            dataset=self._dataset, point=point, parent=None, storage_class=StorageClass.STANDARD, locked_until=None
        )
        before_s = self._store_cpu_s()
        self._workshop.begin_copy(point, order)
        copy = _awaited(lambda: self._workshop.look_copy(point))
        store_cpu_s = self._store_cpu_s() - before_s
        made = tuple(self._drill(point) for _ in range(drills))
        return Ours(copy=copy, store_cpu_s=store_cpu_s, drills=made)

    def _store_cpu_s(self) -> float:
        """So far, with the https front that pgBackRest needs."""
        used_s = 0.0
        for process in psutil.process_iter(["cmdline", "cpu_times"]):
            words = process.info["cmdline"] or ()
            if words and Path(words[0]).name == "weed" and any(str(self._folder) in word for word in words):
                used_s += process.info["cpu_times"].user + process.info["cpu_times"].system
        return used_s

    def _drill(self, point: PointId) -> DrillMade:
        now = self._clock.now()
        drill = Drill(
            drill=str(uuid.uuid4()),
            name="benchmark",
            dataset=self._dataset.name,
            selection=DrillSelection.LATEST,
            key=KeyPurpose.SITE,
            bucket=BUCKET.name,
            phase=DrillPhase.RESTORING,
            phase_since=now,
            asked_at=now,
            asked_by="benchmark",
            point=point,
        )
        scratch = asyncio.run(self._workshop.reserve(drill, needed_bytes=0))
        order = DrillOrder(dataset=self._dataset, bucket=BUCKET, chain=(point,), scratch=scratch)
        self._workshop.begin_drill(drill, order)
        made = _awaited(lambda: self._workshop.look_drill(drill))
        assert not [check for check in made.checks if check.verdict == "failed"], made.checks
        asyncio.run(self._workshop.clean(drill, self._dataset))
        return made

    def timed(self, peer: Peer) -> Timed:
        home = self._folder / "back"
        before_s = self._store_cpu_s()
        begin_s = time.monotonic()
        peer.back_up()
        self.vault.object_store.flush()
        backup_s = time.monotonic() - begin_s
        store_cpu_s = self._store_cpu_s() - before_s
        try:
            begin_s = time.monotonic()
            restored = peer.restore(home)
            _ask(restored)
            restore_s = time.monotonic() - begin_s
            return Timed(backup_s=backup_s, store_cpu_s=store_cpu_s, restore_s=restore_s)
        finally:
            end_servers(home)
            shutil.rmtree(home, ignore_errors=True)


def _number_of(connection: psycopg.Connection, question: LiteralString) -> int:
    row = connection.execute(question).fetchone()
    assert row is not None, "one row"
    return int(row[0])


def _ask(server: Server) -> None:
    """Its rows are there."""
    with psycopg.connect(server.url) as connection:
        found = _number_of(connection, _QUESTION)
    assert found == _ANSWER, f"{found} of the first {_ANSWER} rows came back"
