"""Positions in PostgreSQL's log: 64-bit byte addresses, the files of fixed length that they lie in, timelines."""

import re
from dataclasses import dataclass
from typing import Final, Self

from controlplane.kernel.errors import TerminalError

SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""PostgreSQL's own default; `initdb --wal-segsize` may choose another power of two from 1 MiB to 1 GiB."""

_LSN: Final = re.compile(r"^([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})$")
_SEGMENT_NAME: Final = re.compile(r"^[0-9A-F]{24}$")
_LOW_BITS: Final = 32


def parse_lsn(text: str) -> int:
    """`16/B374D848` as PostgreSQL prints it. TerminalError for anything else."""
    match = _LSN.match(text)
    if match is None:
        raise TerminalError(f"found {text!r} for a position in the log, expected one like 0/3000028")
    return (int(match[1], 16) << _LOW_BITS) | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    return f"{lsn >> _LOW_BITS:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the log of one timeline; written `1:0/3000028`."""

    timeline: int
    lsn: int

    @classmethod
    def parse(cls, text: str) -> Self:
        timeline, colon, lsn = text.partition(":")
        if not colon or not timeline.isdecimal():
            raise TerminalError(f"found {text!r} for a position in the log, expected one like 1:0/3000028")
        return cls(int(timeline), parse_lsn(lsn))

    def __str__(self) -> str:
        return f"{self.timeline}:{format_lsn(self.lsn)}"


def segment_start(lsn: int, segment_bytes: int) -> int:
    return lsn - lsn % segment_bytes


def segment_end(lsn: int, segment_bytes: int) -> int:
    """The first byte after the segment that ends at or after the position."""
    return segment_start(lsn + segment_bytes - 1, segment_bytes)


def segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """Of the file that the position lies in: timeline, high part, number within 4 GiB, each 8 hexadecimal digits."""
    number = lsn // segment_bytes
    per_log = (1 << _LOW_BITS) // segment_bytes
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"


def is_segment_name(name: str) -> bool:
    return _SEGMENT_NAME.match(name) is not None


@dataclass(frozen=True, slots=True)
class Switch:
    """One line of a timeline's history: up to where its ancestor is part of it."""

    ancestor: int
    lsn: int


def parse_history(text: str) -> tuple[Switch, ...]:
    """A `.history` file: the ancestors of a timeline, oldest first (format: PostgreSQL's timeline.c)."""
    switches: list[Switch] = []
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 2:  # noqa: PLR2004 - timeline and position; a comment follows
            switches.append(Switch(int(fields[0]), parse_lsn(fields[1])))
    return tuple(switches)
