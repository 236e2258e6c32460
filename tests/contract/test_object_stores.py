"""One contract for object stores: the fake with a clock, and a real SeaweedFS over boto3.

What only one of them has is a capability, named in the test that needs it. SeaweedFS takes some seconds to start, once.
"""

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest

from controlplane.adapters.objectstore.errors import Asked, told
from controlplane.domain.dataset import LockMode, RetrievalTier, StorageClass
from controlplane.kernel.errors import ConflictError, NotFoundError, TerminalError
from controlplane.recovery.ports import Lock, ObjectStore
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3
from tests.seaweedfs import RunningSeaweed, running_seaweedfs

SMALL = b"what was written" * 100
MIB = 1024 * 1024


@dataclass(frozen=True)
class Bench:
    """A store to be tested, and what a test has to know of it."""

    store: ObjectStore
    now: Callable[[], datetime]
    put_damaged: Callable[[str], None]
    """Sends a body whose checksum is another's."""
    thaws: bool
    unversioned: Callable[[], ObjectStore]


@pytest.fixture(scope="module")
def seaweed() -> Iterator[RunningSeaweed]:
    with running_seaweedfs() as running:
        yield running


@pytest.fixture(scope="module")
def seaweed_bucket(seaweed: RunningSeaweed) -> str:
    return seaweed.new_bucket()


