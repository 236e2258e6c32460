"""Is this folder what was copied: every file's hash, every name, every attribute, and the site's own assertions."""

import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.assertions import compare_bytes, compare_counts, differences, failed, judge
from controlplane.adapters.backup.files_index import INDEX_NAME, EntryType, IndexEntry, entry_of
from controlplane.adapters.backup.files_walk import WalkNotes, nodes
from controlplane.adapters.backup.scratch import sha256_of
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import VerifyRequest, Watch

COUNTED: Final = {
    EntryType.FILE: "files",
    EntryType.FOLDER: "folders",
    EntryType.SYMLINK: "symlinks",
    EntryType.HARD_LINK: "hard links",
}
_NANO: Final = 1e-9
_TABLE: Final = "CREATE TABLE files(path TEXT, type TEXT, size_bytes INTEGER, mode INTEGER, mtime REAL, sha256 TEXT)"
"""What assertions ask: the restored files, with the time of change in seconds since 1970."""


def counts_of(types: Counter[EntryType]) -> tuple[Count, ...]:
    return tuple(Count(name=name, rows=types[kind]) for kind, name in COUNTED.items())


def verify_folder(root: Path, stream: str, request: VerifyRequest, watch: Watch) -> Iterator[CheckOutcome]:
    """Never raises for a damaged folder or index."""
    manifest = request.manifest
    watch.step("verify", manifest.plain_bytes)
    index = root / INDEX_NAME
    yield compare_bytes("index", index, stream, manifest, watch)
    try:
        found = _compare(root, index, watch)
    except (OSError, TerminalError, UnicodeDecodeError) as error:
        yield failed("contents", f"the files cannot be compared: {error}")
        return
    size = f"{found.size_bytes} bytes"
    total = f"{sum(found.types.values())} entries"
    yield differences("names", found.names, otherwise=f"{total} are there, and nothing else")
    yield differences("contents", found.contents, otherwise=f"every file has its SHA-256: {size}")
    yield differences("attributes", found.attributes, otherwise="modes, times, owners and links are as copied")
    rows = {count.name: count.rows for count in counts_of(found.types)}
    yield compare_counts(manifest.counts, rows, unit="entries", exact=request.exact_counts)
    with closing(_queried(found.present)) as connection:
        for check in request.checks:
            yield _asserted(connection, check, request)


@dataclass(slots=True)
class _Comparison:
    names: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    types: Counter[EntryType] = field(default_factory=Counter)
    present: list[tuple[str, str, int, int, float, str]] = field(default_factory=list)
    """Rows of the table that assertions ask."""
    size_bytes: int = 0


def _compare(root: Path, index: Path, watch: Watch) -> _Comparison:
    comparison = _Comparison()
    expected: set[str] = set()
    with index.open("rb") as lines:
        for line in lines:
            entry = entry_of(line)
            expected.add(entry.path)
            _compare_entry(root, entry, comparison, watch)
    notes = WalkNotes()
    there = {node.path for node in nodes(root, (), notes)} | set(notes.skipped)
    comparison.names.extend(f"{path} is there, and was not at the copy" for path in sorted(there - expected))
    return comparison


def _compare_entry(root: Path, entry: IndexEntry, comparison: _Comparison, watch: Watch) -> None:
    path = root / entry.path
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        comparison.names.append(f"{entry.path} is missing")
        return
    except OSError as error:
        comparison.names.append(f"{entry.path} cannot be looked at: {error.strerror}")
        return
    if not _same_type(root, entry, status):
        comparison.names.append(f"{entry.path} is no {entry.type}")
        return
    comparison.types[entry.type] += 1
    if entry.type is EntryType.FILE:
        _compare_content(path, entry, status, comparison, watch)
    comparison.attributes.extend(_attributes(path, entry, status))
    row = (entry.path, str(entry.type), status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns * _NANO)
    comparison.present.append((*row, entry.sha256))


def _same_type(root: Path, entry: IndexEntry, status: os.stat_result) -> bool:
    match entry.type:
        case EntryType.FILE:
            return stat.S_ISREG(status.st_mode)
        case EntryType.FOLDER:
            return stat.S_ISDIR(status.st_mode)
        case EntryType.SYMLINK:
            return stat.S_ISLNK(status.st_mode)
        case EntryType.HARD_LINK:
            first = root / entry.target
            return first.exists() and first.lstat().st_ino == status.st_ino


def _compare_content(
    path: Path, entry: IndexEntry, status: os.stat_result, comparison: _Comparison, watch: Watch
) -> None:
    if status.st_size != entry.size_bytes:
        comparison.contents.append(f"{entry.path}: {status.st_size} bytes, expected {entry.size_bytes}")
        return
    try:
        found = sha256_of(path, watch)
    except OSError as error:
        comparison.contents.append(f"{entry.path} cannot be read: {error.strerror}")
        return
    if found != entry.sha256:
        comparison.contents.append(f"{entry.path}: its {entry.size_bytes} bytes are not those that were copied")
    comparison.size_bytes += status.st_size


def _attributes(path: Path, entry: IndexEntry, status: os.stat_result) -> Iterator[str]:
    if entry.type is EntryType.SYMLINK:
        target = os.readlink(path)  # noqa: PTH115 - the text as it is, not a normalised path
        if target != entry.target:
            yield f"{entry.path} leads to {target}, expected {entry.target}"
    elif stat.S_IMODE(status.st_mode) != entry.mode:
        yield f"{entry.path} has the mode {stat.S_IMODE(status.st_mode):o}, expected {entry.mode:o}"
    if status.st_mtime_ns != entry.mtime_ns:
        yield f"{entry.path} has another time of change than at the copy"
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        yield f"{entry.path} belongs to {status.st_uid}:{status.st_gid}, expected {entry.uid}:{entry.gid}"


def _queried(rows: list[tuple[str, str, int, int, float, str]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(_TABLE)
    printable = [(row[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), *row[1:]) for row in rows]
    connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", printable)
    connection.commit()
    connection.execute("PRAGMA query_only=ON")
    return connection


def _asserted(connection: sqlite3.Connection, check: CheckSpec, request: VerifyRequest) -> CheckOutcome:
    try:
        row = connection.execute(check.sql).fetchone()
    except sqlite3.Error as error:
        return failed(
            check.name, f"SQLite says: {error}; the table is files(path, type, size_bytes, mode, mtime, sha256)"
        )
    return judge(check, None if row is None else row[0], request)
