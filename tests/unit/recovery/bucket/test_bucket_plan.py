"""The plan from a bucket as found to a bucket as declared: ordered, in sentences, never towards less."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.recovery.bucket import (
    TIDY_RULE,
    BucketState,
    DeclaredBucket,
    DefaultLock,
    LifecycleRule,
    LockState,
    Transition,
    Unread,
    Versioning,
)
from controlplane.recovery.bucket_plan import BucketPlan, StepKind, plan_bucket

TIDY = LifecycleRule(name=TIDY_RULE, prefix="qd/", noncurrent_days=30, expired_markers=True, abort_uploads_days=7)
CLASSES = LifecycleRule(
    name="quarterdeck-class-db",
    prefix="qd/db/points/",
    larger_than_bytes=1024,
    transitions=(Transition(days=30, storage_class=StorageClass.GLACIER),),
)
LOCK = DefaultLock(mode=LockMode.GOVERNANCE, days=30)
DECLARED = DeclaredBucket(
    bucket="acme-backups",
    region="eu-central-1",
    prefix="qd/",
    datasets=("db",),
    lock=LockMode.GOVERNANCE,
    default_lock=LOCK,
    rules=(TIDY, CLASSES),
    encrypted=True,
    public_access_blocked=True,
)
GOOD = BucketState(
    exists=True,
    versioning=Versioning.ON,
    lock=LockState(enabled=True, default=LOCK),
    rules=(TIDY, CLASSES),
    encryption="AES256",
    public_access_blocked=True,
)


def kinds(plan: BucketPlan) -> list[StepKind]:
    return [step.kind for step in plan.steps]


def test_a_bucket_in_order_needs_nothing() -> None:
    plan = plan_bucket(DECLARED, GOOD)

    assert plan.in_order
    assert plan.warnings == ()


def test_a_bucket_that_is_not_there_is_made_from_nothing_in_order() -> None:
    plan = plan_bucket(DECLARED, BucketState(exists=False))

    assert kinds(plan) == [
        StepKind.CREATE,
        StepKind.PUBLIC_ACCESS,
        StepKind.ENCRYPTION,
        StepKind.DEFAULT_LOCK,
        StepKind.LIFECYCLE,
    ]
    assert plan.steps[0].sentence == "create the bucket acme-backups in eu-central-1, with object lock"


def test_without_a_lock_versioning_is_a_step_of_its_own() -> None:
    open_bucket = replace(DECLARED, lock=LockMode.NONE, default_lock=None)

    assert StepKind.VERSIONING in kinds(plan_bucket(open_bucket, BucketState(exists=False)))


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        (replace(GOOD, versioning=Versioning.OFF), StepKind.VERSIONING, "found: off"),
        (replace(GOOD, versioning=Versioning.SUSPENDED), StepKind.VERSIONING, "found: suspended"),
        (replace(GOOD, encryption=None), StepKind.ENCRYPTION, "AES256"),
        (replace(GOOD, public_access_blocked=False), StepKind.PUBLIC_ACCESS, "public"),
        (replace(GOOD, lock=LockState(enabled=True)), StepKind.DEFAULT_LOCK, "30 days"),
        (replace(GOOD, rules=(CLASSES,)), StepKind.LIFECYCLE, "old versions go after 30 days"),
        (replace(GOOD, rules=(TIDY, replace(CLASSES, enabled=False))), StepKind.LIFECYCLE, "switched off"),
        (replace(GOOD, rules=(TIDY, replace(CLASSES, prefix="x/"))), StepKind.LIFECYCLE, "GLACIER after 30 days"),
    ],
)
def test_each_drift_is_one_step(state: BucketState, kind: StepKind, words: str) -> None:
    plan = plan_bucket(DECLARED, state)

    assert kinds(plan) == [kind]
    assert words in plan.steps[0].sentence


def test_a_lock_comes_before_its_default() -> None:
    assert kinds(plan_bucket(DECLARED, replace(GOOD, lock=LockState(enabled=False)))) == [
        StepKind.LOCK,
        StepKind.DEFAULT_LOCK,
    ]


@pytest.mark.parametrize("missing", list(Unread))
def test_what_cannot_be_read_is_named(missing: Unread) -> None:
    state = BucketState(
        exists=True,
        versioning=missing,
        lock=missing,
        rules=missing,
        encryption=missing,
        public_access_blocked=missing,
    )

    plan = plan_bucket(DECLARED, state)

    assert plan.in_order
    assert len(plan.warnings) == 5
    assert all(str(missing) in warning for warning in plan.warnings)


def test_a_store_that_moves_nothing_gets_the_rest_of_the_rules() -> None:
    plan = plan_bucket(DECLARED, replace(GOOD, rules=(), transitions=False))

    assert [step.rules for step in plan.steps] == [(TIDY,)]
    assert plan.warnings == (
        "moves between classes are not supported by this store: no GLACIER after 30 days for qd/db/points/",
    )
    assert plan_bucket(DECLARED, replace(GOOD, rules=(TIDY,), transitions=False)).in_order


@pytest.mark.parametrize(
    "found",
    [
        DefaultLock(mode=LockMode.GOVERNANCE, days=31),
        DefaultLock(mode=LockMode.COMPLIANCE, days=30),
        DefaultLock(mode=LockMode.COMPLIANCE, days=400),
    ],
)
def test_a_stronger_lock_is_left_and_told(found: DefaultLock) -> None:
    plan = plan_bucket(DECLARED, replace(GOOD, lock=LockState(enabled=True, default=found)))

    assert plan.in_order
    assert "shortens" in plan.warnings[0]


def test_a_lock_that_nobody_declared_is_left_and_told() -> None:
    plan = plan_bucket(replace(DECLARED, lock=LockMode.NONE, default_lock=None), GOOD)

    assert plan.in_order
    assert "although none is declared" in plan.warnings[0]


def test_old_versions_that_are_kept_longer_stay_longer() -> None:
    longer = replace(TIDY, noncurrent_days=90, abort_uploads_days=None)

    plan = plan_bucket(DECLARED, replace(GOOD, rules=(longer, CLASSES)))

    assert plan.steps[0].rules[0] == replace(TIDY, noncurrent_days=90)
    assert plan_bucket(DECLARED, replace(GOOD, rules=(replace(TIDY, noncurrent_days=90), CLASSES))).in_order


@pytest.mark.parametrize(
    ("stranger", "words"),
    [
        (LifecycleRule(name="clean", expire_days=14), "deletes objects after 14 days"),
        (LifecycleRule(name="clean", prefix="qd/db/", expire_days=14), "deletes objects after 14 days"),
        (LifecycleRule(name="old", noncurrent_days=3), "removes old versions after 3 days"),
        (
            LifecycleRule(name="cheap", transitions=(Transition(days=1, storage_class=StorageClass.DEEP_ARCHIVE),)),
            "moves objects to DEEP_ARCHIVE",
        ),
        (LifecycleRule(name="quarterdeck-class-gone", prefix="qd/gone/"), "belongs to no dataset"),
        (LifecycleRule(name="clean", prefix="logs/", expire_days=14), ""),
        (LifecycleRule(name="clean", expire_days=14, enabled=False), ""),
    ],
)
def test_rules_of_others_are_left_and_told_where_they_hurt(stranger: LifecycleRule, words: str) -> None:
    plan = plan_bucket(DECLARED, replace(GOOD, rules=(*GOOD.rules, stranger)))

    assert plan.in_order
    assert [words in warning for warning in plan.warnings] == ([True] if words else [])


MODES = st.sampled_from([LockMode.GOVERNANCE, LockMode.COMPLIANCE])
LOCKS = st.none() | st.builds(DefaultLock, mode=MODES, days=st.integers(1, 400))
RULES = st.lists(
    st.builds(
        LifecycleRule,
        name=st.sampled_from([TIDY_RULE, CLASSES.name, "other"]),
        prefix=st.sampled_from(["", "qd/", "logs/"]),
        expire_days=st.none() | st.integers(1, 400),
        noncurrent_days=st.none() | st.integers(1, 400),
        enabled=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda rule: rule.name,
).map(tuple)
STATES = st.builds(
    BucketState,
    exists=st.booleans(),
    versioning=st.sampled_from([*Versioning, *Unread]),
    lock=st.builds(LockState, enabled=st.just(True), default=LOCKS) | st.just(LockState(enabled=False)),
    rules=RULES,
    encryption=st.sampled_from([None, "AES256", "aws:kms", Unread.DENIED]),
    public_access_blocked=st.sampled_from([True, False, Unread.NOT_SUPPORTED]),
    transitions=st.booleans(),
)


@given(STATES, LOCKS)
def test_no_plan_ever_deletes_or_shortens(state: BucketState, default_lock: DefaultLock | None) -> None:
    mode = LockMode.NONE if default_lock is None else default_lock.mode
    plan = plan_bucket(replace(DECLARED, lock=mode, default_lock=default_lock), state)

    found = state.lock.default if state.exists and isinstance(state.lock, LockState) else None
    before = {rule.name: rule for rule in state.rules} if state.exists and not isinstance(state.rules, Unread) else {}
    for step in plan.steps:
        if step.kind is StepKind.DEFAULT_LOCK and found is not None:
            assert default_lock is not None
            assert default_lock.days >= found.days
            assert (found.mode, default_lock.mode) != (LockMode.COMPLIANCE, LockMode.GOVERNANCE)
        for rule in step.rules:
            old = before.get(rule.name)
            assert rule.expire_days is None
            assert rule.name.startswith("quarterdeck-")
            if old is not None and old.enabled and old.noncurrent_days and rule.noncurrent_days:
                assert rule.noncurrent_days >= old.noncurrent_days
