"""One line of JSON for each thing in a copied folder: what it was, and the hash of what was copied of it."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from controlplane.kernel.errors import TerminalError

INDEX_NAME: Final = ".quarterdeck-index.jsonl"
"""In the restored folder, beside what was restored. A folder that is copied never brings its own along."""


class EntryType(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    path: str
    """From the folder's root, with `/`; bytes that are no UTF-8 as lone surrogates (PEP 383)."""
    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int = 0
    sha256: str = ""
    """Of a file's copied bytes, hexadecimal."""
    target: str = ""
    """Of a link: where it leads; a hard link's is a path of this folder."""
    changed: bool = False
    """Somebody wrote the file while it was read: its bytes may be of several moments."""


def line_of(entry: IndexEntry) -> bytes:
    return json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"


def entry_of(line: str | bytes) -> IndexEntry:
    """TerminalError when the line is not one of ours."""
    try:
        fields = json.loads(line)
        return IndexEntry(**{**fields, "type": EntryType(fields["type"])})
    except (ValueError, KeyError, TypeError) as error:
        raise TerminalError(f"a line of the index cannot be read: {error}") from error
