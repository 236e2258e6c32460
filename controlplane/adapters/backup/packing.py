"""How sealed chunks lie in objects: their order, their places, and the frames of a pack.

    0  4  magic `QDPK`
    4  1  version
    5  3  zero
    8     chunks, one after the other: length (4 bytes, little endian), sealed blob

A chunk is sealed for its place: dataset, recovery point, stream, number, and whether it is the last of its stream. So
chunks that are swapped, repeated, left out, or taken from elsewhere do not open, and neither does a stream cut short.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import MIB

CHUNK_BYTES: Final = MIB
"""Of plaintext. Larger ones pack no better (see docs/encryption.md), and a few of them are in memory at a time."""
PACK_BYTES: Final = 32 * MIB
"""Of sealed chunks; a pack is full with the chunk that passes it. Glacier bills 40 KB on top of each object (A5 in the
notes on S3), 0.1 % of this; a restore of one file from the middle still fetches little."""
PACK_HEADER: Final = b"QDPK\x01\x00\x00\x00"
LENGTH: Final = struct.Struct("<I")

_STREAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]*(/[A-Za-z0-9][A-Za-z0-9._+=@-]*)*")
_CHARACTERS_MAX: Final = 512
"""S3 allows keys of 1,024 bytes."""
_PACK_DIGITS: Final = 6
"""Of a pack's name, see `pack_key`."""


def valid_stream(name: str) -> bool:
    """Whether a stream may have the name: it becomes a part of keys, also where a store keeps keys as files.

    So a part of it must not look like a pack (`a/000001` would be a folder, and a pack of the stream `a`).
    """
    parts = name.split("/")
    return (
        len(name) <= _CHARACTERS_MAX
        and _STREAM.fullmatch(name) is not None
        and parts[0] != "manifest.json"
        and not any(part.isdigit() and len(part) >= _PACK_DIGITS for part in parts[1:])
    )


def stream_purpose(stream: str) -> str:
    """Of the key of a stream, derived from the data key."""
    return f"stream/{stream}"


def chunk_place(dataset: str, point: PointId, stream: str, index: int, *, last: bool) -> str:
    """What a chunk is sealed for; `index` counts from 0 through the whole stream."""
    return f"{dataset}/points/{point}/{stream} chunk {index}{', the last' if last else ''}"


def chunks_of(key: str, pack: memoryview, expected: int) -> Iterator[memoryview]:
    """The sealed chunks of a pack. TerminalError, naming its key, when its frames are not those of so many chunks."""
    header = bytes(pack[: len(PACK_HEADER)])
    if header != PACK_HEADER:
        raise TerminalError(f"{key}: found {header.hex()}, expected a pack, which begins with {PACK_HEADER.hex()}")
    at = len(PACK_HEADER)
    for index in range(expected):
        (size,) = LENGTH.unpack_from(pack, at) if at + LENGTH.size <= len(pack) else (len(pack),)
        at += LENGTH.size
        if at + size > len(pack):
            raise TerminalError(f"{key}: ends inside chunk {index + 1} of {expected}; use another copy")
        yield pack[at : at + size]
        at += size
    if at != len(pack):
        raise TerminalError(f"{key}: found {len(pack) - at} bytes behind its {expected} chunks; use another copy")
