"""Recovery on the wire. Durations are seconds (`_s`), sizes bytes, times UTC in ISO 8601, money US dollars."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import Field

from controlplane.api.wire import Wire
from controlplane.domain.dataset import DrillSelection, KeyPurpose
from controlplane.domain.recovery import BackupRun, CheckOutcome, Drill, RecoveryPoint, RiskyAction

OVERRIDE_HOURS_MAX = 24.0
"""As `controlplane.recovery.gate` has it: an override is for tonight."""


class PermissionOut(Wire):
    action: RiskyAction
    allowed: bool
    sentence: str
    reasons: list[str] = Field(description="Every reason against it; also there when an override lets it pass.")
    notes: list[str] = Field(description="What is let pass for now, and until when.")
    overridden_by: str | None


class BackupRunOut(Wire):
    run: str
    dataset: str
    cause: str
    phase: str
    phase_since: datetime
    asked_at: datetime
    asked_by: str
    attempt: int
    point: str | None
    done_bytes: int
    total_bytes: int | None
    sentence: str


class PointOut(Wire):
    point: str
    dataset: str
    bucket: str
    consistent_at: datetime
    plain_bytes: int
    stored_bytes: int
    parent: str | None
    storage_classes: list[str]
    key_ids: list[str]
    kept_by: list[str]
    locked_until: datetime | None
    drilled_at: datetime | None
    problems: list[str]
    rto_forecast_s: float | None = Field(description="How long a restore of it would take; null when it has problems.")


class CheckOut(Wire):
    name: str
    verdict: str
    sentence: str


class DrillOut(Wire):
    drill: str
    name: str
    dataset: str
    bucket: str
    selection: str
    key: str
    phase: str
    phase_since: datetime
    asked_at: datetime
    asked_by: str
    point: str | None
    to_time: datetime | None
    key_id: str | None
    storage_classes: list[str]
    fetched_bytes: int
    plain_bytes: int
    rto_forecast_s: float | None
    retrieval_wait_s: float
    fetch_and_restore_s: float
    start_and_replay_s: float
    verify_s: float
    clean_up_s: float
    rto_s: float = Field(description="The achieved RTO: everything but the clean-up.")
    newest_at: datetime | None
    rpo_s: float | None = Field(description="The achieved RPO: data lost by this restore.")
    checks: list[CheckOut]
    clean_proof: list[str]
    failure: str
    evidence_key: str | None
    sentence: str


class FurtherOut(Wire):
    """A dataset in one of its buckets after the first. Told, and not judged: the RPO is that of the first."""

    bucket: str
    rpo_state: str = Field(description="As it would be if this were the only bucket.")
    age_s: float | None = Field(description="What would be lost now with the first bucket; null when nobody knows.")
    covered_at: datetime | None
    by_log: bool
    sentence: str
    notes: list[str]
    points: int
    stored_bytes: int
    log_bytes: int


class DatasetOut(Wire):
    name: str
    kind: str
    rpo_s: float
    rto_s: float
    rpo_state: str = Field(description="ok, warning, breached, unknown or never.")
    age_s: float | None = Field(description="What would be lost now; null when nobody knows.")
    covered_at: datetime | None
    by_log: bool
    sentence: str
    notes: list[str]
    promises: list[str] = Field(description="Retention rules whose RTO is not held, or not proven, and what to do.")
    points: int
    stored_bytes: int
    log_bytes: int
    newest_point: str | None
    rto_forecast_s: float | None
    cost_per_month: float | None = Field(description="Of what lies in its first bucket, at list prices of AWS.")
    next_backup_at: datetime | None
    running: BackupRunOut | None
    last_backup: BackupRunOut | None
    last_drill: DrillOut | None
    restoring: list[str] = Field(description="Restores by hand that run now, as their claims in its buckets tell.")
    held: list[str] = Field(description="Copies that cannot be read: retention deletes nothing beside them.")
    evidence_lost: list[str] = Field(
        description="Of drills that count: evidence that is not in its bucket any more, or does not verify, and why."
    )
    further: list[FurtherOut] = Field(description="Its buckets after the first, each with its own age.")


class RecoveryOut(Wire):
    now: datetime
    datasets: list[DatasetOut]
    permissions: list[PermissionOut]


class KeepOut(Wire):
    point: str
    bucket: str
    stays: bool
    sentence: str


class ScheduleOut(Wire):
    name: str
    dataset: str
    cadence: str
    selection: str
    key: str
    bucket: str | None
    last_passed_at: datetime | None
    due_at: datetime | None = Field(
        description="When it begins, if nothing happens before; null: it waits for something."
    )
    sentence: str


class BackupIn(Wire):
    asked_by: Annotated[str, Field(min_length=1, max_length=80)] = "a person"


class DrillIn(Wire):
    dataset: str = Field(description="A dataset, or a declared drill by its name: then as that is declared.")
    name: Annotated[str, Field(max_length=40)] = "by hand"
    selection: DrillSelection = DrillSelection.LATEST
    key: KeyPurpose = KeyPurpose.SITE
    bucket: str | None = None
    point: str | None = None
    to_time: datetime | None = None
    asked_by: Annotated[str, Field(min_length=1, max_length=80)] = "a person"


class OverrideIn(Wire):
    action: RiskyAction
    by: Annotated[str, Field(min_length=1, max_length=80)]
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    hours: Annotated[float, Field(gt=0, le=OVERRIDE_HOURS_MAX)] = 1.0


class AcceptedOut(Wire):
    """Work that begins with the next tick."""

    subject: str
    sentence: str


class EvidenceOut(Wire):
    drill: str
    key: str
    bundle: str = Field(description="The signed bundle as it lies in the bucket.")


def run_out(run: BackupRun) -> BackupRunOut:
    return BackupRunOut(
        run=run.run,
        dataset=run.dataset,
        cause=run.cause,
        phase=run.phase,
        phase_since=run.phase_since,
        asked_at=run.asked_at,
        asked_by=run.asked_by,
        attempt=run.attempt,
        point=run.point,
        done_bytes=run.done_bytes,
        total_bytes=run.total_bytes,
        sentence=run.sentence,
    )


def point_out(point: RecoveryPoint, *, rto_forecast_s: float | None) -> PointOut:
    return PointOut(
        point=point.point,
        dataset=point.dataset,
        bucket=point.bucket,
        consistent_at=point.consistent_at,
        plain_bytes=point.plain_bytes,
        stored_bytes=point.stored_bytes,
        parent=point.parent,
        storage_classes=sorted(point.storage_classes),
        key_ids=list(point.key_ids),
        kept_by=list(point.kept_by),
        locked_until=point.locked_until,
        drilled_at=point.drilled_at,
        problems=list(point.problems),
        rto_forecast_s=rto_forecast_s,
    )


def drill_out(drill: Drill) -> DrillOut:
    times = drill.times
    return DrillOut(
        drill=drill.drill,
        name=drill.name,
        dataset=drill.dataset,
        bucket=drill.bucket,
        selection=drill.selection,
        key=drill.key,
        phase=drill.phase,
        phase_since=drill.phase_since,
        asked_at=drill.asked_at,
        asked_by=drill.asked_by,
        point=drill.point,
        to_time=drill.to_time,
        key_id=drill.key_id,
        storage_classes=list(drill.storage_classes),
        fetched_bytes=drill.fetched_bytes,
        plain_bytes=drill.plain_bytes,
        rto_forecast_s=drill.forecast_s,
        retrieval_wait_s=times.retrieval_wait_s,
        fetch_and_restore_s=times.fetch_and_restore_s,
        start_and_replay_s=times.start_and_replay_s,
        verify_s=times.verify_s,
        clean_up_s=times.clean_up_s,
        rto_s=times.rto_s,
        newest_at=drill.newest_at,
        rpo_s=_seconds(drill.achieved_rpo),
        checks=[_check_out(check) for check in drill.checks],
        clean_proof=list(drill.clean_proof),
        failure=drill.failure,
        evidence_key=drill.evidence_key,
        sentence=drill.sentence,
    )


def _check_out(check: CheckOutcome) -> CheckOut:
    return CheckOut(name=check.name, verdict=check.verdict, sentence=check.sentence)


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()
