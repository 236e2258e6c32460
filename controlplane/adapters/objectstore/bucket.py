"""Reads how a bucket is set up, and does the steps of a plan. No step deletes or shortens anything."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from controlplane.adapters.objectstore.errors import UNSUPPORTED_CODES, Asked, code_of, from_answer, told
from controlplane.adapters.objectstore.lifecycle import from_wire, to_wire
from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import QuarterdeckError, RetryableError, TerminalError
from controlplane.recovery.bucket import (
    BucketState,
    DeclaredBucket,
    DefaultLock,
    LifecycleRule,
    LockState,
    Unread,
    Versioning,
)
from controlplane.recovery.bucket_plan import BucketPlan, BucketStep, StepKind

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PROBE_KEY: Final = "quarterdeck-probe"
"""Written and removed after default encryption is turned on."""

_PLAIN_SERVERS: Final = ("seaweedfs",)
"""By the `Server` header: they refuse a lifecycle with transitions as a whole, and have no block of public access
(SeaweedFS 4.48 answers 501 to both)."""
_NOTHING_SET: Final = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "NoSuchPublicAccessBlockConfiguration",
        "ServerSideEncryptionConfigurationNotFoundError",
        "ObjectLockConfigurationNotFoundError",
    }
)
_DENIED: Final = frozenset({"AccessDenied", "403"})
_BLOCKS: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_US_EAST: Final = "us-east-1"
"""The region that must not be named when a bucket is created there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    step: BucketStep
    failure: str = ""
    """Empty: done."""


def read_state(client: "S3Client", bucket: str) -> BucketState:
    """RetryableError when the store does not answer; TerminalError when it does not accept the credentials."""
    asked = Asked(verb="read the setup of", bucket=bucket, endpoint=client.meta.endpoint_url)
    with told(asked):
        try:
            head: Any = client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if code_of(error) in {"404", "NoSuchBucket"}:
                plain = _is_plain(error.response)
                return BucketState(
                    exists=False, public_access_blocked=Unread.NOT_SUPPORTED if plain else False, transitions=not plain
                )
            raise
    versioning = _read(asked, lambda: client.get_bucket_versioning(Bucket=bucket))
    lock = _read(asked, lambda: client.get_object_lock_configuration(Bucket=bucket))
    rules = _read(asked, lambda: client.get_bucket_lifecycle_configuration(Bucket=bucket))
    public = _read(asked, lambda: client.get_public_access_block(Bucket=bucket))
    encryption = _read(asked, lambda: client.get_bucket_encryption(Bucket=bucket))
    return BucketState(
        exists=True,
        versioning=versioning if isinstance(versioning, Unread) else _versioning(versioning),
        lock=lock if isinstance(lock, Unread) else _lock(lock),
        rules=rules if isinstance(rules, Unread) else tuple(from_wire(rule) for rule in rules.get("Rules", ())),
        encryption=encryption if isinstance(encryption, Unread) else _encryption(encryption),
        public_access_blocked=public if isinstance(public, Unread) else _blocked(public),
        transitions=not _is_plain(head),
    )


def apply_plan(client: "S3Client", plan: BucketPlan) -> tuple[StepOutcome, ...]:
    """Does the steps in order. One that fails does not stop those after it, but for the creation.

    Idempotent: whoever reads the state again and plans again gets the rest.
    """
    outcomes: list[StepOutcome] = []
    for step in plan.steps:
        try:
            with told(Asked(verb=f"set {step.kind} of", bucket=plan.declared.bucket)):
                _DO[step.kind](client, plan.declared, step)
        except QuarterdeckError as error:
            outcomes.append(StepOutcome(step=step, failure=str(error)))
            if step.kind is StepKind.CREATE:
                break
        else:
            outcomes.append(StepOutcome(step=step))
    return tuple(outcomes)


# -- reading
def _is_plain(answer: Any) -> bool:
    server: str = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("server", "")
    return server.lower().startswith(_PLAIN_SERVERS)


def _read(asked: Asked, ask: Callable[[], Any]) -> Any:
    """The answer, an empty one where nothing is set, or why there is none."""
    with told(asked):
        try:
            return ask()
        except ClientError as error:
            code = code_of(error)
            if code in _NOTHING_SET:
                return {}
            if code in UNSUPPORTED_CODES:
                return Unread.NOT_SUPPORTED
            if code in _DENIED:
                return Unread.DENIED
            raise


def _versioning(answer: Any) -> Versioning:
    return {"Enabled": Versioning.ON, "Suspended": Versioning.SUSPENDED}.get(answer.get("Status"), Versioning.OFF)


