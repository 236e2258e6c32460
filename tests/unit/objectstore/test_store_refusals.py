"""What each refusal of a store becomes: which exception, and a sentence with the bucket, the key and the next step."""

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from controlplane.adapters.objectstore.errors import Asked, from_answer, from_transport, told
from controlplane.kernel.errors import ConflictError, NotFoundError, QuarterdeckError, RetryableError, TerminalError

ASKED = Asked(verb="read", bucket="backups", key="db/points/1/manifest.json", endpoint="http://127.0.0.1:9")


def refusal(code: str, status: int, message: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item] # the parts that are read
        "GetObject",
    )


@pytest.mark.parametrize(
    ("code", "status", "expected", "words"),
    [
        ("NoSuchKey", 404, NotFoundError, "not there"),
        ("NoSuchVersion", 404, NotFoundError, "not there"),
        ("404", 404, NotFoundError, "not there"),
        ("PreconditionFailed", 412, ConflictError, "already"),
        ("InvalidObjectState", 403, ConflictError, "retrieval"),
        ("NoSuchBucket", 404, TerminalError, "bucket plan"),
        ("AccessDenied", 403, TerminalError, "may not"),
        ("403", 403, TerminalError, "may not"),
        ("InvalidAccessKeyId", 403, TerminalError, "credentials"),
        ("SignatureDoesNotMatch", 403, TerminalError, "credentials"),
        ("ExpiredToken", 400, TerminalError, "credentials"),
        ("BadDigest", 400, TerminalError, "checksum"),
        ("XAmzContentSHA256Mismatch", 400, TerminalError, "checksum"),
        ("InvalidRange", 416, TerminalError, "fewer bytes"),
        ("PermanentRedirect", 301, TerminalError, "another region"),
        ("RequestTimeTooSkewed", 403, TerminalError, "clock"),
        ("NotImplemented", 501, TerminalError, "does not know"),
        ("MethodNotAllowed", 405, TerminalError, "does not know"),
        ("InternalError", 500, RetryableError, "InternalError"),
        ("ServiceUnavailable", 503, RetryableError, "failed"),
        ("SlowDown", 503, RetryableError, "fewer requests"),
        ("TooManyRequests", 429, RetryableError, "fewer requests"),
        ("RequestTimeout", 400, RetryableError, "RequestTimeout"),
        ("ConditionalRequestConflict", 409, RetryableError, "failed"),
        ("GlacierExpeditedRetrievalNotAvailable", 503, RetryableError, "Standard"),
        ("SomethingNew", 418, TerminalError, "SomethingNew"),
        ("", 502, RetryableError, "502"),
    ],
)
def test_answers(code: str, status: int, expected: type[QuarterdeckError], words: str) -> None:
    error = from_answer(refusal(code, status, "the store's own words"), ASKED)

    assert type(error) is expected
    assert words in str(error)
    assert "backups" in str(error)
    assert "db/points/1/manifest.json" in str(error)


def test_a_malformed_version_is_one_that_is_not_there() -> None:
    error = from_answer(refusal("InvalidArgument", 400, "Invalid version id specified"), ASKED)

    assert isinstance(error, NotFoundError)


def test_who_asks_too_much_is_told_to_wait() -> None:
    error = from_answer(refusal("SlowDown", 503), ASKED)

    assert isinstance(error, RetryableError)
    assert error.after is not None


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (ConnectTimeoutError(endpoint_url="http://x"), RetryableError, "did not answer"),
        (ReadTimeoutError(endpoint_url="http://x"), RetryableError, "did not answer"),
        (EndpointConnectionError(endpoint_url="http://x"), RetryableError, "http://127.0.0.1:9"),
        (ResponseStreamingError(error="reset"), RetryableError, "in full"),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), RetryableError, "in full"),
        (SSLError(endpoint_url="https://x", error=OSError("self-signed")), TerminalError, "TLS"),
        (FlexibleChecksumError(error_msg="mismatch"), TerminalError, "checksum"),
        (NoCredentialsError(), TerminalError, "access_key"),
    ],
)
def test_no_answer(error: BotoCoreError, expected: type[QuarterdeckError], words: str) -> None:
    ours = from_transport(error, ASKED)

    assert type(ours) is expected
    assert words in str(ours)


def test_errors_leave_as_ours_with_their_cause() -> None:
    with pytest.raises(NotFoundError) as caught, told(ASKED):
        raise refusal("NoSuchKey", 404)

    assert isinstance(caught.value.__cause__, ClientError)
