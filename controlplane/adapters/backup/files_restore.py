"""A tar stream back into an empty folder: nothing outside it is ever touched, whatever the stream says."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from controlplane.adapters.backup.files_tar import SPARSE_RECORD
from controlplane.adapters.backup.scratch import sync_filesystem
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import KIB, MIB
from controlplane.recovery.ports import Watch

_READ_BYTES: Final = MIB
_HOLE_BYTES: Final = 64 * KIB
"""Zeros of this length in a row become a hole, where the file had holes."""
_NANO: Final = 1_000_000_000


@dataclass(slots=True)
class _Later:
    """What must wait until every file is written: nothing may be written through a link, nor into a closed folder."""

    folders: list[tuple[Path, tarfile.TarInfo]] = field(default_factory=list)
    hard_links: list[tuple[Path, Path]] = field(default_factory=list)
    symlinks: list[tuple[Path, tarfile.TarInfo]] = field(default_factory=list)


def unpack(pieces: Iterator[bytes], into: Path, watch: Watch) -> int:
    """Bytes of the files written; durable when this returns. TerminalError, naming the entry, for what is not ours."""
    later = _Later()
    written = 0
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _PieceReader(pieces)), mode="r|", errorlevel=1) as archive:
            for member in archive:
                written += _place(archive, member, into, later, watch)
        _finish(later)
    except tarfile.TarError as error:
        raise TerminalError(f"the copy is no tar archive that can be read to its end: {error}") from error
    except FileExistsError as error:
        raise TerminalError(f"the copy names {error.filename} twice") from error
    sync_filesystem(into)
    return written


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path, later: _Later, watch: Watch) -> int:
    path = into / _inside(member.name)
    match member.type:
        case tarfile.DIRTYPE:
            path.mkdir(mode=0o700)
            later.folders.append((path, member))
        case tarfile.SYMTYPE:
            later.symlinks.append((path, member))
        case tarfile.LNKTYPE:
            later.hard_links.append((into / _inside(member.linkname), path))
        case tarfile.REGTYPE:
            return _write(archive, member, path, watch)
        case other:
            raise TerminalError(f"the copy holds {member.name} of the tar type {other!r}, expected files and links")
    return 0


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise TerminalError(f"the copy names {name!r}, which is not inside the folder; nothing of it was written")
    return name


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, watch: Watch) -> int:
    body = archive.extractfile(member)
    assert body is not None, "a regular member has a body"
    sparse = SPARSE_RECORD in member.pax_headers
    with path.open("xb") as file:
        while piece := body.read(_READ_BYTES):
            if sparse:
                _write_with_holes(file, piece)
            else:
                file.write(piece)
            watch.advance(len(piece))
        file.truncate(member.size)
        _own(member, file.fileno())
        os.fchmod(file.fileno(), member.mode)
        file.flush()
        os.utime(file.fileno(), ns=_times(member))
    return member.size


def _write_with_holes(file: IO[bytes], piece: bytes) -> None:
    for start in range(0, len(piece), _HOLE_BYTES):
        block = memoryview(piece)[start : start + _HOLE_BYTES]
        if block == bytes(len(block)):
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)


def _finish(later: _Later) -> None:
    for first, path in later.hard_links:
        try:
            os.link(first, path, follow_symlinks=False)
        except FileNotFoundError as error:
            raise TerminalError(f"the copy links {path.name} to {first.name}, which it does not hold") from error
    for path, member in later.symlinks:
        path.symlink_to(member.linkname)
        _own(member, path)
        os.utime(path, ns=_times(member), follow_symlinks=False)
    for path, member in reversed(later.folders):
        _own(member, path)
        path.chmod(member.mode)
        os.utime(path, ns=_times(member))


def _own(member: tarfile.TarInfo, target: int | Path) -> None:
    """Owners come back only where the one who restores may give files away."""
    if os.geteuid() != 0:
        return
    if isinstance(target, int):
        os.fchown(target, member.uid, member.gid)
    else:
        os.lchown(target, member.uid, member.gid)


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    """Access and modification, in nanoseconds; tarfile itself keeps only what a float can tell."""
    seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    mtime_ns = int(seconds) * _NANO + int(fraction.ljust(9, "0")[:9])
    return mtime_ns, mtime_ns


class _PieceReader(RawIOBase):
    """Pieces as something that can be read; tarfile asks for what it likes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = bytearray()
        while size < 0 or len(found) < size:
            if not self._left:
                self._left = next(self._pieces, b"")
                if not self._left:
                    break
            wanted = len(self._left) if size < 0 else size - len(found)
            found += self._left[:wanted]
            self._left = self._left[wanted:]
        return bytes(found)
