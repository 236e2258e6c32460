"""What the site file asks of a bucket, derived from the datasets with a copy in it."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    DatasetKind,
    DatasetSpec,
    LockMode,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
)
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.recovery.bucket import (
    IA_AFTER_DAYS_MIN,
    TRANSITION_BYTES_MIN,
    DefaultLock,
    Transition,
    class_transitions,
    declare_bucket,
)
from controlplane.recovery.classes import rank

DAY = timedelta(days=1)
CLASSES = list(StorageClass)


def rule(days: float, storage_class: StorageClass = StorageClass.STANDARD) -> RetentionRule:
    return RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=days), storage_class=storage_class)


def dataset(name: str, *rules: RetentionRule, bucket: str = "main") -> DatasetSpec:
    return DatasetSpec(
        name=DatasetName(name),
        kind=DatasetKind.FILES,
        rpo=timedelta(hours=1),
        rto=timedelta(hours=1),
        cadence=Cadence(every=DAY),
        retention=rules,
        buckets=(BucketName(bucket),),
    )


def spec(*, lock: LockMode = LockMode.NONE, embedded: bool = False) -> BucketSpec:
    return BucketSpec(name=BucketName("main"), bucket="acme-backups", prefix="qd/", lock=lock, embedded=embedded)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((rule(30),), ()),
        ((rule(30), rule(2555, StorageClass.GLACIER_IR)), ((30, StorageClass.GLACIER_IR),)),
        ((rule(35), rule(2555, StorageClass.STANDARD_IA)), ((35, StorageClass.STANDARD_IA),)),
        # Fourteen days would be too soon for STANDARD_IA.
        ((rule(14), rule(365, StorageClass.STANDARD_IA)), ((30, StorageClass.STANDARD_IA),)),
        (
            (rule(30), rule(90, StorageClass.STANDARD_IA), rule(2555, StorageClass.DEEP_ARCHIVE)),
            ((30, StorageClass.STANDARD_IA), (90, StorageClass.DEEP_ARCHIVE)),
        ),
        # An archive no sooner than 30 days after STANDARD_IA.
        (
            (rule(30), rule(40, StorageClass.STANDARD_IA), rule(2555, StorageClass.GLACIER)),
            ((30, StorageClass.STANDARD_IA), (60, StorageClass.GLACIER)),
        ),
        # A rule that keeps longer in a hotter class holds everything there.
        ((rule(30, StorageClass.GLACIER), rule(365)), ()),
        # Written in the class itself: nothing to move.
        ((rule(2555, StorageClass.DEEP_ARCHIVE),), ()),
        (
            (rule(10, StorageClass.STANDARD_IA), rule(2555, StorageClass.DEEP_ARCHIVE)),
            ((30, StorageClass.DEEP_ARCHIVE),),
        ),
        ((rule(1.5), rule(365, StorageClass.GLACIER)), ((2, StorageClass.GLACIER),)),
        ((), ()),
    ],
)
def test_transitions_follow_from_retention(
    rules: tuple[RetentionRule, ...], expected: tuple[tuple[int, StorageClass], ...]
) -> None:
    assert class_transitions(rules) == tuple(
        Transition(days=days, storage_class=storage_class) for days, storage_class in expected
    )


@given(st.lists(st.tuples(st.integers(1, 4000), st.sampled_from(CLASSES)), min_size=1, max_size=6))
def test_no_recovery_point_ever_lies_colder_than_a_rule_that_may_hold_it(
    drawn: list[tuple[int, StorageClass]],
) -> None:
    rules = [rule(days, storage_class) for days, storage_class in drawn]
    steps = class_transitions(rules)

    for step in steps:
        for held in rules:
            if held.keep > step.days * DAY:
                assert rank(held.storage_class) >= rank(step.storage_class)
    written = min((held.storage_class for held in rules), key=rank)
    assert_waterfall([written, *(step.storage_class for step in steps)])
    for before, after in zip([(0, written), *((s.days, s.storage_class) for s in steps)], steps, strict=False):
        near_ia = StorageClass.STANDARD_IA in {before[1], after.storage_class}
        assert after.days - before[0] >= (IA_AFTER_DAYS_MIN if near_ia else 1)


def assert_waterfall(classes: Sequence[StorageClass]) -> None:
    ranks = [rank(storage_class) for storage_class in classes]
    assert ranks == sorted(set(ranks))


def test_a_bucket_is_declared_by_the_datasets_in_it() -> None:
    declared = declare_bucket(
        spec(),
        [
            dataset("db", rule(30), rule(2555, StorageClass.GLACIER)),
            dataset("redis", rule(7)),
            dataset("elsewhere", rule(30), rule(365, StorageClass.GLACIER), bucket="other"),
        ],
    )

    assert declared.datasets == ("db", "redis")
    tidy, classes = declared.rules
    assert (tidy.prefix, tidy.noncurrent_days, tidy.expired_markers, tidy.abort_uploads_days) == ("qd/", 30, True, 7)
    assert tidy.expire_days is None
    assert (classes.name, classes.prefix) == ("quarterdeck-class-db", "qd/db/points/")
    assert classes.larger_than_bytes == TRANSITION_BYTES_MIN, "manifests stay readable at once"
    assert declared.encrypted
    assert declared.public_access_blocked


def test_the_default_lock_is_the_shortest_time_that_anything_is_kept() -> None:
    datasets = [dataset("db", rule(30), rule(365)), dataset("redis", rule(7.5))]

    locked = declare_bucket(spec(lock=LockMode.COMPLIANCE), datasets)

    assert locked.default_lock == DefaultLock(mode=LockMode.COMPLIANCE, days=7)
    assert declare_bucket(spec(), datasets).default_lock is None
    assert declare_bucket(spec(lock=LockMode.GOVERNANCE), []).default_lock is None
    hours = declare_bucket(spec(lock=LockMode.GOVERNANCE), [dataset("db", rule(0.25))])
    assert hours.default_lock == DefaultLock(mode=LockMode.GOVERNANCE, days=1)


def test_the_embedded_store_is_asked_for_less() -> None:
    declared = declare_bucket(spec(embedded=True), [])

    assert not declared.encrypted
    assert not declared.public_access_blocked
