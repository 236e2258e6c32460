"""A real bucket against its declaration: created, drifted, mended; a second run changes nothing."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.objectstore.bucket import apply_plan, read_state
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
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.recovery.bucket import DefaultLock, LockState, Unread, Versioning, declare_bucket
from controlplane.recovery.bucket_plan import BucketPlan, StepKind, plan_bucket
from tests.seaweedfs import RunningSeaweed, embedded_client, running_seaweedfs

DAY = timedelta(days=1)
DATASET = DatasetSpec(
    name=DatasetName("db"),
    kind=DatasetKind.POSTGRESQL,
    rpo=timedelta(seconds=10),
    rto=timedelta(hours=4),
    cadence=Cadence(every=DAY),
    retention=(
        RetentionRule(period=RetentionPeriod.DAILY, keep=30 * DAY),
        RetentionRule(period=RetentionPeriod.QUARTERLY, keep=2557 * DAY, storage_class=StorageClass.GLACIER_IR),
    ),
    buckets=(BucketName("main"),),
)


@pytest.fixture(scope="module")
def seaweed() -> Iterator[RunningSeaweed]:
    with running_seaweedfs() as running:
        yield running


def spec(bucket: str, *, lock: LockMode = LockMode.GOVERNANCE, embedded: bool = True) -> BucketSpec:
    return BucketSpec(name=BucketName("main"), bucket=bucket, prefix="qd/", lock=lock, embedded=embedded)


def plan(seaweed: RunningSeaweed, wanted: BucketSpec) -> BucketPlan:
    return plan_bucket(declare_bucket(wanted, [DATASET]), read_state(seaweed.client, wanted.bucket))


def apply(seaweed: RunningSeaweed, wanted: BucketSpec) -> list[str]:
    """The failures."""
    return [outcome.failure for outcome in apply_plan(seaweed.client, plan(seaweed, wanted)) if outcome.failure]


def test_a_bucket_is_made_and_a_second_run_changes_nothing(seaweed: RunningSeaweed) -> None:
    wanted = spec("made-from-nothing")
    first = plan(seaweed, wanted)
    assert [step.kind for step in first.steps] == [StepKind.CREATE, StepKind.DEFAULT_LOCK, StepKind.LIFECYCLE]

    assert apply(seaweed, wanted) == []

    state = read_state(seaweed.client, wanted.bucket)
    assert state.versioning is Versioning.ON
    assert state.lock == LockState(enabled=True, default=DefaultLock(mode=LockMode.GOVERNANCE, days=30))
    second = plan(seaweed, wanted)
    assert second.in_order
    assert second.warnings == (
        "moves between classes are not supported by this store: no GLACIER_IR after 30 days for qd/db/points/",
    )


def test_drift_is_shown_and_mended(seaweed: RunningSeaweed) -> None:
    wanted = spec("drifted")
    seaweed.client.create_bucket(Bucket="drifted")
    seaweed.client.put_bucket_lifecycle_configuration(
        Bucket="drifted",
        LifecycleConfiguration={
            "Rules": [
                {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}},
            ]
        },
    )
    found = plan(seaweed, wanted)
    assert [step.kind for step in found.steps] == [
        StepKind.VERSIONING,
        StepKind.LOCK,
        StepKind.DEFAULT_LOCK,
        StepKind.LIFECYCLE,
    ]
    assert "found: off" in found.steps[0].sentence

    assert apply(seaweed, wanted) == []

    assert plan(seaweed, wanted).in_order
    rules = read_state(seaweed.client, "drifted").rules
    assert not isinstance(rules, Unread)
    assert {rule.name for rule in rules} == {"theirs", "quarterdeck-tidy"}, "rules of others stay"

    tidy = next(rule for rule in rules if rule.name == "quarterdeck-tidy")
    assert (tidy.noncurrent_days, tidy.expired_markers, tidy.abort_uploads_days) == (30, True, 7)


def test_a_lock_that_is_stronger_than_declared_is_left(seaweed: RunningSeaweed) -> None:
    wanted = spec("stronger")
    assert apply(seaweed, wanted) == []
    seaweed.client.put_object_lock_configuration(
        Bucket="stronger",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 90}},
        },
    )

    found = plan(seaweed, wanted)

    assert found.in_order
    assert any("90 days" in warning and "shortens" in warning for warning in found.warnings)


def test_what_the_store_lacks_is_named(seaweed: RunningSeaweed) -> None:
    """Declared as somebody's own SeaweedFS: then encryption and a block of public access are asked for too."""
    foreign = spec("foreign", embedded=False)
    failures = apply(seaweed, foreign)

    found = plan(seaweed, foreign)

    assert [step.kind for step in found.steps] == [StepKind.ENCRYPTION]
    assert any("public access is not supported by this store" in warning for warning in found.warnings)
    assert len(failures) == 1
    assert "taken back" in failures[0], "it takes the setting, and without a key of its own refuses every write then"
    assert seaweed.store("foreign").put("key", b"written all the same").size_bytes == 20


def test_wrong_credentials_are_told_apart_from_no_bucket(seaweed: RunningSeaweed) -> None:
    assert not read_state(seaweed.client, "nowhere-to-be-found").exists
    stranger = embedded_client(replace(seaweed.endpoint, secret_key="wrong"))
    with pytest.raises(TerminalError, match=r"may not|credentials"):
        read_state(stranger, "nowhere-to-be-found")
