"""A restore by hand announces itself in the bucket: seen while it runs, and no longer, however it ends."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Final

import pytest

from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.restore_claims import (
    CLAIM_LASTS,
    FORGOTTEN_AFTER,
    RestoreClaim,
    claim_name,
    running_restores,
)
from controlplane.kernel.errors import DeniedError, RetryableError
from controlplane.recovery.ports import restoring_prefix
from controlplane.testing.effects import START, FakeClock
from tests.unit.backup.bucket import FailsAt, MemoryBucket
from tests.unit.backup.copies import DATASET, KEYRING, write_copy

DEADLINE_S: Final = 60.0
SECOND: Final = timedelta(seconds=1)


def until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < give_up_at, "it does not happen"
        time.sleep(0.002)


def claim(
    bucket: MemoryBucket, clock: FakeClock, problems: list[str] | None = None, *, renew_every: timedelta = 60 * SECOND
) -> RestoreClaim:
    told = problems if problems is not None else []
    return RestoreClaim(lambda: bucket, DATASET, now=clock.now, on_problem=told.append, renew_every=renew_every)


def seen(bucket: MemoryBucket, clock: FakeClock) -> tuple[str, ...]:
    return tuple(one.name for one in running_restores(bucket, DATASET, clock.now()))


def test_it_is_seen_while_it_runs_and_gone_afterwards() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    with claim(bucket, clock):
        until(lambda: bool(seen(bucket, clock)))
        (name,) = seen(bucket, clock)
        assert name.startswith("20260105T080000Z-")
        assert running_restores(bucket, "another", clock.now()) == ()
        assert running_restores(bucket, DATASET, clock.now())[0].until == START + CLAIM_LASTS
    assert bucket.listed() == []


def test_one_that_fails_gives_its_claim_back_too() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)

    def restore() -> None:
        with claim(bucket, clock):
            until(lambda: bool(seen(bucket, clock)))
            raise DeniedError("no key opens it")

    with pytest.raises(DeniedError):
        restore()
    assert bucket.listed() == []


def test_a_long_one_renews_its_claim() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    with claim(bucket, clock, renew_every=timedelta(milliseconds=1)):
        until(lambda: bool(seen(bucket, clock)))
        clock.jump(10 * CLAIM_LASTS)
        until(lambda: bool(seen(bucket, clock)))


def test_one_that_was_killed_counts_some_minutes_and_is_swept_later() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    key = f"{restoring_prefix(DATASET)}{claim_name(clock.now(), 'DB-1.example.com', 4711)}"
    bucket.put(key, b"{}")
    assert seen(bucket, clock) == ("20260105T080000Z-db-1-example-com-4711",)
    clock.jump(CLAIM_LASTS - SECOND)
    assert seen(bucket, clock)
    clock.jump(SECOND)
    assert seen(bucket, clock) == ()
    assert bucket.listed() == [key]
    clock.jump(FORGOTTEN_AFTER)
    assert seen(bucket, clock) == ()
    assert bucket.listed() == []


def test_what_may_not_be_swept_counts_nothing_all_the_same() -> None:
    clock = FakeClock()

    def trouble(call: str) -> None:
        if call == "delete":
            raise DeniedError("s3:DeleteObject is not granted")

    bucket = MemoryBucket(trouble, clock)
    bucket.put(f"{restoring_prefix(DATASET)}old", b"{}")
    clock.jump(2 * FORGOTTEN_AFTER)
    assert seen(bucket, clock) == ()


def test_a_store_whose_clock_is_ahead_makes_no_claim_longer() -> None:
    clock = FakeClock(START + timedelta(hours=3))
    bucket = MemoryBucket(clock=clock)
    bucket.put(f"{restoring_prefix(DATASET)}ahead", b"{}")
    (one,) = running_restores(bucket, DATASET, START)
    assert one.until == START + CLAIM_LASTS


def test_a_bucket_that_refuses_is_told_once_and_stops_nothing() -> None:
    clock, problems = FakeClock(), list[str]()
    bucket = MemoryBucket(FailsAt(1, lasts=10_000), clock)
    with claim(bucket, clock, problems, renew_every=timedelta(milliseconds=1)):
        until(lambda: bool(problems))
        before = bucket.trouble
        assert isinstance(before, FailsAt)
        calls = before.calls
        until(lambda: before.calls > calls + 3)
    assert problems == ["put: refused, as the test asked"]


def test_the_restore_does_not_wait_for_its_claim() -> None:
    """The bucket answers the claim only when the restore is over."""
    clock, over = FakeClock(), threading.Event()

    def trouble(call: str) -> None:
        if call == "put" and not over.wait(DEADLINE_S):
            raise RetryableError("the restore waits for its claim")

    bucket, problems = MemoryBucket(trouble, clock), list[str]()
    with ExitStack() as stack:
        stack.enter_context(claim(bucket, clock, problems))
        over.set()
    assert problems == []
    assert bucket.listed() == []


def test_an_inventory_of_copies_knows_nothing_of_claims() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    write_copy(bucket)
    bucket.put(f"{restoring_prefix(DATASET)}{claim_name(START, '', 1)}", b"{}")
    found = inventory(bucket, DATASET, keyring=KEYRING)
    assert (len(found.points), found.orphans, found.unreadable) == (1, (), ())
    assert seen(bucket, clock) == ("20260105T080000Z-unknown-1",)
