"""FakeS3 runs lifecycle rules at midnight UTC, respects locks, and books early deletions."""

from datetime import timedelta

import pytest

from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import KIB
from controlplane.recovery.bucket import LifecycleRule, Transition
from controlplane.recovery.ports import Lock
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.s3 import FakeS3
from controlplane.testing.s3_lifecycle import EarlyCharge

DAY = timedelta(days=1)
MIDNIGHT = (START + DAY).replace(hour=0)
LARGE = bytes(128 * KIB)
WATERFALL = LifecycleRule(
    name="waterfall",
    prefix="db/",
    transitions=(
        Transition(days=30, storage_class=StorageClass.STANDARD_IA),
        Transition(days=90, storage_class=StorageClass.GLACIER),
        Transition(days=200, storage_class=StorageClass.DEEP_ARCHIVE),
    ),
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_objects_go_down_the_waterfall_at_midnight(clock: FakeClock) -> None:
    store = FakeS3(clock, rules=[WATERFALL])
    store.put("db/1", LARGE)
    store.put("other/1", LARGE)

    clock.jump(MIDNIGHT + 30 * DAY - clock.now() - timedelta(seconds=1))
    assert store.head("db/1").storage_class is StorageClass.STANDARD
    clock.jump(timedelta(seconds=1))
    assert store.head("db/1").storage_class is StorageClass.STANDARD_IA
    clock.jump(60 * DAY)
    assert store.head("db/1").storage_class is StorageClass.GLACIER
    clock.jump(110 * DAY)
    assert store.head("db/1").storage_class is StorageClass.DEEP_ARCHIVE
    assert store.head("other/1").storage_class is StorageClass.STANDARD


def test_a_long_absence_is_caught_up(clock: FakeClock) -> None:
    store = FakeS3(clock, rules=[WATERFALL])
    store.put("db/1", LARGE)

    clock.jump(7300 * DAY)

    assert store.head("db/1").storage_class is StorageClass.DEEP_ARCHIVE


def test_small_objects_stay_unless_the_rule_names_a_size(clock: FakeClock) -> None:
    by_size = LifecycleRule(
        name="by-size",
        prefix="sized/",
        larger_than_bytes=10,
        transitions=(Transition(days=1, storage_class=StorageClass.GLACIER),),
    )
    store = FakeS3(clock, rules=[WATERFALL, by_size])
    store.put("db/manifest", LARGE[1:])
    store.put("sized/above", bytes(11))
    store.put("sized/at", bytes(10))

    clock.jump(400 * DAY)

    assert {info.key: info.storage_class for info in store.objects("")} == {
        "db/manifest": StorageClass.STANDARD,
        "sized/above": StorageClass.GLACIER,
        "sized/at": StorageClass.STANDARD,
    }


@pytest.mark.parametrize(
    "transitions",
    [
        (Transition(days=29, storage_class=StorageClass.STANDARD_IA),),
        (
            Transition(days=40, storage_class=StorageClass.GLACIER),
            Transition(days=90, storage_class=StorageClass.GLACIER_IR),
        ),
        (Transition(days=40, storage_class=StorageClass.STANDARD),),
    ],
)
def test_rules_that_s3_refuses_are_refused(clock: FakeClock, transitions: tuple[Transition, ...]) -> None:
    with pytest.raises(TerminalError, match="the rule bad"):
        FakeS3(clock, rules=[LifecycleRule(name="bad", transitions=transitions)])


def test_expiration_hides_and_noncurrent_expiration_removes(clock: FakeClock) -> None:
    rule = LifecycleRule(name="tidy", expire_days=10, noncurrent_days=5, expired_markers=True)
    store = FakeS3(clock, rules=[rule])
    store.put("key", LARGE)

    clock.jump(11 * DAY)
    assert list(store.objects("")) == []
    marker, old = store.versions("")
    assert marker.deleted
    assert not old.deleted
    clock.jump(4 * DAY)
    assert len(list(store.versions(""))) == 2
    clock.jump(1 * DAY)
    assert list(store.versions("")) == []


def test_old_versions_go_by_their_own_age(clock: FakeClock) -> None:
    store = FakeS3(clock, rules=[LifecycleRule(name="tidy", noncurrent_days=30)])
    store.put("key", b"first")
    clock.jump(100 * DAY)
    store.put("key", b"second")

    clock.jump(29 * DAY)
    assert len(list(store.versions("key"))) == 2
    clock.jump(2 * DAY)
    assert [info.size_bytes for info in store.versions("key")] == [6]


@pytest.mark.parametrize("held_by", ["lock", "hold"])
def test_a_lifecycle_never_removes_what_is_locked(clock: FakeClock, held_by: str) -> None:
    store = FakeS3(clock, rules=[LifecycleRule(name="tidy", noncurrent_days=1)])
    lock = Lock(mode=LockMode.COMPLIANCE, until=clock.now() + 50 * DAY) if held_by == "lock" else None
    version = store.put("key", b"first", lock=lock).version
    if held_by == "hold":
        store.hold("key", version=version)
    store.delete("key")

    clock.jump(49 * DAY)
    assert store.get("key", version=version) == b"first"

    clock.jump(3 * DAY)
    if held_by == "hold":
        assert store.get("key", version=version) == b"first"
        store.hold("key", version=version, on=False)
    assert [info.deleted for info in store.versions("key")] == [True]


def test_a_rule_that_is_switched_off_does_nothing(clock: FakeClock) -> None:
    store = FakeS3(clock, rules=[LifecycleRule(name="off", expire_days=1, enabled=False)])
    store.put("key", LARGE)

    clock.jump(30 * DAY)

    assert store.get("key") == LARGE


def test_leaving_a_class_early_is_billed_to_its_minimum(clock: FakeClock) -> None:
    store = FakeS3(clock)
    kept = store.put("kept", LARGE, storage_class=StorageClass.GLACIER).version
    early = store.put("early", LARGE, storage_class=StorageClass.GLACIER).version
    store.put("free", LARGE)

    clock.jump(60 * DAY)
    store.delete("early", version=early)
    store.delete("free", version=store.head("free").version)
    clock.jump(30 * DAY)
    store.delete("kept", version=kept)

    assert store.charges == [
        EarlyCharge(key="early", storage_class=StorageClass.GLACIER, size_bytes=len(LARGE), days=30)
    ]


def test_a_move_before_the_minimum_is_billed_too(clock: FakeClock) -> None:
    rule = LifecycleRule(
        name="hasty",
        transitions=(
            Transition(days=10, storage_class=StorageClass.GLACIER),
            Transition(days=40, storage_class=StorageClass.DEEP_ARCHIVE),
        ),
    )
    store = FakeS3(clock, rules=[rule])
    store.put("key", LARGE)

    clock.jump(50 * DAY)

    assert store.head("key").storage_class is StorageClass.DEEP_ARCHIVE
    assert [(charge.storage_class, charge.days) for charge in store.charges] == [(StorageClass.GLACIER, 60)]
