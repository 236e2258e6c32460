"""What adapters write comes back byte by byte, however they cut their writes."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.backup.archive_reader import open_archive, verify_archive
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.packing import valid_stream
from controlplane.domain.dataset import KeyPurpose, LockMode, StorageClass
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, TerminalError
from controlplane.recovery.ports import CancelledWorkError, Lock, ObjectInfo, SilentWatch, StreamWriter, manifest_key
from controlplane.testing.effects import START
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import (
    BREAK_GLASS,
    CHUNK,
    DATASET,
    KEYRING,
    POINT,
    SITE_KEY,
    STREAMS,
    commit,
    make_writer,
    mixed_bytes,
    read_copy,
    write_copy,
)

MANIFEST = manifest_key(DATASET, POINT)


class CountingWatch:
    """Counts plaintext bytes; asks to stop once more than `until` are done."""

    def __init__(self, until: int | None = None) -> None:
        self.done = 0
        self._until = until

    def step(self, name: str, total_bytes: int | None = None) -> None:
        del name, total_bytes

    def advance(self, plain_bytes: int) -> None:
        self.done += plain_bytes
        if self._until is not None and self.done > self._until:
            raise CancelledWorkError("stopped on request")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(min_value=0, max_value=3 * CHUNK), max_size=12),
    mutable=st.booleans(),
    seed=st.integers(min_value=0, max_value=5),
)
def test_writes_of_any_size_come_back(sizes: list[int], mutable: bool, seed: int) -> None:
    body, store = mixed_bytes(sum(sizes), seed), MemoryBucket()
    writer = make_writer(store)
    with writer.stream("a") as stream:
        at = 0
        for size in sizes:
            piece = bytearray(body[at : at + size])
            stream.write(memoryview(piece) if mutable else bytes(piece))
            piece[:] = b"\x00" * size  # A writer may use its buffer again at once.
            at += size

    manifest = commit(writer)

    assert read_copy(store) == {"a": body}
    assert (manifest.streams[0].plain_bytes, manifest.streams[0].sha256) == (len(body), sha256(body).hexdigest())


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 10 * CHUNK])
def test_sizes_around_a_chunk(size: int) -> None:
    store = MemoryBucket()

    manifest = write_copy(store, {"a": mixed_bytes(size)})

    assert read_copy(store)["a"] == mixed_bytes(size)
    assert sum(pack.chunks for pack in manifest.streams[0].packs) == max(1, -(-size // CHUNK))


def test_a_manifest_tells_everything_and_nothing_lies_beside_it() -> None:
    store = MemoryBucket()

    manifest = write_copy(store)

    packs = [pack for stream in manifest.streams for pack in stream.packs]
    assert [stream.name for stream in manifest.streams] == list(STREAMS)
    assert store.listed() == sorted([MANIFEST, *(pack.key for pack in packs)])
    for pack in packs:
        body = store.get(pack.key, version=pack.version)
        assert (len(body), sha256(body).hexdigest()) == (pack.stored_bytes, pack.sha256)
    assert manifest.fact("root") == "data"
    assert manifest.keys[0].purpose is KeyPurpose.SITE
    assert manifest.keys[1].purpose is KeyPurpose.BREAK_GLASS


def test_nothing_in_the_bucket_shows_the_plaintext_or_the_key() -> None:
    store, secret = MemoryBucket(), b"4556-7375-8689-9855"

    write_copy(store, {"cards": secret * 400})

    assert not any(secret in body or SITE_KEY in body for body in store.bodies())


def test_data_lie_in_their_class_and_the_manifest_in_standard_and_all_is_locked() -> None:
    store, lock = MemoryBucket(), Lock(mode=LockMode.COMPLIANCE, until=START + timedelta(days=1))

    write_copy(store, storage_class=StorageClass.GLACIER, lock=lock)

    classes = {info.key: info.storage_class for info in store.everything()}
    assert classes.pop(MANIFEST) is StorageClass.STANDARD
    assert set(classes.values()) == {StorageClass.GLACIER}
    assert all(info.lock == lock for info in store.everything())


def test_either_key_opens_it_and_the_reader_says_which() -> None:
    store = MemoryBucket()
    write_copy(store)
    offline = SiteKeyring(None, break_glass_private=BREAK_GLASS)

    by_site = open_archive(store, KEYRING, MANIFEST, only=KeyPurpose.SITE, watch=SilentWatch())
    by_safe = open_archive(store, offline, MANIFEST, only=KeyPurpose.BREAK_GLASS, watch=SilentWatch())

    assert by_site.opened_by.key_id == KEYRING.holders[0]
    assert by_safe.opened_by.key_id == BREAK_GLASS.public.key_id
    assert b"".join(by_safe.read("base.tar")) == STREAMS["base.tar"]


def test_a_newer_version_or_a_delete_marker_above_a_pack_hides_nothing() -> None:
    store = MemoryBucket()
    manifest = write_copy(store)
    first, second = manifest.streams[0].packs[:2]
    store.put(first.key, b"overwritten")
    store.delete(second.key)

    assert read_copy(store) == STREAMS


def test_streams_may_be_written_side_by_side() -> None:
    store = MemoryBucket()
    bodies = {f"part-{number}": mixed_bytes(20_000 + number, number) for number in range(4)}
    writer = make_writer(store)

    def write(name: str) -> None:
        with writer.stream(name) as stream:
            for at in range(0, len(bodies[name]), 777):
                stream.write(bodies[name][at : at + 777])

    threads = [threading.Thread(target=write, args=(name,)) for name in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commit(writer)

    assert read_copy(store) == bodies


def test_progress_counts_plaintext_both_ways() -> None:
    store, writing, reading = MemoryBucket(), CountingWatch(), CountingWatch()
    writer = make_writer(store, watch=writing)
    with writer.stream("a") as stream:
        stream.write(mixed_bytes(5_500))
    commit(writer)

    verified = verify_archive(store, KEYRING, MANIFEST, watch=reading)

    assert (writing.done, reading.done, verified.problems) == (5_500, 5_500, ())


def test_who_asks_to_stop_is_heard_while_writing_and_while_reading() -> None:
    store = MemoryBucket()
    writer = make_writer(store, watch=CountingWatch(until=4 * CHUNK))
    with pytest.raises(CancelledWorkError), writer.stream("a") as stream:
        stream.write(mixed_bytes(50 * CHUNK))
    writer.abandon()
    assert store.listed() == []

    write_copy(store)
    archive = open_archive(store, KEYRING, MANIFEST, watch=CountingWatch(until=4 * CHUNK))
    with pytest.raises(CancelledWorkError):
        list(archive.read("base.tar"))


def test_a_reader_that_is_left_in_the_middle_leaves_no_thread() -> None:
    store = MemoryBucket()
    write_copy(store)
    before = threading.active_count()
    chunks = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch()).read("base.tar")

    assert next(iter(chunks)) == STREAMS["base.tar"][:CHUNK]
    assert isinstance(chunks, Iterator)
    del chunks

    assert threading.active_count() == before


def test_a_stream_left_by_an_error_is_no_part_of_the_copy() -> None:
    store = MemoryBucket()
    writer = make_writer(store)
    with writer.stream("good") as stream:
        stream.write(b"rows")
    with pytest.raises(RetryableError, match="source is gone"), writer.stream("bad") as stream:
        write_half(stream)
    commit(writer)

    assert read_copy(store) == {"good": b"rows"}
    assert not [info for info in store.everything() if "/bad/" in info.key]


def write_half(stream: StreamWriter) -> None:
    stream.write(mixed_bytes(20_000))
    raise RetryableError("the source is gone")


def test_an_unknown_stream_is_answered_with_those_that_are_there() -> None:
    store = MemoryBucket()
    write_copy(store)
    archive = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch())

    with pytest.raises(NotFoundError, match=r"no such stream, it has: base\.tar, wal/0001, empty"):
        next(archive.read("bse.tar"))


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a b", ".a", "a/000001", "manifest.json/x", "a" * 600]
)
def test_stream_names_that_could_not_be_keys_are_refused(name: str) -> None:
    assert not valid_stream(name)


def test_a_name_is_written_once() -> None:
    writer = make_writer(MemoryBucket())
    with writer.stream("a"):
        pass

    with pytest.raises(AssertionError, match="a was written already"), writer.stream("a"):
        pass
    writer.abandon()


def test_a_store_that_keeps_less_than_it_was_given_is_caught() -> None:
    class Forgetful(MemoryBucket):
        def put(self, key: str, body: bytes | memoryview, **options: Any) -> ObjectInfo:
            return super().put(key, body[:-1], **options)

    writer = make_writer(Forgetful())
    with writer.stream("a") as stream:
        stream.write(b"rows")
    with pytest.raises(TerminalError, match=r"orders/points/.*/a/000000: the store says it keeps \d+ bytes"):
        commit(writer)
    writer.abandon()


def test_a_second_copy_under_the_same_point_is_refused_and_the_first_one_stays() -> None:
    store = MemoryBucket()
    first = write_copy(store)

    with pytest.raises(ConflictError, match=r"manifest\.json"):
        write_copy(store, {"other": b"rows"})

    assert replace(first) == open_archive(store, KEYRING, MANIFEST, watch=SilentWatch()).manifest
