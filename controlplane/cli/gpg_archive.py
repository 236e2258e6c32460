"""The work of `quarterdeck backup read-gpg`: an old archive as the file that it was, or nothing at all."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import IO, BinaryIO, Final, override

from rich.console import Console

from controlplane.adapters.backup.gpg import gpg_program, read_gpg
from controlplane.adapters.backup.scratch import sync_folder
from controlplane.adapters.objectstore.s3 import S3Store
from controlplane.cli.restoring import BarWatch, bars
from controlplane.cli.vault_access import OpenVault, open_vault, passphrase_from
from controlplane.cli.view import make_console, print_json
from controlplane.domain.dataset import BucketSpec, RetrievalTier
from controlplane.domain.refusals import not_found
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, Problem, TerminalError
from controlplane.kernel.units import MIB, format_bytes
from controlplane.recovery.classes import is_archive
from controlplane.recovery.ports import ObjectInfo, ObjectStore

STDOUT: Final = "-"
_S3: Final = "s3://"
_RANGE_BYTES: Final = 8 * MIB
"""Of one read from a bucket: each costs a request."""
_THAWED_DAYS: Final = 3
"""How long an object stays readable that had to be brought back: enough to come again on Monday."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    archive: str
    """A file, or `s3://BUCKET/KEY`."""
    into: str
    """A file that is not there yet, or `-`."""
    passphrase_file: Path | None
    site: Path | None
    state_dir: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archive:
    stream: io.RawIOBase
    size_bytes: int | None
    """None: of a pipe."""


def read_archive(wish: Wish) -> None:
    """Errors as of `read_gpg`; ConflictError when the target is there."""
    _check(wish)
    gpg_program(wish.archive)
    said = Console(stderr=True, soft_wrap=True, highlight=False)
    done_bytes = 0
    with ExitStack() as stack:
        archive = stack.enter_context(_opened(wish))
        words = passphrase_from(wish.passphrase_file, wish.archive, "--passphrase-file")
        watch = BarWatch(stack.enter_context(bars(said)))
        watch.step(f"decrypt {wish.archive}", archive.size_bytes)
        target = stack.enter_context(_stdout() if wish.into == STDOUT else _beside(Path(wish.into)))
        source = io.BufferedReader(_Counted(wish.archive, archive.stream, watch.advance), _RANGE_BYTES)
        for block in read_gpg(source, lambda: words, name=wish.archive):
            target.write(block)
            done_bytes += len(block)
    if wish.as_json:
        body = {"archive": wish.archive, "into": wish.into, "archive_bytes": archive.size_bytes}
        print_json(make_console(), {**body, "plain_bytes": done_bytes})
        return
    where = "written" if wish.into == STDOUT else f"in {wish.into}"
    said.print(f"{format_bytes(done_bytes)} of {wish.archive} {where}, whole as gpg's digest (MDC) says", markup=False)


def _check(wish: Wish) -> None:
    """What can be refused before a passphrase is asked for."""
    if wish.into != STDOUT:
        _check_target(Path(wish.into))
        return
    if wish.as_json:
        raise InvalidError(
            [Problem(field="--json", found="with --into -", expected="a file to write into; standard output is taken")]
        )
    if sys.stdout.isatty():
        raise InvalidError(
            [Problem(field="--into -", found="a terminal", expected="a pipe or a file behind standard output")]
        )


def _check_target(into: Path) -> None:
    if into.exists() or into.is_symlink():
        raise ConflictError(f"{into}: is there already, and nothing is written over; name a file that is not there yet")
    if not into.parent.is_dir():
        raise NotFoundError(f"{into}: there is no folder {into.parent}; make it with `mkdir -p {into.parent}`")


# -- where the archive is
@contextmanager
def _opened(wish: Wish) -> Iterator[_Archive]:
    if wish.archive.startswith(_S3):
        with open_vault(wish.site, wish.state_dir) as opened:
            yield _in_bucket(opened, wish.archive)
        return
    path = Path(wish.archive)
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size if path.is_file() else None
            yield _Archive(stream=file, size_bytes=size_bytes)
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        raise NotFoundError(
            f"{path}: there is no such file; expected an archive of `gpg --symmetric`, or s3://BUCKET/KEY"
        ) from None


def _in_bucket(opened: OpenVault, address: str) -> _Archive:
    name, _, key = address.removeprefix(_S3).partition("/")
    if not key:
        raise InvalidError([Problem(field="ARCHIVE", found=address, expected="s3://BUCKET/KEY")])
    bucket = _declared(opened, name)
    # Old archives lie where their script put them, and not below the prefix of our copies.
    store = S3Store(opened.vault.client(bucket), bucket.bucket)
    try:
        info = store.head(key)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}; a key counts from the bucket's root: `aws s3 ls s3://{bucket.bucket}/`"
        ) from None
    require_readable(store, info)
    return _Archive(stream=StoredObject(store, info), size_bytes=info.size_bytes)


def _declared(opened: OpenVault, name: str) -> BucketSpec:
    """By its own name or by the one that the site file gives it: either says whose credentials open it."""
    found = next((one for one in opened.declared.buckets if name in (one.bucket, one.name)), None)
    if found is None:
        raise not_found("bucket", name, [known for one in opened.declared.buckets for known in (one.bucket, one.name)])
    return found


def require_readable(store: ObjectStore, info: ObjectInfo) -> None:
    """ConflictError while it is in an archive class and not back; it is asked for."""
    if not is_archive(info.storage_class) or (info.thaw is not None and not info.thaw.ongoing):
        return
    if info.thaw is None:
        store.thaw(info.key, version=info.version, tier=RetrievalTier.STANDARD, days=_THAWED_DAYS)
    raise ConflictError(
        f"{info.key}: lies in {info.storage_class} and was asked for; run the same command again later (hours)"
    )


class StoredObject(io.RawIOBase):
    """An object, the version that was looked at, read range by range."""

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        self._store, self._info, self._at = store, info, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override] # what BufferedReader gives
        last = min(self._at + len(buffer), self._info.size_bytes) - 1
        if last < self._at:
            return 0
        body = self._store.get(self._info.key, version=self._info.version, first=self._at, last=last)
        buffer[: len(body)] = body
        self._at += len(body)
        return len(body)


class _Counted(io.RawIOBase):
    """Tells how many bytes were read."""

    def __init__(self, name: str, source: io.RawIOBase, advance: Callable[[int], None]) -> None:
        self._name, self._source, self._advance = name, source, advance

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: "bytearray | memoryview") -> int | None:  # type: ignore[override] # as above
        try:
            count = self._source.readinto(buffer)
        except OSError as error:
            raise TerminalError(f"{self._name}: cannot be read: {error.strerror or error}") from error
        self._advance(count or 0)
        return count


# -- where the plaintext goes
@contextmanager
def _stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _beside(into: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block ends well, durable, and is gone otherwise. For its owner alone."""
    handle, name = mkstemp(dir=into.parent, prefix=f".{into.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(partial, into)
        sync_folder(into.parent)
    except OSError as error:
        if error.filename is not None:
            raise
        raise TerminalError(f"{into}: cannot be written: {error.strerror or error}; nothing of it is left") from error
    finally:
        partial.unlink(missing_ok=True)


def _name(partial: Path, into: Path) -> None:
    """ConflictError when somebody else made a file of that name meanwhile."""
    try:
        into.hardlink_to(partial)
    except FileExistsError:
        raise ConflictError(f"{into}: was made by somebody else meanwhile; name another file") from None
    except PermissionError:  # A file system without hard links, such as a stick's.
        partial.rename(into)
