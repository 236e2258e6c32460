"""Copies of a real PostgreSQL, and what comes back from them."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.wal_layout import parse_range
from controlplane.domain.dataset import CheckSpec, WalMode
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import ConflictError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import RestoreRequest, SilentWatch, SnapshotSource, VerifyRequest
from controlplane.testing.backups import MemorySource, RecordingWatch
from tests.integration.postgresql_lab import (
    DATASET,
    Primary,
    copy_of,
    enterable_folder,
    eventually,
    ids_in,
    new_bucket,
    primary_in,
    reader,
    restored,
    streaming,
    writing,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with enterable_folder() as folder:
        yield folder


@pytest.fixture
def primary(folder: Path) -> Iterator[Primary]:
    with primary_in(folder / "live", autovacuum="off") as primary:
        yield primary


@pytest.fixture
def points() -> dict[str, SnapshotSource]:
    return {}


@pytest.fixture
def adapter(primary: Primary, points: dict[str, SnapshotSource]) -> PostgreSQLAdapter:
    def open_point(manifest: Manifest) -> SnapshotSource:
        return points[manifest.point]

    return PostgreSQLAdapter(url=primary.url, dataset=DATASET, open_point=open_point)


def failures(outcomes: tuple[CheckOutcome, ...]) -> list[CheckOutcome]:
    return [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]


def test_a_copy_under_load_comes_back_checked(adapter: PostgreSQLAdapter, primary: Primary, folder: Path) -> None:
    with writing(primary.url) as told:
        eventually(lambda: len(told.ids) > 50)
        copy = copy_of(adapter, "a")
        eventually(lambda: len(told.ids) > 100)
    assert copy.manifest.fact("copy") == "full"
    assert copy.manifest.fact("counts") == "moving"
    checks = (
        CheckSpec(name="some", sql="SELECT count(*) FROM acknowledged", at_least=50),
        CheckSpec(name="too many", sql="SELECT count(*) FROM acknowledged", at_least=1e9),
        CheckSpec(name="writes", sql="DELETE FROM acknowledged RETURNING 1", at_least=0),
    )
    with restored(adapter, folder / "into", copy) as back:
        ids = ids_in(back)
        outcomes = tuple(back.verify(VerifyRequest(manifest=copy.manifest, checks=checks), SilentWatch()))
    # Alone, without the log, it holds at least what was acknowledged by its own moment.
    assert told.by(copy.manifest.consistent_at) <= ids
    assert [outcome.name for outcome in failures(outcomes)] == ["too many", "writes"]
    assert [outcome.name for outcome in outcomes[:3]] == ["pg_verifybackup", "pg_amcheck", "counts"]
    assert all(outcome.verdict is Verdict.PASSED for outcome in outcomes[:4])


def test_counts_of_a_quiet_server_hold_exactly(adapter: PostgreSQLAdapter, primary: Primary, folder: Path) -> None:
    primary.sql("CREATE TABLE things AS SELECT generate_series(1, 777) AS id")
    primary.sql("CREATE UNLOGGED TABLE scratchpad AS SELECT 1 AS id")
    copy = copy_of(adapter, "a")
    assert copy.manifest.fact("counts") == "exact"
    assert {count.name: count.rows for count in copy.manifest.counts} == {"shop.public.things": 777}
    wrong = replace(copy.manifest, counts=(replace(copy.manifest.counts[0], rows=778),))
    with restored(adapter, folder / "into", copy) as back:
        assert not failures(tuple(back.verify(VerifyRequest(manifest=copy.manifest), SilentWatch())))
        (outcome,) = failures(tuple(back.verify(VerifyRequest(manifest=wrong), SilentWatch())))
    assert outcome.name == "counts"
    assert "777" in outcome.sentence
    assert "778" in outcome.sentence


def test_a_chain_of_increments_is_put_together(
    adapter: PostgreSQLAdapter, primary: Primary, folder: Path, points: dict[str, SnapshotSource]
) -> None:
    primary.sql("CREATE TABLE filling AS SELECT g AS id, repeat('x', 200) AS body FROM generate_series(1, 40000) g")
    chain: list[MemorySource] = []
    with writing(primary.url) as told:
        for name in ("a", "b", "c"):
            seen = len(told.ids)
            eventually(lambda seen=seen: len(told.ids) > seen + 20)  # type: ignore[misc] # bound to this turn
            chain.append(copy_of(adapter, name, chain[-1] if chain else None))
            points[name] = chain[-1]
    assert [copy.manifest.fact("copy") for copy in chain] == ["full", "incremental", "incremental"]
    assert chain[2].manifest.plain_bytes < chain[0].manifest.plain_bytes
    with restored(adapter, folder / "into", *chain) as back:
        assert told.by(chain[2].manifest.consistent_at) <= ids_in(back)
        assert not failures(tuple(back.verify(VerifyRequest(manifest=chain[2].manifest), SilentWatch())))
    with pytest.raises(TerminalError, match="pg_combinebackup"), restored(adapter, folder / "into", chain[0], chain[2]):
        pass


def test_a_parent_that_cannot_be_built_upon_gives_a_full_copy(adapter: PostgreSQLAdapter, primary: Primary) -> None:
    first = copy_of(adapter, "a")
    foreign = replace(first, manifest=replace(first.manifest, facts=(("system_id", "1"),)))
    second = copy_of(adapter, "b", foreign)
    assert second.manifest.fact("copy") == "full"
    assert "another cluster" in (second.manifest.fact("full_because") or "")
    primary.sql("ALTER SYSTEM SET summarize_wal = off")
    without = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
    assert "cannot be read" in (copy_of(without, "c", first).manifest.fact("full_because") or "")


def test_a_point_in_time_has_what_was_there_and_nothing_later(
    adapter: PostgreSQLAdapter, primary: Primary, folder: Path
) -> None:
    bucket = new_bucket()
    with streaming(primary.url, bucket) as stream:
        copy = copy_of(adapter, "a")
        primary.sql("CREATE TABLE acknowledged (id bigint PRIMARY KEY)")
        primary.sql("INSERT INTO acknowledged VALUES (1)")
        between = primary.clock()
        primary.sql("INSERT INTO acknowledged VALUES (2)")
        after = primary.clock()
        eventually(lambda: (stream.status().covered_at or between) > after + timedelta(milliseconds=50))
    with restored(adapter, folder / "into", copy, store=bucket, to_time=between) as back:
        assert ids_in(back) == {1}
        assert back.started.newest_at is not None
        assert back.started.newest_at <= between
    # Nothing was committed after this moment, but the log is known to reach beyond it.
    with restored(adapter, folder / "into", copy, store=bucket, to_time=after) as back:
        assert ids_in(back) == {1, 2}
    later = datetime.now(UTC) + timedelta(hours=1)
    with (
        pytest.raises(TerminalError, match="the log reaches to"),
        restored(adapter, folder / "into", copy, store=bucket, to_time=later),
    ):
        pass


def test_damage_to_the_log_is_loud(adapter: PostgreSQLAdapter, primary: Primary, folder: Path) -> None:
    bucket = new_bucket()
    with streaming(primary.url, bucket) as stream:
        copy = copy_of(adapter, "a")
        for number in range(4):
            before = stream.status().durable
            primary.sql(f"CREATE TABLE t{number} AS SELECT generate_series(1, 100)")
            eventually(lambda before=before: stream.status().durable > before)  # type: ignore[misc] # of this turn
    stop_lsn = int((copy.manifest.fact("log_since") or "").partition("/")[2], 16)
    ranges = [found for info in bucket.objects(f"{DATASET}/wal/") if (found := parse_range(info))]
    pieces = [found for found in ranges if found.start > stop_lsn]
    assert len(pieces) >= 3
    middle = pieces[len(pieces) // 2]
    body = bucket.get(middle.key)
    for damaged in (body[:-1], body[:40] + bytes([body[40] ^ 1]) + body[41:], bucket.get(pieces[0].key)):
        bucket.put(middle.key, damaged)
        with pytest.raises(TerminalError, match=middle.key), restored(adapter, folder / "into", copy, store=bucket):
            pass
    bucket.delete(middle.key)
    with pytest.raises(TerminalError, match="is missing from"), restored(adapter, folder / "into", copy, store=bucket):
        pass
    bucket.put(middle.key, body)
    with restored(adapter, folder / "into", copy, store=bucket) as back, psycopg.connect(back.url) as connection:
        assert connection.execute("SELECT count(*) FROM t3").fetchone() == (100,)


def test_tablespaces_come_back_wherever_they_were(
    adapter: PostgreSQLAdapter, primary: Primary, folder: Path, points: dict[str, SnapshotSource]
) -> None:
    place = primary.embedded.home / "fast-disk"
    place.mkdir(mode=0o700)
    owner = primary.embedded.data.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    primary.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    primary.sql("CREATE TABLE acknowledged (id bigint PRIMARY KEY) TABLESPACE fast")
    primary.sql("INSERT INTO acknowledged SELECT generate_series(1, 1000)")
    points["a"] = first = copy_of(adapter, "a")
    primary.sql("INSERT INTO acknowledged VALUES (1001)")
    second = copy_of(adapter, "b", first)
    primary.wipe()
    for chain in ((first,), (first, second)):
        with restored(adapter, folder / "into", *chain) as back:
            assert len(ids_in(back)) == 999 + len(chain)
            assert not failures(tuple(back.verify(VerifyRequest(manifest=chain[-1].manifest), SilentWatch())))


def test_another_major_version_is_refused_by_name(adapter: PostgreSQLAdapter, folder: Path) -> None:
    copy = copy_of(adapter, "a")
    facts = tuple((name, "9" if name == "version" else value) for name, value in copy.manifest.facts)
    other = replace(copy, manifest=replace(copy.manifest, facts=facts))
    with pytest.raises(TerminalError, match=r"PostgreSQL 9.*apt-get install postgresql-9"):
        adapter.restore(RestoreRequest(chain=(other,), into=folder / "into"), SilentWatch())


def test_a_live_folder_is_no_target(adapter: PostgreSQLAdapter, primary: Primary) -> None:
    copy = copy_of(adapter, "a")
    with pytest.raises(ConflictError, match="data folder of a PostgreSQL cluster"):
        adapter.restore(RestoreRequest(chain=(copy,), into=primary.embedded.data), SilentWatch())
    with pytest.raises(ConflictError, match="not empty"):
        adapter.restore(RestoreRequest(chain=(copy,), into=primary.embedded.home), SilentWatch())
    assert primary.sql("SELECT 1") == [(1,)]


def test_a_server_tells_what_it_lacks(adapter: PostgreSQLAdapter, primary: Primary) -> None:
    assert adapter.missing_settings(WalMode.STREAMING) == ()
    (missing,) = adapter.missing_settings(WalMode.SYNCHRONOUS)
    assert "synchronous_standby_names" in missing
    assert adapter.apply_settings(WalMode.SYNCHRONOUS) == ()
    eventually(lambda: adapter.missing_settings(WalMode.SYNCHRONOUS) == ())
    adapter.apply_settings(WalMode.STREAMING)
    eventually(lambda: primary.sql("SHOW synchronous_standby_names") == [("",)])
    primary.sql("ALTER SYSTEM SET fsync = off")
    primary.sql("ALTER SYSTEM SET synchronous_commit = local")
    primary.sql("SELECT pg_reload_conf()")
    eventually(lambda: any("synchronous_commit" in line for line in adapter.missing_settings(WalMode.SYNCHRONOUS)))


def test_the_fetch_of_the_log_is_watched(adapter: PostgreSQLAdapter, primary: Primary, folder: Path) -> None:
    bucket = new_bucket()
    with streaming(primary.url, bucket):
        copy = copy_of(adapter, "a")
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100000)")
    watch = RecordingWatch()
    request = RestoreRequest(chain=(copy,), into=folder / "into", log=reader(bucket))
    log = adapter.restore(request, watch).log
    assert log is not None
    assert log.files >= 1
    assert log.newest_at is not None
    assert {"fetch log", "make durable"} <= {name for name, _ in watch.steps}
    adapter.end_leftovers(folder / "into")
