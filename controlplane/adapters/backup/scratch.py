"""Folders of restored copies: empty before, written durably, gone afterwards with every process that ran in them."""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from controlplane.kernel.errors import ConflictError, TerminalError
from controlplane.kernel.units import MIB, format_bytes
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import SnapshotSource, Watch

_END_WAIT_S: Final = 5.0
"""For a process of a scratch copy to end when asked; its data are about to be removed, so then it is killed."""
_READ_BYTES: Final = MIB


@contextmanager
def filling(into: Path) -> Iterator[None]:
    """The folder, empty before, and empty again when what is inside raises: half a restore looks like a whole one.

    TerminalError, with the system's words, when something in it cannot be written.
    """
    require_empty(into)
    try:
        yield
    except OSError as error:
        _empty(into)
        raise TerminalError(f"{error.filename or into} cannot be written: {error.strerror}") from error
    except BaseException:
        _empty(into)
        raise


def require_empty(into: Path) -> None:
    """Make the folder, or ConflictError when there is something in it: a restore overwrites nothing."""
    if into.is_symlink() or (into.exists() and not into.is_dir()):
        raise ConflictError(f"{into} is not a folder; name an empty folder, or one that is not there yet")
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.scandir(into) as entries:
        found = next(entries, None)
    if found is not None:
        raise ConflictError(
            f"{into} is not empty (it holds {found.name}); a restore overwrites nothing: name an empty folder"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_stream(source: SnapshotSource, stream: str, path: Path, watch: Watch) -> int:
    """The stream as a file that is there whole or not at all; durable when this returns. Bytes written."""
    partial = path.with_name(path.name + ".partial")
    written = 0
    with partial.open("xb") as file:
        for piece in source.read(stream):
            file.write(piece)
            written += len(piece)
            watch.advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
    return written


def sync_folder(folder: Path) -> None:
    """Names in it are durable when this returns."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_filesystem(folder: Path) -> None:
    """All that was written to the folder's file system is durable: one wait, instead of one for each of many files."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(handle)


def sha256_of(path: Path, watch: Watch) -> str:
    """Hexadecimal; tells the watch of each piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            watch.advance(len(piece))
    return digest.hexdigest()


def plain_file_name(manifest: Manifest, fact: str) -> str:
    """A file name that the manifest tells; TerminalError when it would lead out of the folder."""
    name = manifest.fact(fact) or ""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise TerminalError(f"recovery point {manifest.point} names {name!r} as its {fact}, expected a plain file name")
    return name


def leftovers(into: Path, programs: frozenset[str]) -> tuple[str, ...]:
    """Processes of these programs that run in the folder, and the folder itself; empty: nothing is left."""
    found = [f"process {process.pid} ({_name(process)})" for process in _processes_in(into, programs)]
    if into.exists():
        files = [path for path in into.rglob("*") if path.is_file() and not path.is_symlink()]
        size_bytes = sum(path.stat().st_size for path in files)
        found.append(f"folder {into} ({len(files)} files, {format_bytes(size_bytes)})")
    return tuple(found)


def end_leftovers(into: Path, programs: frozenset[str]) -> None:
    """End those processes, by their identifiers, then remove the folder. Nothing there is fine."""
    end_running(into, programs)
    if into.exists():
        shutil.rmtree(into)


def end_running(into: Path, programs: frozenset[str]) -> None:
    end_processes(_processes_in(into, programs))


def end_processes(processes: Iterable[psutil.Process]) -> None:
    every = list(processes)
    for process in every:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(every, timeout=_END_WAIT_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_END_WAIT_S)


def _processes_in(into: Path, programs: frozenset[str]) -> list[psutil.Process]:
    """By program as well as by folder: a person's shell, or this program itself, may be there too."""
    if not programs:
        return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.name() in programs and _runs_in(process, into.resolve()):
                found.append(process)
    return found


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    if Path(process.cwd()).is_relative_to(folder):
        return True
    return any(Path(word.rpartition("=")[2]).is_relative_to(folder) for word in process.cmdline() if "/" in word)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "just ended"
