"""The beginning and the end of an RDB file: who wrote it, when, how many keys, and whether it is whole.

Format: Redis' rdb.c and rdb.h (version 1 of 2009 to 12 of Redis 7.4; Valkey's 80 differs only in what follows).
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB

HEAD_BYTES: Final = MIB
"""Enough for the notes at the beginning and a library of functions; keys behind more are not counted."""
_MAGIC: Final = b"REDIS"
_VALKEY_MAGIC: Final = b"VALKEY"
_HEADER_BYTES: Final = 9
_TAIL_BYTES: Final = 9
"""The mark of the end and a CRC-64."""
_CHECKSUM_VERSION_MIN: Final = 5
"""From this version on there is a checksum at the end."""


class _Opcode(IntEnum):
    FUNCTION = 0xF5
    NOTE = 0xFA
    RESIZE_DB = 0xFB
    SELECT_DB = 0xFE
    END = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class DbSize:
    """Of one logical database, as the writer counted it at the moment of the copy."""

    index: int
    keys: int
    expiring: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RdbHead:
    version: int
    notes: tuple[tuple[str, str], ...]
    first: DbSize | None
    """None: the file is empty, or what stands before the keys is not known here (modules' notes)."""
    empty: bool = False

    def note(self, name: str) -> str | None:
        return next((value for key, value in self.notes if key == name), None)

    @property
    def created_at(self) -> datetime | None:
        """By the clock of the server that wrote it, in whole seconds, rounded down."""
        text = self.note("ctime")
        return datetime.fromtimestamp(int(text), UTC) if text and text.isdecimal() else None


class _EndOfHeadError(Exception):
    """What was given ends here."""


def parse_head(data: bytes) -> RdbHead:
    """Of the first `HEAD_BYTES` or so. TerminalError when this is no RDB file."""
    if not data.startswith((_MAGIC, _VALKEY_MAGIC)) or len(data) < _HEADER_BYTES:
        raise TerminalError(f"the server sent no RDB file: it begins with {data[:16]!r}, expected REDIS")
    digits = data[len(_MAGIC) : _HEADER_BYTES] if data.startswith(_MAGIC) else data[len(_VALKEY_MAGIC) : _HEADER_BYTES]
    if not digits.isdigit():
        raise TerminalError(f"the RDB file has the version {digits!r}, expected digits")
    reader = _Reader(data, _HEADER_BYTES)
    notes: list[tuple[str, str]] = []
    first: DbSize | None = None
    empty = False
    with suppress(_EndOfHeadError):
        first, empty = _scan(reader, notes)
    return RdbHead(version=int(digits), notes=tuple(notes), first=first, empty=empty)


@dataclass(slots=True)
class RdbTail:
    """Is fed the whole file; knows at its end whether it was whole."""

    _last: bytes = field(default=b"")

    def feed(self, piece: bytes) -> None:
        self._last = (self._last + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def require_whole(self, version: int) -> None:
        """TerminalError when the file ends before its own mark."""
        at = -_TAIL_BYTES if version >= _CHECKSUM_VERSION_MIN else -1
        if len(self._last) < -at or self._last[at] != _Opcode.END:
            raise TerminalError("the RDB file that the server sent ends before its end mark; the copy is not used")


def _scan(reader: "_Reader", notes: list[tuple[str, str]]) -> tuple[DbSize | None, bool]:
    while True:
        match reader.byte():
            case _Opcode.NOTE:
                notes.append((reader.text(), reader.text()))
            case _Opcode.FUNCTION:
                reader.text()
            case _Opcode.SELECT_DB:
                index = reader.length()
                if reader.byte() != _Opcode.RESIZE_DB:
                    return None, False
                return DbSize(index=index, keys=reader.length(), expiring=reader.length()), False
            case _Opcode.END:
                return None, True
            case _:
                return None, False


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def byte(self) -> int:
        return self._take(1)[0]

    def length(self) -> int:
        """A plain length; _EndOfHeadError for the special encodings, which are no lengths."""
        value, special = self._length()
        if special:
            raise _EndOfHeadError
        return value

    def text(self) -> str:
        value, special = self._length()
        if not special:
            return self._take(value).decode(errors="replace")
        match value:
            case 0:
                return str(struct.unpack("<b", self._take(1))[0])
            case 1:
                return str(struct.unpack("<h", self._take(2))[0])
            case 2:
                return str(struct.unpack("<i", self._take(4))[0])
            case _:  # compressed: skipped, since nothing that is read here is ever so long
                stored = self.length()
                self.length()
                self._take(stored)
                return ""

    def _length(self) -> tuple[int, bool]:
        first = self.byte()
        match first >> 6:
            case 0:
                return first & 0x3F, False
            case 1:
                return (first & 0x3F) << 8 | self.byte(), False
            case 2:
                return int.from_bytes(self._take(8 if first & 1 else 4), "big"), False
            case _:
                return first & 0x3F, True

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise _EndOfHeadError
        self._at += count
        return piece
