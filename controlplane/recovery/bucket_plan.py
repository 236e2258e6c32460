"""A bucket as declared against the bucket as found: what to change, in sentences. Nothing here deletes or shortens."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from controlplane.domain.dataset import LockMode
from controlplane.recovery.bucket import (
    NONCURRENT_DAYS,
    RULE_PREFIX,
    BucketState,
    DeclaredBucket,
    DefaultLock,
    LifecycleRule,
    LockState,
    Unread,
    Versioning,
)
from controlplane.recovery.classes import is_archive


class StepKind(StrEnum):
    CREATE = "create"
    PUBLIC_ACCESS = "public-access"
    ENCRYPTION = "encryption"
    VERSIONING = "versioning"
    LOCK = "lock"
    DEFAULT_LOCK = "default-lock"
    LIFECYCLE = "lifecycle"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketStep:
    kind: StepKind
    sentence: str
    rules: tuple[LifecycleRule, ...] = ()
    """LIFECYCLE: ours as they shall be; rules of others stay beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    declared: DeclaredBucket
    steps: tuple[BucketStep, ...]
    """In the order in which they are to be done."""
    warnings: tuple[str, ...]
    """What no step mends: a person should know."""

    @property
    def in_order(self) -> bool:
        return not self.steps


def plan_bucket(declared: DeclaredBucket, state: BucketState) -> BucketPlan:
    """What brings the bucket to what is declared, never to less than it has."""
    steps, warnings = list[BucketStep](), list[str]()
    if not state.exists:
        steps.append(BucketStep(kind=StepKind.CREATE, sentence=_creation(declared)))
        state = _as_created(declared, state)
    for look in (_public_access, _encryption, _versioning, _lock, _default_lock_step, _lifecycle):
        for found in look(declared, state):
            if isinstance(found, BucketStep):
                steps.append(found)
            else:
                warnings.append(found)
    return BucketPlan(declared=declared, steps=tuple(steps), warnings=tuple(warnings))


type _Found = Iterator[BucketStep | str]


def _creation(declared: DeclaredBucket) -> str:
    locked = "" if declared.lock is LockMode.NONE else ", with object lock"
    return f"create the bucket {declared.bucket} in {declared.region}{locked}"


def _as_created(declared: DeclaredBucket, state: BucketState) -> BucketState:
    locked = declared.lock is not LockMode.NONE
    return BucketState(
        exists=True,
        versioning=Versioning.ON if locked else Versioning.OFF,
        lock=LockState(enabled=locked),
        public_access_blocked=state.public_access_blocked,
        transitions=state.transitions,
    )


def _public_access(declared: DeclaredBucket, state: BucketState) -> _Found:
    if not declared.public_access_blocked:
        return
    if isinstance(state.public_access_blocked, Unread):
        yield f"a block of public access is {state.public_access_blocked}: see that no policy opens the bucket"
    elif not state.public_access_blocked:
        yield BucketStep(
            kind=StepKind.PUBLIC_ACCESS,
            sentence="block public access (found: not fully blocked): one wrong policy would publish the backups",
        )


def _encryption(declared: DeclaredBucket, state: BucketState) -> _Found:
    if not declared.encrypted:
        return
    if isinstance(state.encryption, Unread):
        yield f"default encryption is {state.encryption}: backups are sealed before they leave, whatever the store does"
    elif state.encryption is None:
        yield BucketStep(
            kind=StepKind.ENCRYPTION, sentence="encrypt new objects by default with AES256 (found: no encryption)"
        )


def _versioning(declared: DeclaredBucket, state: BucketState) -> _Found:
    del declared  # always on
    if isinstance(state.versioning, Unread):
        yield f"versioning is {state.versioning}: an object that is overwritten or deleted is gone at once"
    elif state.versioning is not Versioning.ON:
        yield BucketStep(
            kind=StepKind.VERSIONING,
            sentence=f"turn versioning on (found: {state.versioning}): without it what is overwritten is gone",
        )


def _lock(declared: DeclaredBucket, state: BucketState) -> _Found:
    if declared.lock is LockMode.NONE:
        return
    if isinstance(state.lock, Unread):
        yield f"object lock is {state.lock}: who holds the credentials can delete every backup"
    elif not state.lock.enabled:
        yield BucketStep(
            kind=StepKind.LOCK,
            sentence="turn object lock on (found: off); it cannot be turned off again",
        )


