"""Keys as files: what was written is read, everything else is refused with what to do."""

from base64 import b64encode
from pathlib import Path

import pytest

from controlplane.adapters.backup.keyfiles import (
    PRIVATE_KIND,
    generate_break_glass,
    parse_site_key,
    read_break_glass_private,
    read_break_glass_public,
    read_passphrase,
    site_key_file,
)
from controlplane.kernel.errors import ConflictError, DeniedError, NotFoundError, TerminalError

LOG_N = 10
"""Of scrypt: a thousandth of the real cost."""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "break-glass.key", tmp_path / "break-glass.pub"
    generate_break_glass(private, public, passphrase=b"correct horse", log_n=LOG_N)
    return private, public


def test_a_site_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "site.key"

    key = site_key_file(path)

    assert len(key) == 32
    assert site_key_file(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_site_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    site_key_file(path)
    path.chmod(0o640)

    with pytest.raises(TerminalError, match=rf"{path}: found mode 640, expected 600: run `chmod 600 {path}`"):
        site_key_file(path)


@pytest.mark.parametrize("text", [bytes(range(32)).hex(), b64encode(bytes(range(32))).decode(), f" {'00' * 32}\n"])
def test_a_site_key_as_hexadecimal_or_base64(text: str) -> None:
    assert len(parse_site_key(text, "SITE_KEY")) == 32


@pytest.mark.parametrize("text", ["", "hunter2", "00" * 31, b64encode(bytes(33)).decode(), "zz" * 32])
def test_what_is_no_site_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(TerminalError, match=r"SITE_KEY: found \d+ characters, expected 32 random bytes") as caught:
        parse_site_key(text, "SITE_KEY")
    assert not text or text not in str(caught.value)


def test_a_break_glass_pair_with_a_passphrase(pair: tuple[Path, Path]) -> None:
    private, public = pair

    opened = read_break_glass_private(private, lambda: b"correct horse")

    assert opened.public == read_break_glass_public(public)
    assert private.stat().st_mode & 0o777 == 0o600
    assert opened.raw not in private.read_bytes()


def test_a_break_glass_pair_without_one_asks_for_none(tmp_path: Path) -> None:
    def nobody() -> bytes:
        raise AssertionError("asked although there is none")

    public = generate_break_glass(tmp_path / "key", tmp_path / "pub")

    assert read_break_glass_private(tmp_path / "key", nobody).public == public


def test_a_wrong_or_missing_passphrase(pair: tuple[Path, Path]) -> None:
    with pytest.raises(DeniedError, match=r"break-glass\.key: the passphrase is wrong"):
        read_break_glass_private(pair[0], lambda: b"wrong horse")
    with pytest.raises(DeniedError, match=r"is protected by a passphrase, and none was given"):
        read_break_glass_private(pair[0])


def test_a_key_is_never_written_over(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = pair[1].read_bytes()

    with pytest.raises(ConflictError, match=r"break-glass\.pub: is there already; move it away"):
        generate_break_glass(tmp_path / "new.key", pair[1])

    assert pair[1].read_bytes() == before
    assert not (tmp_path / "new.key").exists()


def test_any_changed_character_is_seen_before_it_is_used(pair: tuple[Path, Path]) -> None:
    text = pair[1].read_text()
    for at in range(len(text.rstrip())):
        if text[at] == "\n":
            continue
        pair[1].write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
        with pytest.raises(TerminalError, match=r"break-glass\.pub: "):
            read_break_glass_public(pair[1])


def test_a_part_of_a_file(pair: tuple[Path, Path]) -> None:
    text = pair[1].read_text()
    pair[1].write_text(text[: len(text) // 2])

    with pytest.raises(TerminalError, match=r"give the right file, or a whole copy"):
        read_break_glass_public(pair[1])


def test_line_ends_and_spaces_of_another_machine_do_no_harm(pair: tuple[Path, Path]) -> None:
    public = read_break_glass_public(pair[1])
    pair[1].write_bytes(b"\r\n" + pair[1].read_bytes().replace(b"\n", b" \r\n"))

    assert read_break_glass_public(pair[1]) == public


def test_the_wrong_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pair[1].chmod(0o600)
    with pytest.raises(TerminalError, match=rf"expected a file from `-----BEGIN QUARTERDECK {PRIVATE_KIND}-----`"):
        read_break_glass_private(pair[1])
    with pytest.raises(NotFoundError, match=r"nothing: there is no such key file"):
        read_break_glass_public(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(TerminalError, match=r"binary: cannot be read as a key file"):
        read_break_glass_public(tmp_path / "binary")


def test_a_private_key_that_others_may_read_is_refused(pair: tuple[Path, Path]) -> None:
    pair[0].chmod(0o644)

    with pytest.raises(TerminalError, match=r"found mode 644, expected 600"):
        read_break_glass_private(pair[0], lambda: b"correct horse")


@pytest.mark.parametrize("text", [b"correct horse\n", b"correct horse\r\n", b"correct horse"])
def test_a_passphrase_from_a_file_without_the_end_of_its_line(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(text)
    path.chmod(0o400)
    assert read_passphrase(path) == b"correct horse"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_passphrase_that_others_may_read_or_write_is_refused_and_not_repeated(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(b"correct horse\n")
    path.chmod(mode)
    with pytest.raises(TerminalError, match=rf"found mode {mode:o}, expected 600: run `chmod 600 {path}`") as caught:
        read_passphrase(path)
    assert "horse" not in str(caught.value)


def test_a_passphrase_file_that_holds_none_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing: there is no such passphrase file"):
        read_passphrase(tmp_path / "nothing")
    with pytest.raises(TerminalError, match=r"cannot be read as a passphrase file"):
        read_passphrase(tmp_path)
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "empty").chmod(0o600)
    with pytest.raises(TerminalError, match=r"is empty, expected a passphrase on its one line"):
        read_passphrase(tmp_path / "empty")
