"""What the loops of recovery have done in the world. Long work runs beside them; a loop begins it and looks at it.

Nothing here is remembered across a restart: work that nobody knows of any more is begun again, or cleaned up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from controlplane.domain.dataset import BucketSpec, DatasetSpec, KeyPurpose, StorageClass
from controlplane.domain.recovery import CheckOutcome, Drill, DrillPhase, DrillTimes, Inventory
from controlplane.kernel.ids import PointId
from controlplane.recovery.locks import LockExtension

LEASE: Final = timedelta(seconds=30)
"""A copy or drill that nobody looked at for so long ends by itself: its loop lost its claim, and another instance has
it. Much longer than a loop pauses between two looks, or waits for a slow store."""
LOST_AFTER: Final = timedelta(seconds=40)
"""Work that nobody here knows of is begun again no sooner: then it has ended wherever it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOrder:
    """A copy to make, and to put into every bucket of its dataset."""

    dataset: DatasetSpec
    point: PointId
    parent: PointId | None
    storage_class: StorageClass
    locked_until: datetime | None
    """In those of its buckets that lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyMade:
    point: PointId
    plain_bytes: int
    stored_bytes: int
    took_s: float
    buckets: tuple[str, ...]
    """Where it lies whole."""
    failed_buckets: tuple[str, ...] = ()
    """Further buckets that did not take it, each with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOrder:
    """A restore into the scratch folder that was reserved, everything verified there."""

    dataset: DatasetSpec
    bucket: BucketSpec
    chain: tuple[PointId, ...]
    """The full copy first; the last one is the recovery point."""
    scratch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillMade:
    """What a drill found. Whatever went wrong is in `failure` and `checks`: a drill that fails has done its work."""

    key_id: str | None
    storage_classes: tuple[StorageClass, ...]
    fetched_bytes: int
    plain_bytes: int
    times: DrillTimes
    newest_at: datetime | None
    checks: tuple[CheckOutcome, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    phase: DrillPhase | None
    """Of a drill: which phase it is in."""
    step: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished[M]:
    made: M


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    sentence: str
    hopeless: bool
    """The same again would fail again: a person must change something."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody here knows of it: it was begun by a control plane that is gone, or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointContents:
    """What lies in a bucket of one recovery point, seen object by object."""

    objects: int
    """Versions included."""
    stored_bytes: int
    locked_until: datetime | None
    """The last lock that was found."""
    manifest_problem: str
    """Why its manifest cannot be read; empty: it can."""
    sound_version: str | None = None
    """A version below the unreadable one that can be read; None: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thawing:
    """Objects that are being brought back from an archive class."""

    pending: int
    """Not readable yet; 0: everything can be fetched."""
    archived: int
    """In an archive class at all; 0: nobody had to wait."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """The continuous log of a dataset, as its stream reports it. For people: verdicts look into the bucket."""

    running: bool | None
    """None: it has only just begun."""
    sentence: str
    further: bool | None = None
    """It follows into each further bucket; None: there is none, or it has only just begun."""
    further_sentence: str = ""
    """Of each further bucket."""


class Workshop(Protocol):
    """Errors as everywhere: RetryableError to try again, TerminalError for a person."""

    async def survey(
        self, dataset: DatasetSpec, bucket: BucketSpec, before: Inventory | None, *, proofs: Sequence[Drill]
    ) -> Inventory:
        """What lies in the bucket now. A bucket that cannot be read is a problem in the answer, never an empty one.

        `proofs`: drills whose evidence there counts, and is looked for.
        """
        ...

    def makes_increments(self, dataset: DatasetSpec) -> bool:
        """Its source can copy what changed since a parent."""
        ...

    def begin_copy(self, work: str, order: CopyOrder) -> None:
        """Nothing happens when work of that name was begun already. Ends by itself after a LEASE without a look."""
        ...

    def look_copy(self, work: str) -> Working | Finished[CopyMade] | Broken | Unknown: ...

    async def sweep(self, dataset: DatasetSpec, *, writing: frozenset[PointId]) -> Sequence[str]:
        """Remove what copies left behind that were never finished, but for those being written; what went."""
        ...

    async def remove(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> None:
        """A recovery point, its manifest first: half of it never looks whole. ConflictError while it is locked."""
        ...

    async def contents(self, dataset: DatasetSpec, bucket: BucketSpec, point: PointId) -> PointContents:
        """What lies there of a recovery point, whether or not it can be read; no objects where there is nothing."""
        ...

    async def lengthen(self, dataset: DatasetSpec, bucket: BucketSpec, extension: LockExtension) -> None:
        """Lock a recovery point until then, its manifest last: once that says so, all of it is. Never shortens."""
        ...

    async def trim_log(self, dataset: DatasetSpec, bucket: BucketSpec, *, since: datetime) -> int:
        """Remove log that no copy there needs: copies of before `since` are not rolled forward. How many objects."""
        ...

    def keys(self) -> frozenset[KeyPurpose]:
        """Of which holders a key is at hand: the offline one only while a person lends it."""
        ...

    async def reserve(self, drill: Drill, *, needed_bytes: int) -> str:
        """An empty scratch folder with enough room. TerminalError when the disk has not."""
        ...

    async def thaw(self, order: DrillOrder) -> Thawing:
        """Ask for what has to be brought back, and see how far that is."""
        ...

    def begin_drill(self, drill: Drill, order: DrillOrder) -> None:
        """As `begin_copy`, by the drill and its attempt."""
        ...

    def look_drill(self, drill: Drill) -> Working | Finished[DrillMade] | Broken | Unknown: ...

    async def clean(self, drill: Drill, dataset: DatasetSpec | None) -> tuple[str, ...]:
        """End its work, end and remove everything of its scratch copy; what was looked for and is not there any more.

        RetryableError while something of it is still there.
        """
        ...

    async def record(self, drill: Drill) -> str:
        """Sign its evidence and put it into the bucket; the key of the object. The same again is fine."""
        ...

    async def stream(self, dataset: DatasetSpec, *, until: datetime) -> Streaming:
        """See to it that the dataset's log flows, until then; the next call puts that off."""
        ...
