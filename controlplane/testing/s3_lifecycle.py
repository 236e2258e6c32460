"""What S3 does by itself at midnight UTC: the versions of a FakeS3, and what lifecycle rules do to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import RetrievalTier, StorageClass
from controlplane.kernel.units import KIB
from controlplane.recovery.bucket import LifecycleRule
from controlplane.recovery.classes import CLASS_FACTS, rank
from controlplane.recovery.ports import Lock, ObjectInfo, Thaw

TRANSITION_BYTES_MIN: Final = 128 * KIB
"""S3's `all_storage_classes_128K`, the default since 2024."""
_DAY: Final = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class Retrieval:
    tier: RetrievalTier
    ready_at: datetime
    days: int

    @property
    def until(self) -> datetime:
        """The temporary copy goes at the first midnight after its days."""
        return midnight_after(self.ready_at + self.days * _DAY)


@dataclass(slots=True, kw_only=True)
class StoredVersion:
    """One version, or a delete marker, as a store keeps it."""

    key: str
    version: str
    body: bytes
    written_at: datetime
    storage_class: StorageClass
    class_since: datetime
    sha256: str
    lock: Lock | None = None
    legal_hold: bool = False
    metadata: tuple[tuple[str, str], ...] = ()
    deleted: bool = False
    noncurrent_since: datetime | None = None
    retrieval: Retrieval | None = None

    def thaw(self, now: datetime) -> Thaw | None:
        if self.retrieval is None or self.retrieval.until <= now:
            return None
        if self.retrieval.ready_at > now:
            return Thaw(ongoing=True, until=None)
        return Thaw(ongoing=False, until=self.retrieval.until)

    def held_until(self, now: datetime) -> datetime | None:
        """None: nothing but a legal hold stands against deleting it."""
        return self.lock.until if self.lock is not None and self.lock.until > now else None

    def info(self, *, versioned: bool) -> ObjectInfo:
        """As a listing gives it."""
        return ObjectInfo(
            key=self.key,
            version=self.version if versioned else None,
            size_bytes=len(self.body),
            modified_at=self.written_at,
            storage_class=self.storage_class,
            deleted=self.deleted,
            latest=self.noncurrent_since is None,
        )

    def looked_at(self, now: datetime, *, versioned: bool) -> ObjectInfo:
        """As a HEAD gives it."""
        listed = self.info(versioned=versioned)
        return replace(
            listed, sha256=self.sha256, lock=self.lock, thaw=self.thaw(now), metadata=self.metadata, latest=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyCharge:
    """What left its class before the class's minimum is billed for the rest of it all the same."""

    key: str
    storage_class: StorageClass
    size_bytes: int
    days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a rule does to a version, and when."""

    at: datetime
    stored: StoredVersion
    rule: LifecycleRule
    into: StorageClass | None
    """None: it expires."""


def marker(key: str, version: str, at: datetime) -> StoredVersion:
    """A delete marker."""
    return StoredVersion(
        key=key,
        version=version,
        body=b"",
        written_at=at,
        storage_class=StorageClass.STANDARD,
        class_since=at,
        sha256="",
        deleted=True,
    )


def midnight_after(moment: datetime) -> datetime:
    """The moment itself when it is a midnight."""
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return day if day == moment else day + _DAY


def early_charge(stored: StoredVersion, now: datetime) -> EarlyCharge | None:
    short = CLASS_FACTS[stored.storage_class].minimum - (now - stored.class_since)
    if short <= timedelta() or stored.deleted:
        return None
    days = -(-short // _DAY)
    return EarlyCharge(key=stored.key, storage_class=stored.storage_class, size_bytes=len(stored.body), days=days)


def due_by(
    now: datetime, rules: Sequence[LifecycleRule], keys: dict[str, list[StoredVersion]], *, versioned: bool
) -> list[Due]:
    """What is due, earliest first. Doing it makes more due (a version that is not the newest any more): ask again."""
    found = [
        due
        for rule in rules
        if rule.enabled
        for key, versions in keys.items()
        if key.startswith(rule.prefix)
        for due in _of_key(rule, versions, versioned=versioned)
        if due.at <= now
    ]
    return sorted(found, key=lambda due: (due.at, due.into is None))


def _of_key(rule: LifecycleRule, versions: list[StoredVersion], *, versioned: bool) -> Iterator[Due]:
    for stored in versions:
        if rule.larger_than_bytes is not None and len(stored.body) <= rule.larger_than_bytes:
            continue
        if stored.noncurrent_since is not None:
            yield from _end_of_old(rule, stored, stored.noncurrent_since)
        elif stored.deleted:
            if rule.expired_markers and len(versions) == 1:
                yield Due(at=midnight_after(stored.written_at), stored=stored, rule=rule, into=None)
        else:
            yield from _end_of_newest(rule, stored, versioned=versioned)
            yield from _moves(rule, stored)


def _end_of_old(rule: LifecycleRule, stored: StoredVersion, since: datetime) -> Iterator[Due]:
    if rule.noncurrent_days is not None:
        yield from _removal(rule, stored, since + rule.noncurrent_days * _DAY)


def _end_of_newest(rule: LifecycleRule, stored: StoredVersion, *, versioned: bool) -> Iterator[Due]:
    if rule.expire_days is None:
        return
    after = stored.written_at + rule.expire_days * _DAY
    if versioned:  # only hidden, by a delete marker: a lock is no hindrance
        yield Due(at=midnight_after(after), stored=stored, rule=rule, into=None)
    else:
        yield from _removal(rule, stored, after)


def _removal(rule: LifecycleRule, stored: StoredVersion, after: datetime) -> Iterator[Due]:
    """Not before its lock ends; never under a legal hold."""
    if not stored.legal_hold:
        locked_until = stored.lock.until if stored.lock is not None else after
        yield Due(at=midnight_after(max(after, locked_until)), stored=stored, rule=rule, into=None)


def _moves(rule: LifecycleRule, stored: StoredVersion) -> Iterator[Due]:
    if rule.larger_than_bytes is None and len(stored.body) < TRANSITION_BYTES_MIN:
        return
    for step in rule.transitions:
        if rank(step.storage_class) > rank(stored.storage_class):
            at = midnight_after(stored.written_at + step.days * _DAY)
            yield Due(at=at, stored=stored, rule=rule, into=step.storage_class)
