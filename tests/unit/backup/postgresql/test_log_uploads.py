"""Pieces on their way into a bucket that fails: every one arrives, segments replace their pieces."""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.wal_keys import EpochKeys, new_epoch
from controlplane.adapters.backup.postgresql.wal_layout import WalRange, parse_range
from controlplane.adapters.backup.postgresql.wal_pieces import FullSegment, Piece
from controlplane.adapters.backup.postgresql.wal_upload import WalUploader
from controlplane.adapters.backup.sealing import unseal
from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import Lock
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.s3 import FakeS3

SEGMENT = 1024
RING = SiteKeyring(bytes(range(32)))
BODY = memoryview(bytes(index % 251 for index in range(SEGMENT)))
PIECES = [
    Piece(timeline=1, start=at, end=at + 256, covered_us=at, data=BODY[at : at + 256]) for at in range(0, 1024, 256)
]
FULL = FullSegment(timeline=1, start=0, end=SEGMENT, data=BODY)
DEADLINE_S = 10.0


@contextmanager
def uploading(bucket: FakeS3, lock: Lock | None = None) -> Iterator[WalUploader]:
    epoch = new_epoch(bucket, RING, "shop", system_id="7", segment_bytes=SEGMENT, now=START)
    with WalUploader(bucket, "shop", segment_bytes=SEGMENT, lock_until=lambda: lock) as uploader:
        uploader.use(epoch)
        try:
            yield uploader
        finally:
            uploader.give_up()


def completed(uploader: WalUploader, count: int) -> list[Piece]:
    poll = select.poll()
    poll.register(uploader.fileno(), select.POLLIN)
    until = time.monotonic() + DEADLINE_S
    done: list[Piece] = []
    while len(done) < count and uploader.failure is None:
        assert time.monotonic() < until
        poll.poll(100)
        done += uploader.completed()
    return done


def ranges(bucket: FakeS3) -> list[WalRange]:
    return [found for info in bucket.objects("shop/wal/") if (found := parse_range(info))]


def run_all(bucket: FakeS3) -> None:
    with uploading(bucket) as uploader:
        for piece in PIECES:
            uploader.send(piece)
        assert sorted(piece.start for piece in completed(uploader, len(PIECES))) == [0, 256, 512, 768]
        uploader.compact(FULL)
        poll = select.poll()
        poll.register(uploader.fileno(), select.POLLIN)
        until = time.monotonic() + DEADLINE_S
        while uploader.backlog:
            assert time.monotonic() < until
            poll.poll(100)
        assert uploader.failure is None


def test_a_complete_segment_is_all_that_is_left() -> None:
    bucket = FakeS3(FakeClock())
    run_all(bucket)
    (whole,) = ranges(bucket)
    assert (whole.start, whole.end) == (0, SEGMENT)
    key = EpochKeys(bucket, RING, "shop").key(whole.epoch)
    assert unseal(key, whole.key, bucket.get(whole.key)) == bytes(BODY)
    assert len(list(bucket.versions("shop/wal/0"))) == 1


@pytest.mark.parametrize("number", range(2, 11))
@pytest.mark.parametrize("applied", [False, True])
def test_a_store_that_fails_once_anywhere_loses_nothing(number: int, applied: bool) -> None:
    bucket = FakeS3(FakeClock())
    bucket.fail_call(number, RetryableError("503 Slow Down"), applied=applied)
    run_all(bucket)
    found = ranges(bucket)
    assert any((one.start, one.end) == (0, SEGMENT) for one in found)
    keys = EpochKeys(bucket, RING, "shop")
    for one in found:
        assert unseal(keys.key(one.epoch), one.key, bucket.get(one.key)) == bytes(BODY[one.start : one.end])


def test_what_no_repetition_heals_is_told() -> None:
    bucket = FakeS3(FakeClock())
    with uploading(bucket) as uploader:
        bucket.fail_call(bucket.calls + 1, TerminalError("access denied"))
        uploader.send(PIECES[0])
        assert completed(uploader, 1) == []
        assert "access denied" in str(uploader.failure)


def test_what_an_earlier_stream_left_goes_with_its_segment() -> None:
    bucket = FakeS3(FakeClock())
    with uploading(bucket) as uploader:
        uploader.send(PIECES[0])
        completed(uploader, 1)
    (left,) = ranges(bucket)
    with uploading(bucket) as uploader:
        uploader.know([left])
        uploader.compact(FULL)
    (whole,) = ranges(bucket)
    assert whole.end == SEGMENT


def test_whole_segments_are_locked_and_pieces_are_not() -> None:
    """Also one that came in one go, which nothing replaces later."""
    bucket, until = FakeS3(FakeClock()), START + timedelta(days=30)
    with uploading(bucket, lock=Lock(mode=LockMode.COMPLIANCE, until=until)) as uploader:
        uploader.send(PIECES[0])
        uploader.send(Piece(timeline=1, start=SEGMENT, end=2 * SEGMENT, covered_us=1, data=BODY))
        completed(uploader, 2)
    locked = {found.start: bucket.head(found.key).lock for found in ranges(bucket)}
    assert locked == {0: None, SEGMENT: Lock(mode=LockMode.COMPLIANCE, until=until)}
