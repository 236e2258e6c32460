"""What mongodump and mongorestore say: the beginning of an archive, and their lines about collections.

Sources: mongo-tools `common/archive/prelude.go` (a magic number, then a BSON document about the dump),
`mongodump/mongodump.go` ("done dumping NAME (N documents)"), `mongorestore/restore.go` ("finished restoring NAME (N
documents, M failures)").
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Count

_MAGIC: Final = 0x8199E26D
_LENGTH: Final = struct.Struct("<I")
_STRING: Final = 0x02
_INT32: Final = 0x10
_DUMPED: Final = re.compile(r"done dumping `?(?P<name>[^\s`]+)`? \((?P<rows>\d+) documents?\)")
_RESTORED: Final = re.compile(
    r"finished restoring `?(?P<name>[^\s`]+)`? \((?P<rows>\d+) documents?, (?P<failures>\d+) failures?\)"
)


def archive_notes(head: bytes) -> dict[str, str]:
    """`server_version`, `tool_version` and the rest of the first document. TerminalError when this is no archive."""
    if len(head) < 2 * _LENGTH.size or _LENGTH.unpack_from(head)[0] != _MAGIC:
        raise TerminalError(f"mongodump gave no archive: it begins with {head[:8].hex()}, expected {_MAGIC:08x}")
    (length,) = _LENGTH.unpack_from(head, _LENGTH.size)
    return dict(_fields(head[_LENGTH.size : _LENGTH.size + length]))


def dumped(said: str) -> tuple[Count, ...]:
    """Documents of each collection in the archive."""
    found = {match["name"]: int(match["rows"]) for match in _DUMPED.finditer(said)}
    return tuple(Count(name=name, rows=rows) for name, rows in sorted(found.items()))


def restored(said: str) -> tuple[dict[str, int], int]:
    """Documents of each collection that came back, and how many did not."""
    found: dict[str, int] = {}
    failures = 0
    for match in _RESTORED.finditer(said):
        found[match["name"]] = int(match["rows"])
        failures += int(match["failures"])
    return found, failures


def _fields(document: bytes) -> Iterator[tuple[str, str]]:
    """Strings and numbers of a flat BSON document, up to the first field of another type (https://bsonspec.org)."""
    at = _LENGTH.size
    while at < len(document) and document[at] in {_STRING, _INT32}:
        end = document.find(b"\0", at + 1)
        if end < 0 or end + 1 + _LENGTH.size > len(document):
            return
        (number,) = _LENGTH.unpack_from(document, end + 1)
        value_at = end + 1 + _LENGTH.size
        is_text = document[at] == _STRING
        value = document[value_at : value_at + number - 1].decode(errors="replace") if is_text else str(number)
        yield document[at + 1 : end].decode(errors="replace"), value
        at = value_at + (number if is_text else 0)
