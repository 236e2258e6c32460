"""What every adapter of a kind of dataset promises: whole copies of live data, and drills that see any damage."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import ConflictError, QuarterdeckError, RetryableError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import CancelledWorkError, RestoreRequest, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from tests.contract.dataset_lab import SEEDED, Bench, open_bench, utc_now
from tests.contract.postgresql_bench import DumpBench, open_postgresql
from tests.postgresql import new_database

KINDS = ("sqlite", "files", "redis", "postgresql", "postgresql-dump")


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "postgresql-dump":
        # Of one database: nothing else in the server matters.
        yield DumpBench(new_database(request.getfixturevalue("postgresql_server")))
        return
    opened = open_postgresql if request.param == "postgresql" else partial(open_bench, request.param)
    with opened(tmp_path) as bench:
        yield bench


@pytest.fixture
def copies(bench: Bench) -> Iterator[Path]:
    """Where copies are restored, which any account may enter; what a test leaves there is ended after it."""
    folder = Path(tempfile.mkdtemp(prefix="qd-copies-"))
    folder.chmod(0o755)
    yield folder
    for into in folder.iterdir():
        if into.is_dir() and not into.is_symlink():
            bench.adapter.end_leftovers(into)
    shutil.rmtree(folder)


def snapshot(bench: Bench, watch: RecordingWatch | None = None) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink(kind=bench.adapter.kind)
    facts = bench.adapter.snapshot(sink, parent=None, watch=watch or RecordingWatch())
    return sink.source(facts), facts


def restore(bench: Bench, source: MemorySource, into: Path) -> None:
    bench.adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())


def verify(bench: Bench, manifest: Manifest, into: Path, *checks: CheckSpec) -> tuple[CheckOutcome, ...]:
    request = VerifyRequest(manifest=manifest, checks=checks)
    with bench.adapter.start(into, RecordingWatch()) as scratch:
        return tuple(scratch.verify(request, RecordingWatch()))


def complaints(bench: Bench, manifest: Manifest, into: Path) -> list[str]:
    """What makes a drill of this copy red: refusing to start is as good as a failed check."""
    try:
        return [outcome.sentence for outcome in failures(verify(bench, manifest, into)) if outcome.sentence]
    except TerminalError as refused:
        return [str(refused)] if str(refused) else []


def failures(outcomes: tuple[CheckOutcome, ...]) -> list[CheckOutcome]:
    return [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]


def test_probe_names_the_engine_and_a_size(bench: Bench) -> None:
    source = bench.adapter.probe()
    assert source.engine.startswith(str(bench.adapter.kind).removesuffix("-dump"))
    assert source.size_bytes > SEEDED


def test_a_source_that_is_not_there_is_named(bench: Bench) -> None:
    with pytest.raises((TerminalError, RetryableError), match="nowhere"):
        bench.absent.probe()
    sink = MemorySink()
    with pytest.raises((TerminalError, RetryableError), match="nowhere"):
        bench.absent.snapshot(sink, parent=None, watch=RecordingWatch())
    assert sink.streams == {}


def test_what_comes_back_is_what_was_there(bench: Bench, copies: Path) -> None:
    expected = bench.content()
    before = utc_now()
    source, facts = snapshot(bench)
    assert before - timedelta(seconds=1) <= facts.consistent_at <= utc_now()
    restore(bench, source, copies / "into")
    with bench.adapter.start(copies / "into", RecordingWatch()) as scratch:
        assert bench.restored_content(copies / "into") == expected
        outcomes = tuple(scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch()))
        newest_at = scratch.started.newest_at
    assert failures(outcomes) == []
    assert outcomes[0].verdict is Verdict.PASSED
    assert any("counts" in outcome.name and outcome.verdict is Verdict.PASSED for outcome in outcomes)
    assert newest_at is None or newest_at <= utc_now()


def test_a_copy_under_writes_is_of_one_moment_and_disturbs_nobody(bench: Bench, copies: Path) -> None:
    with writing(bench) as writer:
        writer.await_more()
        source, facts = snapshot(bench)
        writer.await_more()
    restore(bench, source, copies / "into")
    with bench.adapter.start(copies / "into", RecordingWatch()) as scratch:
        newest = bench.newest(bench.restored_content(copies / "into"))
        assert failures(tuple(scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch()))) == []
    promised = max(number for number, at in writer.acknowledged if at <= facts.consistent_at)
    assert promised <= newest <= writer.acknowledged[-1][0]


def test_a_watch_is_told_what_is_done(bench: Bench, copies: Path) -> None:
    watch = RecordingWatch()
    source, _ = snapshot(bench, watch)
    assert watch.steps
    assert watch.done_bytes > SEEDED
    watch = RecordingWatch()
    bench.adapter.restore(RestoreRequest(chain=(source,), into=copies / "into"), watch)
    assert watch.done_bytes >= source.manifest.plain_bytes // 2


@pytest.mark.parametrize("occupied", ["a file", "a folder", "itself a file", "a link"])
def test_a_restore_overwrites_nothing(bench: Bench, copies: Path, occupied: str) -> None:
    source, _ = snapshot(bench)
    into = copies / "into"
    precious = into / "precious"
    match occupied:
        case "a file":
            into.mkdir()
            precious.write_text("precious", encoding="utf-8")
        case "a folder":
            precious.mkdir(parents=True)
        case "itself a file":
            precious = into
            into.write_text("precious", encoding="utf-8")
        case _:
            (copies / "elsewhere").mkdir()
            into.symlink_to(copies / "elsewhere")
            precious = into
    with pytest.raises(ConflictError, match="into"):
        restore(bench, source, into)
    assert precious.exists()
    assert not into.is_dir() or list(into.iterdir()) in ([], [precious])


def test_the_sites_assertions_are_judged(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    restore(bench, source, copies / "into")
    expected = {check.name: holds for check, holds in bench.checks()}
    outcomes = verify(bench, source.manifest, copies / "into", *(check for check, _ in bench.checks()))
    found = {outcome.name: outcome.verdict is Verdict.PASSED for outcome in outcomes if outcome.name in expected}
    assert found == expected
    assert all(outcome.sentence for outcome in outcomes)


def test_every_damage_turns_the_drill_red(bench: Bench, copies: Path) -> None:
    """Each one of the kind's table, from one copy: a sentence, never a traceback, and never green."""
    source, _ = snapshot(bench)
    green = []
    for number, (name, damage) in enumerate(bench.damages()):
        into = copies / f"into-{number}"
        restore(bench, source, into)
        damage(into)
        if not complaints(bench, source.manifest, into):
            green.append(name)
    assert green == []


