"""Parts of S3's answers, as values of ours."""

import base64
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.recovery.ports import Lock, ObjectInfo, Thaw

_SECOND: Final = timedelta(seconds=1)
_OTHER_CLASSES: Final = {"ONEZONE_IA": StorageClass.STANDARD_IA}
"""Classes that Quarterdeck never writes and may meet. All unknown ones can be read at once: they count as STANDARD."""
_ONGOING: Final = re.compile(r'ongoing-request="true"')
_EXPIRY: Final = re.compile(r'expiry-date="([^"]+)"')


def listed(entry: Any, key: str, *, deleted: bool = False) -> ObjectInfo:
    """An entry of a listing."""
    return ObjectInfo(
        key=key,
        version=version_of(entry.get("VersionId")),
        size_bytes=entry.get("Size", 0),
        modified_at=entry["LastModified"].astimezone(UTC),
        storage_class=_storage_class(entry.get("StorageClass")),
        deleted=deleted,
        latest=entry.get("IsLatest", True),
    )


def looked_at(answer: Any, key: str) -> ObjectInfo:
    """The answer to a HEAD."""
    return ObjectInfo(
        key=key,
        version=version_of(answer.get("VersionId")),
        size_bytes=answer["ContentLength"],
        modified_at=answer["LastModified"].astimezone(UTC),
        storage_class=_storage_class(answer.get("StorageClass")),
        sha256=_hexadecimal(answer.get("ChecksumSHA256")),
        lock=_lock(answer),
        thaw=_thaw(answer.get("Restore")),
        metadata=tuple(sorted(answer.get("Metadata", {}).items())),
    )


def whole_seconds(moment: datetime) -> datetime:
    """Upwards: stores keep whole seconds, and a lock is never shorter than it was asked for."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole if whole == moment else whole + _SECOND


def version_of(given: str | None) -> str | None:
    """An unversioned bucket says nothing, or `null`."""
    return None if given in {None, "", "null"} else given


def _hexadecimal(digest: str | None) -> str | None:
    """None also for the checksum of checksums that a multipart upload has (`...-3`)."""
    if digest is None or "-" in digest:
        return None
    return base64.b64decode(digest).hex()


def _storage_class(name: str | None) -> StorageClass:
    try:
        return StorageClass(name or StorageClass.STANDARD)
    except ValueError:
        return _OTHER_CLASSES.get(name or "", StorageClass.STANDARD)


def _lock(answer: Any) -> Lock | None:
    mode, until = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
    if mode is None or until is None:
        return None
    return Lock(mode=LockMode(mode), until=until.astimezone(UTC))


def _thaw(header: str | None) -> Thaw | None:
    """From `ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"`."""
    if header is None:
        return None
    expiry = _EXPIRY.search(header)
    ongoing = _ONGOING.search(header) is not None
    return Thaw(ongoing=ongoing, until=None if expiry is None else parsedate_to_datetime(expiry[1]).astimezone(UTC))
