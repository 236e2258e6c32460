"""A store on the loopback address that costs little: S3's PUT and GET over HTTP, bodies kept in memory, no signatures.

In a process of its own, as a store is, so that what a copy costs us can be told from what a store costs. Run as
`python -m benchmarks.loopback_store`; it prints its port and ends when its standard input does.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from controlplane.adapters.objectstore.s3 import S3Store, make_client
from controlplane.domain.dataset import BucketSpec
from controlplane.kernel.ids import BucketName


@contextmanager
def loopback_store() -> Iterator[S3Store]:
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loopback_store"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        endpoint = f"http://127.0.0.1:{int(child.stdout.readline())}"
        spec = BucketSpec(name=BucketName("loopback"), bucket="loopback", embedded=True)
        yield S3Store(make_client(spec, endpoint=endpoint, access_key="any", secret_key="any"), "loopback")
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bodies: dict[str, bytes] = {}  # noqa: RUF012 - the server makes a handler for each connection; this is its memory

    def do_DELETE(self) -> None:
        self.bodies.pop(self.path.partition("?")[0], None)
        self._answer(204, b"")

    def do_PUT(self) -> None:
        self.bodies[self.path.partition("?")[0]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"")

    def do_GET(self) -> None:
        body = self.bodies.get(self.path.partition("?")[0])
        self._answer(404 if body is None else 200, body or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
        """Nobody reads it."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.end_headers()
        self.wfile.write(body)


def _serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
