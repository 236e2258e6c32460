"""What recovery looks through. All of it blocks and runs in worker threads: boto3, database drivers, child processes.

Keys inside a bucket (after the bucket's own prefix), the same for every store:

    <dataset>/points/<point>/manifest.json           always STANDARD
    <dataset>/points/<point>/<stream>/<pack 000000>  the data, in the class of its retention rule
    <dataset>/wal/...                                PostgreSQL only
    <dataset>/restoring/<restore>                    the claim of a restore by hand, written anew while it runs
    evidence/<drill>.json                            what a drill proved
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from controlplane.domain import recovery
from controlplane.domain.dataset import (
    CheckSpec,
    DatasetKind,
    KeyPurpose,
    LockMode,
    RetrievalTier,
    StorageClass,
)
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.ids import PointId
from controlplane.recovery.manifest import Count, Manifest, WrappedKey

LogCoverage = recovery.LogCoverage


# -- objects
@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    mode: LockMode
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """A retrieval from an archive class."""

    ongoing: bool
    until: datetime | None
    """When the temporary copy goes; None while it is ongoing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    key: str
    version: str | None
    size_bytes: int
    modified_at: datetime
    storage_class: StorageClass = StorageClass.STANDARD
    sha256: str | None = None
    """Hexadecimal, as the store checked it; None where it was not asked (listings) or not kept."""
    lock: Lock | None = None
    """Only from `head`."""
    thaw: Thaw | None = None
    """Only from `head`; None: no retrieval was asked, or the class needs none."""
    deleted: bool = False
    """A delete marker: only from `versions`."""
    latest: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    """Only from `head`."""