@pytest.fixture(params=["fake", "seaweedfs"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return fake_bench() if request.param == "fake" else real_bench(request)


def fake_bench() -> Bench:
    clock = FakeClock()
    store = FakeS3(clock)

    def put_damaged(key: str) -> None:
        store.flip_next_upload()
        store.put(key, SMALL)

    return Bench(
        store=store,
        now=clock.now,
        put_damaged=put_damaged,
        thaws=True,
        unversioned=lambda: FakeS3(clock, versioned=False, object_lock=False),
    )


def real_bench(request: pytest.FixtureRequest) -> Bench:
    """A prefix of its own in one bucket, so that tests share the server and nothing else."""
    seaweed: RunningSeaweed = request.getfixturevalue("seaweed")
    bucket: str = request.getfixturevalue("seaweed_bucket")
    prefix = f"{uuid.uuid4().hex}/"

    def put_damaged(key: str) -> None:
        other = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
        with told(Asked(verb="write", bucket=bucket, key=prefix + key)):
            seaweed.client.put_object(Bucket=bucket, Key=prefix + key, Body=SMALL, ChecksumSHA256=other)

    return Bench(
        store=seaweed.store(bucket, prefix=prefix),
        now=lambda: datetime.now(UTC),
        put_damaged=put_damaged,
        thaws=False,
        unversioned=lambda: seaweed.store(seaweed.new_bucket(lock=False)),
    )


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.objects(prefix)]


def test_what_is_put_can_be_read_and_looked_at(bench: Bench) -> None:
    written = bench.store.put("db/points/1/manifest.json", SMALL, metadata=[("kind", "files"), ("chunks", "3")])

    assert bench.store.get("db/points/1/manifest.json") == SMALL
    seen = bench.store.head("db/points/1/manifest.json")
    assert (seen.size_bytes, seen.version, seen.storage_class) == (len(SMALL), written.version, StorageClass.STANDARD)
    assert seen.sha256 == written.sha256 == hashlib.sha256(SMALL).hexdigest()
    assert dict(seen.metadata) == {"kind": "files", "chunks": "3"}
    assert abs(seen.modified_at - bench.now()) < timedelta(minutes=1)
    assert abs(seen.modified_at - written.modified_at) < timedelta(seconds=5)
    assert seen.lock is None
    assert seen.thaw is None


@pytest.mark.parametrize("body", [b"", b"x", os.urandom(5 * MIB + 1)], ids=["empty", "one byte", "several chunks"])
def test_bodies_of_all_sizes_come_back(bench: Bench, body: bytes) -> None:
    bench.store.put("body", memoryview(body))

    assert bench.store.get("body") == body
    assert bench.store.head("body").size_bytes == len(body)


def test_ranges_are_inclusive(bench: Bench) -> None:
    body = bytes(range(256)) * 40
    bench.store.put("ranges", body)

    assert bench.store.get("ranges", first=10, last=12) == body[10:13]
    assert bench.store.get("ranges", first=10_000) == body[10_000:]
    assert bench.store.get("ranges", last=0) == body[:1]
    assert bench.store.get("ranges", first=10_239, last=99_999) == body[-1:]
    with pytest.raises(TerminalError, match="fewer bytes"):
        bench.store.get("ranges", first=10_240)


def test_what_is_not_there_is_said_by_its_key(bench: Bench) -> None:
    bench.store.put("there", SMALL)

    with pytest.raises(NotFoundError, match="absent"):
        bench.store.get("absent")
    with pytest.raises(NotFoundError, match="absent"):
        bench.store.head("absent")
    with pytest.raises(NotFoundError, match="there"):
        bench.store.get("there", version="0" * 32)
    with pytest.raises(NotFoundError, match="there"):
        bench.store.head("there", version="0" * 32)


def test_a_body_that_arrives_damaged_is_refused(bench: Bench) -> None:
    with pytest.raises(TerminalError, match="checksum"):
        bench.put_damaged("damaged")

    assert keys(bench.store) == []


def test_listings_are_sorted_and_bound_by_their_prefix(bench: Bench) -> None:
    names = [f"db/points/{number:04d}/pack" for number in range(30)]
    for name in reversed(names):
        bench.store.put(name, b"1")
    bench.store.put("dbx/other", b"22")

    assert keys(bench.store, "db/") == names
    assert keys(bench.store, "db/points/0003") == names[3:4]
    assert keys(bench.store, "nothing/") == []
    assert keys(bench.store) == [*names, "dbx/other"]
    assert [info.size_bytes for info in bench.store.objects("dbx")] == [2]


def test_old_versions_stay_until_they_are_deleted_by_name(bench: Bench) -> None:
    first = bench.store.put("twice", b"first")
    second = bench.store.put("twice", b"second")
    assert first.version
    assert first.version != second.version

    assert bench.store.get("twice") == b"second"
    assert bench.store.get("twice", version=first.version) == b"first"
    assert [(info.version, info.latest) for info in bench.store.versions("twice")] == [
        (second.version, True),
        (first.version, False),
    ]

    bench.store.delete("twice", version=second.version)
    assert bench.store.get("twice") == b"first"
    bench.store.delete("twice", version=first.version)
    assert list(bench.store.versions("twice")) == []


def test_a_delete_hides_and_its_marker_can_be_taken_away(bench: Bench) -> None:
    written = bench.store.put("hidden", SMALL)

    bench.store.delete("hidden")

    assert keys(bench.store) == []
    with pytest.raises(NotFoundError):
        bench.store.get("hidden")
    assert bench.store.get("hidden", version=written.version) == SMALL
    marker, old = bench.store.versions("hidden")
    assert (marker.deleted, marker.latest) == (True, True)
    assert (old.deleted, old.latest, old.version) == (False, False, written.version)
    with pytest.raises(NotFoundError):
        bench.store.get("hidden", version=marker.version)

    bench.store.delete("hidden", version=marker.version)
    assert bench.store.get("hidden") == SMALL


def test_deleting_what_is_gone_is_fine(bench: Bench) -> None:
    written = bench.store.put("gone", SMALL)

    bench.store.delete("gone", version=written.version)
    bench.store.delete("gone", version=written.version)
    bench.store.delete("never there", version=written.version)
    bench.store.delete("never there either")

    assert keys(bench.store) == []


def test_an_unversioned_bucket_forgets(bench: Bench) -> None:
    store = bench.unversioned()

    assert store.put("key", b"first").version is None
    store.put("key", b"second")
    assert [info.size_bytes for info in store.versions("")] == [6]
    store.delete("key")
    assert list(store.versions("")) == []


def test_of_eight_writers_of_an_absent_key_one_wins(bench: Bench) -> None:
    at_once = Barrier(8)

    def write(number: int) -> int | None:
        at_once.wait(timeout=10)
        try:
            bench.store.put("lease", f"writer {number}".encode(), if_absent=True)
        except ConflictError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]

    assert len(winners) == 1
    assert bench.store.get("lease") == f"writer {winners[0]}".encode()
    assert len(list(bench.store.versions("lease"))) == 1


def test_a_deleted_key_is_absent_again(bench: Bench) -> None:
    bench.store.put("again", b"1", if_absent=True)
    bench.store.delete("again")

    bench.store.put("again", b"2", if_absent=True)

    assert bench.store.get("again") == b"2"


