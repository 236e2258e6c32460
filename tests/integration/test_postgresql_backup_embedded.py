"""The PostgreSQL that the control plane runs itself, its demo load, and Debian's older major version."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from controlplane.adapters.backup.postgresql.demo_writer import DemoWriter
from controlplane.adapters.backup.postgresql.embedded import EmbeddedPostgreSQL
from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.programs import account, must_run, programs_for
from controlplane.adapters.backup.postgresql.server import (
    end_servers,
    make_private,
    postmaster_of,
    servers_in,
    start_server,
)
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.instance import SITE_VARIABLE
from controlplane.domain.recovery import Verdict
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import RestoreRequest, SilentWatch, VerifyRequest
from tests.integration.postgresql_lab import (
    DATASET,
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

DEBIAN = 15


@pytest.fixture
def folder() -> Iterator[Path]:
    with enterable_folder() as folder:
        yield folder


def test_it_outlives_its_owner_and_is_found_again(folder: Path) -> None:
    first = EmbeddedPostgreSQL(folder, "mark")
    url = first.ensure_running()
    pid = first.pid
    assert pid is not None
    assert psutil.Process(pid).environ()[SITE_VARIABLE] == "mark"
    assert os.getsid(pid) != os.getsid(0)
    second = EmbeddedPostgreSQL(folder, "mark")
    assert second.ensure_running() == url
    assert second.pid == pid
    with psycopg.connect(url) as connection:
        assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
        assert connection.execute("SHOW summarize_wal").fetchone() == ("on",)
        connection.execute("CREATE TABLE kept (id int)")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: second.pid is None)
    assert second.ensure_running() == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    second.stop()
    second.stop()
    assert servers_in(folder) == []


def test_a_death_while_it_is_made_is_made_good(folder: Path) -> None:
    embedded = EmbeddedPostgreSQL(folder, "mark")
    embedded.data.mkdir(parents=True)
    (embedded.data / "PG_VERSION").write_text("18\n", encoding="utf-8")
    embedded.ensure_running()
    embedded.stop()


def test_its_own_words_tell_why_it_does_not_start(folder: Path) -> None:
    embedded = EmbeddedPostgreSQL(folder, "mark", settings={"shared_buffers": "a lot"})
    with pytest.raises(RetryableError, match="shared_buffers"):
        embedded.ensure_running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that PostgreSQL's account may not enter")
def test_behind_a_closed_folder_it_lies_elsewhere(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with primary_in(closed) as primary:
        assert not primary.embedded.home.is_relative_to(closed)
        primary.sql("CREATE TABLE acknowledged (id int)")
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
        copy = copy_of(adapter, "a")
        primary.wipe()
    into = closed / "into"
    with restored(adapter, into, copy) as back:
        assert ids_in(back) == set()
        assert (into / "data").resolve() == places_of(into).data
    assert not places_of(into).home.exists()


def test_the_demo_load_is_bounded_and_survives_its_server(folder: Path) -> None:
    with primary_in(folder / "live") as primary:
        writer = DemoWriter(primary.url, rate_per_s=500, rows_max=50, trim_every=20)
        stop = threading.Event()
        thread = threading.Thread(target=writer.run, args=(stop,))
        thread.start()
        try:
            eventually(lambda: writer.written > 100)
            primary.kill()
            eventually(lambda: writer.last_error != "")
            primary.start()
            before = writer.written
            eventually(lambda: writer.written > before + 50)
        finally:
            stop.set()
            thread.join()
        (count,) = primary.sql("SELECT count(*) FROM orders")[0]
        assert isinstance(count, int)
        assert 0 < count <= 50 + 20 + 1


def test_a_killed_copy_leaves_nothing(folder: Path) -> None:
    with primary_in(folder / "live") as primary:
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
        copy = copy_of(adapter, "a")
    into = folder / "into"
    adapter.restore(RestoreRequest(chain=(copy,), into=into), SilentWatch())
    owner = adapter.start(into, SilentWatch())
    owner.__enter__()  # and its owner is never heard of again
    postmaster = postmaster_of(places_of(into).data)
    assert postmaster is not None
    assert any(f"process {postmaster.pid}" in line for line in adapter.leftovers(into))
    segment = _segment_of(places_of(into).data)
    assert segment in _shared_memory()
    postmaster.kill()
    adapter.end_leftovers(into)
    assert adapter.leftovers(into) == ()
    assert servers_in(folder) == []
    assert segment not in _shared_memory()
    owner.__exit__(None, None, None)


@pytest.fixture
def debian(folder: Path) -> Iterator[str]:
    try:
        programs = programs_for(DEBIAN)
    except TerminalError as error:
        pytest.skip(str(error))
    home = make_private(folder / "debian", account())
    sockets = make_private(home / "s", account())
    data = home / "data"
    must_run([programs.path("initdb"), "-D", data, "-U", "someone", "-A", "trust", "-N"], cwd=home, deadline_s=60)
    settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), "fsync": "off", "autovacuum": "off"}
    start_server(programs, data, settings=settings, log=home / "log")
    url = f"postgresql://someone@/postgres?host={sockets}"
    until = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url).close()
            break
        except psycopg.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.05)
    yield url
    end_servers(home)


def test_an_older_major_version_goes_there_and_back(debian: str, folder: Path) -> None:
    adapter = PostgreSQLAdapter(url=debian, dataset=DATASET)
    assert adapter.probe().engine.startswith("postgresql 15.")
    bucket = new_bucket()
    with streaming(debian, bucket) as stream, writing(debian, pause_s=0.005) as told:
        first = copy_of(adapter, "a")
        second = copy_of(adapter, "b", first)
        eventually(lambda: len(told.ids) > 50)
        now = stream.status().durable
        eventually(lambda: stream.status().durable > now)
    assert "came with PostgreSQL 17" in (second.manifest.fact("full_because") or "")
    with restored(adapter, folder / "into", first, store=bucket) as back:
        assert told.by(told.ids[-1][1]) <= ids_in(back)
        outcomes = back.verify(VerifyRequest(manifest=first.manifest, exact_counts=False), SilentWatch())
    assert {outcome.name: outcome.verdict for outcome in outcomes if outcome.verdict is Verdict.FAILED} == {}


def _segment_of(data: Path) -> str:
    """The identifier of its shared memory: the second word of the seventh line of postmaster.pid."""
    return (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[6].split()[1]


def _shared_memory() -> set[str]:
    listing = Path("/proc/sysvipc/shm")
    if not listing.exists():
        pytest.skip("this system does not list its shared memory")
    return {line.split()[1] for line in listing.read_text(encoding="ascii").splitlines()[1:]}
