"""Old archives of `gpg --symmetric`: read with the real gpg, never believed before their digest is checked."""

import io
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.adapters.backup.gpg import read_gpg
from controlplane.kernel.errors import DeniedError, NotFoundError, RetryableError, TerminalError

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed: `apt-get install gnupg`")
OLD = b64decode(
    "jA0ECQMCTEhAw5V71fFg0koBmWMHVIVLcT5LaNIKCxhoRCyXmw23OGLdOtMn3w6N5With9u5gcCkmh2AsGf9Wr0t0VkPGMrxTmkK"
    "AlMsAjjPXb0N599HBBdRMQ=="
)
"""`printf 'rows of 2019\\n' | gpg --symmetric --cipher-algo AES256`, by GnuPG 2.2.40; passphrase `secret`."""

FOR_A_KEY_PAIR = b64decode(
    "hQEMAz8nAySKixw0AQf/XGpVxw+GG8N75Q4wiprjnzT+9bBUr0YXGwDxKkDTEO+dR1Ynv9j4Ac1gq+DhKXrVBPmDx+DrqJ2uGplFhvDhVOqIhNNk"
    "nw+P8Ze6o0QqyGaaUPcaaUHnji+ohUMT7UZntr0ol5qpOGhqXwVxILMpmgeziwtyltCJawi8G9snFUBa0yX9qgN760gMOWtnPnE12KZh9cnh0nGx"
    "NCAVjldT+txcnAPPxxSPLGRuYNMyXp5Wq1xM5869TPGB/1tb0o79ZF9ZEKfziGuR745YXyouG+PCb7BXe71W3G5K4aQOXPP2PjYCdEFhEnFNYQ3J"
    "gHTzMxGjR5krc5AZJcfeA95XyNI+AVsuuSqwBZBmWoHS6XXEiZXR58/MAbVn5W1Agfdc51wYfy76Zxl+CLpWrLqO5VphwdFhGZy1PgvWR5YHuTY="
)
"""`echo hi | gpg --encrypt`, for an RSA key that was thrown away."""


def secret() -> bytes:
    return b"secret\n"


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(body: bytes) -> Path:
        path = tmp_path / "dump.sql.gpg"
        path.write_bytes(body)
        return path

    return write


@needs_gpg
def test_an_old_archive_from_a_file_and_from_a_stream(archive: Callable[[bytes], Path]) -> None:
    assert b"".join(read_gpg(archive(OLD), secret)) == b"rows of 2019\n"
    assert b"".join(read_gpg(io.BytesIO(OLD), secret)) == b"rows of 2019\n"


@needs_gpg
def test_a_large_one_written_by_the_gpg_that_is_here(tmp_path: Path) -> None:
    plain = os.urandom(3_000_000)
    (tmp_path / "home").mkdir(mode=0o700)
    options = ["--batch", "--no-autostart", "--pinentry-mode", "loopback", "--passphrase-fd", "0", "--symmetric"]
    (tmp_path / "plain").write_bytes(plain)
    written = tmp_path / "plain.gpg"
    command = ["gpg", "--homedir", str(tmp_path / "home"), *options, "-o", str(written), str(tmp_path / "plain")]
    subprocess.run(command, input=b"secret", capture_output=True, timeout=60, check=False)  # 2: it misses its agent.

    assert b"".join(read_gpg(written, secret)) == plain
    with written.open("rb") as stream:
        assert b"".join(read_gpg(stream, secret)) == plain


@needs_gpg
def test_a_wrong_passphrase(archive: Callable[[bytes], Path]) -> None:
    with pytest.raises(DeniedError, match=r"dump\.sql\.gpg: the passphrase is wrong"):
        list(read_gpg(archive(OLD), lambda: b"guess"))


@needs_gpg
@pytest.mark.parametrize("damaged", [OLD[:-10], OLD[:-30] + bytes([OLD[-30] ^ 1]) + OLD[-29:]], ids=["cut", "flipped"])
def test_a_damaged_one_is_refused_at_its_end(archive: Callable[[bytes], Path], damaged: bytes) -> None:
    with pytest.raises(TerminalError, match=r"was changed or cut off \(MDC\): what was read of it must not be used"):
        list(read_gpg(archive(damaged), secret))


@needs_gpg
def test_what_is_no_archive(archive: Callable[[bytes], Path], tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"dump\.sql\.gpg: is no gpg archive"):
        list(read_gpg(archive(b"CREATE TABLE\n" * 100), secret))
    with pytest.raises(NotFoundError, match=r"nothing: there is no such file"):
        list(read_gpg(tmp_path / "nothing", secret))


@needs_gpg
def test_one_for_a_key_pair_is_not_called_damaged(archive: Callable[[bytes], Path]) -> None:
    with pytest.raises(TerminalError, match=r"is encrypted for a key pair, expected one with a passphrase"):
        list(read_gpg(archive(FOR_A_KEY_PAIR), secret))


@needs_gpg
def test_a_stream_has_a_name_in_errors() -> None:
    with pytest.raises(DeniedError, match=r"^s3://old/dump\.gpg: the passphrase is wrong"):
        list(read_gpg(io.BytesIO(OLD), lambda: b"guess", name="s3://old/dump.gpg"))


@needs_gpg
def test_a_source_that_breaks_off_says_so_itself() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise RetryableError("the store went away")

    with pytest.raises(RetryableError, match="the store went away"):
        list(read_gpg(Broken(OLD), secret))


@needs_gpg
def test_who_stops_in_the_middle_leaves_no_process(tmp_path: Path, archive: Callable[[bytes], Path]) -> None:
    blocks = read_gpg(archive(OLD), secret)
    assert next(blocks) == b"rows of 2019\n"

    blocks.close()

    assert not [home for home in Path("/proc").glob("[0-9]*/cmdline") if b"dump.sql.gpg" in _words(home)]


def _words(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