def test_parallel_puts_do_not_mix(bench: Bench) -> None:
    bodies = {f"parallel/{number}": os.urandom(200_000 + number) for number in range(12)}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: bench.store.put(item[0], item[1]), bodies.items()))

    assert {key: bench.store.get(key) for key in keys(bench.store, "parallel/")} == bodies


@pytest.mark.parametrize("mode", [LockMode.COMPLIANCE, LockMode.GOVERNANCE])
def test_a_locked_version_can_be_hidden_and_not_deleted(bench: Bench, mode: LockMode) -> None:
    until = bench.now() + timedelta(hours=1)
    written = bench.store.put("locked", SMALL, lock=Lock(mode=mode, until=until))

    with pytest.raises(ConflictError, match="locked"):
        bench.store.delete("locked", version=written.version)
    bench.store.put("locked", b"something newer")
    bench.store.delete("locked")

    assert bench.store.get("locked", version=written.version) == SMALL
    held = bench.store.head("locked", version=written.version).lock
    assert held is not None
    assert held.mode is mode
    assert until <= held.until < until + timedelta(seconds=2)


@pytest.mark.parametrize("mode", [LockMode.COMPLIANCE, LockMode.GOVERNANCE])
def test_a_lock_gets_longer_and_never_shorter(bench: Bench, mode: LockMode) -> None:
    until = (bench.now() + timedelta(hours=2)).replace(microsecond=0)
    longer = until + timedelta(hours=1)
    version = bench.store.put("kept", SMALL, lock=Lock(mode=mode, until=until)).version

    with pytest.raises(ConflictError, match="weak"):
        bench.store.retain("kept", version=version, lock=Lock(mode=mode, until=until - timedelta(hours=1)))
    bench.store.retain("kept", version=version, lock=Lock(mode=mode, until=longer))
    bench.store.retain("kept", version=version, lock=Lock(mode=mode, until=longer))

    assert bench.store.head("kept", version=version).lock == Lock(mode=mode, until=longer)


def test_compliance_does_not_become_governance(bench: Bench) -> None:
    until = (bench.now() + timedelta(hours=2)).replace(microsecond=0)
    version = bench.store.put("strict", SMALL, lock=Lock(mode=LockMode.COMPLIANCE, until=until)).version

    with pytest.raises(ConflictError):
        bench.store.retain(
            "strict", version=version, lock=Lock(mode=LockMode.GOVERNANCE, until=until + timedelta(hours=1))
        )

    assert bench.store.head("strict", version=version).lock == Lock(mode=LockMode.COMPLIANCE, until=until)


def test_an_unlocked_version_can_be_locked_later(bench: Bench) -> None:
    until = (bench.now() + timedelta(hours=1)).replace(microsecond=0)
    version = bench.store.put("later", SMALL).version

    bench.store.retain("later", version=version, lock=Lock(mode=LockMode.GOVERNANCE, until=until))

    with pytest.raises(ConflictError):
        bench.store.delete("later", version=version)


def test_locks_need_a_bucket_that_has_them(bench: Bench) -> None:
    lock = Lock(mode=LockMode.GOVERNANCE, until=bench.now() + timedelta(hours=1))

    with pytest.raises(TerminalError):
        bench.unversioned().put("key", SMALL, lock=lock)


def test_the_class_that_was_asked_for_is_kept(bench: Bench) -> None:
    for storage_class in StorageClass:
        bench.store.put(storage_class.value, SMALL, storage_class=storage_class)

    assert {info.key: info.storage_class for info in bench.store.objects("")} == {
        storage_class.value: storage_class for storage_class in StorageClass
    }
    assert bench.store.head("DEEP_ARCHIVE").storage_class is StorageClass.DEEP_ARCHIVE


def test_a_retrieval_is_asked_for_or_refused_by_name(bench: Bench) -> None:
    bench.store.put("cold", SMALL, storage_class=StorageClass.GLACIER)

    if not bench.thaws:  # the store keeps the name of a class and has no archive behind it
        with pytest.raises(TerminalError, match="does not know the operation"):
            bench.store.thaw("cold", version=None, tier=RetrievalTier.BULK, days=3)
        return
    with pytest.raises(ConflictError, match="retrieval"):
        bench.store.get("cold")
    bench.store.thaw("cold", version=None, tier=RetrievalTier.BULK, days=3)
    bench.store.thaw("cold", version=None, tier=RetrievalTier.BULK, days=3)
    thaw = bench.store.head("cold").thaw
    assert thaw is not None
    assert thaw.ongoing
