"""Redis' full synchronisation and RDB heads, against a server that says what the test wants."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.adapters.backup.redis_link import full_sync
from controlplane.adapters.backup.redis_rdb import DbSize, RdbTail, parse_head
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.testing.backups import RecordingWatch

MARK = b"0123456789abcdef0123456789abcdef01234567"
BODY = b"REDIS0010" + bytes(range(256)) * 500 + MARK[:39] + b"x" + MARK[:20]


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def note(name: bytes, value: bytes) -> bytes:
    return b"\xfa" + text(name) + value


HEAD = (
    b"REDIS0010"
    + note(b"redis-ver", text(b"7.0.15"))
    + note(b"redis-bits", b"\xc0\x40")
    + note(b"ctime", b"\xc2" + struct.pack("<i", 1_767_600_000))
    + note(b"used-mem", b"\xc1" + struct.pack("<h", 1000))
)


def test_the_head_tells_who_wrote_it_when_and_how_many_keys() -> None:
    head = parse_head(HEAD + b"\xf5" + text(b"library") + b"\xfe\x03\xfb\x41\x00\x05" + b"anything")
    assert head.version == 10
    assert head.note("redis-ver") == "7.0.15"
    assert head.note("redis-bits") == "64"
    assert head.created_at == datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
    assert head.first == DbSize(index=3, keys=256, expiring=5)
    assert not head.empty


def test_long_lengths_are_read() -> None:
    four = parse_head(HEAD + b"\xfe\x00\xfb\x80" + struct.pack(">I", 3_000_000_000) + b"\x00")
    assert four.first == DbSize(index=0, keys=3_000_000_000, expiring=0)
    eight = parse_head(HEAD + b"\xfe\x00\xfb\x81" + struct.pack(">Q", 1 << 40) + b"\x00")
    assert eight.first == DbSize(index=0, keys=1 << 40, expiring=0)


def test_an_empty_file_is_told_from_one_that_cannot_be_counted() -> None:
    assert parse_head(HEAD + b"\xff" + bytes(8)).empty
    for rest in (b"", b"\xfe", b"\xfe\x00\xfb\x80", b"\xf7module", b"\xfe\x00\x00key"):
        head = parse_head(HEAD + rest)
        assert head.first is None
        assert not head.empty


@pytest.mark.parametrize("body", [b"", b"REDIS", b"REDISxxxx", b"<html>", b"VALKEY"])
def test_what_is_no_rdb_file_is_refused(body: bytes) -> None:
    with pytest.raises(TerminalError, match="RDB"):
        parse_head(body)


def test_valkeys_own_magic_is_known() -> None:
    assert parse_head(b"VALKEY080" + HEAD[9:] + b"\xff").version == 80


def test_a_file_without_its_end_is_noticed_however_it_arrives() -> None:
    whole = HEAD + b"\xff" + b"checksum"
    for size in (1, 5, 9, len(whole)):
        tail = RdbTail()
        for start in range(0, len(whole), size):
            tail.feed(whole[start : start + size])
        tail.require_whole(10)
    for cut in (whole[:-1], whole[:-9], b""):
        tail = RdbTail()
        tail.feed(cut)
        with pytest.raises(TerminalError, match="before its end mark"):
            tail.require_whole(10)


@contextmanager
def server(folder: Path, replies: dict[str, bytes], sent: list[bytes], *, piece: int = 1 << 20) -> Iterator[str]:
    """Answers each command by its first word, then closes; bytes go out in pieces of the given length."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, replies, sent, piece))
        thread.start()
        yield f"unix://user:secret@{folder}/s"
        thread.join()


def _serve(listener: socket.socket, replies: dict[str, bytes], sent: list[bytes], piece: int) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        while first := lines.readline():
            words = []
            for _ in range(int(first[1:])):
                words.append(lines.read(int(lines.readline()[1:])))
                lines.readline()
            sent.append(b" ".join(words))
            reply = replies.get(words[0].decode(), b"+OK\r\n")
            try:
                for start in range(0, len(reply), piece):
                    connection.sendall(reply[start : start + piece])
            except BrokenPipeError:
                return
            if words[0] == b"PSYNC":
                return


def received(folder: Path, psync: bytes, **replies: bytes) -> bytes:
    with server(folder, {"PSYNC": psync, **replies}, []) as url, full_sync(url, RecordingWatch()) as stream:
        return b"".join(stream.pieces())


@pytest.mark.parametrize("piece", [1, 7, 39, 40, 41, 1000, 1 << 20])
@pytest.mark.parametrize("marked", [True, False])
def test_the_file_arrives_whole_in_any_pieces(tmp_path: Path, piece: int, marked: bool) -> None:
    body = BODY if piece > 50 else BODY[-500:]
    announced = b"$EOF:" + MARK + b"\r\n" + body + MARK if marked else b"$%d\r\n" % len(body) + body
    psync = b"\n\n+FULLRESYNC 8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb 0\r\n\n\n" + announced
    sent: list[bytes] = []
    with (
        server(tmp_path, {"PSYNC": psync}, sent, piece=piece) as url,
        full_sync(url, RecordingWatch()) as stream,
    ):
        assert b"".join(stream.pieces()) == body
    assert sent[0] == b"AUTH user secret"
    assert sent[-1] == b"PSYNC ? -1"


def test_an_old_server_that_knows_no_options_is_fine(tmp_path: Path) -> None:
    assert (
        received(tmp_path, b"+FULLRESYNC x 0\r\n$4\r\nbody", REPLCONF=b"-ERR Unrecognized REPLCONF option\r\n")
        == b"body"
    )


@pytest.mark.parametrize(
    "psync", [b"+FULLRESYNC x 0\r\n$1000\r\nshort", b"+FULLRESYNC x 0\r\n$EOF:" + MARK + b"\r\nno", b""]
)
def test_a_connection_that_ends_early_may_be_tried_again(tmp_path: Path, psync: bytes) -> None:
    with pytest.raises(RetryableError, match="closed the connection"):
        received(tmp_path, psync)


@pytest.mark.parametrize("said", [b"-LOADING Redis is loading", b"-NOMASTERLINK Can't SYNC"])
def test_a_server_that_cannot_now_may_be_asked_again(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(RetryableError, match="cannot give a copy now"):
        received(tmp_path, said + b"\r\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("PSYNC", b"-NOPERM this user has no permissions to run the 'psync' command"),
        ("PSYNC", b"-ERR unknown command 'PSYNC'"),
        ("AUTH", b"-WRONGPASS invalid username-password pair"),
        ("PING", b"-NOAUTH Authentication required."),
    ],
)
def test_a_server_that_refuses_is_quoted_without_the_password(tmp_path: Path, command: str, said: bytes) -> None:
    with (
        server(tmp_path, {command: said + b"\r\n"}, []) as url,
        pytest.raises(TerminalError) as refused,
        full_sync(url, RecordingWatch()),
    ):
        pass
    assert said.decode()[1:] in str(refused.value)
    assert "+psync" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("psync", [b"+CONTINUE\r\n", b"+FULLRESYNC x 0\r\n+what\r\n"])
def test_another_protocol_is_named(tmp_path: Path, psync: bytes) -> None:
    with pytest.raises(TerminalError, match="expected"):
        received(tmp_path, psync)
