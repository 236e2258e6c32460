"""FakeS3 has AWS's retrieval: tiers with their hours, temporary copies, refusals. Figures: recovery.classes."""

from datetime import datetime, timedelta

import pytest

from controlplane.domain.dataset import RetrievalTier, StorageClass
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.recovery.ports import Thaw
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BODY = b"cold" * 1000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeS3:
    return FakeS3(clock)


@pytest.mark.parametrize(
    ("storage_class", "tier", "wait"),
    [
        (StorageClass.GLACIER, RetrievalTier.EXPEDITED, timedelta(minutes=5)),
        (StorageClass.GLACIER, RetrievalTier.STANDARD, 5 * HOUR),
        (StorageClass.GLACIER, RetrievalTier.BULK, 12 * HOUR),
        (StorageClass.DEEP_ARCHIVE, RetrievalTier.STANDARD, 12 * HOUR),
        (StorageClass.DEEP_ARCHIVE, RetrievalTier.BULK, 48 * HOUR),
    ],
)
def test_a_retrieval_takes_its_hours(
    clock: FakeClock, store: FakeS3, storage_class: StorageClass, tier: RetrievalTier, wait: timedelta
) -> None:
    store.put("cold", BODY, storage_class=storage_class)
    store.thaw("cold", version=None, tier=tier, days=2)

    clock.jump(wait - timedelta(seconds=1))
    with pytest.raises(ConflictError):
        store.get("cold")
    assert store.head("cold").thaw == Thaw(ongoing=True, until=None)

    clock.jump(timedelta(seconds=1))
    assert store.get("cold") == BODY
    seen = store.head("cold")
    assert seen.storage_class is storage_class, "the copy is temporary; the class still reads the archive's"
    assert seen.thaw is not None
    assert not seen.thaw.ongoing


def test_the_copy_goes_at_the_midnight_after_its_days(clock: FakeClock, store: FakeS3) -> None:
    store.put("cold", BODY, storage_class=StorageClass.GLACIER)
    store.thaw("cold", version=None, tier=RetrievalTier.STANDARD, days=1)
    clock.jump(6 * HOUR)
    thaw = store.head("cold").thaw
    assert thaw is not None
    assert thaw.until is not None
    assert (thaw.until.hour, thaw.until.minute) == (0, 0)
    assert thaw.until - clock.now() >= 23 * HOUR

    clock.jump(thaw.until - clock.now() - timedelta(seconds=1))
    assert store.get("cold") == BODY
    clock.jump(timedelta(seconds=1))
    with pytest.raises(ConflictError):
        store.get("cold")
    assert store.head("cold").thaw is None


def test_expedited_is_not_there_for_the_deep_archive(store: FakeS3) -> None:
    store.put("cold", BODY, storage_class=StorageClass.DEEP_ARCHIVE)

    with pytest.raises(TerminalError, match="Expedited"):
        store.thaw("cold", version=None, tier=RetrievalTier.EXPEDITED, days=1)


def test_expedited_may_be_refused_for_want_of_capacity(store: FakeS3) -> None:
    store.put("cold", BODY, storage_class=StorageClass.GLACIER)
    store.expedited_capacity = False

    with pytest.raises(RetryableError, match="capacity"):
        store.thaw("cold", version=None, tier=RetrievalTier.EXPEDITED, days=1)
    store.thaw("cold", version=None, tier=RetrievalTier.STANDARD, days=1)


def test_a_faster_tier_speeds_a_running_retrieval_up_and_a_slower_one_does_nothing(
    clock: FakeClock, store: FakeS3
) -> None:
    store.put("cold", BODY, storage_class=StorageClass.GLACIER)
    store.thaw("cold", version=None, tier=RetrievalTier.STANDARD, days=1)
    store.thaw("cold", version=None, tier=RetrievalTier.BULK, days=1)
    clock.jump(HOUR)
    store.thaw("cold", version=None, tier=RetrievalTier.EXPEDITED, days=1)

    clock.jump(timedelta(minutes=5))

    assert store.get("cold") == BODY


def test_asking_again_for_a_copy_that_is_there_keeps_it_longer(clock: FakeClock, store: FakeS3) -> None:
    store.put("cold", BODY, storage_class=StorageClass.GLACIER)
    store.thaw("cold", version=None, tier=RetrievalTier.STANDARD, days=1)
    clock.jump(20 * HOUR)

    store.thaw("cold", version=None, tier=RetrievalTier.STANDARD, days=5)

    assert until(store) >= clock.now() + 4 * DAY
    assert store.get("cold") == BODY


def until(store: FakeS3) -> datetime:
    thaw = store.head("cold").thaw
    assert thaw is not None
    assert thaw.until is not None
    return thaw.until


@pytest.mark.parametrize("warm", [StorageClass.STANDARD, StorageClass.STANDARD_IA, StorageClass.GLACIER_IR])
def test_what_can_be_read_at_once_has_no_retrieval(store: FakeS3, warm: StorageClass) -> None:
    store.put("warm", BODY, storage_class=warm)

    assert store.get("warm") == BODY
    with pytest.raises(ConflictError, match="as it is"):
        store.thaw("warm", version=None, tier=RetrievalTier.STANDARD, days=1)
