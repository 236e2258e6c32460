"""Datasets, recovery points and drills as values, to be varied where a test means something by it."""

from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import (
    Cadence,
    DatasetKind,
    DatasetSpec,
    DrillSelection,
    KeyPurpose,
    RetentionPeriod,
    RetentionRule,
    StorageClass,
)
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes, RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.kernel.units import GIB
from controlplane.testing.effects import START

DAY: Final = timedelta(days=1)
DATASET: Final = DatasetName("orders")
BUCKET: Final = BucketName("main")

DAILY: Final = RetentionRule(period=RetentionPeriod.DAILY, keep=30 * DAY)
QUARTERLY: Final = RetentionRule(
    period=RetentionPeriod.QUARTERLY, keep=7 * 365 * DAY, storage_class=StorageClass.GLACIER_IR
)


def make_dataset(
    *,
    rpo: timedelta = DAY,
    rto: timedelta = timedelta(hours=4),
    cadence: Cadence | None = None,
    retention: tuple[RetentionRule, ...] = (DAILY, QUARTERLY),
) -> DatasetSpec:
    return DatasetSpec(
        name=DATASET,
        kind=DatasetKind.POSTGRESQL,
        rpo=rpo,
        rto=rto,
        cadence=cadence or Cadence(every=DAY),
        retention=retention,
        buckets=(BUCKET,),
    )


def point_id(at: datetime, suffix: str = "0000") -> PointId:
    return PointId(f"{at:%Y%m%dT%H%M%S}.000Z-{suffix}")


def make_point(
    at: datetime = START,
    *,
    point: PointId | None = None,
    parent: PointId | None = None,
    plain_bytes: int = 2 * GIB,
    storage_class: StorageClass = StorageClass.STANDARD,
    kept_by: tuple[RetentionPeriod, ...] = (),
    locked_until: datetime | None = None,
    problems: tuple[str, ...] = (),
    drilled_at: datetime | None = None,
    bucket: BucketName = BUCKET,
) -> RecoveryPoint:
    """Finished at the moment that it holds; stored in half of its plain bytes."""
    return RecoveryPoint(
        point=point or point_id(at),
        dataset=DATASET,
        bucket=bucket,
        consistent_at=at,
        finished_at=at,
        plain_bytes=plain_bytes,
        stored_bytes=plain_bytes // 2,
        parent=parent,
        storage_classes=frozenset({storage_class}),
        key_ids=("site:00000000",),
        kept_by=kept_by,
        locked_until=locked_until,
        problems=problems,
        drilled_at=drilled_at,
    )


def make_drill(
    at: datetime = START,
    *,
    name: str = "orders-daily",
    phase: DrillPhase = DrillPhase.PASSED,
    plain_bytes: int = 2 * GIB,
    log_bytes: int = 0,
    times: DrillTimes | None = None,
    selection: DrillSelection = DrillSelection.LATEST,
    storage_class: StorageClass = StorageClass.STANDARD,
    point: PointId | None = None,
    failure: str = "",
    evidence_key: str | None = "evidence/drill.json",
) -> Drill:
    """Ended when it was asked for; of a point stored in half of its plain bytes."""
    return Drill(
        drill=f"{name}-{at:%Y%m%dT%H%M%S}",
        name=name,
        dataset=DATASET,
        selection=selection,
        key=KeyPurpose.SITE,
        bucket=BUCKET,
        phase=phase,
        phase_since=at,
        asked_at=at,
        asked_by="schedule",
        point=point,
        storage_classes=(storage_class,),
        fetched_bytes=plain_bytes // 2 + log_bytes,
        plain_bytes=plain_bytes,
        times=times or DrillTimes(fetch_and_restore_s=20.0, start_and_replay_s=2.0, verify_s=5.0),
        failure=failure,
        evidence_key=evidence_key if phase is DrillPhase.PASSED else None,
    )
