"""Reads a copy back: packs are fetched ahead, chunks opened by worker threads, and nothing unproven is given out."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from controlplane.adapters.backup.keyring import wrapping_problems
from controlplane.adapters.backup.manifests import check_mac, decode_manifest, key_context
from controlplane.adapters.backup.packing import chunk_place, chunks_of, stream_purpose
from controlplane.adapters.backup.sealing import Sealer
from controlplane.domain.dataset import KeyPurpose
from controlplane.kernel.errors import NotFoundError, TerminalError
from controlplane.recovery.manifest import Manifest, PackRecord, StreamRecord, WrappedKey
from controlplane.recovery.ports import Keyring, ObjectStore, Watch

FETCHERS: Final = 2
"""Packs on their way at a time; one more waits to be opened."""
HASHED_BEHIND: Final = 4
"""Chunks that were given out and are not hashed yet: the reader writes them to disk meanwhile."""
CHUNKS_AHEAD: Final = 2
"""For each worker: one being opened and one that waits to be taken."""


def open_archive(
    store: ObjectStore,
    keyring: Keyring,
    manifest_key: str,
    *,
    only: KeyPurpose | None = None,
    watch: Watch,
    workers: int = 2,
) -> "ArchiveReader":
    """The copy, its manifest proven. `only`: open it with that holder's key alone.

    NotFoundError: no such manifest. DeniedError: no key here opens it. TerminalError: the manifest was changed.
    """
    manifest = decode_manifest(manifest_key, store.get(manifest_key))
    data_key, opened_by = keyring.open(manifest.keys, key_context(manifest.dataset, manifest.point), only=only)
    check_mac(manifest, data_key)
    return ArchiveReader(store, manifest, data_key, opened_by, watch=watch, workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Everything that a copy says of itself, read and proven; nothing is written anywhere."""

    manifest: Manifest
    opened_by: WrappedKey
    stored_bytes: int
    """Of packs that were good."""
    problems: tuple[str, ...]
    """Each names an object. Empty: the copy is whole."""


def verify_archive(
    store: ObjectStore, keyring: Keyring, manifest_key: str, *, only: KeyPurpose | None = None, watch: Watch
) -> Verification:
    """Every byte. Goes on after a damaged pack, so that the answer names all of them.

    Raises as `open_archive` does, and when it cannot tell: RetryableError from the store, ConflictError for an object
    that is archived.
    """
    archive = open_archive(store, keyring, manifest_key, only=only, watch=watch)
    problems = wrapping_problems(archive.manifest.keys, key_context(archive.manifest.dataset, archive.manifest.point))
    damaged: set[str] = set()
    for stream in archive.manifest.streams:
        try:
            for _ in archive.read(stream.name):
                pass
        except TerminalError as error:
            found = {pack.key: problem for pack, problem in archive.damaged_packs(stream.name)}
            problems.extend(found.values() or [str(error)])
            damaged |= found.keys()
    packs = [pack for stream in archive.manifest.streams for pack in stream.packs]
    good_bytes = sum(pack.stored_bytes for pack in packs if pack.key not in damaged)
    return Verification(
        manifest=archive.manifest, opened_by=archive.opened_by, stored_bytes=good_bytes, problems=tuple(problems)
    )


