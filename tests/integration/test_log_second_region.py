"""The log of a real PostgreSQL in two buckets: the second away and back, then the first one lost with the server."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.wal_reader import WalReader
from controlplane.adapters.backup.postgresql.wal_stream import slot_name
from controlplane.adapters.backup.vault import VaultPlace
from controlplane.adapters.backup.workshop import ThreadWorkshop
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import (
    BucketSpec,
    DatasetKind,
    DatasetSpec,
    RecoverySpec,
    StorageClass,
    WalMode,
)
from controlplane.domain.recovery import DrillPhase, Inventory, LogCoverage
from controlplane.domain.secret import SecretRef
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.ids import BucketName, PointId
from controlplane.recovery.ports import RestoreRequest, SilentWatch, manifest_key
from controlplane.recovery.rpo import RpoState
from controlplane.recovery.standing import judge_inventory
from controlplane.recovery.workshop import CopyOrder, Finished, Streaming, Working
from controlplane.testing.effects import FakeClock
from tests.integration.postgresql_lab import (
    Acknowledged,
    Primary,
    enterable_folder,
    eventually,
    ids_in,
    primary_in,
    writing,
)
from tests.integration.recovery_lab import BUCKET, DAY, NAME, LabVault, LaterClock, RecoveryLab, declare, no_trouble
from tests.unit.backup.bucket import MemoryBucket

FAR: Final = BucketName("far")
POINT: Final = PointId("20260105T080000.000Z-0a1b")
CLIENTS: Final = 3
SPEC: Final[DatasetSpec] = replace(
    declare(DatasetKind.POSTGRESQL),
    wal=WalMode.SYNCHRONOUS,
    rpo=timedelta(seconds=60),
    url=SecretRef("env", "URL"),
    buckets=(BUCKET, FAR),
)
DECLARED: Final = RecoverySpec(
    buckets=(BucketSpec(name=BUCKET, bucket="main"), BucketSpec(name=FAR, bucket="far")), datasets=(SPEC,)
)


class TwoRegions(LabVault):
    """The real vault, but for its two buckets."""

    def __init__(self, place: VaultPlace, buckets: Mapping[BucketName, MemoryBucket]) -> None:
        super().__init__(place, buckets[BUCKET], no_trouble)
        self._buckets = buckets

    def store(self, bucket: BucketSpec) -> MemoryBucket:
        return self._buckets[bucket.name]


class Site:
    """A control plane and a primary that it protects, in two regions."""

    def __init__(self, folder: Path, primary: Primary) -> None:
        clock = FakeClock(datetime.now(UTC))
        self.folder = folder
        self.primary = primary
        self.buckets = {name: MemoryBucket(clock=clock) for name in (BUCKET, FAR)}
        place = VaultPlace(
            state_dir=folder / "state",
            site_mark="two-regions",
            secret=lambda _ref: primary.url,
            now=SystemClock().now,
        )
        self.vault = TwoRegions(place, self.buckets)
        self.workshop = ThreadWorkshop(self.vault, clock=SystemClock(), declared=lambda: DECLARED)

    def stream(self) -> Streaming:
        return asyncio.run(self.workshop.stream(SPEC, until=SystemClock().now() + DAY))

    def seen(self, bucket: BucketName) -> Inventory:
        spec = DECLARED.bucket(bucket)
        assert spec is not None
        found = asyncio.run(self.workshop.survey(SPEC, spec, None, proofs=()))
        assert not found.problem
        return found

    def coverage(self, bucket: BucketName) -> LogCoverage:
        found = self.seen(bucket).coverage
        assert found is not None
        return found

    def reaches(self, bucket: BucketName, moment: datetime) -> bool:
        """False too where nothing of the log has come yet."""
        found = self.seen(bucket).coverage
        return found is not None and found.covered_at >= moment and not found.gaps

    def copy(self) -> None:
        """Into both buckets."""
        order = CopyOrder(
            dataset=SPEC, point=POINT, parent=None, storage_class=StorageClass.STANDARD, locked_until=None
        )
        self.workshop.begin_copy("copy", order)
        eventually(lambda: not isinstance(self.workshop.look_copy("copy"), Working))
        made = self.workshop.look_copy("copy")
        assert isinstance(made, Finished), made
        assert made.made.buckets == (BUCKET, FAR), made.made.failed_buckets

    def wait_for_commits(self) -> None:
        """From now on a commit is acknowledged when it is durable in the first bucket."""
        self.primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{slot_name(NAME)}'")
        self.primary.sql("SELECT pg_reload_conf()")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The first region is gone. What is left is the second bucket, and the site's keys."""

    site: Site
    told: Acknowledged
    amid: datetime
    coverage: LogCoverage

    def lab(self) -> RecoveryLab:
        """Another control plane, which knows of the second bucket alone."""
        clock = LaterClock(self.coverage.covered_at + timedelta(seconds=1))
        spec = replace(SPEC, buckets=(BUCKET,))
        return RecoveryLab(self.site.folder / "state", spec, objects=self.site.buckets[FAR].twin(), clock=clock)


