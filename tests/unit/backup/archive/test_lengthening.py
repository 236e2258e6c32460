"""A recovery point is locked for longer: every object, the manifest last, and never for less."""

from datetime import timedelta

import pytest

from controlplane.adapters.backup.lengthening import lengthen_locks
from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import NotFoundError, RetryableError
from controlplane.recovery.ports import Lock, manifest_key
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.s3 import FakeS3
from tests.unit.backup.copies import DATASET, LATER, POINT, write_copy

DAY = timedelta(days=1)


def until(days: int) -> Lock:
    return Lock(mode=LockMode.COMPLIANCE, until=START + days * DAY)


def locks(store: FakeS3) -> dict[str, Lock | None]:
    return {info.key: store.head(info.key).lock for info in store.objects(f"{DATASET}/")}


def locked_copy() -> FakeS3:
    store = FakeS3(FakeClock())
    write_copy(store, lock=until(1))
    return store


def test_every_object_is_locked_until_then() -> None:
    store = locked_copy()
    assert len(locks(store)) > 2
    assert lengthen_locks(store, DATASET, POINT, until(30)) == manifest_key(DATASET, POINT)
    assert set(locks(store).values()) == {until(30)}


def test_a_lock_that_lasts_longer_stays() -> None:
    store = locked_copy()
    lengthen_locks(store, DATASET, POINT, until(30))
    lengthen_locks(store, DATASET, POINT, until(7))
    assert set(locks(store).values()) == {until(30)}


def test_wherever_it_stops_the_manifest_says_so_and_it_is_done_again() -> None:
    calls = locked_copy()
    calls.calls = 0
    lengthen_locks(calls, DATASET, POINT, until(30))
    for number in range(1, calls.calls + 1):
        store = locked_copy()
        store.fail_call(store.calls + number, RetryableError("503"))
        with pytest.raises(RetryableError):
            lengthen_locks(store, DATASET, POINT, until(30))
        key = manifest_key(DATASET, POINT)
        assert locks(store)[key] == until(1), f"stopped at call {number}"
        lengthen_locks(store, DATASET, POINT, until(30))
        assert set(locks(store).values()) == {until(30)}


def test_a_point_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match=LATER):
        lengthen_locks(locked_copy(), DATASET, LATER, until(30))
