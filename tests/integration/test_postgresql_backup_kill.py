"""The machine of a primary under load dies and its data are gone: what was acknowledged, and what comes back.

At the very moment of the kill the bucket is frozen too, as if the streaming side had died with it: what comes back is
what the bucket had then, and nothing that was still on its way.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.verify import VerifyOptions
from controlplane.adapters.backup.postgresql.wal_coverage import wal_coverage
from controlplane.domain.dataset import WalMode
from controlplane.testing.backups import MemorySource
from tests.integration.postgresql_lab import (
    DATASET,
    KEYRING,
    TABLE,
    Freezing,
    clone,
    copy_of,
    enterable_folder,
    eventually,
    ids_in,
    new_bucket,
    primary_in,
    restored,
    streaming,
    writing,
)

TRIALS = int(os.environ.get("QUARTERDECK_KILL_TRIALS", "20"))
"""Shared between the two modes; each takes some two seconds."""
STREAMING_TRIALS = max(1, TRIALS // 3)
SYNCHRONOUS_TRIALS = TRIALS - STREAMING_TRIALS
RESULTS = os.environ.get("QUARTERDECK_KILL_RESULTS")
"""A file that gets a line of JSON for each trial, whatever is then said of it."""


@dataclass(slots=True)
class Template:
    """A primary that was stopped right after it was copied: each trial begins with a clone of it."""

    home: Path
    base: MemorySource


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with enterable_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def template(folder: Path) -> Template:
    with primary_in(folder / "template", autovacuum="off", shared_buffers="8MB", max_wal_size="64MB") as primary:
        primary.sql(TABLE.decode())
        with streaming(primary.url, new_bucket()):
            pass  # its slot is there from now on, so each trial's own bucket begins before the copy
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
        adapter.apply_settings(WalMode.STREAMING)
        base = copy_of(adapter, "base")
        primary.embedded.stop()
        return Template(home=primary.embedded.home, base=base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    mode: WalMode
    acknowledged: dict[int, datetime]
    killed_at: datetime
    covered_at: datetime
    back: set[int]
    restore_s: float
    """Until the restored server answered."""

    @property
    def lost(self) -> dict[int, datetime]:
        return {number: at for number, at in self.acknowledged.items() if number not in self.back}

    @property
    def loss_s(self) -> float:
        """The recovery point age as it truly was."""
        return max(((self.killed_at - at).total_seconds() for at in self.lost.values()), default=0.0)

    @property
    def gauge_s(self) -> float:
        return (self.killed_at - self.covered_at).total_seconds()


def trial(folder: Path, template: Template, number: int, mode: WalMode) -> Trial:
    live = folder / f"live-{number}"
    live.mkdir(mode=0o755)
    clone(template.home, live / template.home.name)
    bucket = new_bucket()
    store = Freezing(bucket)
    rng = random.Random(number)
    synchronous = mode is WalMode.SYNCHRONOUS
    with primary_in(live, autovacuum="off", shared_buffers="8MB", max_wal_size="64MB") as primary:
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET, verify=VerifyOptions(files=False, amcheck=False))
        with streaming(primary.url, store, synchronous=synchronous) as stream:  # type: ignore[arg-type] # passes the rest on
            if synchronous:
                adapter.apply_settings(WalMode.SYNCHRONOUS)
                eventually(lambda: primary.sql("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
            eventually(lambda: stream.status().covered_at is not None)
            with writing(primary.url, pause_s=0.002) as told:
                eventually(lambda: len(told.ids) > 30)
                time.sleep(rng.uniform(0.05, 0.6))
                acknowledged, killed_at = dict(told.ids), datetime.now(UTC)
                store.frozen = True
                primary.wipe()
    covered = wal_coverage(bucket, DATASET, KEYRING, since=template.base.manifest.fact("log_since"))
    assert covered is not None
    assert covered.gaps == ()
    begin_s = time.monotonic()
    with restored(adapter, folder / f"into-{number}", template.base, store=bucket) as back:
        found = Trial(
            mode=mode,
            acknowledged=acknowledged,
            killed_at=killed_at,
            covered_at=covered.covered_at,
            restore_s=time.monotonic() - begin_s,
            back=ids_in(back),
        )
    record(found)
    return found


def record(found: Trial) -> None:
    if RESULTS is None:
        return
    line = {
        "mode": found.mode,
        "acknowledged": len(found.acknowledged),
        "lost": len(found.lost),
        "loss_s": found.loss_s,
        "gauge_s": found.gauge_s,
        "restore_s": found.restore_s,
    }
    with Path(RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def judged(found: Trial) -> None:
    """What the gauge promises holds, and it is no more than a second away from the truth."""
    assert not {number for number, at in found.lost.items() if at <= found.covered_at}
    assert -0.001 <= found.gauge_s - found.loss_s < 1.0


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * TRIALS)
def test_synchronous_mode_loses_nothing_acknowledged(folder: Path, template: Template) -> None:
    """Starts, kills and restores a server per trial."""
    for number in range(SYNCHRONOUS_TRIALS):
        found = trial(folder, template, number, WalMode.SYNCHRONOUS)
        assert len(found.acknowledged) > 30
        assert found.lost == {}
        judged(found)


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * TRIALS)
def test_streaming_mode_loses_less_than_a_second(folder: Path, template: Template) -> None:
    """Starts, kills and restores a server per trial."""
    for number in range(SYNCHRONOUS_TRIALS, TRIALS):
        found = trial(folder, template, number, WalMode.STREAMING)
        assert len(found.acknowledged) > 30
        assert found.loss_s < timedelta(seconds=1).total_seconds()
        judged(found)