class ArchiveReader:
    """A SnapshotSource. Counts plaintext bytes on the watch. Several streams may be read side by side."""

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        data_key: bytes,
        opened_by: WrappedKey,
        *,
        watch: Watch,
        workers: int = 2,
    ) -> None:
        self._store, self._manifest, self._data_key = store, manifest, data_key
        self._watch, self._workers = watch, workers
        self.opened_by: Final = opened_by

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def read(self, stream: str) -> Iterator[bytes]:
        """NotFoundError when the copy has no such stream; ConflictError when an object is archived and not thawed."""
        record = self._record(stream)
        digest, plain_bytes = sha256(), 0
        hashing: deque[Future[None]] = deque()
        with closing(self._chunks(record)) as chunks, ThreadPoolExecutor(1, "hash") as hasher:
            for chunk in chunks:
                if len(hashing) >= HASHED_BEHIND:
                    hashing.popleft().result()
                hashing.append(hasher.submit(digest.update, chunk))
                plain_bytes += len(chunk)
                self._watch.advance(len(chunk))
                yield chunk
        if (plain_bytes, digest.hexdigest()) != (record.plain_bytes, record.sha256):
            found = f"{plain_bytes} bytes with SHA-256 {digest.hexdigest()}"
            expected = f"{record.plain_bytes} with {record.sha256}"
            raise TerminalError(f"{self._where(stream)}: found {found}, its manifest says {expected}; use another copy")

    def damaged_packs(self, stream: str) -> Iterator[tuple[PackRecord, str]]:
        """Each pack by itself, and what is wrong with it."""
        record = self._record(stream)
        sealer = Sealer(self._data_key, stream_purpose(stream))
        for pack, first, total in _numbered(record.packs):
            try:
                for index, sealed in enumerate(
                    chunks_of(pack.key, fetch_pack(self._store, pack), pack.chunks), start=first
                ):
                    self._open(sealer, stream, pack, index, total, sealed)
            except TerminalError as error:
                yield pack, str(error)

    def _record(self, stream: str) -> StreamRecord:
        record = next((record for record in self._manifest.streams if record.name == stream), None)
        if record is None:
            there = ", ".join(record.name for record in self._manifest.streams) or "none"
            raise NotFoundError(f"{self._where(stream)}: the copy has no such stream, it has: {there}")
        return record

    def _where(self, stream: str) -> str:
        return f"{key_context(self._manifest.dataset, self._manifest.point)}/{stream}"

    def _chunks(self, record: StreamRecord) -> Generator[bytes]:
        """In order; a bounded number of packs and chunks is under way. Closing it ends its threads."""
        sealer = Sealer(self._data_key, stream_purpose(record.name))
        fetching = ThreadPoolExecutor(FETCHERS, "fetch")
        opening = ThreadPoolExecutor(self._workers, "open")
        try:
            fetched = ahead((fetching.submit(fetch_pack, self._store, pack) for pack in record.packs), FETCHERS)
            packs = zip(_numbered(record.packs), fetched, strict=True)
            jobs = (
                opening.submit(self._open, sealer, record.name, pack, index, total, sealed)
                for (pack, first, total), body in packs
                for index, sealed in enumerate(chunks_of(pack.key, body, pack.chunks), start=first)
            )
            yield from ahead(jobs, CHUNKS_AHEAD * self._workers)
        finally:
            for pool in (fetching, opening):
                pool.shutdown(wait=True, cancel_futures=True)

    def _open(self, sealer: Sealer, stream: str, pack: PackRecord, index: int, total: int, sealed: memoryview) -> bytes:
        manifest = self._manifest
        place = chunk_place(manifest.dataset, manifest.point, stream, index, last=index == total - 1)
        try:
            return sealer.open(place, sealed)
        except TerminalError as error:
            raise TerminalError(f"{pack.key}: {error}") from None


def fetch_pack(store: ObjectStore, pack: PackRecord) -> memoryview:
    """The very version that was written. TerminalError, naming it, when it is gone or not what was written."""
    try:
        body = store.get(pack.key, version=pack.version)
    except NotFoundError as error:
        version = f" (version {pack.version})" if pack.version else ""
        raise TerminalError(f"{pack.key}{version}: is not there, its manifest names it; use another copy") from error
    if len(body) != pack.stored_bytes:
        found = f"found {len(body)} bytes, expected {pack.stored_bytes}"
        raise TerminalError(f"{pack.key}: {found}; use another copy")
    if (digest := sha256(body).hexdigest()) != pack.sha256:
        raise TerminalError(f"{pack.key}: found SHA-256 {digest}, expected {pack.sha256}; use another copy")
    return memoryview(body)


def ahead[Result](jobs: Iterable[Future[Result]], limit: int) -> Iterator[Result]:
    """Results in order, with at most `limit` jobs begun beyond the one that is waited for."""
    begun: deque[Future[Result]] = deque()
    for job in jobs:
        begun.append(job)
        if len(begun) > limit:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _numbered(packs: Sequence[PackRecord]) -> Iterator[tuple[PackRecord, int, int]]:
    """Each pack, the number of its first chunk, and how many chunks its stream has."""
    total, first = sum(pack.chunks for pack in packs), 0
    for pack in packs:
        yield pack, first, total
        first += pack.chunks