def _default_lock_step(declared: DeclaredBucket, state: BucketState) -> _Found:
    if isinstance(state.lock, Unread):
        return
    wanted, found = declared.default_lock, state.lock.default
    if wanted is None:
        if found is not None:
            yield f"new objects are locked for {found.days} days ({found.mode}) although none is declared; it is left"
        return
    if found is not None and _weaker(wanted, found):
        yield (
            f"new objects are locked for {found.days} days ({found.mode}), more than the {wanted.days} days "
            f"({wanted.mode}) declared; it is left: nothing here shortens a lock"
        )
    elif found != wanted:
        was = "no lock" if found is None else f"{found.days} days, {found.mode}"
        yield BucketStep(
            kind=StepKind.DEFAULT_LOCK,
            sentence=f"lock new objects for {wanted.days} days by default, {wanted.mode} (found: {was})",
        )


def _weaker(wanted: DefaultLock, found: DefaultLock) -> bool:
    softer = found.mode is LockMode.COMPLIANCE and wanted.mode is LockMode.GOVERNANCE
    return wanted != found and (wanted.days < found.days or softer)


def _lifecycle(declared: DeclaredBucket, state: BucketState) -> _Found:
    if isinstance(state.rules, Unread):
        yield f"lifecycle rules are {state.rules}: old versions and broken uploads pile up, nothing moves to a class"
        return
    wanted = declared.rules
    if not state.transitions:
        lost = [rule for rule in wanted if rule.transitions]
        wanted = tuple(rule for rule in wanted if not rule.transitions)
        for rule in lost:
            yield f"moves between classes are {Unread.NOT_SUPPORTED}: no {_classes(rule)} for {rule.prefix}"
    there = {rule.name: rule for rule in state.rules}
    wanted = tuple(_no_shorter(rule, there.get(rule.name)) for rule in wanted)
    differing = [rule for rule in wanted if there.get(rule.name) != rule]
    if differing:
        said = "; ".join(f"{_rule_words(rule)} (found: {_found_words(there.get(rule.name))})" for rule in differing)
        yield BucketStep(kind=StepKind.LIFECYCLE, sentence=f"set lifecycle rules: {said}", rules=wanted)
    known = {rule.name for rule in declared.rules}
    for rule in state.rules:
        if rule.name not in known:
            yield from _about_stranger(rule, declared)


def _no_shorter(rule: LifecycleRule, found: LifecycleRule | None) -> LifecycleRule:
    """Old versions are kept as long as the bucket keeps them now, if that is longer."""
    if found is None or found.noncurrent_days is None or rule.noncurrent_days is None or not found.enabled:
        return rule
    return replace(rule, noncurrent_days=max(rule.noncurrent_days, found.noncurrent_days))


def _about_stranger(rule: LifecycleRule, declared: DeclaredBucket) -> Iterator[str]:
    """Rules of others that touch what is ours. They are never changed: whoever made them had a reason."""
    if not rule.enabled or not (rule.prefix.startswith(declared.prefix) or declared.prefix.startswith(rule.prefix)):
        return
    if rule.name.startswith(RULE_PREFIX):
        yield f"the rule {rule.name} belongs to no dataset that is declared; it is left"
    if rule.expire_days is not None:
        yield f"the rule {rule.name} deletes objects after {rule.expire_days} days, recovery points too: remove it"
    if rule.noncurrent_days is not None and rule.noncurrent_days < NONCURRENT_DAYS:
        yield f"the rule {rule.name} removes old versions after {rule.noncurrent_days} days, before {NONCURRENT_DAYS}"
    archives = [step for step in rule.transitions if is_archive(step.storage_class)]
    if archives and not rule.name.startswith(RULE_PREFIX):
        yield f"the rule {rule.name} moves objects to {archives[0].storage_class}: manifests must be readable at once"


def _rule_words(rule: LifecycleRule) -> str:
    parts = list[str]()
    if rule.transitions:
        parts.append(_classes(rule))
    if rule.noncurrent_days is not None:
        parts.append(f"old versions go after {rule.noncurrent_days} days")
    if rule.expired_markers:
        parts.append("empty delete markers go")
    if rule.abort_uploads_days is not None:
        parts.append(f"unfinished uploads are aborted after {rule.abort_uploads_days} days")
    return f"{rule.prefix or 'everything'}: {', '.join(parts)}"


def _classes(rule: LifecycleRule) -> str:
    return ", ".join(f"{step.storage_class} after {step.days} days" for step in rule.transitions)


def _found_words(rule: LifecycleRule | None) -> str:
    if rule is None:
        return "none"
    return _rule_words(rule) if rule.enabled else "switched off"
