"""What a store's refusal means, in one place: which of our exceptions, and a sentence that says what to do.

Source of the codes: AWS's S3 API reference ("Error responses"), and what SeaweedFS 4.48 and Ceph RGW 16.2 answered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from controlplane.kernel.errors import (
    ConflictError,
    NotFoundError,
    QuarterdeckError,
    RetryableError,
    TerminalError,
)

THROTTLED_AFTER: Final = timedelta(seconds=5)
"""A store that asks to slow down gets a pause longer than boto3's own backoff had."""

UNSUPPORTED_CODES: Final = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented"})

_GONE: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404"})
_TAKEN: Final = frozenset({"PreconditionFailed", "412"})
_ARCHIVED: Final = frozenset({"InvalidObjectState", "ObjectNotInActiveTierError"})
_THROTTLED: Final = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "503"})
_BUSY: Final = frozenset({"RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict"})
_CHECKSUM: Final = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_WHO: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "403"})
_UNREACHED: Final = (
    ConnectTimeoutError,
    ReadTimeoutError,
    ConnectionClosedError,
    EndpointConnectionError,
    ResponseStreamingError,
    IncompleteReadError,
    HTTPClientError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, in the words of an error message."""

    verb: str
    """E.g. `read`."""
    bucket: str
    key: str | None = None
    """As in the store, prefix and all; None: it concerns the bucket."""
    endpoint: str = ""

    def __str__(self) -> str:
        what = f"the bucket {self.bucket}" if self.key is None else f"{self.key} in the bucket {self.bucket}"
        return f"{self.verb} {what}"


@contextmanager
def told(asked: Asked) -> Iterator[None]:
    """Errors of boto3 leave as ours."""
    try:
        yield
    except ClientError as error:
        raise from_answer(error, asked) from error
    except BotoCoreError as error:
        raise from_transport(error, asked) from error


def code_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def status_of(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def from_answer(error: ClientError, asked: Asked) -> QuarterdeckError:
    """The store answered, and refused."""
    code, status = code_of(error), status_of(error)
    known = _about_object(code, asked) or _about_access(code, asked) or _about_load(code, status, asked)
    if known is not None:
        return known
    message = error.response.get("Error", {}).get("Message", "")
    if code in UNSUPPORTED_CODES:
        return TerminalError(f"cannot {asked}: this store does not know the operation ({code})")
    if "version id" in message.lower():
        return NotFoundError(f"cannot {asked}: the store has no such version")
    return TerminalError(f"cannot {asked}: the store says {code or status}: {message}")


def from_transport(error: BotoCoreError, asked: Asked) -> QuarterdeckError:
    """No answer came, or bytes that are not what was stored."""
    where = f" at {asked.endpoint}" if asked.endpoint else ""
    if isinstance(error, SSLError):
        return TerminalError(f"cannot {asked}: the TLS connection{where} is refused: {error}")
    if isinstance(error, _UNREACHED):
        return RetryableError(f"cannot {asked}: the store{where} did not answer in full: {error}")
    if isinstance(error, FlexibleChecksumError):
        return TerminalError(f"cannot {asked}: the bytes that came do not match the checksum that the store keeps")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return TerminalError(
            f"cannot {asked}: no credentials; give access_key and secret_key in the site file, or boto3's own "
            "(environment, profile, instance role)"
        )
    return TerminalError(f"cannot {asked}: {error}")


def _about_object(code: str, asked: Asked) -> QuarterdeckError | None:
    if code in _GONE:
        return NotFoundError(f"cannot {asked}: it is not there")
    if code in _TAKEN:
        return ConflictError(f"cannot {asked}: it is there already")
    if code in _ARCHIVED:
        return ConflictError(f"cannot {asked}: its storage class wants a retrieval first, or knows none")
    if code in _CHECKSUM:
        return TerminalError(f"cannot {asked}: the bytes that arrived do not match the checksum sent along ({code})")
    if code == "InvalidRange":
        return TerminalError(f"cannot {asked}: it has fewer bytes than the range asks for")
    return None


def _about_access(code: str, asked: Asked) -> QuarterdeckError | None:
    if code == "NoSuchBucket":
        return TerminalError(f"cannot {asked}: there is no such bucket; see `quarterdeck bucket plan`")
    if code in _WHO:
        return TerminalError(f"cannot {asked}: the store does not accept the credentials ({code})")
    if code in _DENIED:
        return TerminalError(f"cannot {asked}: these credentials may not; see docs/object-storage.md for a policy")
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}:
        return TerminalError(f"cannot {asked}: the bucket is in another region than the site file says ({code})")
    if code == "RequestTimeTooSkewed":
        return TerminalError(f"cannot {asked}: the clock of this machine is more than 15 minutes off the store's")
    return None


def _about_load(code: str, status: int, asked: Asked) -> QuarterdeckError | None:
    if code == "GlacierExpeditedRetrievalNotAvailable":
        return RetryableError(f"cannot {asked}: no capacity for an Expedited retrieval now; ask for Standard, or later")
    if code in _THROTTLED or status == 429:  # noqa: PLR2004 - HTTP's Too Many Requests
        return RetryableError(f"cannot {asked}: the store asks for fewer requests ({code})", after=THROTTLED_AFTER)
    if code in _BUSY or (status >= 500 and code not in UNSUPPORTED_CODES):  # noqa: PLR2004 - HTTP's server errors
        return RetryableError(f"cannot {asked}: the store failed with {code or status}")
    return None
