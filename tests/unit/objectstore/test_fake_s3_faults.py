"""Faults on request: a call that fails, an answer that is lost, bytes that turn or go; and locks that can be passed."""

from datetime import timedelta

import pytest

from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, TerminalError
from controlplane.recovery.ports import Lock
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3

DAY = timedelta(days=1)


def test_the_nth_call_fails_whatever_it_is() -> None:
    store = FakeS3(FakeClock())
    store.fail_call(2, RetryableError("the store is away"))
    store.fail_call(4, TerminalError("no permission"))

    store.put("one", b"1")
    with pytest.raises(RetryableError, match="away"):
        store.put("two", b"2")
    assert [info.key for info in store.objects("")] == ["one"]
    with pytest.raises(TerminalError, match="permission"):
        store.head("one")
    assert store.get("one") == b"1"
    assert (store.calls, store.calls_by_name["put"]) == (5, 2)


def test_an_answer_that_is_lost_leaves_the_change_behind() -> None:
    store = FakeS3(FakeClock())
    store.fail_call(1, RetryableError("reset"), applied=True)

    with pytest.raises(RetryableError):
        store.put("one", b"1")

    assert store.get("one") == b"1"


def test_an_answer_that_is_lost_can_be_a_listing_s() -> None:
    store = FakeS3(FakeClock())
    store.fail_call(1, RetryableError("reset"))

    with pytest.raises(RetryableError):
        list(store.versions(""))


def test_bytes_that_were_replaced_come_as_they_are() -> None:
    store = FakeS3(FakeClock())
    written = store.put("pack", b"abcdef")

    store.corrupt("pack", 2)

    assert store.get("pack") == b"ab" + bytes([ord("c") ^ 0xFF]) + b"def"
    assert store.head("pack").sha256 != written.sha256
    assert store.head("pack").version == written.version


def test_a_rotten_disk_is_noticed_by_the_store() -> None:
    store = FakeS3(FakeClock())
    store.put("pack", b"abcdef")

    store.corrupt("pack", 0, noticed=True)

    with pytest.raises(TerminalError, match="checksum"):
        store.get("pack")
    assert store.get("pack", first=1) == b"bcdef", "a range carries no checksum of the whole"


def test_an_end_can_go_missing() -> None:
    store = FakeS3(FakeClock())
    version = store.put("pack", b"abcdef").version
    store.put("pack", b"newer one")

    store.truncate("pack", version=version)
    store.truncate("pack", 5)

    assert store.get("pack", version=version) == b"abc"
    assert store.get("pack") == b"newer"


def test_what_is_damaged_must_be_there() -> None:
    with pytest.raises(NotFoundError):
        FakeS3(FakeClock()).corrupt("nothing", 0)


def test_who_may_bypass_governance_passes_it_and_not_compliance() -> None:
    clock = FakeClock()
    store = FakeS3(clock, bypass_governance=True)
    soft = store.put("soft", b"1", lock=Lock(mode=LockMode.GOVERNANCE, until=clock.now() + DAY)).version
    hard = store.put("hard", b"1", lock=Lock(mode=LockMode.COMPLIANCE, until=clock.now() + DAY)).version

    store.delete("soft", version=soft)
    with pytest.raises(ConflictError):
        store.delete("hard", version=hard)
    with pytest.raises(ConflictError):
        store.retain("hard", version=hard, lock=Lock(mode=LockMode.COMPLIANCE, until=clock.now() + DAY / 2))


def test_a_lock_that_is_over_holds_nothing() -> None:
    clock = FakeClock()
    store = FakeS3(clock)
    version = store.put("key", b"1", lock=Lock(mode=LockMode.COMPLIANCE, until=clock.now() + DAY)).version

    clock.jump(DAY)
    store.delete("key", version=version)

    with pytest.raises(NotFoundError):
        store.head("key", version=version)
    with pytest.raises(TerminalError, match="over"):
        store.put("key", b"1", lock=Lock(mode=LockMode.COMPLIANCE, until=clock.now()))
