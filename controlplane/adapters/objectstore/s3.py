"""One bucket of AWS S3, or of a store that speaks like it, over boto3."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError, ResponseStreamingError

from controlplane.adapters.objectstore.answers import listed, looked_at, version_of, whole_seconds
from controlplane.adapters.objectstore.errors import Asked, code_of, from_answer, told
from controlplane.domain.dataset import BucketSpec, LockMode, RetrievalTier, StorageClass
from controlplane.kernel.errors import ConflictError, NotFoundError
from controlplane.recovery.ports import Lock, ObjectInfo

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S: Final = 5.0
"""A store that does not take a connection for so long is away; the next try may meet another of its addresses."""
READ_TIMEOUT_S: Final = 60.0
"""Between two bytes. A small server that verifies and writes a 64 MiB object was silent for 8 s on a busy machine."""
TRIES_MAX: Final = 4
"""Of each request, by boto3's standard mode: about 5 s of backoff in all. What fails longer is the caller's to plan."""
CONNECTIONS_MAX: Final = 16
"""Kept open for each store; more threads than that wait for one another."""
READ_TRIES_MAX: Final = 3
"""Of a body that broke off: boto3 retries only until the first byte."""
_BROKEN_OFF: Final = (ResponseStreamingError, IncompleteReadError)


def make_client(
    spec: BucketSpec,
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    tries_max: int = TRIES_MAX,
) -> "S3Client":
    """For the store of one bucket; safe to share between threads. `endpoint`: None is the spec's own, or AWS.

    Checksums are ours, sent with each put: the ones that boto3 adds by itself since 1.36 break other stores. A store
    other than AWS and the embedded one may ignore a checksum (Ceph RGW 16.2 does); there the signature covers the body
    as well, which each must verify.
    """
    url = endpoint or spec.endpoint
    addressing: Any = {}
    if url is not None:
        addressing = {"addressing_style": "path", "payload_signing_enabled": not spec.embedded}
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": tries_max},
        max_pool_connections=CONNECTIONS_MAX,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=addressing,
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name=spec.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


class S3Store:
    """Implements `controlplane.recovery.ports.ObjectStore`; keys are relative to the prefix.

    `flush` makes what the store has written durable where the store itself does not (the embedded one): it is called
    after each change. `verify_reads`: whole bodies are compared with the checksum that the store keeps; who opens
    sealed chunks, which prove themselves, may save the time (about 1 ms a MiB).
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        *,
        prefix: str = "",
        flush: Callable[[], None] | None = None,
        verify_reads: bool = True,
    ) -> None:
        assert not prefix or prefix.endswith("/"), "a prefix is empty or ends in a slash"
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._flush = flush
        self._verify_reads = verify_reads

    # -- bodies
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
        digest = hashlib.sha256(data)
        extra = _conditions(storage_class, lock, metadata) | ({"IfNoneMatch": "*"} if if_absent else {})
        with told(self._asked("write", key)):
            try:
                answer: Any = self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._full(key),
                    Body=data,
                    ContentType="application/octet-stream",
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                    **extra,
                )
            except ClientError as error:
                if not (if_absent and self._was_ours(error, key, digest.hexdigest())):
                    raise
                self._flushed()
                return self.head(key)
        self._flushed()
        return ObjectInfo(
            key=key,
            version=version_of(answer.get("VersionId")),
            size_bytes=len(data),
            modified_at=self._answered_at(answer, key),
            storage_class=storage_class,
            sha256=digest.hexdigest(),
            lock=lock,
            metadata=tuple(metadata),
        )

    def get(self, key: str, *, version: str | None = None, first: int = 0, last: int | None = None) -> bytes:
        extra: dict[str, Any] = {} if version is None else {"VersionId": version}
        if first == 0 and last is None:
            if self._verify_reads:
                extra["ChecksumMode"] = "ENABLED"  # boto3 compares what came with what the store keeps
        else:
            extra["Range"] = f"bytes={first}-{'' if last is None else last}"
        with told(self._asked("read", key)):
            for _ in range(READ_TRIES_MAX - 1):
                with suppress(*_BROKEN_OFF):
                    return self._read(key, extra)
            return self._read(key, extra)

    def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        extra: dict[str, Any] = {} if version is None else {"VersionId": version}
        try:
            with told(self._asked("look at", key)):
                answer: Any = self._client.head_object(
                    Bucket=self._bucket, Key=self._full(key), ChecksumMode="ENABLED", **extra
                )
        except NotFoundError:
            self._check_bucket()
            raise
        return looked_at(answer, key)

    # -- listings
    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        asked = self._asked("list", prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        for page in _told_each(pages, asked):
            for entry in page.get("Contents", []):
                yield listed(entry, self._own(entry))

    def versions(self, prefix: str) -> Iterator[ObjectInfo]:
        asked = self._asked("list the versions of", prefix)
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        for page in _told_each(pages, asked):
            found = [listed(entry, self._own(entry)) for entry in page.get("Versions", [])]
            found += [listed(entry, self._own(entry), deleted=True) for entry in page.get("DeleteMarkers", [])]
            yield from sorted(found, key=lambda info: (info.key, not info.latest, -info.modified_at.timestamp()))

    # -- changes
    def delete(self, key: str, *, version: str | None = None) -> None:
        extra: dict[str, Any] = {} if version is None else {"VersionId": version}
        try:
            with told(self._asked("delete", key)):
                self._change_locked(
                    key, version, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._full(key), **extra)
                )
        except NotFoundError:
            return
        self._flushed()

    def thaw(self, key: str, *, version: str | None, tier: RetrievalTier, days: int) -> None:
        extra: dict[str, Any] = {} if version is None else {"VersionId": version}
        with told(self._asked("retrieve", key)):
            try:
                self._client.restore_object(
                    Bucket=self._bucket,
                    Key=self._full(key),
                    RestoreRequest={"Days": days, "GlacierJobParameters": {"Tier": tier.value}},
                    **extra,
                )
            except ClientError as error:
                if code_of(error) != "RestoreAlreadyInProgress":
                    raise

    def retain(self, key: str, *, version: str | None, lock: Lock) -> None:
        assert lock.mode is not LockMode.NONE, "a lock that is lengthened has a mode"
        until = whole_seconds(lock.until)
        mode: Any = lock.mode.value
        held = self.head(key, version=version).lock
        if held is not None:
            if held == Lock(mode=lock.mode, until=until):
                return
            if held.until > until or (held.mode is LockMode.COMPLIANCE and lock.mode is not held.mode):
                raise _weaker(key, held, lock)
        extra: dict[str, Any] = {} if version is None else {"VersionId": version}
        with told(self._asked("lock", key)):
            self._change_locked(
                key,
                version,
                lambda: self._client.put_object_retention(
                    Bucket=self._bucket,
                    Key=self._full(key),
                    Retention={"Mode": mode, "RetainUntilDate": until},
                    **extra,
                ),
            )
        self._flushed()

    # -- below
    def _read(self, key: str, extra: dict[str, Any]) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._full(key), **extra)
        with closing(answer["Body"]) as body:  # its own `with` gives the raw stream, without checks
            return body.read()

    def _change_locked(self, key: str, version: str | None, change: Callable[[], object]) -> None:
        """Stores answer AccessDenied for a locked version as for a missing permission: look which it was."""
        try:
            change()
        except ClientError as error:
            if code_of(error) not in {"AccessDenied", "ObjectLocked", "403"} or version is None:
                raise
            held = self.head(key, version=version).lock
            if held is None:
                raise
            raise ConflictError(
                f"{key} (version {version}) in the bucket {self._bucket} is locked until {held.until:%Y-%m-%d %H:%M} "
                f"UTC ({held.mode}): it can be neither deleted before, nor its lock weakened"
            ) from error

    def _was_ours(self, error: ClientError, key: str, sha256: str) -> bool:
        """Our first try got through and its answer was lost: the retry then finds the key taken, by ourselves."""
        retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        asked = self._asked("write", key)
        return retried and isinstance(from_answer(error, asked), ConflictError) and self.head(key).sha256 == sha256

    def _check_bucket(self) -> None:
        """A HEAD has no body to say which is missing, the object or its bucket; a listing tells."""
        with told(self._asked("look into", None)):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _answered_at(self, answer: Any, key: str) -> datetime:
        stamp = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        return self.head(key).modified_at if stamp is None else parsedate_to_datetime(stamp).astimezone(UTC)

    def _own(self, entry: Any) -> str:
        key: str = entry["Key"]
        return key.removeprefix(self._prefix)

    def _full(self, key: str) -> str:
        return self._prefix + key

    def _asked(self, verb: str, key: str | None) -> Asked:
        full = None if key is None else self._full(key)
        return Asked(verb=verb, bucket=self._bucket, key=full, endpoint=self._client.meta.endpoint_url)

    def _flushed(self) -> None:
        if self._flush is not None:
            self._flush()


def _conditions(storage_class: StorageClass, lock: Lock | None, metadata: Sequence[tuple[str, str]]) -> dict[str, Any]:
    said: dict[str, Any] = {"Metadata": dict(metadata)} if metadata else {}
    if storage_class is not StorageClass.STANDARD:
        said["StorageClass"] = storage_class.value
    if lock is not None and lock.mode is not LockMode.NONE:
        said |= {"ObjectLockMode": lock.mode.value, "ObjectLockRetainUntilDate": whole_seconds(lock.until)}
    return said


def _told_each(pages: Iterable[Any], asked: Asked) -> Iterator[Any]:
    pending = iter(pages)
    while True:
        with told(asked):
            page = next(pending, None)
        if page is None:
            return
        yield page


def _weaker(key: str, held: Lock, wanted: Lock) -> ConflictError:
    return ConflictError(
        f"{key} is locked until {held.until:%Y-%m-%d %H:%M:%S} UTC ({held.mode}): a lock until "
        f"{wanted.until:%Y-%m-%d %H:%M:%S} ({wanted.mode}) would be weaker, and none is ever weakened"
    )
