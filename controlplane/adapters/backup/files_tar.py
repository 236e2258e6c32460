"""A folder as a tar stream (POSIX pax, which any tar reads), the same bytes for the same folder."""

import hashlib
import os
import stat
import tarfile
from dataclasses import dataclass
from typing import Final

from controlplane.adapters.backup.files_index import EntryType, IndexEntry
from controlplane.adapters.backup.files_walk import EXCLUDE_NAME, Node
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import StreamWriter, Watch

SPARSE_RECORD: Final = "QUARTERDECK.sparse"
"""Pax record of a file that had holes: zeros travel as zeros, and become holes again."""
_READ_BYTES: Final = MIB
_SMALL_BYTES: Final = 4 * MIB
"""A file up to this is read whole, and again when somebody wrote it meanwhile."""
_TRIES: Final = 3
_STAT_BLOCK_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """By which a change of a file is noticed."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> "_State":
        return _State(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


class TarStream:
    """Turns nodes into a tar on a stream, and into the index's entries."""

    def __init__(self, writer: StreamWriter, watch: Watch) -> None:
        self._writer = writer
        self._watch = watch
        self._pending = bytearray()
        self._written = 0
        self._first_of: dict[tuple[int, int], str] = {}
        """Device and inode of a file with several names -> the first of them."""

    def add(self, node: Node) -> IndexEntry | None:
        """None when the file is gone. TerminalError when it may not be read."""
        mode = node.status.st_mode
        if stat.S_ISDIR(mode):
            return self._add_plain(node, EntryType.FOLDER, tarfile.DIRTYPE)
        if stat.S_ISLNK(mode):
            try:
                target = os.readlink(node.full)  # noqa: PTH115 - the text as it is, not a normalised path
            except FileNotFoundError:
                return None
            return self._add_plain(node, EntryType.SYMLINK, tarfile.SYMTYPE, target)
        return self._add_file(node)

    def finish(self) -> None:
        """The end of the archive: two empty blocks, filled up to a record."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self._written % tarfile.RECORDSIZE))
        self._flush()

    def _add_plain(self, node: Node, kind: EntryType, tar_type: bytes, target: str = "") -> IndexEntry:
        self._put(_header(node, tar_type, target=target))
        return _entry(node, kind, target=target)

    def _add_file(self, node: Node) -> IndexEntry | None:
        inode = (node.status.st_dev, node.status.st_ino)
        if node.status.st_nlink > 1 and inode in self._first_of:
            return self._add_plain(node, EntryType.HARD_LINK, tarfile.LNKTYPE, self._first_of[inode])
        handle = _open(node)
        if handle is None:
            return None
        with os.fdopen(handle, "rb", buffering=0) as file:
            small = node.status.st_size <= _SMALL_BYTES
            entry = self._copy_small(node, file.fileno()) if small else self._copy_large(node, file.fileno())
        if node.status.st_nlink > 1:
            self._first_of[inode] = node.path
        return entry

    def _copy_small(self, node: Node, handle: int) -> IndexEntry:
        changed = True
        before, body = os.fstat(handle), b""
        for _ in range(_TRIES):
            before = os.fstat(handle)
            body = os.pread(handle, _SMALL_BYTES, 0)
            changed = _State.of(before) != _State.of(os.fstat(handle)) or len(body) != before.st_size
            if not changed:
                break
        current = Node(path=node.path, full=node.full, status=before)
        self._put(_header(current, tarfile.REGTYPE, size_bytes=len(body)))
        self._put(body)
        self._pad(len(body))
        self._watch.advance(len(body))
        return _entry(current, EntryType.FILE, size_bytes=len(body), sha256=_sha256(body), changed=changed)

    def _copy_large(self, node: Node, handle: int) -> IndexEntry:
        before = os.fstat(handle)
        current = Node(path=node.path, full=node.full, status=before)
        self._put(_header(current, tarfile.REGTYPE, size_bytes=before.st_size))
        digest = hashlib.sha256()
        left = before.st_size
        while left:
            # The size is promised already: a file that became shorter is filled up, and told as changed.
            piece = os.read(handle, min(left, _READ_BYTES)) or bytes(min(left, _READ_BYTES))
            digest.update(piece)
            self._put(piece)
            self._watch.advance(len(piece))
            left -= len(piece)
        self._pad(before.st_size)
        changed = _State.of(before) != _State.of(os.fstat(handle))
        return _entry(current, EntryType.FILE, size_bytes=before.st_size, sha256=digest.hexdigest(), changed=changed)

    def _pad(self, size_bytes: int) -> None:
        self._put(bytes(-size_bytes % tarfile.BLOCKSIZE))

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        self._pending += data
        if len(self._pending) >= _READ_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write(bytes(self._pending))
            self._pending.clear()


def _open(node: Node) -> int | None:
    """A handle of the file itself: never through a link, never waiting on a pipe that took its name."""
    try:
        handle = os.open(node.full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TerminalError(
            f"{node.full} cannot be read: {error.strerror}; let the control plane's user read it, or exclude it in "
            f"{EXCLUDE_NAME}"
        ) from error
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    return None


def _header(node: Node, tar_type: bytes, *, target: str = "", size_bytes: int = 0) -> bytes:
    status = node.status
    info = tarfile.TarInfo(node.path)
    info.type = tar_type
    info.linkname = target
    info.size = size_bytes
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    info.mtime = seconds
    info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
    if tar_type == tarfile.REGTYPE and status.st_blocks * _STAT_BLOCK_BYTES < size_bytes:
        info.pax_headers[SPARSE_RECORD] = "1"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _entry(
    node: Node, kind: EntryType, *, target: str = "", size_bytes: int = 0, sha256: str = "", changed: bool = False
) -> IndexEntry:
    return IndexEntry(
        path=node.path,
        type=kind,
        mode=stat.S_IMODE(node.status.st_mode),
        uid=node.status.st_uid,
        gid=node.status.st_gid,
        mtime_ns=node.status.st_mtime_ns,
        size_bytes=size_bytes,
        sha256=sha256,
        target=target,
        changed=changed,
    )


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