def more_commits(told: Acknowledged, count: int = 30) -> datetime:
    """When so many more were acknowledged."""
    seen = len(told.ids)
    eventually(lambda: len(told.ids) >= seen + count, lambda: f"{len(told.ids)} commits")
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def lost() -> Iterator[Lost]:
    with enterable_folder() as folder, primary_in(folder / "live", autovacuum="off") as primary:
        site = Site(folder, primary)
        first, second = site.buckets[BUCKET], site.buckets[FAR]
        eventually(lambda: (site.stream().running, site.stream().further) == (True, True), lambda: str(site.stream()))
        site.copy()
        site.wait_for_commits()
        with writing(primary.url, clients=CLIENTS, pause_s=0.01) as told:
            more_commits(told)
            primary.sql("SELECT pg_switch_wal()")
            amid = more_commits(told)
            more_commits(told)
            # The second region is away: no commit waits for it.
            second.trouble = away
            moment = more_commits(told)
            eventually(lambda: "does not follow" in site.stream().further_sentence, lambda: str(site.stream()))
            eventually(lambda: site.reaches(BUCKET, moment))
            primary.sql("SELECT pg_switch_wal()")
            back_from = more_commits(told)
            second.trouble = no_trouble
            eventually(lambda: site.reaches(FAR, back_from), lambda: str(site.stream()))
            near, far = site.seen(BUCKET), site.seen(FAR)
            assert judge_inventory(SPEC, near, datetime.now(UTC)).state is RpoState.OK
            assert judge_inventory(SPEC, far, datetime.now(UTC)).by_log
            # The first region burns down, the server in it.
            first.trouble = gone
            site.workshop.end()
            coverage = site.coverage(FAR)
            primary.wipe()
        yield Lost(site=site, told=told, amid=amid, coverage=coverage)


def away(call: str) -> None:
    raise RetryableError(f"{call}: no route to host")


def gone(call: str) -> None:
    raise TerminalError(f"{call}: no such bucket")


def restored_ids(lost: Lost, into: Path, to_time: datetime | None) -> set[int]:
    """From the second bucket alone."""
    store = lost.site.buckets[FAR].twin()
    keyring = lost.site.vault.own_keyring(DECLARED.keys)
    archive = open_archive(store, keyring, manifest_key(NAME, POINT), watch=SilentWatch())
    adapter = PostgreSQLAdapter(url=lost.site.primary.url, dataset=NAME)
    request = RestoreRequest(chain=(archive,), into=into, log=WalReader(store, NAME, keyring), to_time=to_time)
    try:
        adapter.restore(request, SilentWatch())
        with adapter.start(into, SilentWatch(), to_time=to_time) as copy:
            return ids_in(copy)
    finally:
        adapter.end_leftovers(into)


def test_nothing_is_lost_up_to_where_the_second_bucket_says_it_reaches(lost: Lost) -> None:
    back = restored_ids(lost, lost.site.folder / "everything", None)
    acknowledged = lost.told.by(lost.coverage.covered_at)
    assert len(acknowledged) > 100
    assert acknowledged <= back
    assert not lost.coverage.gaps


def test_a_moment_between_the_copy_and_the_loss_comes_back(lost: Lost) -> None:
    back = restored_ids(lost, lost.site.folder / "moment", lost.amid)
    assert lost.told.by(lost.amid) <= back
    assert len(back - lost.told.by(lost.amid)) <= CLIENTS, "a commit may be on its way to its client"
    assert len(back) < len(lost.told.ids)


async def test_drills_of_the_second_bucket_reach_such_moments_too(lost: Lost) -> None:
    lab = lost.lab()
    verdict = await lab.verdict()
    assert verdict.by_log
    for to_time in (None, lost.amid):
        drill = await lost.lab().drill(to_time=to_time)
        assert drill.phase is DrillPhase.PASSED, drill.sentence
        assert drill.newest_at is not None
        assert drill.newest_at >= lost.amid - timedelta(seconds=1)
