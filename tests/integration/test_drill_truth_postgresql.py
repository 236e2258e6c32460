"""Drills of PostgreSQL tell the truth: one copy and some seconds of its log, damaged; the server is gone."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.postgresql.wal_coverage import wal_coverage
from controlplane.adapters.backup.postgresql.wal_layout import (
    HeadFile,
    WalRange,
    decode,
    encode,
    head_key,
    parse_range,
    wal_prefix,
)
from controlplane.domain.dataset import CheckSpec, DatasetKind, DatasetSpec, WalMode
from controlplane.domain.recovery import BackupPhase, DrillPhase, LogCoverage, Verdict
from controlplane.domain.secret import SecretRef
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.rpo import RpoState
from controlplane.testing.effects import FakeClock
from tests.integration.postgresql_lab import enterable_folder, eventually, primary_in
from tests.integration.recovery_lab import DAY, NAME, LaterClock, RecoveryLab, declare
from tests.unit.backup.bucket import MemoryBucket

RPO: Final = timedelta(seconds=3)
WRITTEN_S: Final = 6.0
"""Twice the RPO and some: losing the log's end must show, whatever else takes a moment."""
CHECKS: Final = (
    CheckSpec(name="orders", sql="SELECT count(*) FROM orders", at_least=5),
    CheckSpec(name="newest", sql="SELECT max(placed_at) FROM orders", fresh_within=RPO),
)
SPEC: Final[DatasetSpec] = replace(
    declare(DatasetKind.POSTGRESQL, None, *CHECKS), wal=WalMode.STREAMING, rpo=RPO, url=SecretRef("env", "URL")
)


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A site that burned down: what is left of it is in the bucket."""

    folder: Path
    objects: MemoryBucket
    manifest: Manifest
    coverage: LogCoverage
    amid: datetime
    """While rows were written."""

    def lab(self, *, spec: DatasetSpec = SPEC, after: timedelta = timedelta(milliseconds=200)) -> RecoveryLab:
        """As of so long after the last moment that the log covers, on a bucket of its own."""
        clock = LaterClock(self.coverage.covered_at + after)
        return RecoveryLab(self.folder / "state", spec, objects=self.objects.twin(), clock=clock)


@pytest.fixture(scope="module")
def gone() -> Iterator[Gone]:
    with enterable_folder() as folder, primary_in(folder / "live") as primary:
        objects = MemoryBucket(clock=FakeClock(datetime.now(UTC)))
        lab = RecoveryLab(folder / "state", SPEC, objects=objects, clock=LaterClock(datetime.now(UTC)), url=primary.url)
        primary.sql("CREATE TABLE orders (id bigint PRIMARY KEY, placed_at timestamptz DEFAULT clock_timestamp())")
        primary.sql("INSERT INTO orders SELECT generate_series(1, 5)")

        def coverage() -> LogCoverage:
            found = wal_coverage(objects, NAME, lab.vault.own_keyring(lab.keys))
            assert found is not None
            return found

        async def copied() -> None:
            run = await lab.back_up()
            assert run.phase is BackupPhase.DONE, run.sentence

        until = lab.clock.now() + DAY
        eventually(lambda: asyncio.run(lab.workshop.stream(SPEC, until=until)).running is True)
        asyncio.run(copied())
        begin, number = time.monotonic(), 5
        amid = datetime.now(UTC)
        while time.monotonic() < begin + WRITTEN_S:
            number += 1
            primary.sql(f"INSERT INTO orders (id) VALUES ({number})")
            if time.monotonic() < begin + WRITTEN_S / 2:
                amid = datetime.now(UTC)
            time.sleep(0.1)
        wrote = datetime.now(UTC)
        eventually(lambda: coverage().covered_at >= wrote)
        lab.workshop.end()
        (manifest,) = lab.manifests()
        yield Gone(folder=folder, objects=objects, manifest=manifest, coverage=coverage(), amid=amid)


async def test_what_is_good_stays_green(gone: Gone) -> None:
    for to_time, point in ((None, None), (gone.amid, None), (None, gone.manifest.point)):
        lab = gone.lab()
        drill = await lab.drill(to_time=to_time, point=point)
        assert drill.phase is DrillPhase.PASSED, drill.sentence
        assert {check.verdict for check in drill.checks} == {Verdict.PASSED}, drill.checks
        assert drill.newest_at is not None
        assert drill.newest_at <= (to_time or gone.coverage.covered_at)
    verdict = await gone.lab().verdict()
    assert verdict.by_log
    assert verdict.state in {RpoState.OK, RpoState.WARNING}


def pieces(lab: RecoveryLab, gone: Gone) -> list[WalRange]:
    """Those that only the log beyond the copy has, oldest first."""
    stop = int((gone.manifest.fact("stop_lsn") or "").partition("/")[2], 16)
    found = [one for info in lab.objects.objects(wal_prefix(NAME)) if (one := parse_range(info)) and one.start > stop]
    assert len(found) >= 6, "the log came in pieces"
    return sorted(found, key=lambda one: one.start)


def lose_the_middle(lab: RecoveryLab, gone: Gone) -> None:
    every = pieces(lab, gone)
    lab.objects.lose(every[len(every) // 2].key)


def lose_the_end(lab: RecoveryLab, gone: Gone) -> None:
    for piece in pieces(lab, gone)[2:]:
        lab.objects.lose(piece.key)


def lose_everything(lab: RecoveryLab, gone: Gone) -> None:
    del gone
    for key in lab.objects.listed():
        if key.startswith(wal_prefix(NAME)):
            lab.objects.lose(key)


def flip_a_piece(at: int) -> Callable[[RecoveryLab, Gone], None]:
    def do(lab: RecoveryLab, gone: Gone) -> None:
        every = pieces(lab, gone)
        piece = every[len(every) // 2]
        lab.objects.corrupt(piece.key, at % piece.stored_bytes)

    return do


def cut_a_piece(lab: RecoveryLab, gone: Gone) -> None:
    every = pieces(lab, gone)
    lab.objects.truncate(every[len(every) // 2].key)


def swap_pieces(lab: RecoveryLab, gone: Gone) -> None:
    one, other = pieces(lab, gone)[1:3]
    bodies = lab.objects.get(one.key), lab.objects.get(other.key)
    lab.objects.change(one.key, bodies[1])
    lab.objects.change(other.key, bodies[0])


def promise_more(lab: RecoveryLab, gone: Gone) -> None:
    """A piece under a name that says it reaches an hour further: a listing alone would believe it."""
    last = pieces(lab, gone)[-1]
    later = last.key.replace(f".{last.covered_ms}.", f".{last.covered_ms + 3_600_000}.")
    lab.objects.put(later, lab.objects.get(last.key))
    lab.objects.lose(last.key)


def epoch_keys(lab: RecoveryLab) -> list[str]:
    return [key for key in lab.objects.listed() if key.startswith(f"{wal_prefix(NAME)}keys/")]


def flip_the_key(lab: RecoveryLab, gone: Gone) -> None:
    del gone
    (key,) = epoch_keys(lab)
    body = lab.objects.get(key)
    at = body.index(b'"blob": "') + 30
    lab.objects.change(key, body[:at] + (b"A" if body[at : at + 1] != b"A" else b"B") + body[at + 1 :])


def lose_the_key(lab: RecoveryLab, gone: Gone) -> None:
    del gone
    (key,) = epoch_keys(lab)
    lab.objects.lose(key)


def wrong_major(lab: RecoveryLab, gone: Gone) -> None:
    facts = tuple((name, "9" if name == "version" else value) for name, value in gone.manifest.facts)
    lab.forge(replace(gone.manifest, facts=facts))


def another_cluster_file(lab: RecoveryLab, gone: Gone) -> None:
    base = next(stream for stream in gone.manifest.streams if stream.name == "base.tar")
    lab.objects.corrupt(base.packs[0].key, base.packs[0].stored_bytes // 2)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        pytest.param(lose_the_middle, "the log of timeline 1 is missing from", id="amid-the-log"),
        pytest.param(lose_the_end, "newest restored moment is .* before .* the RPO is 3.*s", id="end-of-the-log"),
        pytest.param(lose_everything, "newest restored moment is .* before .* the RPO is 3.*s", id="all-of-the-log"),
        pytest.param(flip_a_piece(0), "/wal/.* expected a sealed blob", id="header-of-a-piece"),
        pytest.param(flip_a_piece(40), "/wal/.*changed", id="body-of-a-piece"),
        pytest.param(flip_a_piece(-1), "/wal/.*changed", id="tag-of-a-piece"),
        pytest.param(cut_a_piece, "/wal/.*changed", id="truncated-piece"),
        pytest.param(swap_pieces, "/wal/.*changed", id="pieces-swapped"),
        pytest.param(promise_more, "/wal/.*changed", id="piece-renamed"),
        pytest.param(flip_the_key, "key", id="key-of-the-log"),
        pytest.param(lose_the_key, "/wal/keys/.*not there", id="key-of-the-log-missing"),
        pytest.param(wrong_major, "PostgreSQL 9", id="wrong-major"),
        pytest.param(another_cluster_file, "base.tar.*SHA-256", id="base-flipped"),
    ],
)
async def test_damage(do: Callable[[RecoveryLab, Gone], None], says: str, gone: Gone) -> None:
    lab = gone.lab()
    await lab.look()
    do(lab, gone)
    drill = await lab.drill()
    assert drill.phase is DrillPhase.FAILED, f"a drill of something damaged passed: {drill.sentence}"
    assert re.search(says, drill.failure), f"the drill says: {drill.failure}"


async def test_a_listing_tells_of_holes(gone: Gone) -> None:
    lab = gone.lab()
    lose_the_middle(lab, gone)
    verdict = await lab.verdict()
    assert verdict.state is RpoState.BREACHED
    assert any("is missing" in note for note in verdict.notes)
    lab = gone.lab()
    lose_the_end(lab, gone)
    assert (await lab.verdict()).state is RpoState.BREACHED


async def test_a_head_that_was_changed(gone: Gone) -> None:
    """It would vouch for an hour that nobody has: the survey refuses it, and a drill believes only the log itself."""
    lab = gone.lab()
    key = head_key(NAME)
    head = decode(HeadFile, key, lab.objects.get(key))
    await lab.look()
    later = head.model_copy(update={"covered_at": head.covered_at + timedelta(hours=1)})
    lab.objects.change(key, encode(later))
    drill = await lab.drill()
    assert drill.newest_at is not None
    assert drill.newest_at <= gone.coverage.covered_at
    seen = await lab.look()
    assert seen is not None
    assert "is not what the stream wrote" in seen.problem
    lab.objects.change(key, b"{")
    assert (await lab.verdict()).state is RpoState.UNKNOWN


async def test_an_assertion_about_the_restored_rows(gone: Gone) -> None:
    checks = (
        CheckSpec(name="many", sql="SELECT count(*) FROM orders", at_least=1_000_000),
        CheckSpec(name="drift", sql="SELECT max(shipped_at) FROM orders", at_least=0),
    )
    drill = await gone.lab(spec=replace(SPEC, checks=checks)).drill()
    assert drill.phase is DrillPhase.FAILED
    assert "many: found" in drill.failure
    assert "drift: " in drill.failure
    assert "shipped_at" in drill.failure


async def test_a_moment_that_the_log_does_not_reach(gone: Gone) -> None:
    drill = await gone.lab().drill(to_time=gone.coverage.covered_at + timedelta(minutes=5))
    assert drill.phase is DrillPhase.FAILED
    assert "the log reaches to" in drill.failure
