"""A real pgBackRest repository of the system's PostgreSQL: watched, added to, restored and drilled."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.backup.pgbackrest import PgbackrestDataset
from controlplane.adapters.backup.pgbackrest_coverage import PgbackrestCoverage
from controlplane.adapters.backup.pgbackrest_repository import Repository
from controlplane.adapters.backup.postgresql.verify import VerifyOptions
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import ConflictError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import CancelledWorkError, RestoreRequest, SilentWatch, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from tests.integration.pgbackrest_lab import Lab, open_lab

ROWS = 2_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One for all tests of the worker: each only adds to it, or puts back what it takes away."""
    with open_lab("compress-type=zst") as lab:
        fill(lab)
        yield lab


@pytest.fixture(scope="module")
def source(lab: Lab) -> MemorySource:
    """A full backup."""
    return snapshot(lab)[0]


def fill(lab: Lab) -> None:
    lab.execute("CREATE TABLE orders(id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())")
    lab.execute(f"INSERT INTO orders SELECT generate_series(1, {ROWS})")


@pytest.fixture
def into() -> Iterator[Path]:
    """Where PostgreSQL's account may go, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="qd-restored-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder / "into"
    shutil.rmtree(folder)


def dataset(lab: Lab, *, amcheck: bool = False) -> PgbackrestDataset:
    return PgbackrestDataset(repository=lab.repository, url=lab.url, verify=VerifyOptions(amcheck=amcheck))


def coverage(lab: Lab, *, url: str | None = None) -> PgbackrestCoverage:
    return PgbackrestCoverage(repository=lab.repository, now=lambda: datetime.now(UTC), url=url)


def snapshot(lab: Lab, parent: Manifest | None = None) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink()
    facts = dataset(lab).snapshot(sink, parent=parent, watch=RecordingWatch())
    return sink.source(facts), facts


def insert(lab: Lab) -> tuple[int, datetime]:
    """One more row: its number, and a moment after it was acknowledged."""
    with psycopg.connect(lab.url, autocommit=True) as connection:
        row = connection.execute("INSERT INTO orders SELECT max(id) + 1 FROM orders RETURNING id").fetchone()
        assert row is not None
        moment = connection.execute("SELECT clock_timestamp()").fetchone()
        assert moment is not None
        return int(row[0]), moment[0]


def drill(
    adapter: PgbackrestDataset,
    source: MemorySource,
    into: Path,
    *checks: CheckSpec,
    to_time: datetime | None = None,
) -> dict[str, CheckOutcome]:
    adapter.restore(RestoreRequest(chain=(source,), into=into, to_time=to_time), RecordingWatch())
    request = VerifyRequest(manifest=source.manifest, checks=checks, exact_counts=False)
    with adapter.start(into, RecordingWatch(), to_time=to_time) as scratch:
        return {outcome.name: outcome for outcome in scratch.verify(request, RecordingWatch())}


def equal_to(number: int) -> CheckSpec:
    return CheckSpec(name="newest", sql="SELECT max(id) FROM orders", equals=str(number))


def red(outcomes: dict[str, CheckOutcome]) -> dict[str, str]:
    return {name: outcome.sentence for name, outcome in outcomes.items() if outcome.verdict is Verdict.FAILED}


@pytest.mark.parametrize("compression", ["lz4", "gz"])
def test_a_backup_is_restored_with_all_of_the_log(compression: str, into: Path) -> None:
    """Each with a server of its own; lz4 is what only pgBackRest itself unpacks."""
    with open_lab(f"compress-type={compression}") as lab:
        fill(lab)
        check_round_trip(lab, into)


def check_round_trip(lab: Lab, into: Path) -> None:
    source, facts = snapshot(lab)
    assert facts.engine.startswith("postgresql ")
    assert dict(facts.facts)["type"] == "full"
    assert any(count.name == "postgres.public.orders" and count.rows >= ROWS for count in facts.counts)
    newest, _ = insert(lab)
    lab.archived()
    adapter = dataset(lab, amcheck=True)
    outcomes = drill(adapter, source, into, equal_to(newest))
    assert red(outcomes) == {}
    assert outcomes["counts"].verdict is Verdict.PASSED
    assert outcomes["files"].verdict is Verdict.PASSED
    assert not [line for line in adapter.leftovers(into) if "process" in line]
    adapter.end_leftovers(into)
    assert tuple(adapter.leftovers(into)) == ()


def test_a_moment_in_between_is_restored_exactly(lab: Lab, source: MemorySource, into: Path) -> None:
    wanted, moment = insert(lab)
    lab.archived()
    insert(lab)
    lab.archived()
    assert red(drill(dataset(lab), source, into, equal_to(wanted), to_time=moment)) == {}


def test_an_increment_is_restored_by_its_name_alone(lab: Lab, source: MemorySource, into: Path) -> None:
    newest, _ = insert(lab)
    increment, facts = snapshot(lab, parent=source.manifest)
    assert dict(facts.facts)["type"] == "incr"
    assert red(drill(dataset(lab), increment, into, equal_to(newest))) == {}


def test_the_probe_tells_version_and_size(lab: Lab, source: MemorySource) -> None:
    found = dataset(lab).probe()
    assert found.engine.startswith("pgbackrest of postgresql ")
    assert found.size_bytes > 10 * 1024 * 1024


def test_what_is_not_there_is_named(lab: Lab, tmp_path: Path) -> None:
    nowhere = Repository(configuration=tmp_path / "nowhere.conf", stanza="lab")
    with pytest.raises(TerminalError, match=r"nowhere\.conf"):
        PgbackrestDataset(repository=nowhere).probe()
    other = Repository(configuration=lab.repository.configuration, stanza="other")
    with pytest.raises(TerminalError, match="no stanza other"):
        PgbackrestDataset(repository=other).probe()


def test_a_restore_overwrites_nothing_and_no_live_cluster(lab: Lab, source: MemorySource, into: Path) -> None:
    for folder in (lab.folder / "data", lab.folder):
        with pytest.raises(ConflictError):
            dataset(lab).restore(RestoreRequest(chain=(source,), into=folder), RecordingWatch())
    insert(lab)  # it lives
    assert not into.exists()


def test_a_restore_stops_when_asked_and_leaves_nothing(lab: Lab, source: MemorySource, into: Path) -> None:
    with pytest.raises(CancelledWorkError):
        dataset(lab).restore(
            RestoreRequest(chain=(source,), into=into), RecordingWatch(cancel_at_step="restore by pgBackRest")
        )
    assert list(into.iterdir()) == []


def test_a_backup_stops_when_asked_and_the_next_one_works(lab: Lab) -> None:
    sink = MemorySink()
    with pytest.raises(CancelledWorkError):
        dataset(lab).snapshot(sink, parent=None, watch=RecordingWatch(cancel_at_step="back up"))
    assert sink.streams == {}
    _, facts = snapshot(lab)
    assert dict(facts.facts)["label"]


def test_a_damaged_restored_file_turns_the_drill_red(lab: Lab, source: MemorySource, into: Path) -> None:
    adapter = dataset(lab)
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    files = [path for path in (into / "data" / "base").rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    body = victim.read_bytes()
    middle = len(body) // 2
    flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    for path, damaged in ((victim, flipped), (victim, body[:middle]), (victim, None), (into / "backup.manifest", None)):
        whole = path.read_bytes()
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(TerminalError, match="not those of the backup"), adapter.start(into, RecordingWatch()):
            pass
        path.write_bytes(whole)
    adapter.end_leftovers(into)


def test_the_repository_tells_how_far_the_log_reaches(lab: Lab, source: MemorySource) -> None:
    _, acknowledged = insert(lab)
    lab.archived()
    _, later = insert(lab)  # not archived: its segment is still open
    found = coverage(lab).look()
    assert found is not None
    assert found.gaps == ()
    assert found.segments > 0
    assert acknowledged - timedelta(seconds=1) < found.covered_at < later


def test_an_idle_server_loses_nothing_although_its_last_commit_is_old(lab: Lab, source: MemorySource) -> None:
    insert(lab)
    lab.archived()
    asked_at = datetime.now(UTC)
    idle = coverage(lab, url=lab.url).look()
    assert idle is not None
    assert idle.covered_at >= asked_at
    _, later = insert(lab)
    busy = coverage(lab, url=lab.url).look()
    assert busy is not None
    assert busy.covered_at < later


def test_log_that_was_dropped_is_a_gap_although_the_archiver_is_content(
    lab: Lab, source: MemorySource, into: Path
) -> None:
    """As `archive-push-queue-max` does it: reported as archived, and not in the repository."""
    _, before = insert(lab)
    lab.archived()
    looked = coverage(lab)
    assert looked.look() is not None
    insert(lab)
    lab.archived()
    dropped = newest_segment(lab)
    hidden = lab.folder / dropped.name
    insert(lab)
    lab.archived()
    shutil.move(dropped, hidden)
    try:
        found = looked.look()
        assert found is not None
        assert len(found.gaps) == 1
        assert "1 segments are missing" in found.gaps[0]
        assert found.covered_at <= before
        # A restore gets as far as the log does, and says how far that is.
        restored = dataset(lab).restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
        assert restored.log is not None
        assert restored.log.newest_at is not None
        assert restored.log.newest_at <= before
        dataset(lab).end_leftovers(into)
    finally:
        shutil.move(hidden, dropped)
    found = looked.look()
    assert found is not None
    assert found.gaps == ()


def test_a_segment_that_is_damaged_in_the_repository_is_noticed(lab: Lab, source: MemorySource, into: Path) -> None:
    insert(lab)
    lab.archived()
    victim = newest_segment(lab)
    whole = victim.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0x10
    victim.write_bytes(damaged)
    try:
        with pytest.raises(TerminalError):
            dataset(lab).restore(RestoreRequest(chain=(source,), into=into), SilentWatch())
        assert list(into.iterdir()) == []
        with pytest.raises(TerminalError):
            coverage(lab).look()
    finally:
        victim.write_bytes(whole)


def test_a_backup_without_any_of_its_log_cannot_be_restored(lab: Lab) -> None:
    _, facts = snapshot(lab)
    with hidden_log(lab, dict(facts.facts)["archive_start"]), pytest.raises(TerminalError, match="cannot be restored"):
        coverage(lab).look()


def newest_segment(lab: Lab) -> Path:
    return max(path for path in lab.archive.iterdir() if len(path.name.partition("-")[0]) == 24)


@contextmanager
def hidden_log(lab: Lab, since: str) -> Iterator[None]:
    moved = [path for path in lab.archive.iterdir() if path.name >= since]
    for path in moved:
        shutil.move(path, lab.folder / f"hidden-{path.name}")
    try:
        yield
    finally:
        for path in moved:
            shutil.move(lab.folder / f"hidden-{path.name}", path)
