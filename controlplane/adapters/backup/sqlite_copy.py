"""The consistent copy of a live SQLite database, as a file of its own for as long as it is needed."""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB, format_bytes
from controlplane.recovery.ports import Watch

BUSY_TIMEOUT_S: Final = 5.0
"""Waiting for another's lock. A reader of a WAL database waits only while somebody recovers or restarts the log."""
_STEP_BYTES: Final = 16 * MIB
"""Copied between two looks at whether somebody asked to stop: some 20 ms of a disk."""
_ROOM_SPARE: Final = 1.1
"""Of the database's size must be free: it may grow while we look."""
_PREFIX: Final = ".quarterdeck-copy-"
_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteCopy:
    path: Path
    consistent_at: datetime
    journal_mode: str
    """Of the live database: the copy itself is one plain file without a log."""


def engine() -> str:
    return f"sqlite {sqlite3.sqlite_version}"


def open_read_only(path: Path, busy_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection that cannot write, nor attach another file and write there."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=busy_s, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors about a live database, as what to do about them."""
    if not path.is_file():
        raise TerminalError(f"no SQLite database at {path}; correct the dataset's path")
    try:
        yield
    except sqlite3.OperationalError as error:
        if (error.sqlite_errorcode & 0xFF) in _BUSY_CODES:
            raise RetryableError(f"{path} stayed locked: {error}") from error
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise TerminalError(f"no room for a copy of {path} while it is sent; free some room") from error
        raise TerminalError(f"{path} cannot be read: {error}. The control plane's user must be able to") from error
    except sqlite3.DatabaseError as error:
        raise TerminalError(f"{path} is not a sound SQLite database: {error}") from error


@contextmanager
def copied(
    path: Path, *, work: Path | None, now: Callable[[], datetime], watch: Watch, busy_s: float = BUSY_TIMEOUT_S
) -> Iterator[SqliteCopy]:
    """The database as of one moment. Its writers go on; the copy is removed on leaving, or by the next one."""
    with translated(path), _own_folder(work or path.parent) as folder:
        yield _copy(path, folder / path.name, now, watch, busy_s)


def _copy(path: Path, target: Path, now: Callable[[], datetime], watch: Watch, busy_s: float) -> SqliteCopy:
    with closing(open_read_only(path, busy_s)) as live, closing(sqlite3.connect(target, isolation_level=None)) as copy:
        page_bytes = int(live.execute("PRAGMA page_size").fetchone()[0])
        size_bytes = page_bytes * int(live.execute("PRAGMA page_count").fetchone()[0])
        _require_room(target.parent, size_bytes)
        watch.step("read", size_bytes)
        # Nothing of the copy needs to outlive a crash, so it is written without a journal and without waiting.
        copy.execute("PRAGMA journal_mode=OFF")
        copy.execute("PRAGMA synchronous=OFF")
        consistent_at = now()
        # One read transaction around all steps: the pages of one moment, although others write between two steps.
        # Without it SQLite starts the copy over after each foreign commit, for ever under a steady load.
        live.execute("BEGIN")
        live.execute("SELECT count(*) FROM sqlite_master").fetchone()
        live.backup(copy, pages=max(1, _STEP_BYTES // page_bytes), progress=_Progress(watch, page_bytes), sleep=0)
        live.execute("COMMIT")
        journal_mode = str(live.execute("PRAGMA journal_mode").fetchone()[0])
        # The header came along and may say WAL: the copy must be readable without files beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
    return SqliteCopy(path=target, consistent_at=consistent_at, journal_mode=journal_mode)


class _Progress:
    def __init__(self, watch: Watch, page_bytes: int) -> None:
        self._watch = watch
        self._page_bytes = page_bytes
        self._done = 0

    def __call__(self, _status: int, remaining: int, total: int) -> None:
        done = (total - remaining) * self._page_bytes
        self._watch.advance(max(0, done - self._done))
        self._done = done


def _require_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes * _ROOM_SPARE:
        raise TerminalError(
            f"{folder} has {format_bytes(free)} free, expected {format_bytes(size_bytes * _ROOM_SPARE)} for a copy of "
            "the database while it is sent; free some room"
        )


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A locked folder: whoever finds one that is not locked knows that its owner is gone, and removes it."""
    _sweep(parent)
    folder, handle = _claimed(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def _claimed(parent: Path) -> tuple[Path, int]:
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            if parent.is_dir():
                continue  # swept in the moment before it could be locked
            raise TerminalError(f"there is no folder {parent} for the copy") from error
        except OSError as error:
            raise TerminalError(f"no folder for the copy can be made in {parent}: {error.strerror}") from error
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            return folder, handle
        os.close(handle)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is in use, or another sweeper was faster
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(handle)
