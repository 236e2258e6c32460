"""What lies in a folder, in an order that does not depend on the disk."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.files_index import INDEX_NAME
from controlplane.kernel.errors import TerminalError

EXCLUDE_NAME: Final = ".quarterdeck-exclude"
"""In the folder's root: one pattern a line (`*`, `?`, `[...]`) for a name or for a path from the root; `#` comments."""

_LIVE_MARKS: Final = {"postmaster.pid": "PostgreSQL", "WiredTiger.lock": "MongoDB"}
_LIVE_SUFFIXES: Final = {"-wal": "SQLite"}
"""What a database that runs in the folder leaves there: its files, read one after the other, are no copy of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    path: str
    """From the root, with `/`."""
    full: Path
    status: os.stat_result


@dataclass(slots=True)
class WalkNotes:
    """What a walk met besides."""

    skipped: list[str] = field(default_factory=list)
    """Sockets, pipes and devices."""
    vanished: list[str] = field(default_factory=list)
    """There when the folder was listed, and gone a moment later."""
    live: list[str] = field(default_factory=list)
    """Marks of a database that may be running there."""


def excluded_patterns(root: Path) -> tuple[str, ...]:
    try:
        lines = (root / EXCLUDE_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise TerminalError(f"{root / EXCLUDE_NAME} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def nodes(root: Path, patterns: tuple[str, ...], notes: WalkNotes) -> Iterator[Node]:
    """Folders before what is in them, by name. TerminalError for what may not be read: half a copy is none."""
    pending = [Node(path="", full=root, status=root.stat())]
    while pending:
        node = pending.pop()
        if node.path:
            yield node
        if stat.S_ISDIR(node.status.st_mode):
            pending.extend(reversed(list(_children(node, patterns, notes))))


def _children(parent: Node, patterns: tuple[str, ...], notes: WalkNotes) -> Iterator[Node]:
    for name in _names(parent, notes):
        path = f"{parent.path}/{name}" if parent.path else name
        if path == INDEX_NAME or _matches(path, name, patterns):
            continue
        _note_live(path, name, notes)
        try:
            status = (parent.full / name).lstat()
        except FileNotFoundError:
            notes.vanished.append(path)
            continue
        if _kept(status.st_mode):
            yield Node(path=path, full=parent.full / name, status=status)
        else:
            notes.skipped.append(path)


def _names(parent: Node, notes: WalkNotes) -> list[str]:
    try:
        with os.scandir(parent.full) as entries:
            return sorted((entry.name for entry in entries), key=os.fsencode)
    except FileNotFoundError:
        notes.vanished.append(parent.path)
        return []
    except OSError as error:
        raise TerminalError(
            f"{parent.full} cannot be listed: {error.strerror}; let the control plane's user read it, or exclude it "
            f"in {EXCLUDE_NAME}"
        ) from error


def _kept(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _matches(path: str, name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)


def _note_live(path: str, name: str, notes: WalkNotes) -> None:
    engine = _LIVE_MARKS.get(name) or next(
        (engine for suffix, engine in _LIVE_SUFFIXES.items() if name.endswith(suffix)), None
    )
    if engine is not None:
        notes.live.append(f"{path} ({engine})")
