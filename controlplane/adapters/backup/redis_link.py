"""A full synchronisation, asked for as a replica does: the RDB file of a live Redis over the network.

Protocol: https://redis.io/docs/latest/operate/oss_and_stack/management/replication/ and Redis' replication.c. The
answer to PSYNC names a position, then comes the file: with its length before it, or (diskless) between two equal marks
of 40 bytes. Redis forks for it, as for BGSAVE; no file of the server has to be readable here.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Watch

ONCE: Final = Retry(NoBackoff(), 0)
"""redis-py would try again for seconds by itself; who calls decides that here."""
CONNECT_S: Final = 5.0
_SILENCE_S: Final = 60.0
"""A server that prepares the file sends an empty line every ten seconds (repl-ping-replica-period)."""
_PREPARE_S: Final = 600.0
"""From asking to the first byte: the fork, a running BGSAVE that has to end first, repl-diskless-sync-delay (5 s)."""
_LOOK_S: Final = 1.0
"""Between two looks at whether somebody asked to stop, while nothing comes."""
_MARK_BYTES: Final = 40
_READ_BYTES: Final = MIB
_LINE_MAX_BYTES: Final = 64 * 1024
_LATER: Final = ("LOADING", "NOMASTERLINK", "MASTERDOWN", "BUSY", "ERR Can't SYNC while not connected")
_DEFAULT_PORT: Final = 6379


class RdbStream:
    """A connection on which the server has begun to send its file."""

    def __init__(self, connection: socket.socket, watch: Watch) -> None:
        self._socket = connection
        self._watch = watch
        self._buffer = bytearray()

    def ask(self, *words: str) -> str:
        """One short reply, without its sign; `-` stays in front of an error."""
        encoded = [word.encode() for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        self._socket.sendall(request)
        return self._line().removeprefix("+")

    def require(self, *words: str) -> str:
        reply = self.ask(*words)
        if not reply.startswith("-"):
            return reply
        said = reply.removeprefix("-")
        if said.startswith(_LATER):
            raise RetryableError(f"Redis cannot give a copy now: {said}")
        raise TerminalError(
            f"Redis refuses {words[0]}: {said}. The user of the dataset's url needs the right password and the "
            "permissions +psync +replconf +info +ping; services that forbid PSYNC cannot be copied this way"
        )

    def pieces(self) -> Iterator[bytes]:
        """The file, from its first byte to its last."""
        head = self._line()
        if not head.startswith("$"):
            raise TerminalError(f"Redis announced the file with {head[:80]!r}, expected $LENGTH or $EOF:MARK")
        if head.startswith("$EOF:"):
            yield from self._until(head.removeprefix("$EOF:").encode())
        else:
            yield from self._sized(int(head[1:]))

    def _sized(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self._take() or self._receive()
            yield piece[:left]
            left -= min(left, len(piece))

    def _until(self, mark: bytes) -> Iterator[bytes]:
        held = b""
        while True:
            held += self._take() or self._receive()
            if held.endswith(mark):
                yield held[: -len(mark)]
                return
            # What may be the beginning of the mark is held back.
            yield held[:-_MARK_BYTES]
            held = held[-_MARK_BYTES:]

    def _line(self) -> str:
        """The next line that is not empty: empty ones only say that the server lives."""
        until = time.monotonic() + _PREPARE_S
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                if len(line) > _LINE_MAX_BYTES or time.monotonic() > until:
                    raise RetryableError(f"Redis did not begin to send a copy within {_PREPARE_S:.0f} s")
                self._buffer += self._receive()
                continue
            self._buffer = rest
            if text := line.strip():
                return text.decode(errors="replace")

    def _take(self) -> bytes:
        piece = bytes(self._buffer)
        self._buffer.clear()
        return piece

    def _receive(self) -> bytes:
        until = time.monotonic() + _SILENCE_S
        while True:
            self._watch.advance(0)
            try:
                piece = self._socket.recv(_READ_BYTES)
            except TimeoutError as error:
                if time.monotonic() > until:
                    raise RetryableError(f"Redis sent nothing for {_SILENCE_S:.0f} s") from error
                continue
            except OSError as error:
                raise RetryableError(f"the connection to Redis broke: {error}") from error
            if not piece:
                raise RetryableError("Redis closed the connection before the copy was complete")
            return piece


@contextmanager
def full_sync(url: str, watch: Watch) -> Iterator[RdbStream]:
    """The stream, its file announced. RetryableError, TerminalError with what Redis said; never with a password."""
    known: Mapping[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py gives it no types
    with _connected(known) as connection:
        stream = RdbStream(connection, watch)
        if password := known.get("password"):
            user = known.get("username")
            stream.require("AUTH", *((user,) if user else ()), password)
        stream.require("PING")
        stream.ask("REPLCONF", "capa", "eof", "capa", "psync2")
        # From 7.0 on: no commands behind the file, so the server buffers none for us. Older ones refuse, which is fine.
        stream.ask("REPLCONF", "rdb-only", "1")
        reply = stream.require("PSYNC", "?", "-1")
        if not reply.startswith("FULLRESYNC"):
            raise TerminalError(f"Redis answered PSYNC with {reply[:80]!r}, expected FULLRESYNC")
        yield stream


@contextmanager
def _connected(known: Mapping[str, Any]) -> Iterator[socket.socket]:
    kind = known.get("connection_class")
    try:
        connection = _plain(known, unix=kind is UnixDomainSocketConnection)
        if kind is SSLConnection:
            connection = _encrypted(connection, known)
    except (OSError, ssl.SSLError) as error:
        raise RetryableError(f"Redis at {place_of(known)} does not answer: {error}") from error
    with connection:
        connection.settimeout(_LOOK_S)
        yield connection


def place_of(known: Mapping[str, Any]) -> str:
    """Where it answers, without credentials."""
    if "path" in known:
        return str(known["path"])
    return f"{known.get('host', 'localhost')}:{known.get('port', _DEFAULT_PORT)}"


def _plain(known: Mapping[str, Any], *, unix: bool) -> socket.socket:
    if not unix:
        address = (str(known.get("host", "localhost")), int(known.get("port", _DEFAULT_PORT)))
        return socket.create_connection(address, timeout=CONNECT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(CONNECT_S)
    try:
        connection.connect(str(known["path"]))
    except OSError:
        connection.close()
        raise
    return connection


def _encrypted(connection: socket.socket, known: Mapping[str, Any]) -> socket.socket:
    context = ssl.create_default_context(cafile=known.get("ssl_ca_certs"))
    if known.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := known.get("ssl_certfile"):
        context.load_cert_chain(certificate, known.get("ssl_keyfile"))
    try:
        return context.wrap_socket(connection, server_hostname=str(known.get("host", "localhost")))
    except OSError:
        connection.close()
        raise