def _lock(answer: Any) -> LockState:
    found = answer.get("ObjectLockConfiguration", {})
    retention = found.get("Rule", {}).get("DefaultRetention")
    default = None
    if retention is not None:
        days = retention.get("Days") or retention.get("Years", 0) * 365
        default = DefaultLock(mode=LockMode(retention["Mode"]), days=days)
    return LockState(enabled=found.get("ObjectLockEnabled") == "Enabled", default=default)


def _encryption(answer: Any) -> str | None:
    rules: Sequence[Any] = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", ())
    found = (rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules)
    return next((algorithm for algorithm in found if algorithm), None)


def _blocked(answer: Any) -> bool:
    found = answer.get("PublicAccessBlockConfiguration", {})
    return all(found.get(block, False) for block in _BLOCKS)


# -- doing
def _create(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    del step
    extra: dict[str, Any] = {}
    if declared.region != _US_EAST:
        extra["CreateBucketConfiguration"] = {"LocationConstraint": declared.region}
    if declared.lock is not LockMode.NONE:
        extra["ObjectLockEnabledForBucket"] = True
    try:
        client.create_bucket(Bucket=declared.bucket, **extra)
    except ClientError as error:
        code = code_of(error)
        if code == "BucketAlreadyOwnedByYou":
            return
        if code == "BucketAlreadyExists":
            raise TerminalError(f"a bucket {declared.bucket} exists already and may be somebody else's") from error
        raise


def _block_public(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    del step
    blocks: Any = dict.fromkeys(_BLOCKS, True)
    client.put_public_access_block(Bucket=declared.bucket, PublicAccessBlockConfiguration=blocks)


def _encrypt(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    """Some stores accept the setting without having a key, and then refuse each write (SeaweedFS 4.48): tried out."""
    del step
    bucket = declared.bucket
    client.put_bucket_encryption(
        Bucket=bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
    )
    key = declared.prefix + PROBE_KEY
    try:
        written: Any = client.put_object(Bucket=bucket, Key=key, Body=b"")
    except ClientError as error:
        client.delete_bucket_encryption(Bucket=bucket)
        refused = from_answer(error, Asked(verb="write", bucket=bucket, key=key))
        raise TerminalError(
            f"the store took the setting and then refused a write, so it was taken back: {refused}"
        ) from error
    version = written.get("VersionId")
    with suppress(ClientError):  # an empty object that stays is no harm; a default lock may keep it for a while
        client.delete_object(Bucket=bucket, Key=key, **({"VersionId": version} if version else {}))


def _turn_versioning_on(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    del step
    client.put_bucket_versioning(Bucket=declared.bucket, VersioningConfiguration={"Status": "Enabled"})


def _turn_lock_on(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    del step
    client.put_object_lock_configuration(
        Bucket=declared.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
    )


def _lock_by_default(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    del step
    wanted = declared.default_lock
    assert wanted is not None, "a plan with this step has a default lock"
    retention: Any = {"Mode": wanted.mode.value, "Days": wanted.days}
    client.put_object_lock_configuration(
        Bucket=declared.bucket,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}},
    )


def _set_lifecycle(client: "S3Client", declared: DeclaredBucket, step: BucketStep) -> None:
    """Ours are put in place of those with the same names; all others stay as they are, word for word."""
    found = _read(
        Asked(verb="read the lifecycle of", bucket=declared.bucket),
        lambda: client.get_bucket_lifecycle_configuration(Bucket=declared.bucket),
    )
    if isinstance(found, Unread):
        raise RetryableError(f"the lifecycle rules of {declared.bucket} are {found}: none are set")
    ours: dict[str, LifecycleRule] = {rule.name: rule for rule in step.rules}
    others = [rule for rule in found.get("Rules", ()) if rule.get("ID") not in ours]
    rules: Any = [*others, *(to_wire(rule) for rule in step.rules)]
    client.put_bucket_lifecycle_configuration(Bucket=declared.bucket, LifecycleConfiguration={"Rules": rules})


_DO: Final[dict[StepKind, Callable[["S3Client", DeclaredBucket, BucketStep], None]]] = {
    StepKind.CREATE: _create,
    StepKind.PUBLIC_ACCESS: _block_public,
    StepKind.ENCRYPTION: _encrypt,
    StepKind.VERSIONING: _turn_versioning_on,
    StepKind.LOCK: _turn_lock_on,
    StepKind.DEFAULT_LOCK: _lock_by_default,
    StepKind.LIFECYCLE: _set_lifecycle,
}
