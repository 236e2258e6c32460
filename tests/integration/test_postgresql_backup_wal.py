"""The log of a real PostgreSQL on its way into a bucket: durable before acknowledged, resumed, its gaps told."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.lsn import SEGMENT_BYTES
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.wal_coverage import wal_coverage
from controlplane.adapters.backup.postgresql.wal_layout import WalRange, head_key, parse_range
from controlplane.adapters.backup.postgresql.wal_stream import slot_name
from controlplane.domain.dataset import WalMode
from controlplane.kernel.errors import DeniedError, TerminalError
from controlplane.recovery.ports import LogCoverage, RestoreRequest, SilentWatch
from controlplane.testing.s3 import FakeS3
from tests.integration.postgresql_lab import (
    DATASET,
    KEYRING,
    Acknowledged,
    Freezing,
    Primary,
    copy_of,
    enterable_folder,
    eventually,
    ids_in,
    new_bucket,
    primary_in,
    refusal_of,
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
def adapter(primary: Primary) -> PostgreSQLAdapter:
    return PostgreSQLAdapter(url=primary.url, dataset=DATASET)


@pytest.fixture
def bucket() -> FakeS3:
    return new_bucket()


def coverage(bucket: FakeS3, since: str | None = None) -> LogCoverage:
    found = wal_coverage(bucket, DATASET, KEYRING, since=since)
    assert found is not None
    return found


def ranges(bucket: FakeS3) -> list[WalRange]:
    return [found for info in bucket.objects(f"{DATASET}/wal/") if (found := parse_range(info))]


def keys(bucket: FakeS3) -> list[str]:
    return [info.key for info in bucket.versions(f"{DATASET}/wal/") if not info.deleted]


def await_more(told: Acknowledged, rows: int) -> None:
    seen = len(told.ids)
    eventually(lambda: len(told.ids) > seen + rows)


def switch_segment(primary: Primary) -> None:
    primary.sql("CREATE TABLE IF NOT EXISTS moved (id int)")
    primary.sql("INSERT INTO moved VALUES (1)")
    primary.sql("SELECT pg_switch_wal()")


def test_a_complete_segment_replaces_its_pieces(primary: Primary, bucket: FakeS3) -> None:
    with streaming(primary.url, bucket) as stream:
        with writing(primary.url, clients=1, pause_s=0.01) as told:
            eventually(lambda: len(told.ids) > 20 and len([found for found in ranges(bucket) if _is_piece(found)]) >= 3)
        pieces = [found for found in ranges(bucket) if _is_piece(found)]
        switch_segment(primary)
        eventually(lambda: not any(found.segment == pieces[0].segment and _is_piece(found) for found in ranges(bucket)))
        whole = [found for found in ranges(bucket) if found.segment == pieces[0].segment]
        assert [found.end - found.start for found in whole] == [SEGMENT_BYTES]
        assert stream.status().gaps == ()
        eventually(lambda: head_key(DATASET) in keys(bucket))
        first = coverage(bucket).covered_at
        eventually(lambda: coverage(bucket).covered_at > first + timedelta(seconds=2))
    # A versioned bucket keeps none of the pieces either, and one head of the many that were written.
    left = keys(bucket)
    assert pieces[0].key not in left
    assert left.count(head_key(DATASET)) == 1
    assert coverage(bucket).gaps == ()


def test_an_idle_log_is_vouched_for(primary: Primary, bucket: FakeS3) -> None:
    with streaming(primary.url, bucket):
        eventually(lambda: wal_coverage(bucket, DATASET) is not None)
        seen = []
        for _ in range(4):
            before = coverage(bucket).covered_at
            eventually(lambda before=before: coverage(bucket).covered_at > before)  # type: ignore[misc] # of this turn
            seen.append((datetime.now(UTC) - coverage(bucket).covered_at).total_seconds())
    assert min(seen) < 1.0
    stranger = SiteKeyring(bytes(32))
    with pytest.raises(DeniedError):
        wal_coverage(bucket, DATASET, stranger)
    bucket.put(head_key(DATASET), bucket.get(head_key(DATASET)).replace(b'"0', b'"1').replace(b"1:", b"2:"))
    with pytest.raises(TerminalError, match=r"head\.json"):
        wal_coverage(bucket, DATASET, KEYRING)


def test_a_commit_waits_for_the_bucket(adapter: PostgreSQLAdapter, primary: Primary, bucket: FakeS3) -> None:
    store = Freezing(bucket)
    primary.sql("CREATE TABLE acknowledged (id int)")
    with streaming(primary.url, store, synchronous=True) as stream:  # type: ignore[arg-type] # passes the rest on
        adapter.apply_settings(WalMode.SYNCHRONOUS)
        eventually(lambda: primary.sql("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
        primary.sql("INSERT INTO acknowledged VALUES (1)")
        store.frozen = True
        with closing(psycopg.connect(primary.url, autocommit=True)) as waiting:
            waiting.pgconn.send_query(b"INSERT INTO acknowledged VALUES (2)")
            activity = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            eventually(lambda: primary.sql(activity) == [(1,)])
            eventually(lambda: stream.status().pending_bytes > 0)
            assert stream.status().durable < stream.status().received
            store.frozen = False
            eventually(lambda: primary.sql(activity) == [(0,)])
        assert primary.sql("SELECT count(*) FROM acknowledged") == [(2,)]
        adapter.apply_settings(WalMode.STREAMING)


def test_a_stream_that_died_goes_on_where_the_bucket_ends(
    adapter: PostgreSQLAdapter, primary: Primary, bucket: FakeS3, folder: Path
) -> None:
    with writing(primary.url, clients=2, pause_s=0.002) as told:
        store = Freezing(bucket)
        with streaming(primary.url, store) as stream:  # type: ignore[arg-type] # passes the rest on
            copy = copy_of(adapter, "a")
            durable = stream.status().durable
            eventually(lambda: stream.status().durable > durable)
            store.frozen = True  # from here on it is as if it had been killed
        before = max(found.end for found in ranges(bucket))
        await_more(told, 50)
        with streaming(primary.url, bucket) as stream:
            eventually(lambda: max(found.end for found in ranges(bucket)) > before)
            switch_segment(primary)
            await_more(told, 20)
            killed_at = datetime.now(UTC)
            primary.kill()
            eventually(lambda: stream.status().state == "waiting" and stream.status().pending_bytes == 0)
    assert coverage(bucket).gaps == ()
    with restored(adapter, folder / "into", copy, store=bucket) as back:
        lost = told.by(datetime.now(UTC)) - ids_in(back)
        assert told.by(coverage(bucket).covered_at).isdisjoint(lost)
    assert not {number for number, at in told.ids if number in lost and killed_at - at > timedelta(seconds=1)}


def test_a_gap_is_noticed_and_told(adapter: PostgreSQLAdapter, primary: Primary, bucket: FakeS3, folder: Path) -> None:
    with streaming(primary.url, bucket):
        copy = copy_of(adapter, "a")
    primary.sql(f"SELECT pg_drop_replication_slot('{slot_name(DATASET)}')")
    for _ in range(3):
        switch_segment(primary)
        primary.sql("CHECKPOINT")
    with streaming(primary.url, bucket) as stream:
        switch_segment(primary)
        eventually(lambda: len(coverage(bucket).gaps) == 1)
        (told,) = stream.status().gaps
        assert "take a full backup now" in told
        since = copy.manifest.fact("log_since")
        assert coverage(bucket, since).gaps
        assert coverage(bucket, since).covered_at < coverage(bucket).covered_at
        newer = copy_of(adapter, "b")
        primary.sql("CREATE TABLE after_the_gap (id int)")
        eventually(lambda: coverage(bucket, newer.manifest.fact("log_since")).gaps == ())
    with pytest.raises(TerminalError, match="is missing from"), restored(adapter, folder / "into", copy, store=bucket):
        pass
    with restored(adapter, folder / "into", newer, store=bucket) as back, psycopg.connect(back.url) as connection:
        assert connection.execute("SELECT count(*) FROM after_the_gap").fetchone() == (0,)


def test_the_log_goes_on_over_a_promotion(
    adapter: PostgreSQLAdapter, primary: Primary, bucket: FakeS3, folder: Path
) -> None:
    primary.sql("CREATE TABLE acknowledged (id bigint PRIMARY KEY)")
    with streaming(primary.url, bucket) as stream:
        copy = copy_of(adapter, "a")
        primary.sql("INSERT INTO acknowledged VALUES (1)")
        inserted_at = primary.clock()
        eventually(lambda: (stream.status().covered_at or copy.manifest.consistent_at) > inserted_at)
        primary.kill()
        eventually(lambda: stream.status().state == "waiting" and stream.status().pending_bytes == 0)
    with restored(adapter, folder / "new", copy, store=bucket) as promoted:
        assert ids_in(promoted) == {1}
        with streaming(promoted.url, bucket) as stream:
            with psycopg.connect(promoted.url, autocommit=True) as connection:
                connection.execute("INSERT INTO acknowledged VALUES (2)")
            eventually(lambda: stream.status().timeline == 2)
            second = copy_of(PostgreSQLAdapter(url=promoted.url, dataset=DATASET), "b")
            with psycopg.connect(promoted.url, autocommit=True) as connection:
                connection.execute("INSERT INTO acknowledged VALUES (3)")
            assert stream.status().gaps == ()
    assert coverage(bucket, copy.manifest.fact("log_since")).gaps == ()
    assert coverage(bucket).position.startswith("2:")
    assert second.manifest.fact("timeline") == "2"
    for base in (copy, second):
        with restored(adapter, folder / "into", base, store=bucket) as back:
            assert ids_in(back) == {1, 2, 3}
    # The old primary comes back from the dead: what it would write contradicts the bucket.
    primary.start()
    assert "older copy" in refusal_of(primary.url, bucket)


def test_another_cluster_is_kept_out(primary: Primary, bucket: FakeS3, folder: Path) -> None:
    with streaming(primary.url, bucket):
        eventually(lambda: wal_coverage(bucket, DATASET) is not None)
    with primary_in(folder / "other") as other:
        assert "another cluster" in refusal_of(other.url, bucket)


def test_only_the_copy_is_needed_when_nothing_happened_since(
    adapter: PostgreSQLAdapter, primary: Primary, bucket: FakeS3, folder: Path
) -> None:
    primary.sql("CREATE TABLE acknowledged (id bigint PRIMARY KEY)")
    with streaming(primary.url, bucket):
        copy = copy_of(adapter, "a")
        since = copy.manifest.fact("log_since")
        eventually(lambda: coverage(bucket, since).covered_at > copy.manifest.consistent_at)
        assert coverage(bucket, since).gaps == ()
    request = RestoreRequest(chain=(copy,), into=folder / "into")
    assert adapter.restore(request, SilentWatch()).log is None
    adapter.end_leftovers(folder / "into")


def _is_piece(found: WalRange) -> bool:
    return found.end - found.start < SEGMENT_BYTES
