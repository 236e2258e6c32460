"""Durability for a server that leaves its writes in the page cache: everything it changed in a folder is synced.

SeaweedFS 4.48 answers a PUT when the kernel has the bytes. Its `fsync` setting covers the data files, not their index
nor the filer's LevelDB (seen with strace), so after a power failure a byte could be on the disk and not be found. Here
all of it is synced before the caller goes on: what is acknowledged survives the machine.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Final

from controlplane.kernel.errors import TerminalError

_IGNORED: Final = frozenset({"LOCK", "LOG", "LOG.old"})
"""LevelDB's lock and diary: no part of the data."""


def sync_path(path: str) -> bool:
    """Everything of a file or folder is on the disk. False when it is gone meanwhile."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.fsync(file)
    finally:
        os.close(file)
    return True


class FolderFlush:
    """Call it after a write. Callers at the same time share one round, so it costs each about as much as one alone."""

    def __init__(self, folder: Path, *, sync: Callable[[str], bool] = sync_path) -> None:
        self._folder = folder
        self._sync = sync
        self._synced: dict[str, tuple[int, int, int]] = {}
        self._counting = Lock()
        self.asked = 0
        """Calls so far."""
        self._turn = Lock()
        self._covered = 0

    def __call__(self) -> None:
        """TerminalError when the disk refuses."""
        with self._counting:
            self.asked += 1
            mine = self.asked
        with self._turn:
            if self._covered >= mine:
                return  # a round that began after our write has ended
            with self._counting:
                covers = self.asked
            try:
                self._sync_changed()
            except OSError as error:
                raise TerminalError(f"{self._folder} cannot be made durable: {error}; check its disk") from error
            self._covered = covers

    def _sync_changed(self) -> None:
        found = [*_files(self._folder)]
        self._synced = {path: state for path, state in found if self._synced.get(path) == state or self._sync(path)}


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Each file, then its folder, with what tells that it changed. Data files only ever grow, so their size would."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                elif entry.is_file(follow_symlinks=False) and entry.name not in _IGNORED:
                    yield entry.path, _state(entry.stat(follow_symlinks=False))
        yield str(folder), _state(folder.stat())
    except FileNotFoundError:
        return  # compacted away between listing and looking


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
