"""A small HTTP/1.1 server on httptools: no task per request, one transport write per answer or piece of a stream.

Why not a framework: ten of these run on two cores beside a gateway and a load generator. Importing aiohttp alone takes
0.4 s and 20 MB there; this whole process listens after 0.15 s in 27 MB, and a streamed chunk costs one `write`.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Protocol, cast
from urllib.parse import parse_qsl, unquote

import httptools

BODY_MAX_BYTES: Final = 32 * 1024**2
"""A prompt of a million tokens is 5 MB, an audio file at most 25 MB (vLLM's VLLM_MAX_AUDIO_CLIP_FILESIZE_MB)."""
HEADERS_MAX_BYTES: Final = 64 * 1024
"""Request line and headers together; uvicorn's own bound (h11_max_incomplete_event_size) is the same 64 KiB."""
HEADERS_MAX: Final = 128
PIPELINE_MAX: Final = 16
"""Requests that one client may send ahead of their answers; then reading stops."""
IDLE_MAX_S: Final = 75.0
"""A kept-alive connection without a request. Longer than gateways keep theirs, so that they close first."""
REQUEST_MAX_S: Final = 30.0
"""From a request's first byte to its last."""
_SWEEP_S: Final = 5.0
"""How often connections are looked at for the two limits above."""
_BACKLOG: Final = 2048
"""Connections that may wait to be accepted; uvicorn's default."""

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Outlet(Protocol):
    """Where an exchange's answer goes: a connection."""

    write_paused: bool
    """The client reads too slowly for what was written already."""

    def write(self, data: bytes) -> None: ...
    def finished(self, exchange: "Exchange") -> None:
        """The answer is complete."""
        ...


class Exchange:
    """One request and its answer. The handler answers now or later, whole or as a stream, exactly once."""

    __slots__ = (
        "_connection",
        "body",
        "chunked",
        "headers",
        "keep_alive",
        "method",
        "on_disconnect",
        "path",
        "query",
        "response_bytes",
        "started_at",
        "status",
    )

    def __init__(self, connection: Outlet) -> None:
        self._connection: Outlet | None = connection
        self.method = ""
        self.path = ""
        self.query: dict[str, str] = {}
        self.headers: dict[bytes, bytes] = {}
        """Names in lower case; of repeated ones the last."""
        self.body = b""
        self.keep_alive = True
        self.chunked = True
        self.started_at = 0.0
        self.status = 0
        self.response_bytes = 0
        self.on_disconnect: Callable[[], None] | None = None
        """Called once if the client goes away before the answer is complete."""

    @property
    def writable(self) -> bool:
        """False while the client reads too slowly: what would be streamed now should wait and be merged."""
        return self._connection is not None and not self._connection.write_paused

    def respond(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Send a whole answer. Nothing happens when the client has gone."""
        connection = self._connection
        if connection is None:
            return
        self.status = status
        self.response_bytes = len(body)
        head = self._head(status, content_type) + b"content-length: %d\r\n\r\n" % len(body)
        connection.write(head + body)
        self._done(connection)

    def start_stream(self, content_type: str) -> None:
        """Send the head of a 200; pieces follow. HTTP/1.0 clients get no chunks but a close at the end."""
        connection = self._connection
        if connection is None:
            return
        self.status = HTTPStatus.OK
        framing = b"transfer-encoding: chunked\r\n\r\n" if self.chunked else b"\r\n"
        connection.write(self._head(HTTPStatus.OK, content_type) + b"cache-control: no-cache\r\n" + framing)

    def write_raw(self, data: bytes) -> None:
        """Send bytes that are framed already (`frame`)."""
        if self._connection is not None:
            self._connection.write(data)

    def frame(self, piece: bytes) -> bytes:
        """A piece of a stream as it goes over the wire."""
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece

    def end_stream(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self.chunked:
            connection.write(_LAST_CHUNK)
        self._done(connection)

    def disconnected(self) -> None:
        """The connection tells that the client has gone."""
        self._connection = None
        if self.on_disconnect is not None:
            self.on_disconnect()

    def _head(self, status: int, content_type: str) -> bytes:
        close = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%bserver: quarterdeck-sim\r\n%bcontent-type: %b\r\n" % (
            _STATUS_LINES[status],
            close,
            content_type.encode(),
        )

    def _done(self, connection: Outlet) -> None:
        self._connection = None
        connection.finished(self)


class Handler(Protocol):
    """What the server serves. Neither call may wait; `handle` answers later through the exchange if it must."""

    def handle(self, exchange: Exchange) -> None: ...
    def completed(self, exchange: Exchange) -> None:
        """The answer is out."""
        ...


class Connection(asyncio.Protocol):
    """One client connection: parses, bounds, and hands over requests one after the other."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: Exchange | None = None
        self._url = b""
        self._in_head = False
        self._head_began = False
        """In the data that is being parsed now: its bytes need not all be of the head."""
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refusal = HTTPStatus.BAD_REQUEST
        self._refused = False
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self.write_paused = False
        self.waits_since = server.now()
        """Since when it is idle, or its present request incomplete."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._transport = None
        self._server.forget(self)
        lost = [self._current, *self._queue]
        self._current = None
        self._queue.clear()
        for exchange in lost:
            if exchange is not None:
                exchange.disconnected()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_began = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._refuse(self._refusal)
            return
        if self._in_head and not self._head_began:
            # A header without an end would otherwise grow inside the parser, unseen.
            self._head_bytes += len(data)
            if self._head_bytes > HEADERS_MAX_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    # httptools' side

    def on_message_begin(self) -> None:
        self._incoming = Exchange(self)
        self._url = b""
        self._in_head = self._head_began = True
        self._head_bytes = 0
        self._body = []
        self._body_bytes = 0
        self.waits_since = self._server.now()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._bound_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._incoming
        assert exchange is not None, "headers come inside a message"
        exchange.headers[name.lower()] = value
        self._bound_head(len(name) + len(value))
        if len(exchange.headers) > HEADERS_MAX:
            self._stop_parsing(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        exchange = self._incoming
        assert exchange is not None, "headers come inside a message"
        self._in_head = False
        length = exchange.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES:
            self._stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue" and self._current is None:
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > BODY_MAX_BYTES:
            self._stop_parsing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_message_complete(self) -> None:
        exchange = self._incoming
        assert exchange is not None, "a message ends after it began"
        self._incoming = None
        exchange.method = self._parser.get_method().decode("latin-1")
        path, _, query = self._url.partition(b"?")
        exchange.path = unquote(path.decode("latin-1"))
        exchange.query = dict(parse_qsl(query.decode("latin-1"))) if query else {}
        exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        exchange.keep_alive = self._parser.should_keep_alive() and not self._server.closing
        exchange.chunked = self._parser.get_http_version() == "1.1"
        exchange.keep_alive = exchange.keep_alive and exchange.chunked
        exchange.started_at = self._server.now()
        self._queue.append(exchange)
        if self._current is None:
            self._next()
        elif len(self._queue) >= PIPELINE_MAX and self._transport is not None:
            self._transport.pause_reading()

    # the exchange's side

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finished(self, exchange: Exchange) -> None:
        """The current answer is complete: on to the next request, or close."""
        self._current = None
        self.waits_since = self._server.now()
        self._server.handler.completed(exchange)
        if not exchange.keep_alive or self._server.closing:
            self.close()
        elif self._queue:
            asyncio.get_running_loop().call_soon(self._next)

    def close(self) -> None:
        """What was written is still sent."""
        if self._transport is not None:
            self._transport.close()

    @property
    def idle(self) -> bool:
        return self._current is None and not self._queue

    def _next(self) -> None:
        if self._current is not None or not self._queue or self._transport is None or self._transport.is_closing():
            return
        exchange = self._current = self._queue.popleft()
        if not self._transport.is_reading():
            self._transport.resume_reading()
        self._server.handler.handle(exchange)

    def _bound_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEADERS_MAX_BYTES:
            self._stop_parsing(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _stop_parsing(self, status: HTTPStatus) -> None:
        """Out of the parser's callback; httptools turns it into HttpParserCallbackError."""
        self._refusal = status
        raise ValueError(status.phrase)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer what cannot be read, unless another answer is under way, and read no more.

        The client may still be sending; hanging up at once could destroy the answer on its way, so the sweep does it.
        """
        self._refused = True
        self.waits_since = self._server.now()
        if self._current is not None or self._transport is None:
            self.close()
            return
        body = (
            f'{{"error":{{"message":"{status.phrase}","type":"{status.phrase}","param":null,"code":{status.value}}}}}'
        )
        head = b"%bconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.write(head % (_STATUS_LINES[status], len(body)) + body.encode())
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def overdue(self, now: float) -> bool:
        """Nothing to answer, and nothing complete to answer for too long."""
        if not self.idle:
            return False
        limit_s = _SWEEP_S if self._refused else IDLE_MAX_S if self._incoming is None else REQUEST_MAX_S
        return now - self.waits_since > limit_s


class HttpServer:
    """Listens, and keeps connections within their limits."""

    def __init__(self, handler: Handler, now: Callable[[], float]) -> None:
        self.handler = handler
        self.now = now
        """Seconds, monotonic."""
        self.connections: set[Connection] = set()
        self.closing = False
        """True: every answer is its connection's last."""
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def listen(self, listener: socket.socket) -> None:
        """Serve on a bound socket. OSError when somebody else listens there already."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    def stop_listening(self) -> None:
        """No new connections; idle ones are closed, the others after their present answer."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def wait_empty(self, timeout_s: float) -> None:
        """Until the last connection is closed, at most so long."""
        if not self.connections:
            return
        self._empty.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def hang_up(self) -> None:
        """Close every connection, whatever it waits for."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.close()

    def _sweep(self) -> None:
        now = self.now()
        for connection in list(self.connections):
            if connection.overdue(now):
                connection.close()
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
