"""A bucket as the site file declares it, and a bucket as read.

Lifecycle rules follow from retention. At a given age a recovery point is still there because some rule keeps it that
long; which one is not known from its age, so it must lie in the hottest class among the rules that reach so far. That
class only gets colder with age, which is the one direction that a lifecycle knows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from controlplane.domain.dataset import BucketSpec, DatasetSpec, LockMode, RetentionRule, StorageClass
from controlplane.kernel.units import MIB
from controlplane.recovery.classes import rank

IA_AFTER_DAYS_MIN: Final = 30
"""Before STANDARD_IA, and between it and an archive: the classic rule of S3. AWS has dropped the first half of it, the
30 days are charged all the same, and compatible stores still refuse less."""
NONCURRENT_DAYS: Final = 30
"""A month to notice that something was overwritten or deleted that should not have been."""
ABORT_UPLOADS_DAYS: Final = 7
"""Parts of an upload that never ended are invisible and billed. No upload of ours takes longer than a day."""
TRANSITION_BYTES_MIN: Final = 32 * MIB
"""Smaller objects stay where they are. Packs have 64 MiB, so half of one is the line; manifests must never go to an
archive, and one reaches this size only at about 9 TB (some 230 bytes of JSON a pack)."""
RULE_PREFIX: Final = "quarterdeck-"
"""Of the names of our lifecycle rules. All others are left as they are."""
TIDY_RULE: Final = RULE_PREFIX + "tidy"

_DAY: Final = timedelta(days=1)


# -- what there is to say about a bucket
class Unread(StrEnum):
    """Why a setting is not known."""

    NOT_SUPPORTED = "not supported by this store"
    DENIED = "not readable with these credentials"


class Versioning(StrEnum):
    OFF = "off"
    ON = "on"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    days: int
    """Since the object was written."""
    storage_class: StorageClass


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleRule:
    name: str
    prefix: str = ""
    larger_than_bytes: int | None = None
    """Only objects above this; None: S3's default of 128 KiB for transitions, no limit for the rest."""
    transitions: tuple[Transition, ...] = ()
    expire_days: int | None = None
    """Deletes (in a versioned bucket: hides) current versions. Never declared by us."""
    noncurrent_days: int | None = None
    """Versions that are not the newest any more go for good after so many days."""
    expired_markers: bool = False
    """Delete markers with nothing below them go."""
    abort_uploads_days: int | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLock:
    """What an object gets that is written without a lock of its own."""

    mode: LockMode
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    enabled: bool
    default: DefaultLock | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredBucket:
    bucket: str
    region: str
    prefix: str
    datasets: tuple[str, ...]
    lock: LockMode
    default_lock: DefaultLock | None
    rules: tuple[LifecycleRule, ...]
    encrypted: bool
    """By the store, besides our own sealing. Not asked of the embedded one: its key would lie beside the data."""
    public_access_blocked: bool
    """Not asked of the embedded one either: it listens on the loopback address only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketState:
    """As read. What could not be read says why."""

    exists: bool
    versioning: Versioning | Unread = Versioning.OFF
    lock: LockState | Unread = LockState(enabled=False)
    rules: tuple[LifecycleRule, ...] | Unread = ()
    encryption: str | Unread | None = None
    """`AES256`, `aws:kms`; None: off."""
    public_access_blocked: bool | Unread = False
    transitions: bool = True
    """Whether the store moves objects between classes at all."""


# -- declared
def declare_bucket(spec: BucketSpec, datasets: Sequence[DatasetSpec]) -> DeclaredBucket:
    """What the site file asks of a bucket, from all datasets with a copy in it."""
    here = tuple(dataset for dataset in datasets if spec.name in dataset.buckets)
    return DeclaredBucket(
        bucket=spec.bucket,
        region=spec.region,
        prefix=spec.prefix,
        datasets=tuple(dataset.name for dataset in here),
        lock=spec.lock,
        default_lock=_default_lock(spec.lock, here),
        rules=(_tidy_rule(spec.prefix), *_class_rules(spec.prefix, here)),
        encrypted=not spec.embedded,
        public_access_blocked=not spec.embedded,
    )


def class_transitions(rules: Sequence[RetentionRule]) -> tuple[Transition, ...]:
    """When a recovery point that is still kept may go to which class; see the module's first words.

    It is written in the hottest class among the rules.
    """
    present = min((rule.storage_class for rule in rules), key=rank, default=StorageClass.STANDARD)
    steps: list[Transition] = []
    for rule in sorted(rules, key=lambda rule: rule.keep):
        beyond = [other.storage_class for other in rules if other.keep > rule.keep]
        coming = min(beyond, key=rank, default=present)
        if rank(coming) <= rank(present):
            continue
        # STANDARD_IA is the second class: it is entered from STANDARD at first, or left.
        gap = IA_AFTER_DAYS_MIN if StorageClass.STANDARD_IA in {present, coming} else 1
        before = steps[-1].days if steps else 0
        steps.append(Transition(days=max(math.ceil(rule.keep / _DAY), before + gap), storage_class=coming))
        present = coming
    return tuple(steps)


def _default_lock(mode: LockMode, datasets: Sequence[DatasetSpec]) -> DefaultLock | None:
    """As long as the shortest rule keeps: whatever is written is needed for at least that, and no longer for sure."""
    keeps = [rule.keep for dataset in datasets for rule in dataset.retention]
    if mode is LockMode.NONE or not keeps:
        return None
    return DefaultLock(mode=mode, days=max(1, math.floor(min(keeps) / _DAY)))


def _tidy_rule(prefix: str) -> LifecycleRule:
    return LifecycleRule(
        name=TIDY_RULE,
        prefix=prefix,
        noncurrent_days=NONCURRENT_DAYS,
        expired_markers=True,
        abort_uploads_days=ABORT_UPLOADS_DAYS,
    )


def _class_rules(prefix: str, datasets: Sequence[DatasetSpec]) -> Iterator[LifecycleRule]:
    for dataset in datasets:
        transitions = class_transitions(dataset.retention)
        if transitions:
            yield LifecycleRule(
                name=f"{RULE_PREFIX}class-{dataset.name}",
                prefix=f"{prefix}{dataset.name}/points/",
                larger_than_bytes=TRANSITION_BYTES_MIN,
                transitions=transitions,
            )
