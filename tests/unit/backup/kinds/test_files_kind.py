"""Plain files: odd things in folders, files that change under the reader, and archives that mean harm."""

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controlplane.adapters.backup.files import INDEX_STREAM, TREE_STREAM, FilesDataset
from controlplane.adapters.backup.files_index import INDEX_NAME, entry_of
from controlplane.adapters.backup.files_tar import TarStream
from controlplane.adapters.backup.files_walk import EXCLUDE_NAME, Node, WalkNotes, nodes
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import RestoreRequest, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from controlplane.testing.effects import START

LARGE_BYTES = 6 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "live"
    folder.mkdir()
    return folder


def dataset(root: Path) -> FilesDataset:
    return FilesDataset(path=root, now=lambda: START)


def snapshot(root: Path) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink()
    facts = dataset(root).snapshot(sink, parent=None, watch=RecordingWatch())
    return sink.source(facts), facts


def restore(source: MemorySource, into: Path) -> tuple[CheckOutcome, ...]:
    adapter = dataset(into)
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    with adapter.start(into, RecordingWatch()) as scratch:
        return scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch())


def red(outcomes: tuple[CheckOutcome, ...]) -> dict[str, str]:
    return {outcome.name: outcome.sentence for outcome in outcomes if outcome.verdict is Verdict.FAILED}


def test_the_same_folder_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("b", "a", "c/d", "c/a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")
    first, _ = snapshot(root)
    restore(first, tmp_path / "into")
    assert snapshot(root)[0].streams == first.streams
    again, _ = snapshot(tmp_path / "into")  # the index that a restore leaves is no part of the folder
    assert again.streams[TREE_STREAM] == first.streams[TREE_STREAM]


def test_any_tar_reads_the_copy(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / ("long name " * 20)).write_bytes(b"body")
    (root / "link").symlink_to("/elsewhere")
    source, _ = snapshot(root)
    with tarfile.open(fileobj=io.BytesIO(source.streams[TREE_STREAM])) as archive:
        assert archive.getnames() == ["folder", "folder/" + "long name " * 20, "link"]
        assert archive.getmember("link").linkname == "/elsewhere"
    assert len(source.streams[TREE_STREAM]) % tarfile.RECORDSIZE == 0


