"""SQLite: what is special about copying a live file, and about the control plane's own store."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controlplane.adapters.backup.sqlite import STREAM, SqliteDataset
from controlplane.adapters.backup.sqlite_content import content_of
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import CancelledWorkError, RestoreRequest, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from controlplane.testing.effects import START

ROWS = 40_000
STALL_MAX_S = 0.5
"""A write may wait so long at most while a copy is made: a tenth of the busy timeout of the control plane's store. The
measured worst is a few milliseconds; the rest is for a busy machine of CI."""
TRY_TO_WRITE = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
    "try:\n"
    "    connection.execute('BEGIN IMMEDIATE')\n"
    "except sqlite3.OperationalError as error:\n"
    "    print(error)\n"
)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """About 12 MiB as the control plane's store keeps them: a log ahead of the file, one connection that writes."""
    path = tmp_path / "live" / "store.sqlite3"
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;")
        connection.execute("CREATE TABLE events(id INTEGER PRIMARY KEY, body BLOB)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO events(body) VALUES (randomblob(?))", [(250,)] * ROWS)
        connection.execute("COMMIT")
        yield connection


@pytest.fixture
def dataset(live: sqlite3.Connection, tmp_path: Path) -> SqliteDataset:
    return SqliteDataset(path=tmp_path / "live" / "store.sqlite3", now=lambda: START)


def snapshot(dataset: SqliteDataset) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink()
    facts = dataset.snapshot(sink, parent=None, watch=RecordingWatch())
    return sink.source(facts), facts


def restored(dataset: SqliteDataset, source: MemorySource, into: Path, *checks: CheckSpec) -> tuple[CheckOutcome, ...]:
    dataset.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    with dataset.start(into, RecordingWatch()) as scratch:
        return scratch.verify(VerifyRequest(manifest=source.manifest, checks=checks), RecordingWatch())


def red(outcomes: tuple[CheckOutcome, ...]) -> dict[str, str]:
    return {outcome.name: outcome.sentence for outcome in outcomes if outcome.verdict is Verdict.FAILED}


