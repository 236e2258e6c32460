"""A bucket in memory with a clock: what AWS does, and no server on one machine can show.

Retrieval tiers with their hours, temporary copies that go again, minimum days, lifecycle rules at midnight UTC, object
locks that nobody shortens. Sources: AWS's S3 user guide, and the texts of botocore 1.44.5's `RestoreObject`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from threading import RLock

from controlplane.domain.dataset import LockMode, RetrievalTier, StorageClass
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, NotFoundError, QuarterdeckError, RetryableError, TerminalError
from controlplane.recovery.bucket import IA_AFTER_DAYS_MIN, LifecycleRule
from controlplane.recovery.classes import is_archive, rank, retrieval_wait
from controlplane.recovery.ports import Lock, ObjectInfo
from controlplane.testing.s3_lifecycle import (
    Due,
    EarlyCharge,
    Retrieval,
    StoredVersion,
    due_by,
    early_charge,
    marker,
)


class FakeS3:
    """Implements `controlplane.recovery.ports.ObjectStore`, with faults on request.

    `calls` counts every call of the port; `fail_call(n, error)` makes the nth one fail.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        versioned: bool = True,
        object_lock: bool = True,
        rules: Sequence[LifecycleRule] = (),
        bypass_governance: bool = False,
        expedited_capacity: bool = True,
    ) -> None:
        """`bypass_governance`: these credentials may pass a GOVERNANCE lock."""
        assert versioned or not object_lock, "object lock needs versioning"
        self.calls = 0
        self.calls_by_name: Counter[str] = Counter()
        self.charges: list[EarlyCharge] = []
        """Early deletions and moves, as they happen."""
        self.retrieved_bytes: Counter[RetrievalTier] = Counter()
        self.expedited_capacity = expedited_capacity
        self._clock = clock
        self._versioned = versioned
        self._object_lock = object_lock
        self._bypass = bypass_governance
        self._rules = tuple(rules)
        self._keys: dict[str, list[StoredVersion]] = {}
        """The newest last; an unversioned bucket has one each."""
        self._ids = count(1)
        self._faults: dict[int, tuple[QuarterdeckError, bool]] = {}
        self._flip_next = False
        self._lock = RLock()
        self.set_lifecycle(rules)

    # -- the port
    def put(
        self,
        key: str,
        body: bytes | memoryview,
        *,
        storage_class: StorageClass = StorageClass.STANDARD,
        if_absent: bool = False,
        lock: Lock | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> ObjectInfo:
        data = bytes(body)
        with self._call("put"):
            if self._flip_next:
                self._flip_next = False
                raise TerminalError(f"cannot write {key}: the bytes that arrived do not match the checksum (BadDigest)")
            if if_absent and self._newest(key) is not None:
                raise ConflictError(f"cannot write {key}: it is there already")
            self._check_lock(key, lock)
            stored = StoredVersion(
                key=key,
                version=self._new_id(),
                body=data,
                written_at=self._clock.now(),
                storage_class=storage_class,
                class_since=self._clock.now(),
                sha256=hashlib.sha256(data).hexdigest(),
                lock=None if lock is None or lock.mode is LockMode.NONE else lock,
                metadata=tuple(sorted(metadata)),
            )
            self._push(stored)
            return self._looked_at(stored)

    def get(self, key: str, *, version: str | None = None, first: int = 0, last: int | None = None) -> bytes:
        with self._call("get"):
            stored = self._found(key, version)
            if is_archive(stored.storage_class):
                thaw = stored.thaw(self._clock.now())
                if thaw is None or thaw.ongoing:
                    raise ConflictError(f"cannot read {key}: {stored.storage_class} wants a retrieval first")
            if first >= max(len(stored.body), 1):
                raise TerminalError(f"cannot read {key}: it has fewer bytes than the range asks for")
            whole = first == 0 and last is None
            if whole and hashlib.sha256(stored.body).hexdigest() != stored.sha256:
                raise TerminalError(f"cannot read {key}: the bytes that came do not match the checksum kept")
            return stored.body[first : None if last is None else last + 1]

    def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        with self._call("head"):
            return self._looked_at(self._found(key, version))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._call("objects"):
            newest = [versions[-1] for key, versions in sorted(self._keys.items()) if key.startswith(prefix)]
            return iter([stored.info(versioned=self._versioned) for stored in newest if not stored.deleted])

    def versions(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._call("versions"):
            return iter(
                [
                    stored.info(versioned=self._versioned)
                    for key, versions in sorted(self._keys.items())
                    if key.startswith(prefix)
                    for stored in reversed(versions)
                ]
            )

    def delete(self, key: str, *, version: str | None = None) -> None:
        with self._call("delete"):
            if version is not None or not self._versioned:
                stored = self._version(key, version)
                if stored is not None:
                    self._check_free(stored)
                    self._remove(stored)
                return
            self._push(marker(key, self._new_id(), self._clock.now()))

    def thaw(self, key: str, *, version: str | None, tier: RetrievalTier, days: int) -> None:
        """Asked again while it is ongoing: a faster tier speeds it up, anything else is S3's 409, which is fine."""
        with self._call("thaw"):
            stored = self._found(key, version)
            now = self._clock.now()
            if not is_archive(stored.storage_class):
                raise ConflictError(f"cannot retrieve {key}: {stored.storage_class} can be read as it is")
            wait = retrieval_wait(stored.storage_class, tier)
            if wait is None:
                raise TerminalError(f"cannot retrieve {key}: {stored.storage_class} has no tier {tier}")
            if tier is RetrievalTier.EXPEDITED and not self.expedited_capacity:
                raise RetryableError(f"cannot retrieve {key}: no capacity for an Expedited retrieval now")
            running = stored.retrieval
            thaw = stored.thaw(now)
            if running is not None and thaw is not None and not thaw.ongoing:
                running.days = (now - running.ready_at).days + days  # the copy is there: it stays longer
            elif running is None or thaw is None:
                stored.retrieval = Retrieval(tier=tier, ready_at=now + wait, days=days)
                self.retrieved_bytes[tier] += len(stored.body)
            elif now + wait < running.ready_at:
                running.tier, running.ready_at = tier, now + wait

    def retain(self, key: str, *, version: str | None, lock: Lock) -> None:
        with self._call("retain"):
            stored = self._found(key, version)
            self._check_lock(key, lock)
            held = stored.lock if stored.held_until(self._clock.now()) is not None else None
            if held is not None:
                softer = held.mode is LockMode.COMPLIANCE and lock.mode is not LockMode.COMPLIANCE
                passable = held.mode is LockMode.GOVERNANCE and self._bypass
                if (softer or lock.until < held.until) and not passable:
                    raise ConflictError(f"{key} is locked until {held.until} ({held.mode}): no lock is ever weakened")
            stored.lock = lock

    # -- what a bucket is told
    def set_lifecycle(self, rules: Sequence[LifecycleRule]) -> None:
        """TerminalError for rules that S3 refuses."""
        for rule in rules:
            before = StorageClass.STANDARD
            for step in rule.transitions:
                if rank(step.storage_class) <= rank(before):
                    raise TerminalError(f"the rule {rule.name} goes from {before} up to {step.storage_class}")
                if step.storage_class is StorageClass.STANDARD_IA and step.days < IA_AFTER_DAYS_MIN:
                    raise TerminalError(f"the rule {rule.name} goes to STANDARD_IA before {IA_AFTER_DAYS_MIN} days")
                before = step.storage_class
        with self._lock:
            self._catch_up()
            self._rules = tuple(rules)

    def hold(self, key: str, *, version: str | None = None, on: bool = True) -> None:
        """A legal hold: like a lock, without an end."""
        with self._lock:
            self._found(key, version).legal_hold = on

    # -- faults
    def fail_call(self, number: int, error: QuarterdeckError, *, applied: bool = False) -> None:
        """The call of this number, counted from 1 over all kinds, fails; `applied`: only its answer is lost."""
        self._faults[number] = (error, applied)

    def flip_next_upload(self) -> None:
        """A bit of the next body turns on its way: the store must refuse it."""
        self._flip_next = True

    def corrupt(self, key: str, offset: int, *, version: str | None = None, noticed: bool = False) -> None:
        """A byte turns in the store.

        `noticed`: the store still has the true checksum, as for a rotten disk; else it has one of the damaged bytes, as
        if somebody had replaced them.
        """
        with self._lock:
            stored = self._found(key, version)
            assert 0 <= offset < len(stored.body), f"{key} has {len(stored.body)} bytes"
            flipped = bytes([stored.body[offset] ^ 0xFF])
            self._damage(stored, stored.body[:offset] + flipped + stored.body[offset + 1 :], noticed=noticed)

    def truncate(
        self, key: str, keep_bytes: int | None = None, *, version: str | None = None, noticed: bool = False
    ) -> None:
        """The end of an object is gone; None: half of it."""
        with self._lock:
            stored = self._found(key, version)
            kept = len(stored.body) // 2 if keep_bytes is None else keep_bytes
            self._damage(stored, stored.body[:kept], noticed=noticed)

    # -- below
    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        with self._lock:
            self.calls += 1
            self.calls_by_name[name] += 1
            self._catch_up()
            error, applied = self._faults.get(self.calls, (None, False))
            if error is not None and not applied:
                raise error
            yield
            if error is not None:
                raise error

    def _catch_up(self) -> None:
        """Lifecycle work of all midnights since the last call."""
        now = self._clock.now()
        while dues := due_by(now, self._rules, self._keys, versioned=self._versioned):
            for due in dues:
                if any(due.stored is stored for stored in self._keys.get(due.stored.key, ())):
                    self._do(due)

    def _do(self, due: Due) -> None:
        stored = due.stored
        if due.into is not None:
            if rank(due.into) > rank(stored.storage_class):
                self._charge(stored, due.at)
                stored.storage_class, stored.class_since = due.into, due.at
        elif stored.noncurrent_since is None and self._versioned and not stored.deleted:
            self._push(marker(stored.key, self._new_id(), due.at))
        else:
            self._remove(stored, due.at)

    def _push(self, stored: StoredVersion) -> None:
        there = self._keys.setdefault(stored.key, [])
        if self._versioned:
            for before in there[-1:]:
                before.noncurrent_since = stored.written_at
        else:
            for before in list(there):
                self._remove(before)
            there = self._keys.setdefault(stored.key, [])
        there.append(stored)

    def _remove(self, stored: StoredVersion, at: datetime | None = None) -> None:
        self._charge(stored, at or self._clock.now())
        there = self._keys[stored.key]
        there.remove(stored)
        if there:
            there[-1].noncurrent_since = None
        else:
            del self._keys[stored.key]

    def _charge(self, stored: StoredVersion, at: datetime) -> None:
        charge = early_charge(stored, at)
        if charge is not None:
            self.charges.append(charge)

    def _check_lock(self, key: str, lock: Lock | None) -> None:
        if lock is None or lock.mode is LockMode.NONE:
            return
        if not self._object_lock:
            raise TerminalError(f"cannot lock {key}: object lock is off for this bucket")
        if lock.until <= self._clock.now():
            raise TerminalError(f"cannot lock {key}: {lock.until} is over")

    def _check_free(self, stored: StoredVersion) -> None:
        until = stored.held_until(self._clock.now())
        passable = self._bypass and stored.lock is not None and stored.lock.mode is LockMode.GOVERNANCE
        if stored.legal_hold or (until is not None and not passable):
            why = "under a legal hold" if stored.legal_hold else f"locked until {until}"
            raise ConflictError(f"{stored.key} (version {stored.version}) is {why}: it cannot be deleted")

    def _newest(self, key: str) -> StoredVersion | None:
        versions = self._keys.get(key)
        return None if not versions or versions[-1].deleted else versions[-1]

    def _version(self, key: str, version: str | None) -> StoredVersion | None:
        if version is None:
            return self._newest(key)
        return next((stored for stored in self._keys.get(key, ()) if stored.version == version), None)

    def _found(self, key: str, version: str | None) -> StoredVersion:
        stored = self._version(key, version)
        if stored is None or stored.deleted:
            raise NotFoundError(f"cannot find {key}{f' (version {version})' if version else ''}: it is not there")
        return stored

    def _looked_at(self, stored: StoredVersion) -> ObjectInfo:
        return stored.looked_at(self._clock.now(), versioned=self._versioned)

    def _damage(self, stored: StoredVersion, body: bytes, *, noticed: bool) -> None:
        stored.body = body
        if not noticed:
            stored.sha256 = hashlib.sha256(body).hexdigest()

    def _new_id(self) -> str:
        return f"v{next(self._ids):08d}"