def test_names_that_are_no_text_come_back(root: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe not utf-8")
    (root / name).write_bytes(b"x")
    (root / "new\nline").symlink_to(name)
    source, _ = snapshot(root)
    assert red(restore(source, tmp_path / "into")) == {}
    assert (tmp_path / "into" / name).read_bytes() == b"x"
    assert (tmp_path / "into" / "new\nline").readlink() == Path(name)


def test_holes_stay_holes(root: Path, tmp_path: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(30 * MIB)
        file.write(b"middle")
        file.truncate(50 * MIB)
    source, _ = snapshot(root)
    assert red(restore(source, tmp_path / "into")) == {}
    status = (tmp_path / "into" / "sparse").stat()
    assert status.st_size == 50 * MIB
    assert status.st_blocks * 512 < MIB


def test_sockets_and_pipes_are_skipped_and_told(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "kept").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        source, facts = snapshot(root)
    assert dict(facts.facts)["skipped"] == "2: pipe, socket"
    assert red(restore(source, tmp_path / "into")) == {}


def test_patterns_leave_out_names_and_whole_folders(root: Path, tmp_path: Path) -> None:
    (root / EXCLUDE_NAME).write_text("# comment\n*.log\n\ncache\na/b/c\n", encoding="utf-8")
    for name in ("x.log", "deep/y.log", "cache/inside", "deep/cache/inside", "a/b/c", "a/b/d", "kept"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    source, _ = snapshot(root)
    paths = [entry_of(line).path for line in source.streams[INDEX_STREAM].splitlines()]
    assert paths == [EXCLUDE_NAME, "a", "a/b", "a/b/d", "deep", "kept"]
    assert red(restore(source, tmp_path / "into")) == {}


def test_a_folder_in_which_a_database_runs_is_told(root: Path) -> None:
    (root / "pg").mkdir()
    (root / "pg" / "postmaster.pid").touch()
    (root / "app.db-wal").touch()
    _, facts = snapshot(root)
    assert dict(facts.facts)["maybe_a_live_database"] == "2: app.db-wal (SQLite), pg/postmaster.pid (PostgreSQL)"


class Interrupted:
    """A stream writer in whose first write the world changes."""

    def __init__(self, change: Callable[[], None]) -> None:
        self.body = bytearray()
        self._change: Callable[[], None] | None = change

    def write(self, data: bytes | memoryview) -> None:
        if self._change is not None:
            self._change()
            self._change = None
        self.body += data


@pytest.mark.parametrize("size_bytes", [LARGE_BYTES // 3, 2 * LARGE_BYTES, LARGE_BYTES])
def test_a_file_that_changes_while_it_is_read_is_noticed(root: Path, size_bytes: int) -> None:
    path = root / "growing"
    path.write_bytes(b"a" * LARGE_BYTES)

    def change() -> None:
        path.write_bytes(b"b" * size_bytes)

    writer = Interrupted(change)
    stream = TarStream(writer, RecordingWatch())
    entry = stream.add(next(nodes(root, (), WalkNotes())))
    stream.finish()
    assert entry is not None
    assert entry.changed
    with tarfile.open(fileobj=io.BytesIO(writer.body)) as archive:  # a whole archive nevertheless
        assert archive.getmember("growing").size == LARGE_BYTES


def test_a_file_that_stays_is_not_called_changed(root: Path) -> None:
    (root / "large").write_bytes(b"a" * LARGE_BYTES)
    (root / "small").write_bytes(b"a")
    source, facts = snapshot(root)
    assert facts.facts == ()
    assert not any(entry_of(line).changed for line in source.streams[INDEX_STREAM].splitlines())


@pytest.mark.parametrize("before", ["file", "link"])
def test_what_vanishes_under_the_reader_is_left_out(root: Path, before: str) -> None:
    path = root / "gone"
    if before == "link":
        path.symlink_to("x")
    else:
        path.touch()
    node = next(nodes(root, (), WalkNotes()))
    path.unlink()
    assert TarStream(Interrupted(lambda: None), RecordingWatch()).add(node) is None


def test_a_link_that_takes_a_files_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    (root / "file").touch()
    node = next(nodes(root, (), WalkNotes()))
    (root / "file").unlink()
    (root / "file").symlink_to(secret)
    writer = Interrupted(lambda: None)
    with pytest.raises(TerminalError, match="cannot be read"):
        TarStream(writer, RecordingWatch()).add(node)
    assert b"secret" not in writer.body


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(root: Path) -> None:
    (root / "file").touch()
    node: Node = next(nodes(root, (), WalkNotes()))
    (root / "file").unlink()
    os.mkfifo(root / "file")
    assert TarStream(Interrupted(lambda: None), RecordingWatch()).add(node) is None


@contextmanager
def archive_of() -> Iterator[tuple[tarfile.TarFile, io.BytesIO]]:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        yield archive, body


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("/absolute")],
        [member("../outside")],
        [member("a/../../outside")],
        [member("a", tarfile.DIRTYPE), member("a/..")],
        [member("out", tarfile.SYMTYPE, "OUTSIDE"), member("out/file")],
        [member("out", tarfile.SYMTYPE, "OUTSIDE"), member("out", tarfile.DIRTYPE), member("out/file")],
        [member("hard", tarfile.LNKTYPE, "../precious")],
        [member("hard", tarfile.LNKTYPE, "nowhere")],
        [member("device", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("twice"), member("twice")],
        [member("no/folder")],
        [member("file"), member("file/below")],
        [member("nowhere", tarfile.SYMTYPE, "")],
    ],
    ids=lambda members: "+".join(info.name for info in members),
)
def test_an_archive_cannot_reach_out_of_its_folder(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    outside = tmp_path / "outside-folder"
    outside.mkdir()
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    with archive_of() as (archive, body):
        for info in members:
            info.linkname = info.linkname.replace("OUTSIDE", str(outside))
            archive.addfile(info)
    sink = MemorySink()
    with sink.stream(TREE_STREAM) as tree, sink.stream(INDEX_STREAM) as index:
        tree.write(body.getvalue())
        index.write(b"")
    with pytest.raises(TerminalError):
        dataset(tmp_path).restore(RestoreRequest(chain=(sink.source(),), into=tmp_path / "into"), RecordingWatch())
    assert list((tmp_path / "into").iterdir()) == []
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["into", "outside-folder", "precious"]
    assert (tmp_path / "precious").stat().st_nlink == 1


def test_an_archive_that_ends_early_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"x" * 100_000)
    source, _ = snapshot(root)
    for length in (0, 100, 700, 50_000):
        cut = source.replaced(TREE_STREAM, source.streams[TREE_STREAM][:length])
        into = tmp_path / f"into-{length}"
        try:
            outcomes = restore(cut, into)
        except TerminalError:
            assert list(into.iterdir()) == []
        else:
            assert red(outcomes)


def test_modes_survive_a_folder_that_nobody_may_write(root: Path, tmp_path: Path) -> None:
    (root / "closed").mkdir()
    (root / "closed" / "file").write_bytes(b"x")
    (root / "closed" / "file").chmod(0o400)
    (root / "closed").chmod(0o555)
    source, _ = snapshot(root)
    assert red(restore(source, tmp_path / "into")) == {}
    assert stat.S_IMODE((tmp_path / "into" / "closed").stat().st_mode) == 0o555
    (root / "closed").chmod(0o755)
    (tmp_path / "into" / "closed").chmod(0o755)


def test_a_damaged_index_is_a_sentence(root: Path, tmp_path: Path) -> None:
    (root / "file").touch()
    source, _ = snapshot(root)
    restore(source, tmp_path / "into")
    for body in (b"{}\n", b"no json\n", b'{"path":"file","type":"moon"}\n', b"\xff\xfe\n"):
        (tmp_path / "into" / INDEX_NAME).write_bytes(body)
        with dataset(root).start(tmp_path / "into", RecordingWatch()) as scratch:
            found = red(scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch()))
        assert {"index", "contents"} <= found.keys()