def test_writers_go_on_while_a_copy_is_made(live: sqlite3.Connection, dataset: SqliteDataset) -> None:
    waits: list[float] = []
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            began = time.perf_counter()
            live.execute("BEGIN IMMEDIATE")
            live.execute("INSERT INTO events(body) VALUES ('written meanwhile')")
            live.execute("COMMIT")
            waits.append(time.perf_counter() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        _, facts = snapshot(dataset)
    finally:
        done.set()
        writer.join()
    assert len(waits) > 10
    assert max(waits) < STALL_MAX_S
    assert facts.counts[0].rows >= ROWS


def test_locks_of_this_process_survive_a_copy(live: sqlite3.Connection, dataset: SqliteDataset) -> None:
    """A file opened and closed by hand would have dropped them, and a second writer would corrupt the store."""
    live.execute("BEGIN IMMEDIATE")
    live.execute("INSERT INTO events(body) VALUES ('not committed')")
    _, facts = snapshot(dataset)
    said = subprocess.run(
        [sys.executable, "-c", TRY_TO_WRITE, str(dataset.path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "locked" in said.stdout
    assert facts.counts[0].rows == ROWS
    live.execute("COMMIT")


def test_the_copy_is_one_plain_file_and_tells_how_the_live_one_was(dataset: SqliteDataset, tmp_path: Path) -> None:
    source, facts = snapshot(dataset)
    assert dict(facts.facts)["journal_mode"] == "wal"
    assert facts.consistent_at == START
    assert source.streams[STREAM][18:20] == b"\x01\x01"  # neither read nor written through a log
    assert red(restored(dataset, source, tmp_path / "into")) == {}
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["store.sqlite3"]


def test_a_copy_that_a_dead_owner_left_is_swept_by_the_next(dataset: SqliteDataset) -> None:
    left = dataset.path.parent / ".quarterdeck-copy-dead"
    left.mkdir()
    (left / "store.sqlite3").write_bytes(b"x" * 1000)
    snapshot(dataset)
    assert not left.exists()


def test_two_copies_at_once_do_not_sweep_each_other(dataset: SqliteDataset) -> None:
    found: list[tuple[MemorySource, SnapshotFacts]] = []
    threads = [threading.Thread(target=lambda: found.append(snapshot(dataset))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({source.streams[STREAM] for source, _ in found}) == 1
    assert len(found) == 3


def test_a_rollback_journal_works_as_well(tmp_path: Path) -> None:
    path = tmp_path / "plain.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(a)")
    dataset = SqliteDataset(path=path, now=lambda: START)
    source, facts = snapshot(dataset)
    assert dict(facts.facts)["journal_mode"] == "delete"
    assert red(restored(dataset, source, tmp_path / "into")) == {}


def test_every_kind_of_content_is_hashed_and_told_apart(tmp_path: Path) -> None:
    def hashes(*values: str) -> set[str | None]:
        found = set()
        for number, value in enumerate(values):
            path = tmp_path / f"{len(values)}-{number}.db"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE t(a)")
                connection.execute(f"INSERT INTO t VALUES ({value})")
                connection.commit()
            found.add(content_of(path, RecordingWatch()).counts[0].sha256)
        return found

    values = ("1", "1.0", "'1'", "x'31'", "NULL", "''", "x''", "cast(x'ff' AS TEXT)", "x'ff'", "'a' || char(0) || 'b'")
    assert len(hashes(*values)) == len(values)
    assert len(hashes("'1'", "cast(x'31' AS TEXT)", "'1'")) == 1


def test_odd_schemas_are_copied_too(tmp_path: Path) -> None:
    path = tmp_path / "odd.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            'CREATE TABLE "quo""ted table"(a); INSERT INTO "quo""ted table" VALUES (1);'
            "CREATE TABLE parent(id INTEGER PRIMARY KEY); CREATE TABLE child(p REFERENCES parent(id));"
            "INSERT INTO child VALUES (99);"  # a row without its parent, in the live database already
            "CREATE TABLE mismatched(p REFERENCES parent(nowhere));"
            "CREATE VIRTUAL TABLE search USING fts5(words); INSERT INTO search VALUES ('to be found');"
            "CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT);"
        )
    dataset = SqliteDataset(path=path, now=lambda: START)
    source, facts = snapshot(dataset)
    assert {'quo"ted table', "child", "search_content"} <= {count.name for count in facts.counts}
    check = CheckSpec(name="search", sql="SELECT count(*) FROM search WHERE words MATCH 'found'", equals="1")
    assert red(restored(dataset, source, tmp_path / "into", check)) == {}


def test_new_orphans_are_told_although_some_were_known(tmp_path: Path) -> None:
    path = tmp_path / "orphans.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE parent(id INTEGER PRIMARY KEY); CREATE TABLE child(p REFERENCES parent(id));"
            "INSERT INTO child VALUES (99);"
        )
    dataset = SqliteDataset(path=path, now=lambda: START)
    source, _ = snapshot(dataset)
    dataset.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    with closing(sqlite3.connect(tmp_path / "into" / "orphans.db")) as connection:
        connection.execute("INSERT INTO child VALUES (100)")
        connection.commit()
    with dataset.start(tmp_path / "into", RecordingWatch()) as scratch:
        found = red(scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch()))
    assert "not there: 2, at the copy: 1" in found["foreign_key_check"]


def test_an_assertion_reads_this_file_and_no_other(dataset: SqliteDataset, tmp_path: Path) -> None:
    source, _ = snapshot(dataset)
    elsewhere = tmp_path / "elsewhere.db"
    checks = (
        CheckSpec(name="attach", sql=f"ATTACH '{elsewhere}' AS e"),
        CheckSpec(name="vacuum", sql=f"VACUUM INTO '{elsewhere}'"),
        CheckSpec(name="drop", sql="DROP TABLE events"),
    )
    assert {"attach", "vacuum", "drop"} <= red(restored(dataset, source, tmp_path / "into", *checks)).keys()
    assert not elsewhere.exists()


def test_an_assertion_stops_when_asked(dataset: SqliteDataset, tmp_path: Path) -> None:
    source, _ = snapshot(dataset)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    dataset.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    watch = RecordingWatch(cancel_after_bytes=len(source.streams[STREAM]) + 1)
    stopper = threading.Thread(target=lambda: _advance_later(watch))
    with dataset.start(tmp_path / "into", RecordingWatch()) as scratch:
        stopper.start()
        request = VerifyRequest(manifest=source.manifest, checks=(CheckSpec(name="endless", sql=endless),))
        with pytest.raises(CancelledWorkError):
            scratch.verify(request, watch)
        stopper.join()


def _advance_later(watch: RecordingWatch) -> None:
    while watch.done_bytes < (watch.cancel_after_bytes or 0) - 1:
        time.sleep(0.01)
    with pytest.raises(CancelledWorkError):
        watch.advance(1)


@pytest.mark.parametrize(
    "body", [b"no database at all, but long enough to be looked at" * 20, b"SQLite format 3\0" * 70]
)
def test_something_else_at_the_path_is_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(body)
    dataset = SqliteDataset(path=path, now=lambda: START)
    with pytest.raises(TerminalError, match=r"x\.db"):
        dataset.probe()
    with pytest.raises(TerminalError, match=r"x\.db"):
        snapshot(dataset)
    assert [found.name for found in tmp_path.iterdir()] == ["x.db"]


def test_a_live_database_that_is_torn_is_not_copied_as_if_it_were_whole(tmp_path: Path) -> None:
    path = tmp_path / "torn.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 500)
        connection.commit()
    body = bytearray(path.read_bytes())
    body[len(body) // 2 : len(body) // 2 + 8192] = b"\xa5" * 8192
    path.write_bytes(body)
    with pytest.raises(TerminalError, match="not a sound SQLite database"):
        snapshot(SqliteDataset(path=path, now=lambda: START))


def test_a_locked_database_may_be_tried_again(tmp_path: Path) -> None:
    """Only an exclusive lock, outside of WAL, stops a reader at all."""
    path = tmp_path / "locked.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RetryableError, match="stayed locked"):
            SqliteDataset(path=path, now=lambda: START, busy_s=0.0).probe()


@pytest.mark.parametrize("name", ["../out.db", "/tmp/out.db", "", "..", "a\0b"])
def test_a_copy_does_not_choose_where_it_is_written(dataset: SqliteDataset, tmp_path: Path, name: str) -> None:
    source, facts = snapshot(dataset)
    facts_now = tuple((key, name if key == "file" else value) for key, value in facts.facts)
    sink = MemorySink()
    with sink.stream(STREAM) as writer:
        writer.write(source.streams[STREAM])
    hostile = sink.source(SnapshotFacts(engine=facts.engine, consistent_at=START, facts=facts_now))
    with pytest.raises(TerminalError, match="plain file name"):
        dataset.restore(RestoreRequest(chain=(hostile,), into=tmp_path / "into"), RecordingWatch())
    assert not (tmp_path / "out.db").exists()
