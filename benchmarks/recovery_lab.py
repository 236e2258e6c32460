"""What the recovery benchmark works with: a PostgreSQL, an object store, ours and the classic pipe over both."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.postgresql.embedded import EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.programs import Programs, programs_for
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.backup.workshop import ThreadWorkshop
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
_MAJOR: Final = 18
_DEADLINE_S: Final = 900.0
_LOOK_S: Final = 0.01
_PASSPHRASE: Final = "of data that the benchmark made"
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
DECLARED: Final = RecoverySpec(buckets=(BUCKET,), datasets=(DATASET,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    copy: CopyMade
    drills: tuple[DrillMade, ...]


@contextmanager
def lab() -> Iterator["Lab"]:
    """Gone at the end, with every process and folder."""
    folder = Path(tempfile.mkdtemp(prefix="quarterdeck-benchmark-", dir="/var/tmp"))
    made = Lab(folder)
    try:
        made.start()
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
    """A PostgreSQL, an object store, and the workshop over both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        clock = SystemClock()
        place = VaultPlace(state_dir=folder, site_mark=f"benchmark-{uuid.uuid4().hex[:12]}", secret=str, now=clock.now)
        self.vault = Vault(place)
        self._workshop = ThreadWorkshop(self.vault, clock=clock, declared=lambda: DECLARED)
        self._clock = clock
        self._server: EmbeddedPostgreSQL = self.vault.postgresql()
        self._programs: Programs = programs_for(_MAJOR)

    def start(self) -> None:
        self._server.ensure_running()
        self._stream()

    def _stream(self) -> None:
        """WAL into the bucket, as in the product: a restore needs what was written while the copy was made."""
        until = self._clock.now() + timedelta(days=1)
        while not asyncio.run(self._workshop.stream(DATASET, until=until)).running:
            time.sleep(_LOOK_S)

    def end(self) -> None:
        self._workshop.end()
        self.vault.stop()
        shutil.rmtree(self._server.home, ignore_errors=True)

    def fill(self, size_mib: int) -> None:
        """The table anew, of about that size."""
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS events")
            connection.execute(_TABLE)
            connection.execute(_FILL, (size_mib * ROWS_PER_MIB,))
            connection.execute("VACUUM ANALYZE events")
            connection.execute("CHECKPOINT")

    def database_bytes(self) -> int:
        with psycopg.connect(self._server.url) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None, "one row"
        return int(row[0])

    def ours(self, *, drills: int) -> Ours:
        point = point_id(self._clock.now(), uuid.uuid4().hex)
        order = CopyOrder(
            dataset=DATASET, point=point, parent=None, storage_class=StorageClass.STANDARD, locked_until=None
        )
        self._workshop.begin_copy(point, order)
        copy = _awaited(lambda: self._workshop.look_copy(point))
        made = tuple(self._drill(point) for _ in range(drills))
        return Ours(copy=copy, drills=made)

    def _drill(self, point: PointId) -> DrillMade:
        now = self._clock.now()
        drill = Drill(
            drill=str(uuid.uuid4()),
            name="benchmark",
            dataset=DATASET.name,
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
        order = DrillOrder(dataset=DATASET, bucket=BUCKET, chain=(point,), scratch=scratch)
        self._workshop.begin_drill(drill, order)
        made = _awaited(lambda: self._workshop.look_drill(drill))
        assert not [check for check in made.checks if check.verdict == "failed"], made.checks
        asyncio.run(self._workshop.clean(drill, DATASET))
        return made

    def classic(self, *, compress: bool) -> tuple[float, float]:
        """Seconds to back up, and to have it back in a started server."""
        archive = self._folder / "dump.sql.gpg"
        client = self.vault.client(BUCKET)
        begin_s = time.monotonic()
        options = [] if compress else ["--compress-algo", "none"]
        self._piped(
            [str(self._programs.path("pg_dump")), self._server.url],
            [*self._gpg(), "--symmetric", "--cipher-algo", "AES256", *options, "--output", str(archive)],
        )
        client.upload_file(str(archive), BUCKET.bucket, "classic/dump.sql.gpg")
        self.vault.object_store.flush()
        backup_s = time.monotonic() - begin_s
        archive.unlink()
        begin_s = time.monotonic()
        client.download_file(BUCKET.bucket, "classic/dump.sql.gpg", str(archive))
        restored = EmbeddedPostgreSQL(self._folder / "back", f"benchmark-{uuid.uuid4().hex[:12]}")
        try:
            url = restored.ensure_running()
            self._piped(
                [*self._gpg(), "--decrypt", str(archive)],
                [str(self._programs.path("psql")), "--quiet", "--set", "ON_ERROR_STOP=1", "--output", os.devnull, url],
            )
            with psycopg.connect(url) as connection:
                connection.execute("SELECT count(*) FROM events WHERE id < 1000")
            return backup_s, time.monotonic() - begin_s
        finally:
            restored.stop()
            shutil.rmtree(restored.home, ignore_errors=True)
            archive.unlink(missing_ok=True)

    def _piped(self, first: Sequence[str], second: Sequence[str]) -> None:
        """`first | second`, the passphrase in a file that gpg reads."""
        environment = {**os.environ, "GNUPGHOME": str(self._home())}
        with subprocess.Popen(first, stdout=subprocess.PIPE, env=environment) as source:
            subprocess.run(second, stdin=source.stdout, env=environment, check=True, timeout=_DEADLINE_S)
        if source.returncode:
            raise subprocess.CalledProcessError(source.returncode, list(first))

    def _home(self) -> Path:
        home = self._folder / "gnupg"
        home.mkdir(mode=0o700, exist_ok=True)
        return home

    def _gpg(self) -> list[str]:
        words = self._home() / "passphrase"
        words.write_text(_PASSPHRASE, encoding="utf-8")
        return ["gpg", "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase-file", str(words)]