class ObjectStore(Protocol):
    """One bucket. Safe to call from several threads.

    RetryableError: the store is slow, unreachable, or says 5xx or 503 (after its own bounded tries). TerminalError:
    no such bucket, no permission, a checksum that is wrong. NotFoundError: no such key or version. ConflictError: the
    key is there already (`if_absent`), the version is locked, or the object is archived and not thawed.
    """

    def put(
        self,
        key: str,
        body: bytes | memoryview,
        *,
        storage_class: StorageClass = StorageClass.STANDARD,
        if_absent: bool = False,
        lock: Lock | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> ObjectInfo:
        """Durable when it returns. The store verifies a checksum of the body that we send along."""
        ...

    def get(self, key: str, *, version: str | None = None, first: int = 0, last: int | None = None) -> bytes:
        """The whole body, or its bytes from `first` to `last` inclusive."""
        ...

    def head(self, key: str, *, version: str | None = None) -> ObjectInfo: ...

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """The newest version of each key, by key; keys whose newest version is a delete marker are left out."""
        ...

    def versions(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every version and delete marker, by key, of each the newest first."""
        ...

    def delete(self, key: str, *, version: str | None = None) -> None:
        """With a version: that one is gone for good. Without, in a versioned bucket: hidden. Gone already is fine."""
        ...

    def thaw(self, key: str, *, version: str | None, tier: RetrievalTier, days: int) -> None:
        """Ask for a temporary copy of an archived object. Asking again while it is ongoing is fine."""
        ...

    def retain(self, key: str, *, version: str | None, lock: Lock) -> None:
        """Lengthen (never shorten) a lock."""
        ...


# -- keys
class Keyring(Protocol):
    """Makes, wraps and opens data keys (256 bits). The context binds a wrapped key to its recovery point."""

    def new_data_key(self, context: str) -> tuple[bytes, tuple[WrappedKey, ...]]:
        """A fresh key, wrapped for every holder that the site declares."""
        ...

    def open(
        self, wrapped: Sequence[WrappedKey], context: str, *, only: KeyPurpose | None = None
    ) -> tuple[bytes, WrappedKey]:
        """The data key, and which holder's copy opened it. DeniedError when none here does, naming those that would."""
        ...


# -- work that can be watched
class Watch(Protocol):
    """Given to everything long. Called from worker threads."""

    def step(self, name: str, total_bytes: int | None = None) -> None:
        """A named step begins; its size where it is known."""
        ...

    def advance(self, plain_bytes: int) -> None:
        """So many more bytes of the step are done. Raises CancelledWorkError when somebody asked to stop."""
        ...


# -- copies
class SnapshotSink(Protocol):
    """Where an adapter writes a copy; sealed, packed and uploaded behind it."""

    def stream(self, name: str, *, size_hint: int | None = None) -> AbstractContextManager["StreamWriter"]:
        """Leaving without an exception makes it part of the copy. Streams may be written side by side."""
        ...


class StreamWriter(Protocol):
    def write(self, data: bytes | memoryview) -> None:
        """Any length; waits when uploads lag behind."""
        ...


class SnapshotSource(Protocol):
    """A copy in the bucket, read back: every byte is authenticated before it is given."""

    @property
    def manifest(self) -> Manifest: ...

    def read(self, stream: str) -> Iterator[bytes]:
        """In order. TerminalError, naming the object, when a byte is not what was written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    engine: str
    consistent_at: datetime
    counts: tuple[Count, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The live dataset as it answers now."""

    engine: str
    size_bytes: int
    """Roughly what a full copy has to read."""


class LogReader(Protocol):
    """The continuous log of a dataset (WAL) in the bucket; given to `restore`."""

    def fetch(self, *, since: str, into: Path, to_time: datetime | None, watch: Watch) -> "FetchedLog":
        """What is needed from the position on, as files that the engine replays."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedLog:
    files: int
    stored_bytes: int
    newest_at: datetime | None
    """The newest moment that the log surely covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    chain: tuple[SnapshotSource, ...]
    """The full copy first, then its increments in order; the last one is the recovery point."""
    into: Path
    """An empty folder of the scratch area, or one that a person named; never a live one."""
    log: LogReader | None = None
    to_time: datetime | None = None
    """Point in time; None: everything there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Files are in place; nothing runs yet."""

    plain_bytes: int
    log: FetchedLog | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A restored dataset that answers."""

    newest_at: datetime | None
    """The newest moment the data reach, as the engine tells (PostgreSQL: last replayed commit); None: it cannot."""
    loaded_s: float = 0.0
    """Of the time of `start`, what went into loading the copy into the engine: which grows with the copy."""
    checked_s: float = 0.0
    """Of the time of `start`, what went into checks that had to come first: it counts as verifying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    manifest: Manifest
    checks: tuple[CheckSpec, ...] = ()
    exact_counts: bool = True
    """Counts of the manifest hold exactly: nothing was replayed on top of the copy."""
    point_at: datetime | None = None
    """The moment that freshness is measured against."""


class ScratchInstance(Protocol):
    """A restored copy that runs on the side. Reaches nothing of the live dataset."""

    @property
    def started(self) -> Started: ...

    def verify(self, request: VerifyRequest, watch: Watch) -> Sequence[CheckOutcome]:
        """The engine's own checks first, then counts and checksums, then the site's assertions.

        Never raises for bad data: that is a failed outcome.
        """
        ...


class DatasetAdapter(Protocol):
    """One kind of dataset. Adding a kind: this, and the contract suite in tests/contract/test_dataset_adapters.py."""

    @property
    def kind(self) -> DatasetKind: ...

    def probe(self) -> Source:
        """RetryableError when the source does not answer; TerminalError with what a person must change."""
        ...

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        """A consistent copy; with a parent and where the kind can: only what changed since."""
        ...

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        """ConflictError when `into` is not empty or belongs to something live."""
        ...

    def start(
        self, into: Path, watch: Watch, *, to_time: datetime | None = None
    ) -> AbstractContextManager[ScratchInstance]:
        """Start what was restored (trivial for files); leaving stops it. TerminalError with the engine's words."""
        ...

    def leftovers(self, into: Path) -> Sequence[str]:
        """What of a scratch copy is still there after a crash, e.g. `process 4711 (postgres)`; empty: nothing."""
        ...

    def end_leftovers(self, into: Path) -> None:
        """End processes of a scratch copy that its owner left behind, then remove its files."""
        ...


@dataclass(frozen=True, slots=True)
class SilentWatch:
    """Nobody watches."""

    cancelled: Callable[[], bool] = field(default=lambda: False)

    def step(self, name: str, total_bytes: int | None = None) -> None:
        del name, total_bytes

    def advance(self, plain_bytes: int) -> None:
        del plain_bytes
        if self.cancelled():
            raise CancelledWorkError("stopped on request")


class CancelledWorkError(Exception):
    """The watcher asked to stop: clean up and leave."""


def manifest_key(dataset: str, point: PointId) -> str:
    return f"{dataset}/points/{point}/manifest.json"


def restoring_prefix(dataset: str) -> str:
    return f"{dataset}/restoring/"


def pack_key(dataset: str, point: PointId, stream: str, pack: int) -> str:
    return f"{dataset}/points/{point}/{stream}/{pack:06d}"
