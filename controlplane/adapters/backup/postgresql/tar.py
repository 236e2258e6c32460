"""Tars of a base backup, written to disk as they come: no temporary file, no second copy in memory.

PostgreSQL writes plain ustar headers: files, folders, links of tablespaces; numbers in octal, large ones in base 256.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from controlplane.adapters.backup.postgresql.durable import FileWriter
from controlplane.adapters.backup.postgresql.programs import Account
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import Watch

_BLOCK: Final = 512
_MAGIC: Final = slice(257, 262)
_BASE_256: Final = 0x80
_FILE: Final = frozenset("0\0")
_FOLDER: Final = "5"
_LINK: Final = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class TarHeader:
    name: PurePosixPath
    kind: str
    size: int
    mode: int


class _Bytes:
    """Exact reads from pieces of any length, without joining them where a view will do."""

    def __init__(self, pieces: Iterator[bytes], watch: Watch) -> None:
        self._pieces = pieces
        self._watch = watch
        self._rest = memoryview(b"")
        self.taken = 0

    def some(self, length_max: int) -> memoryview:
        """At least a byte, at most so many; empty at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            self._watch.advance(len(piece))
            self._rest = memoryview(piece)
        part, self._rest = self._rest[:length_max], self._rest[length_max:]
        self.taken += len(part)
        return part

    def exactly(self, length: int) -> bytes:
        """Fewer only at the end."""
        parts: list[memoryview] = []
        missing = length
        while missing:
            part = self.some(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def unpack(pieces: Iterator[bytes], into: Path, *, tablespaces: Path, who: Account | None, watch: Watch) -> int:
    """Bytes read. Links of tablespaces lead into the folder `tablespaces`, by their number, wherever they led before.

    TerminalError when it is no tar, is cut short, or names something outside of the folder.
    """
    source, writer = _Bytes(pieces, watch), FileWriter()
    _make_folder(into, who)
    while True:
        block = source.exactly(_BLOCK)
        if not block or not any(block):
            break
        header = parse_header(block)
        target = into / header.name
        if header.kind == _FOLDER:
            _make_folder(target, who)
        elif header.kind == _LINK:
            place = tablespaces / header.name.name
            target.symlink_to(place)
        elif header.kind in _FILE:
            _write_file(source, writer, target, header, who)
        else:
            raise TerminalError(f"found an entry of kind {header.kind!r} ({header.name}) in the copy, expected files")
    while source.some(_BLOCK):  # what pads the last record
        pass
    return source.taken


def parse_header(block: bytes) -> TarHeader:
    if len(block) < _BLOCK or block[_MAGIC] != b"ustar":
        raise TerminalError("found no tar header where one must be: the copy is not what PostgreSQL sent")
    name = PurePosixPath(_text(block[345:500]), _text(block[:100]))
    if name.is_absolute() or ".." in name.parts:
        raise TerminalError(f"found the name {name} in the copy, expected one inside of its folder")
    return TarHeader(
        name=name, kind=chr(block[156]), size=_number(block[124:136]), mode=_number(block[100:108]) & 0o777
    )


def _write_file(source: _Bytes, writer: FileWriter, target: Path, header: TarHeader, who: Account | None) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, missing = writer.create(target, header.size, header.mode & 0o700 | 0o600, source.some)
    try:
        if missing:
            raise TerminalError(f"the copy ends {missing} bytes before the end of {header.name}")
        if who is not None:
            os.fchown(handle, who.uid, who.gid)
    finally:
        os.close(handle)
    padding = -header.size % _BLOCK
    if padding and len(source.exactly(padding)) < padding:
        raise TerminalError(f"the copy ends in the padding of {header.name}")


def _make_folder(path: Path, who: Account | None) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if who is not None:
        os.chown(path, who.uid, who.gid)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def _number(field: bytes) -> int:
    if field[0] & _BASE_256:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TerminalError(f"found {digits!r} for a number in a tar header") from None
