"""Every call on the store fails once: loud, nothing half-finished counts as a copy, and the next try converges."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter, publish_manifest
from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.stream_writer import SENDERS
from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import ConflictError, RetryableError
from controlplane.recovery.ports import Lock, SilentWatch, manifest_key
from controlplane.testing.effects import START
from tests.unit.backup.bucket import FailsAt, MemoryBucket
from tests.unit.backup.copies import (
    CHUNK,
    DATASET,
    KEYRING,
    LATER,
    PACK,
    POINT,
    STREAMS,
    commit,
    make_writer,
    mixed_bytes,
    read_copy,
    write_copy,
)

MANIFEST = manifest_key(DATASET, POINT)


def calls_of_a_copy() -> int:
    counted = FailsAt(0, lasts=0)
    write_copy(MemoryBucket(counted))
    return counted.calls


def write_all(writer: ArchiveWriter) -> None:
    for name, body in STREAMS.items():
        with writer.stream(name) as stream:
            stream.write(body)
    commit(writer)


CALLS = calls_of_a_copy()


@pytest.mark.parametrize("number", range(1, CALLS + 1))
def test_a_failed_write_is_raised_at_the_writer_and_leaves_nothing(number: int) -> None:
    store = MemoryBucket(FailsAt(number))
    writer = make_writer(store)

    with pytest.raises(RetryableError, match="refused, as the test asked"):
        write_all(writer)

    assert not any(key.endswith("manifest.json") for key in store.listed())
    assert writer.abandon() == ()
    assert not store.everything()
    write_copy(store, point=LATER)
    assert read_copy(store, point=LATER) == STREAMS


def test_after_the_first_failure_nothing_more_is_sent() -> None:
    trouble = FailsAt(1, lasts=10_000)
    writer = make_writer(MemoryBucket(trouble))

    with pytest.raises(RetryableError), writer.stream("a") as stream:
        stream.write(mixed_bytes(200 * CHUNK))

    assert trouble.calls <= SENDERS


@pytest.mark.parametrize("call", ["objects", "get", "head"])
def test_a_store_that_fails_while_it_is_looked_at_is_heard(call: str) -> None:
    store = MemoryBucket()
    write_copy(store)

    def trouble(asked: str) -> None:
        if asked == call:
            raise RetryableError(f"{asked}: refused, as the test asked")

    store.trouble = trouble
    with pytest.raises(RetryableError, match="refused, as the test asked"):
        inventory(store, DATASET, keyring=KEYRING)


def test_a_store_that_fails_in_the_middle_of_a_stream_is_heard() -> None:
    store = MemoryBucket()
    write_copy(store)
    archive = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
    store.trouble = FailsAt(3)

    with pytest.raises(RetryableError, match="refused, as the test asked"):
        list(archive.read("base.tar"))
    assert b"".join(archive.read("base.tar")) == STREAMS["base.tar"]


def test_a_commit_whose_answer_was_lost_is_given_up_entirely_or_is_a_copy() -> None:
    store = MemoryBucket()
    writer = make_writer(store)
    with writer.stream("a") as stream:
        stream.write(b"rows")
    store.fail_call(2, RetryableError("the answer is lost"), applied=True)
    with pytest.raises(RetryableError, match="the answer is lost"):
        commit(writer)
    assert read_copy(store) == {"a": b"rows"}

    assert writer.abandon() == ()
    assert not store.everything()


def test_a_manifest_that_an_earlier_try_wrote_is_taken_for_done() -> None:
    """boto3 tries again by itself, and then meets what its first try wrote."""
    store = MemoryBucket()
    manifest = write_copy(store)

    publish_manifest(store, manifest, None)
    with pytest.raises(ConflictError):
        publish_manifest(store, replace(manifest, engine="files 2"), None)

    assert read_copy(store) == STREAMS


def test_giving_up_deletes_the_manifest_first_and_stops_where_that_is_locked() -> None:
    """The answer to a commit may be lost although it was done: then the copy is whole and stays whole."""
    store = MemoryBucket()
    writer = make_writer(store, lock=Lock(mode=LockMode.COMPLIANCE, until=START + timedelta(days=1)))
    with writer.stream("a") as stream:
        stream.write(b"rows")
    commit(writer)

    stays = writer.abandon()

    assert len(stays) == 1
    assert stays[0].startswith(f"{MANIFEST}: ")
    assert read_copy(store) == {"a": b"rows"}


def test_giving_up_says_what_it_could_not_delete() -> None:
    store = MemoryBucket()
    writer = make_writer(store)
    with writer.stream("a") as stream:
        stream.write(mixed_bytes(3 * PACK))
    writer.abandon()
    assert not store.everything()

    writer = make_writer(store, point=LATER)
    with writer.stream("a") as stream:
        stream.write(b"rows")
    with writer.stream("b") as stream:
        stream.write(b"rows")
    packs = [f"{DATASET}/points/{LATER}/{name}/000000" for name in "ab"]

    settle(writer)
    store.hold(packs[0])

    stays = writer.abandon()

    assert [problem.partition(":")[0] for problem in stays] == [packs[0]]
    assert store.listed() == [packs[0]]


def settle(writer: ArchiveWriter) -> None:
    """Everything that is on its way has arrived."""
    for stream in writer._streams.values():
        stream.record()


def test_a_slow_store_holds_the_writer_back() -> None:
    gate, arrived = threading.Event(), threading.Semaphore(0)

    def wait(call: str) -> None:
        arrived.release()
        assert gate.wait(30), f"{call}: nobody opened the gate"

    taken = 0
    store = MemoryBucket(wait)
    writer = make_writer(store)
    body = mixed_bytes(100 * PACK)

    def write() -> None:
        nonlocal taken
        with writer.stream("a") as stream:
            for at in range(0, len(body), CHUNK):
                stream.write(body[at : at + CHUNK])
                taken = at + CHUNK

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(SENDERS):
        assert arrived.acquire(timeout=30)
    thread.join(0.2)  # As long as it takes a writer that nothing holds back to run away: 300 chunks of 1 kB.

    held_back_at = taken
    gate.set()
    thread.join(30)
    commit(writer)

    assert held_back_at < 30 * PACK
    assert read_copy(store) == {"a": body}
