"""The S3 client against a server that misbehaves on purpose: breaks off, answers late, damages, forgets.

boto3 waits up to a second before it tries again, which is why two of these take about as long.
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controlplane.adapters.objectstore.s3 import S3Store, make_client
from controlplane.domain.dataset import BucketSpec
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.kernel.ids import BucketName

BODY = b"what was stored" * 1000


class Request(BaseHTTPRequestHandler):
    """Answers by the script of its server; counts what came."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_HEAD(self) -> None:
        self._serve(b"")

    def do_PUT(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, body: bytes = b"", *, sha256: str | None = None, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Last-Modified", "Mon, 05 Jan 2026 08:00:00 GMT")
        if sha256 is not None:
            self.send_header("x-amz-checksum-sha256", base64.b64encode(bytes.fromhex(sha256)).decode())
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True

    def _serve(self, body: bytes) -> None:
        self.server.seen.append((self.command, body, dict(self.headers)))
        self.server.script(self, len(self.server.seen))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Callable[[Request, int], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.script = script
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []


@contextmanager
def serving(script: Callable[[Request, int], None], *, tries_max: int = 2) -> Iterator[tuple[S3Store, Server]]:
    with Server(script) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        spec = BucketSpec(name=BucketName("main"), bucket="backups", endpoint=f"http://127.0.0.1:{server.server_port}")
        client = make_client(spec, access_key="key", secret_key="secret", tries_max=tries_max)
        yield S3Store(client, "backups", prefix="qd/"), server
        client.close()
        server.shutdown()


def refusal(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


def test_a_body_that_breaks_off_is_read_again() -> None:
    def script(request: Request, number: int) -> None:
        if number < 3:
            request.answer(200, BODY[:100], length=len(BODY))
            request.hang_up()
        else:
            request.answer(200, BODY)

    with serving(script) as (store, server):
        assert store.get("pack") == BODY
        assert len(server.seen) == 3


def test_a_body_that_always_breaks_off_is_given_up() -> None:
    def script(request: Request, number: int) -> None:
        request.answer(200, BODY[:100], length=len(BODY))
        request.hang_up()

    with serving(script) as (store, server), pytest.raises(RetryableError, match="qd/pack"):
        store.get("pack")
    assert len(server.seen) == 3


def test_bytes_that_do_not_match_their_checksum_are_never_given_on() -> None:
    def script(request: Request, number: int) -> None:
        request.answer(200, BODY[:-1] + b"?", sha256=hashlib.sha256(BODY).hexdigest())

    with serving(script) as (store, _), pytest.raises(TerminalError, match="checksum"):
        store.get("pack")


def test_a_server_that_fails_is_asked_a_bounded_number_of_times() -> None:
    with (
        serving(lambda request, _: request.answer(503, refusal("SlowDown")), tries_max=2) as (store, server),
        pytest.raises(RetryableError) as caught,
    ):
        store.put("pack", BODY)
    assert len(server.seen) == 2
    assert caught.value.after is not None


def test_a_put_carries_its_checksum_and_a_signature_over_the_body() -> None:
    with serving(lambda request, _: request.answer(200)) as (store, server):
        store.put("pack", BODY, if_absent=True)

    _, body, headers = server.seen[0]
    digest = hashlib.sha256(BODY)
    assert body == BODY
    assert headers["x-amz-checksum-sha256"] == base64.b64encode(digest.digest()).decode()
    assert headers["X-Amz-Content-SHA256"] == digest.hexdigest(), "a store that ignores checksums verifies this one"
    assert headers["If-None-Match"] == "*"
    assert "aws-chunked" not in headers.get("Content-Encoding", "")


@pytest.mark.parametrize("ours", [True, False])
def test_who_won_is_known_although_the_answer_was_lost(ours: bool) -> None:
    """The first try is stored and its answer lost; the second finds the key taken, by us or by somebody else."""
    there = hashlib.sha256(BODY if ours else b"somebody else's").hexdigest()

    def script(request: Request, number: int) -> None:
        if number == 1:
            request.hang_up()
        elif request.command == "PUT":
            request.answer(412, refusal("PreconditionFailed"))
        else:
            request.answer(200, sha256=there)

    with serving(script) as (store, server):
        if ours:
            assert store.put("lease", BODY, if_absent=True).sha256 == there
        else:
            with pytest.raises(ConflictError):
                store.put("lease", BODY, if_absent=True)
    assert [method for method, _, _ in server.seen][:2] == ["PUT", "PUT"]


def test_a_missing_bucket_is_not_taken_for_a_missing_object() -> None:
    def script(request: Request, number: int) -> None:
        request.answer(404, b"" if request.command == "HEAD" else refusal("NoSuchBucket"))

    with serving(script) as (store, _), pytest.raises(TerminalError, match="no such bucket"):
        store.head("pack")


def test_nobody_listening_is_told_with_the_address() -> None:
    with Server(lambda request, _: request.answer(200)) as server:
        port = server.server_port
    spec = BucketSpec(name=BucketName("main"), bucket="backups", endpoint=f"http://127.0.0.1:{port}")
    client = make_client(spec, access_key="key", secret_key="secret", tries_max=1)

    with pytest.raises(RetryableError, match=str(port)):
        list(S3Store(client, "backups").objects(""))
    client.close()
