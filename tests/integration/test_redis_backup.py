"""A real Redis server: both ways of sending its file, permissions, many databases, keys that expire, a steady load."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from controlplane.adapters.backup.redis import RedisDataset
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import RestoreRequest, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from tests.redis_server import running_redis

KEYS = 20_000


def dataset(url: str) -> RedisDataset:
    return RedisDataset(url=url, now=lambda: datetime.now(UTC))


def fill(client: redis.Redis) -> None:
    client.mset({f"key-{number}": f"value {number}" for number in range(KEYS)})
    client.set("compressible", "x" * 100_000)


def snapshot(url: str) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink()
    facts = dataset(url).snapshot(sink, parent=None, watch=RecordingWatch())
    return sink.source(facts), facts


def drill(url: str, source: MemorySource, into: Path, *checks: CheckSpec) -> dict[str, CheckOutcome]:
    adapter = dataset(url)
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    return verify(adapter, source.manifest, into, *checks)


def verify(adapter: RedisDataset, manifest: Manifest, into: Path, *checks: CheckSpec) -> dict[str, CheckOutcome]:
    with adapter.start(into, RecordingWatch()) as scratch:
        found = scratch.verify(VerifyRequest(manifest=manifest, checks=checks), RecordingWatch())
    return {outcome.name: outcome for outcome in found}


def all_passed(outcomes: dict[str, CheckOutcome]) -> bool:
    return {outcome.verdict for outcome in outcomes.values()} == {Verdict.PASSED}


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_both_ways_of_sending_the_file(tmp_path: Path, diskless: str) -> None:
    with running_redis(tmp_path / "live", "--repl-diskless-sync", diskless) as url:
        with redis.Redis.from_url(url) as client:
            fill(client)
        source, facts = snapshot(url)
    assert facts.engine.startswith(("redis ", "valkey "))
    assert {count.name: count.rows for count in facts.counts} == {"db0": KEYS + 1}
    outcomes = drill(url, source, tmp_path / "into", CheckSpec(name="long", sql="STRLEN compressible", equals="100000"))
    assert all_passed(outcomes)
    assert f"{KEYS + 1} keys read" in outcomes["redis-check-rdb"].sentence


def test_a_user_with_few_permissions_is_enough(tmp_path: Path) -> None:
    rules = ["on", ">secret", "+psync", "+replconf", "+info", "+ping"]
    with running_redis(tmp_path / "live", "--user", "copy", *rules) as url:
        with redis.Redis.from_url(url) as client:
            fill(client)
        place = urlsplit(url).path
        source, _ = snapshot(f"unix://copy:secret@{place}")
        for wrong in (f"unix://copy:wrong@{place}", f"unix://nobody:secret@{place}"):
            with pytest.raises(TerminalError, match="password") as refused:
                dataset(wrong).probe()
            assert "wrong" not in str(refused.value)
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", "copy", "-psync")
        with pytest.raises(TerminalError, match=r"\+psync"):
            snapshot(f"unix://copy:secret@{place}")
    assert all_passed(drill(url, source, tmp_path / "into"))


def test_keys_that_expired_since_the_copy_still_count(tmp_path: Path) -> None:
    with running_redis(tmp_path / "live") as url:
        with redis.Redis.from_url(url) as client:
            fill(client)
            for number in range(100):
                client.set(f"short-{number}", "x", px=300)
            expires_at = time.monotonic() + 0.3
        source, facts = snapshot(url)
    while time.monotonic() < expires_at + 0.1:
        time.sleep(0.05)
    assert facts.counts[0].rows > KEYS + 1
    outcomes = drill(url, source, tmp_path / "into", CheckSpec(name="gone", sql="GET short-1"))
    assert outcomes["counts"].verdict is Verdict.PASSED
    assert outcomes["gone"].verdict is Verdict.FAILED  # nobody may read an expired key


def test_many_databases_and_one_that_is_busy(tmp_path: Path) -> None:
    with running_redis(tmp_path / "live", "--databases", "300") as url:
        for db in (0, 7, 299):
            with redis.Redis.from_url(url, db=db) as client:
                client.mset({f"{db}-{number}": "x" for number in range(db + 1)})
        with written_to(url, db=5):
            source, facts = snapshot(url)
    counts = {count.name: count.rows for count in facts.counts}
    assert counts == {"db0": 1, "db7": 8, "db299": 300}
    assert dict(facts.facts)["uncounted"] == "db5"
    check = CheckSpec(name="last", sql="-n 299 EXISTS 299-299", equals="1")
    assert all_passed(drill(url, source, tmp_path / "into", check))


def test_a_server_without_any_key(tmp_path: Path) -> None:
    with running_redis(tmp_path / "live") as url:
        source, facts = snapshot(url)
    assert facts.counts == ()
    assert all_passed(drill(url, source, tmp_path / "into"))


def test_a_copy_tells_whether_commits_are_logged(tmp_path: Path) -> None:
    with running_redis(tmp_path / "live", "--appendonly", "yes") as url:
        source, facts = snapshot(url)
    assert dict(facts.facts)["aof"] == "on"
    assert all_passed(drill(url, source, tmp_path / "into"))


def test_a_server_that_is_down_or_becomes_a_replica_of_nobody(tmp_path: Path) -> None:
    with running_redis(tmp_path / "live") as url, redis.Redis.from_url(url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "0")
        with pytest.raises(RetryableError, match="cannot give a copy now"):
            snapshot(url)
    with pytest.raises(RetryableError, match="does not answer"):
        dataset(url).probe()


@contextmanager
def written_to(url: str, db: int) -> Iterator[None]:
    """A thread adds keys all the while, at least one before and one after what is inside."""
    stop, more = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        with redis.Redis.from_url(url, db=db) as client:
            number = 0
            while not stop.is_set():
                client.set(f"busy-{number}", "x")
                number += 1
                more.release()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert more.acquire(timeout=30)
        yield
    finally:
        stop.set()
        thread.join()
