"""Rows of recovery: backup runs, recovery points as last seen in the bucket, drills, overrides."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from controlplane.domain.dataset import DrillSelection, KeyPurpose, RetentionPeriod, StorageClass
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.kernel.transitions import TransitionTable


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not_run"
    """The tool for it is not there, or an earlier failure made it pointless; the sentence says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    name: str
    verdict: Verdict
    sentence: str
    """With the numbers: what was found, what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A copy whose bytes were seen in a bucket."""

    point: PointId
    dataset: DatasetName
    bucket: BucketName
    consistent_at: datetime
    finished_at: datetime
    plain_bytes: int
    stored_bytes: int
    parent: PointId | None
    storage_classes: frozenset[StorageClass]
    """Of its data as the store lists them, not as a rule says they should be."""
    key_ids: tuple[str, ...]
    kept_by: tuple[RetentionPeriod, ...] = ()
    locked_until: datetime | None = None
    problems: tuple[str, ...] = ()
    """What makes it unfit to restore, e.g. a pack that is not there. Empty: everything its manifest names is there."""
    drilled_at: datetime | None = None
    """When a drill last restored it with success."""

    @property
    def complete(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCoverage:
    """How far the continuous log in the bucket reaches, seen in the bucket itself."""

    position: str
    """E.g. the LSN up to which everything is durable."""
    covered_at: datetime
    """Every commit acknowledged by this moment (of the source's clock) is durable in the bucket."""
    segments: int
    stored_bytes: int
    gaps: tuple[str, ...] = ()
    """Ranges that are missing: no restore can pass them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSeen:
    """A restore by hand that announces itself in the bucket."""

    name: str
    """When it began, on which machine, as which process."""
    until: datetime
    """Its claim lasts, unless it renews it before: a restore that was killed counts no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSeen:
    """The evidence of a drill that counts as proof, as last looked for in the bucket."""

    drill: str
    key: str
    seen_at: datetime
    """When the bucket last told whether it is there. Older than the inventory: it could not be read since."""
    file: str = ""
    """What was read, as the store tells it: another file is read anew."""
    verified_at: datetime | None = None
    """When it was last read, with the one before it in the chain."""
    problem: str = ""
    """Why it proves nothing: it is not there, or does not verify. Empty: it proves its drill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What was seen of one dataset in one bucket."""

    dataset: DatasetName
    bucket: BucketName
    observed_at: datetime
    points: tuple[RecoveryPoint, ...]
    """Oldest first."""
    coverage: LogCoverage | None = None
    """Of the continuous log, where the kind has one."""
    problem: str = ""
    """Why the bucket could not be read; points and coverage are then those of the last time."""
    unreadable: tuple[str, ...] = ()
    """Manifests that cannot be used, and why. What they name is not known, so nothing is deleted meanwhile."""
    since: datetime | None = None
    """When it was first looked at: how long the dataset is declared."""
    rpo_state: str = ""
    """The verdict when it was seen, in a dataset's first bucket: a change of it is worth an event. Empty: none yet."""
    watched_at: datetime | None = None
    """When restores and evidence were last looked for: less often than copies, since each costs a request."""
    restoring: tuple[RestoreSeen, ...] = ()
    """From this bucket, when it was watched."""
    evidence: tuple[EvidenceSeen, ...] = ()
    """In this bucket, of the drills that count as proof."""

    @property
    def unread(self) -> tuple[str, ...]:
        """All that stands between this and knowing what is in the bucket."""
        return ((self.problem,) if self.problem else ()) + self.unreadable

    @property
    def log_bytes(self) -> int:
        """Of the continuous log, as stored."""
        return 0 if self.coverage is None else self.coverage.stored_bytes

    def find(self, point: PointId | None) -> RecoveryPoint | None:
        """None: it is not there."""
        return next((one for one in self.points if one.point == point), None)


class BackupPhase(StrEnum):
    PENDING = "pending"
    COPYING = "copying"
    REPLICATING = "replicating"
    """To further buckets."""
    DONE = "done"
    FAILED = "failed"


BACKUP_TRANSITIONS: Final = TransitionTable(
    {
        BackupPhase.PENDING: frozenset({BackupPhase.COPYING, BackupPhase.FAILED}),
        # Back to pending: the worker is gone without a word; its unfinished point is swept, a new one begins.
        BackupPhase.COPYING: frozenset(
            {BackupPhase.PENDING, BackupPhase.REPLICATING, BackupPhase.DONE, BackupPhase.FAILED}
        ),
        BackupPhase.REPLICATING: frozenset({BackupPhase.DONE, BackupPhase.FAILED}),
    }
)


class BackupCause(StrEnum):
    SCHEDULE = "schedule"
    RPO = "rpo"
    """The recovery-point age passed its warning share."""
    PERSON = "person"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRun:
    run: str
    dataset: DatasetName
    cause: BackupCause
    phase: BackupPhase
    phase_since: datetime
    asked_at: datetime
    asked_by: str
    attempt: int = 0
    worker: str = ""
    """The instance that makes it."""
    point: PointId | None = None
    parent: PointId | None = None
    """What it builds on while it is made."""
    done_bytes: int = 0
    total_bytes: int | None = None
    sentence: str = ""
    """What it does, did, or why it failed."""

    @property
    def ended(self) -> bool:
        return self.phase in {BackupPhase.DONE, BackupPhase.FAILED}


class DrillPhase(StrEnum):
    PENDING = "pending"
    RESERVING = "reserving"
    """A scratch folder with enough room."""
    FETCHING = "fetching"
    """Includes the wait for a retrieval from an archive class."""
    RESTORING = "restoring"
    STARTING = "starting"
    VERIFYING = "verifying"
    MEASURING = "measuring"
    CLEANING = "cleaning"
    RECORDING = "recording"
    PASSED = "passed"
    FAILED = "failed"


_DRILL_ORDER: Final = (
    DrillPhase.PENDING,
    DrillPhase.RESERVING,
    DrillPhase.FETCHING,
    DrillPhase.RESTORING,
    DrillPhase.STARTING,
    DrillPhase.VERIFYING,
    DrillPhase.MEASURING,
    DrillPhase.CLEANING,
    DrillPhase.RECORDING,
)
_BEFORE_CLEANING: Final = _DRILL_ORDER[: _DRILL_ORDER.index(DrillPhase.CLEANING)]

DRILL_TRANSITIONS: Final = TransitionTable(
    {
        **{
            # Whatever fails is cleaned up; a worker that is gone without a word starts over from an empty folder.
            phase: frozenset({_DRILL_ORDER[index + 1], DrillPhase.CLEANING, DrillPhase.RESERVING})
            for index, phase in enumerate(_BEFORE_CLEANING)
        },
        DrillPhase.CLEANING: frozenset({DrillPhase.RECORDING}),
        DrillPhase.RECORDING: frozenset({DrillPhase.PASSED, DrillPhase.FAILED}),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillTimes:
    """Seconds of a drill. The achieved RTO is their sum but for the clean-up."""

    retrieval_wait_s: float = 0.0
    fetch_and_restore_s: float = 0.0
    """Fetching, decrypting and writing files overlap."""
    start_and_replay_s: float = 0.0
    verify_s: float = 0.0
    clean_up_s: float = 0.0

    @property
    def rto_s(self) -> float:
        return self.retrieval_wait_s + self.fetch_and_restore_s + self.start_and_replay_s + self.verify_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    drill: str
    """Its identifier."""
    name: str
    """Of its declaration, or `by hand`."""
    dataset: DatasetName
    selection: DrillSelection
    key: KeyPurpose
    bucket: BucketName
    phase: DrillPhase
    phase_since: datetime
    asked_at: datetime
    asked_by: str
    attempt: int = 0
    worker: str = ""
    """The instance that restores it."""
    point: PointId | None = None
    named: bool = False
    """The point was named by a person, not selected."""
    to_time: datetime | None = None
    scratch: str | None = None
    """Folder of the restored copy; None: not reserved yet, or removed again."""
    key_id: str | None = None
    """The key that opened it."""
    storage_classes: tuple[StorageClass, ...] = ()
    fetched_bytes: int = 0
    plain_bytes: int = 0
    forecast_s: float | None = None
    """The RTO that was forecast before it began."""
    times: DrillTimes = DrillTimes()
    newest_at: datetime | None = None
    """The newest moment in the restored data."""
    achieved_rpo: timedelta | None = None
    """From the newest moment in the restored data to the moment that was asked for."""
    checks: tuple[CheckOutcome, ...] = ()
    clean_proof: tuple[str, ...] = ()
    """What was looked for after the clean-up, and not found."""
    failure: str = ""
    evidence_key: str | None = None
    sentence: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in {DrillPhase.PASSED, DrillPhase.FAILED}


class RiskyAction(StrEnum):
    """What must ask `recovery.may_proceed` first."""

    DEPLOY = "deploy"
    CHAOS = "chaos"
    MIGRATION = "migration"
    RETENTION = "retention"
    """Deleting recovery points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A named person lets risky work proceed although recovery says no."""

    action: RiskyAction
    by: str
    reason: str
    at: datetime
    until: datetime
