"""`backup read-gpg`: the file that it was, or nothing at all."""

import io
import json
import shutil
from base64 import b64decode
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from controlplane.cli.exits import ExitCode
from controlplane.cli.gpg_archive import StoredObject, require_readable
from controlplane.cli.main import app as program
from controlplane.domain.dataset import StorageClass
from controlplane.kernel.errors import ConflictError
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3
from tests.unit.cli.conftest import run

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed: `apt-get install gnupg`")
PLAIN: Final = b"rows of 2019\n"
OLD: Final = b64decode(
    "jA0ECQMCTEhAw5V71fFg0koBmWMHVIVLcT5LaNIKCxhoRCyXmw23OGLdOtMn3w6N5With9u5gcCkmh2AsGf9Wr0t0VkPGMrxTmkK"
    "AlMsAjjPXb0N599HBBdRMQ=="
)
"""`printf 'rows of 2019\\n' | gpg --symmetric --cipher-algo AES256`, by GnuPG 2.2.40; passphrase `secret`."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "dump.sql.gpg"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return passphrase(tmp_path, "secret")


def passphrase(folder: Path, text: str) -> Path:
    path = folder / f"passphrase-{text}"
    path.write_text(f"{text}\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def there(folder: Path) -> set[str]:
    """Hidden ones too."""
    return {path.name for path in folder.iterdir()}


@needs_gpg
def test_the_file_that_it_was_for_its_owner_alone(archive: Path, words: Path, tmp_path: Path) -> None:
    before = there(tmp_path)
    done = run("backup", "read-gpg", archive, "--into", tmp_path / "dump.sql", "--passphrase-file", words)
    assert done.exit_code == ExitCode.OK, done.output
    assert "13 B of" in done.output
    assert "whole as gpg's digest (MDC) says" in done.output
    assert (tmp_path / "dump.sql").read_bytes() == PLAIN
    assert (tmp_path / "dump.sql").stat().st_mode & 0o777 == 0o600
    assert there(tmp_path) == before | {"dump.sql"}


@needs_gpg
def test_into_a_pipe_it_is_the_plaintext_and_nothing_else(archive: Path, words: Path) -> None:
    done = run("backup", "read-gpg", archive, "--into", "-", "--passphrase-file", words)
    assert (done.exit_code, done.stdout_bytes) == (ExitCode.OK, PLAIN)
    assert "written, whole as" in done.stderr


@needs_gpg
def test_a_script_reads_how_much_it_was(archive: Path, words: Path, tmp_path: Path) -> None:
    into = tmp_path / "dump.sql"
    done = run("backup", "read-gpg", archive, "--into", into, "--passphrase-file", words, "--json")
    assert json.loads(done.stdout) == {
        "archive": str(archive), "into": str(into), "archive_bytes": len(OLD), "plain_bytes": len(PLAIN)
    }  # fmt: skip


@needs_gpg
def test_a_passphrase_that_is_typed(archive: Path, tmp_path: Path) -> None:
    arguments = ["backup", "read-gpg", str(archive), "--into", str(tmp_path / "dump.sql")]
    assert CliRunner().invoke(program, arguments, input="secret\n").exit_code == ExitCode.OK
    assert (tmp_path / "dump.sql").read_bytes() == PLAIN
    unanswered = CliRunner().invoke(program, [*arguments[:-1], str(tmp_path / "again.sql")])
    assert unanswered.exit_code == ExitCode.USAGE
    assert "name a file with it in --passphrase-file" in unanswered.output


@needs_gpg
@pytest.mark.parametrize(
    ("damaged", "code", "said"),
    [
        (OLD[:-10], ExitCode.FAILED, "was changed or cut off (MDC): what was read of it must not be used"),
        (OLD[:-30] + bytes([OLD[-30] ^ 1]) + OLD[-29:], ExitCode.FAILED, "was changed or cut off (MDC)"),
        (b"CREATE TABLE\n" * 100, ExitCode.FAILED, "is no gpg archive"),
    ],
    ids=["cut", "flipped", "other"],
)
def test_a_damaged_one_leaves_nothing(
    archive: Path, words: Path, tmp_path: Path, damaged: bytes, code: ExitCode, said: str
) -> None:
    archive.write_bytes(damaged)
    before = there(tmp_path)
    done = run("backup", "read-gpg", archive, "--into", tmp_path / "dump.sql", "--passphrase-file", words)
    assert done.exit_code == code
    assert f"{archive}: {said}" in done.output
    assert there(tmp_path) == before


@needs_gpg
def test_what_is_there_is_not_written_over(archive: Path, words: Path, tmp_path: Path) -> None:
    for name in ("file", "link"):
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        if name == "link":
            (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        done = run("backup", "read-gpg", archive, "--into", tmp_path / name, "--passphrase-file", words)
        assert done.exit_code == ExitCode.CONFLICT
        assert "is there already, and nothing is written over" in done.output
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@needs_gpg
def test_every_other_way_to_fail_leaves_nothing_either(archive: Path, words: Path, tmp_path: Path) -> None:
    wrong, open_to_all = passphrase(tmp_path, "guess"), passphrase(tmp_path, "open")
    open_to_all.chmod(0o644)
    before = there(tmp_path)
    cases: tuple[tuple[tuple[str | Path, ...], ExitCode, str], ...] = (
        ((archive, "--passphrase-file", wrong), ExitCode.CONFLICT, "the passphrase is wrong"),
        ((archive, "--passphrase-file", open_to_all), ExitCode.FAILED, f"run `chmod 600 {open_to_all}`"),
        ((archive, "--passphrase-file", tmp_path / "none"), ExitCode.USAGE, "there is no such passphrase file"),
        ((tmp_path / "no.gpg", "--passphrase-file", words), ExitCode.USAGE, "no.gpg: there is no such file; expected"),
        ((tmp_path, "--passphrase-file", words), ExitCode.FAILED, "Is a directory"),
        (("s3://acme/x.gpg", "--state-dir", tmp_path / "no"), ExitCode.USAGE, "name the site file with --site FILE"),
    )
    for arguments, code, said in cases:
        done = run("backup", "read-gpg", *arguments, "--into", tmp_path / "dump.sql")
        assert (done.exit_code, said in done.output) == (code, True), done.output
    folder = run("backup", "read-gpg", archive, "--into", tmp_path / "a" / "b", "--passphrase-file", words)
    assert (folder.exit_code, f"make it with `mkdir -p {tmp_path / 'a'}`" in folder.output) == (ExitCode.USAGE, True)
    both = run("backup", "read-gpg", archive, "--into", "-", "--passphrase-file", words, "--json")
    assert (both.exit_code, "standard output is taken" in both.output) == (ExitCode.USAGE, True)
    assert there(tmp_path) == before


def test_without_gpg_the_line_that_installs_it(archive: Path, words: Path, tmp_path: Path) -> None:
    arguments = ("backup", "read-gpg", archive, "--into", tmp_path / "dump.sql", "--passphrase-file", words)
    done = run(*arguments, env={"PATH": str(tmp_path)})
    assert done.exit_code == ExitCode.FAILED
    assert "needs the program gpg, which is not installed: `apt-get install gnupg`" in done.output


def test_an_object_is_read_range_by_range_and_always_the_same_version() -> None:
    store = FakeS3(FakeClock(), versioned=True)
    body = bytes(range(256)) * 100
    store.put("old/dump.gpg", body)
    info = store.head("old/dump.gpg")
    stream = io.BufferedReader(StoredObject(store, info), 4096)
    begin = stream.read(1000)
    store.put("old/dump.gpg", b"somebody writes over it")
    assert begin + stream.read() == body
    assert stream.read() == b""


def test_one_in_an_archive_class_is_asked_for_and_read_when_it_is_back() -> None:
    clock = FakeClock()
    store = FakeS3(clock, versioned=True)
    store.put("old/dump.gpg", OLD, storage_class=StorageClass.DEEP_ARCHIVE)
    for _ in range(2):
        with pytest.raises(ConflictError, match=r"lies in DEEP_ARCHIVE and was asked for; run the same command again"):
            require_readable(store, store.head("old/dump.gpg"))
    clock.jump(timedelta(hours=13))
    require_readable(store, store.head("old/dump.gpg"))
    assert io.BufferedReader(StoredObject(store, store.head("old/dump.gpg"))).read() == OLD