def test_damage_after_the_start_is_seen_too(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    into = copies / "into"
    restore(bench, source, into)
    flipped_at_the_end = dict(bench.damages())["flipped at the end"]
    with bench.adapter.start(into, RecordingWatch()) as scratch:
        flipped_at_the_end(into)
        assert failures(tuple(scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch())))


def test_an_older_copy_is_not_taken_for_this_one(bench: Bench, copies: Path) -> None:
    old, _ = snapshot(bench)
    bench.write(SEEDED)
    new, _ = snapshot(bench)
    restore(bench, old, copies / "into")
    assert failures(verify(bench, new.manifest, copies / "into"))


def test_counts_that_do_not_hold_are_named(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    restore(bench, source, copies / "into")
    first = source.manifest.counts[0]
    wrong = replace(source.manifest, counts=(replace(first, rows=first.rows + 1), *source.manifest.counts[1:]))
    (outcome,) = [found for found in failures(verify(bench, wrong, copies / "into")) if found.name == "counts"]
    assert first.name in outcome.sentence
    assert str(first.rows + 1) in outcome.sentence


def test_a_copy_that_cannot_be_read_back_leaves_an_empty_folder(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    source.fail_at_read = 1
    with pytest.raises(TerminalError, match="authenticate"):
        restore(bench, source, copies / "into")
    assert list((copies / "into").iterdir()) == []


def test_a_store_that_fails_is_loud_and_the_next_try_converges(bench: Bench, copies: Path) -> None:
    expected = bench.content()
    before = beside(bench)
    sink = MemorySink()
    bench.adapter.snapshot(sink, parent=None, watch=RecordingWatch())
    for number in range(1, sink.writes + 1, max(1, sink.writes // 8)):
        failing = MemorySink()
        failing.fail_at_write(number)
        with pytest.raises(RetryableError, match="the store refuses"):
            bench.adapter.snapshot(failing, parent=None, watch=RecordingWatch())
        assert beside(bench) == before
    source, _ = snapshot(bench)
    restore(bench, source, copies / "into")
    with bench.adapter.start(copies / "into", RecordingWatch()):
        assert bench.restored_content(copies / "into") == expected


def test_a_copy_stops_when_asked_and_leaves_nothing(bench: Bench) -> None:
    before = beside(bench)
    sink = MemorySink()
    with pytest.raises(CancelledWorkError):
        bench.adapter.snapshot(sink, parent=None, watch=RecordingWatch(cancel_after_bytes=1))
    assert sink.streams == {}
    assert beside(bench) == before


def test_a_restore_stops_when_asked_and_leaves_nothing(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    request = RestoreRequest(chain=(source,), into=copies / "into")
    with pytest.raises(CancelledWorkError):
        bench.adapter.restore(request, RecordingWatch(cancel_after_bytes=1))
    assert list((copies / "into").iterdir()) == []
    assert bench.adapter.restore(request, RecordingWatch()).plain_bytes > 0


def test_a_verification_stops_when_asked(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    restore(bench, source, copies / "into")
    with bench.adapter.start(copies / "into", RecordingWatch()) as scratch, pytest.raises(CancelledWorkError):
        scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch(cancel_after_bytes=0))


def test_what_a_dead_owner_left_is_found_and_ended(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    into = copies / "into"
    assert tuple(bench.adapter.leftovers(into)) == ()
    bench.adapter.end_leftovers(into)
    restore(bench, source, into)
    with ExitStack() as owner:
        owner.enter_context(bench.adapter.start(into, RecordingWatch()))
        assert bench.adapter.leftovers(into)
        bench.adapter.end_leftovers(into)
        assert tuple(bench.adapter.leftovers(into)) == ()
        assert not into.exists()
    with pytest.raises(QuarterdeckError), bench.adapter.start(into, RecordingWatch()):
        pass


def test_a_started_copy_is_gone_when_it_is_left(bench: Bench, copies: Path) -> None:
    source, _ = snapshot(bench)
    into = copies / "into"
    restore(bench, source, into)
    with bench.adapter.start(into, RecordingWatch()):
        pass
    assert not [line for line in bench.adapter.leftovers(into) if "process" in line]
    assert failures(verify(bench, source.manifest, into)) == []


def beside(bench: Bench) -> set[str]:
    """What lies at the source, but for the files that a database makes for itself."""
    folder = bench.source_folder
    names = {path.name for path in folder.iterdir()} if folder else set()
    return {name for name in names if not name.endswith(("-wal", "-shm"))}


@dataclass(slots=True)
class Writer:
    bench: Bench
    acknowledged: list[tuple[int, datetime]]
    stop: threading.Event
    more: threading.Semaphore
    failure: list[Exception]

    def run(self) -> None:
        number = SEEDED
        try:
            while not self.stop.is_set():
                self.bench.write(number)
                self.acknowledged.append((number, utc_now()))
                self.more.release()
                number += 1
        except Exception as error:  # noqa: BLE001 - told to the test, which is another thread
            self.failure.append(error)
            self.more.release(100)

    def await_more(self, count: int = 20) -> None:
        """So many writes were acknowledged since the last time it was asked."""
        while self.more.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self.more.acquire(timeout=30), "the writer stands still"


@contextmanager
def writing(bench: Bench) -> Iterator[Writer]:
    writer = Writer(bench, [], threading.Event(), threading.Semaphore(0), [])
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        writer.stop.set()
        thread.join()
    assert writer.failure == []
