"""What a flush syncs, what it leaves, and that callers at the same time share a round."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from controlplane.adapters.objectstore.flush import FolderFlush, sync_path
from controlplane.kernel.errors import TerminalError


class Disk:
    """Counts what is synced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.synced: list[str] = []
        self.full = False

    def sync(self, path: str) -> bool:
        if self.full:
            raise OSError(errno.EIO, "input/output error")
        self.synced.append(os.path.relpath(path, self.folder))
        return sync_path(path)

    def taken(self) -> list[str]:
        found, self.synced = sorted(self.synced), []
        return found


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "leveldb").mkdir()
    (tmp_path / "leveldb" / "000001.log").write_bytes(b"entries")
    (tmp_path / "leveldb" / "LOG").write_bytes(b"diary")
    (tmp_path / "1.dat").write_bytes(b"needles")
    (tmp_path / "1.idx").write_bytes(b"index")
    return Disk(tmp_path)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_everything_is_synced_once(disk: Disk) -> None:
    flush = FolderFlush(disk.folder, sync=disk.sync)

    flush()
    assert disk.taken() == [".", "1.dat", "1.idx", "leveldb", "leveldb/000001.log"]
    flush()
    assert disk.taken() == []


def test_only_what_grew_is_synced_again(disk: Disk) -> None:
    flush = FolderFlush(disk.folder, sync=disk.sync)
    flush()
    disk.taken()

    append(disk.folder / "1.dat", b"one more")
    append(disk.folder / "leveldb" / "000001.log", b"one more")
    append(disk.folder / "leveldb" / "LOG", b"chatter")
    flush()

    assert disk.taken() == ["1.dat", "leveldb/000001.log"]


def test_a_new_file_is_synced_before_the_folder_that_names_it(disk: Disk) -> None:
    flush = FolderFlush(disk.folder, sync=disk.sync)
    flush()
    disk.taken()

    (disk.folder / "2.dat").write_bytes(b"")
    flush()

    assert disk.synced == ["2.dat", "."]


def test_a_replaced_file_counts_as_changed(disk: Disk) -> None:
    flush = FolderFlush(disk.folder, sync=disk.sync)
    flush()
    disk.taken()

    beside = disk.folder / "1.cpd"
    beside.write_bytes(b"needles")
    beside.replace(disk.folder / "1.dat")
    flush()

    assert "1.dat" in disk.taken()


def test_a_disk_that_refuses_is_told_and_asked_again(disk: Disk) -> None:
    flush = FolderFlush(disk.folder, sync=disk.sync)
    disk.full = True
    with pytest.raises(TerminalError, match="input/output"):
        flush()

    disk.full = False
    flush()

    assert "1.dat" in disk.taken()


def test_a_folder_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    FolderFlush(tmp_path / "later")()


def test_callers_that_wait_share_one_round(disk: Disk) -> None:
    """One round runs; five more callers come while it does: one more round covers them all."""
    running, go_on = Event(), Event()
    rounds: list[int] = []

    def sync(path: str) -> bool:
        if path.endswith("1.dat"):
            rounds.append(1)
            running.set()
            assert go_on.wait(10)
        return disk.sync(path)

    flush = FolderFlush(disk.folder, sync=sync)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(flush)
        assert running.wait(10)
        append(disk.folder / "1.dat", b"written while the first round runs")
        others = [pool.submit(flush) for _ in range(5)]
        while flush.asked < 6:
            pass
        go_on.set()
        for call in [first, *others]:
            call.result(10)

    assert len(rounds) == 2
