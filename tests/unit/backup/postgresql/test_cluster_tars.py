"""Tars of a base backup, as PostgreSQL writes them, onto disk."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.adapters.backup.postgresql.tar import parse_header, unpack
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import CancelledWorkError, SilentWatch
from controlplane.testing.backups import RecordingWatch

FILES = {
    "PG_VERSION": b"18\n",
    "base/1/1249": bytes(range(256)) * 513,
    "base/1/empty": b"",
    "global/pg_control": b"x" * 8192,
}


def tar_of(files: dict[str, bytes], *, link: str | None = None, pad: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in ("base", "base/1", "global", "pg_tblspc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(entry)
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(body), 0o600
            tar.addfile(entry, io.BytesIO(body))
        if link is not None:
            entry = tarfile.TarInfo("pg_tblspc/16400")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    body = buffer.getvalue()
    return body if pad else body.rstrip(b"\0") + b"\0" * (-len(body.rstrip(b"\0")) % 512)


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


@pytest.mark.parametrize("size", [1, 7, 511, 512, 65_521, 10**9])
def test_any_cut_of_the_stream_gives_the_same_files(tmp_path: Path, size: int) -> None:
    body = tar_of(FILES)
    into = tmp_path / "data"
    done = unpack(pieces(body, size), into, tablespaces=tmp_path / "t", who=None, watch=SilentWatch())
    assert done == len(body)
    assert {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()} == FILES
    assert (into / "PG_VERSION").stat().st_mode & 0o777 == 0o600
    assert (into / "base").stat().st_mode & 0o777 == 0o700


def test_a_tar_without_its_last_blocks_is_whole(tmp_path: Path) -> None:
    body = tar_of({"PG_VERSION": b"18\n"}, pad=False)
    unpack(iter([body]), tmp_path / "data", tablespaces=tmp_path, who=None, watch=SilentWatch())
    assert (tmp_path / "data/PG_VERSION").read_bytes() == b"18\n"


def test_tablespaces_lead_into_their_new_folder(tmp_path: Path) -> None:
    body = tar_of({}, link="/mnt/fast-disk/of/the/live/server")
    unpack(iter([body]), tmp_path / "data", tablespaces=tmp_path / "t", who=None, watch=SilentWatch())
    assert (tmp_path / "data/pg_tblspc/16400").readlink() == tmp_path / "t/16400"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    body = tar_of({"base/1/1": b"y" * 100_000}, pad=False)
    with pytest.raises(TerminalError, match="ends"):
        unpack(
            iter([body[: int(len(body) * share)]]),
            tmp_path / "data",
            tablespaces=tmp_path,
            who=None,
            watch=SilentWatch(),
        )


@pytest.mark.parametrize("name", ["../outside", "base/../../outside", "/etc/passwd"])
def test_nothing_is_written_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(TerminalError, match="inside of its folder"):
        unpack(iter([tar_of({name: b"x"})]), tmp_path / "d", tablespaces=tmp_path, who=None, watch=SilentWatch())
    assert not (tmp_path / "outside").exists()


def test_anything_else_is_no_tar(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no tar header"):
        unpack(iter([b"x" * 1024]), tmp_path / "d", tablespaces=tmp_path, who=None, watch=SilentWatch())
    block = bytearray(tar_of({"x": b""})[512 * 4 : 512 * 5])
    block[156] = ord("3")
    with pytest.raises(TerminalError, match="kind '3'"):
        unpack(iter([bytes(block)]), tmp_path / "e", tablespaces=tmp_path, who=None, watch=SilentWatch())


def test_large_numbers_are_in_base_256() -> None:
    block = bytearray(tar_of({"x": b""})[512 * 4 : 512 * 5])
    block[124:136] = b"\x80" + (10 * 1024**3).to_bytes(11, "big")
    assert parse_header(bytes(block)).size == 10 * 1024**3
    block[124:136] = b"not a number"
    with pytest.raises(TerminalError, match="number"):
        parse_header(bytes(block))


def test_it_stops_when_asked(tmp_path: Path) -> None:
    watch = RecordingWatch(cancel_after_bytes=100_000)
    with pytest.raises(CancelledWorkError):
        unpack(pieces(tar_of(FILES), 4096), tmp_path / "d", tablespaces=tmp_path, who=None, watch=watch)
    assert watch.done_bytes < 110_000
