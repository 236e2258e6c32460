"""What runs for a dataset's log: as long as it is asked for, as it is declared now, its server there or not."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.log_streams import LogStreams
from controlplane.adapters.backup.postgresql.wal_coverage import read_ranges
from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    DatasetKind,
    DatasetSpec,
    KeysSpec,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    WalMode,
)
from controlplane.domain.secret import SecretRef
from controlplane.kernel.ids import BucketName
from controlplane.recovery.workshop import Streaming
from controlplane.testing.effects import START
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import DATASET, FACTS, KEYRING, make_writer
from tests.unit.backup.postgresql.written_log import SEGMENT, WrittenLog

NEAR, FAR = BucketName("near"), BucketName("far")
NOBODY: Final = "postgresql://127.0.0.1:1/nobody?connect_timeout=5"
"""Nobody listens there: the server is gone, its log lies in the first bucket."""
DEADLINE_S: Final = 60.0
SPEC: Final = DatasetSpec(
    name=DATASET,
    kind=DatasetKind.POSTGRESQL,
    rpo=timedelta(minutes=1),
    rto=timedelta(hours=1),
    cadence=Cadence(every=timedelta(days=1)),
    retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=30)),),
    buckets=(NEAR, FAR),
    url=SecretRef("env", "URL"),
    wal=WalMode.STREAMING,
)


class MemoryVault(Vault):
    """The real one, but for its buckets and its key."""

    def __init__(self, folder: Path, buckets: Mapping[BucketName, MemoryBucket]) -> None:
        place = VaultPlace(state_dir=folder, site_mark="lab", secret=lambda _ref: NOBODY, now=SystemClock().now)
        super().__init__(place)
        self._buckets = buckets

    def store(self, bucket: BucketSpec) -> MemoryBucket:
        return self._buckets[bucket.name]

    def keyring(self, keys: KeysSpec) -> SiteKeyring:
        del keys
        return KEYRING


class Lab:
    def __init__(self, folder: Path) -> None:
        self.near, self.far = MemoryBucket(), MemoryBucket()
        self.declared = RecoverySpec(
            buckets=tuple(BucketSpec(name=name, bucket=name) for name in (NEAR, FAR)), datasets=(SPEC,)
        )
        vault = MemoryVault(folder, {NEAR: self.near, FAR: self.far})
        self.streams = LogStreams(vault, clock=SystemClock(), declared=lambda: self.declared)
        self.log = WrittenLog(self.near, dataset=DATASET, ring=KEYRING)

    def stream(self, spec: DatasetSpec = SPEC) -> Streaming:
        return self.streams.stream(spec, SystemClock().now() + timedelta(minutes=5))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.streams.end()


def eventually(holds: Callable[[], bool], describe: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < until, f"not within {DEADLINE_S:g} s: {describe()}"
        time.sleep(0.005)


def test_what_a_lost_server_left_in_the_first_bucket_follows_into_the_second(lab: Lab) -> None:
    lab.log.segment()
    lab.log.piece()
    eventually(lambda: lab.stream().further is True, lab.stream)
    eventually(lambda: lab.stream().running is False, lab.stream)
    assert lab.stream().further_sentence == "far follows"
    assert [one.key for one in read_ranges(lab.far, DATASET)] == [one.key for one in read_ranges(lab.near, DATASET)]


def test_a_bucket_that_is_declared_later_is_followed_into_without_a_restart(lab: Lab) -> None:
    lab.log.segment()
    alone = lab.stream(replace(SPEC, buckets=(NEAR,)))
    assert (alone.further, alone.further_sentence) == (None, "")
    eventually(lambda: lab.stream().further is True, lab.stream)
    assert len(read_ranges(lab.far, DATASET)) == 1


def test_log_from_before_the_oldest_copy_there_is_not_brought_there(lab: Lab) -> None:
    for _ in range(3):
        lab.log.segment()
    since = f"1:0/{3 * SEGMENT + 40:X}"
    writer = make_writer(lab.far)
    writer.commit(replace(FACTS, facts=(("log_since", since),)), started_at=START, finished_at=START, parent=None)
    eventually(lambda: lab.stream().further is True, lab.stream)
    assert [one.start for one in read_ranges(lab.far, DATASET)] == [3 * SEGMENT, 4 * SEGMENT]
