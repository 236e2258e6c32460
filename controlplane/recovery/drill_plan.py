"""Which drills are to begin now, one at a time for each dataset, and why the others wait."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DrillSpec, KeyPurpose, RecoverySpec
from controlplane.domain.recovery import Drill, DrillPhase, RecoveryPoint
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.recovery.backoff import wait_after
from controlplane.recovery.phrases import moment, span
from controlplane.recovery.schedule import next_due, occurrence_after
from controlplane.recovery.selection import NoneQualifies, Selected, select_point

RETRY_FIRST: Final = timedelta(minutes=30)
"""A failed drill refuses risky work, so it is tried again before its cadence comes round; not so soon that one that
fails for good fills the bucket with evidence."""
RETRY_MOST: Final = timedelta(days=1)
_STALE_CADENCES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDrill:
    spec: DrillSpec
    bucket: BucketName
    selected: Selected
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingDrill:
    spec: DrillSpec
    until: datetime | None
    """None: until something else happens."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPlan:
    due: tuple[DueDrill, ...]
    waiting: tuple[WaitingDrill, ...]


def plan_drills(
    spec: RecoverySpec,
    points: Sequence[RecoveryPoint],
    drills: Sequence[Drill],
    now: datetime,
    *,
    draws: Mapping[str, float],
    keys: frozenset[KeyPurpose] = frozenset({KeyPurpose.SITE}),
) -> DrillPlan:
    """`drills`: rows in any order. `draws`: random numbers from 0 to 1, by name of the drill. `keys`: at hand."""
    due: list[DueDrill] = []
    waiting: list[WaitingDrill] = []
    busy: dict[DatasetName, str] = {drill.dataset: f"{drill.drill} runs" for drill in drills if not drill.ended}
    for drill, due_at in sorted(
        ((drill, _due_at(drill, drills, now)) for drill in spec.drills), key=lambda one: one[1]
    ):
        found = _judge(drill, due_at, spec, points, now, busy, draws.get(drill.name, 0.0), keys)
        if isinstance(found, DueDrill):
            due.append(found)
            busy[drill.dataset] = f"{drill.name} comes first"
        else:
            waiting.append(found)
    return DrillPlan(due=tuple(due), waiting=tuple(waiting))


def stale_at(drill: DrillSpec, passed_at: datetime) -> datetime:
    """When a passed drill stops being proof: after its `stale_after`, or at its second next occurrence."""
    if drill.stale_after is not None:
        return passed_at + drill.stale_after
    return occurrence_after(drill.cadence, passed_at, _STALE_CADENCES)


def bucket_of(drill: DrillSpec, spec: RecoverySpec) -> BucketName | None:
    """Where a drill reads from; None: its dataset is not declared."""
    dataset = spec.dataset(drill.dataset)
    if dataset is None:
        return None
    return dataset.buckets[0] if drill.bucket is None else drill.bucket


def _judge(
    drill: DrillSpec,
    due_at: datetime,
    spec: RecoverySpec,
    points: Sequence[RecoveryPoint],
    now: datetime,
    busy: Mapping[DatasetName, str],
    draw: float,
    keys: frozenset[KeyPurpose],
) -> DueDrill | WaitingDrill:
    def waits(sentence: str, until: datetime | None = None) -> WaitingDrill:
        return WaitingDrill(spec=drill, until=until, sentence=f"{drill.name}: {sentence}")

    if due_at > now:
        return waits(f"next at {moment(due_at)}", due_at)
    bucket = bucket_of(drill, spec)
    if bucket is None:
        return waits(f"its dataset {drill.dataset} is not declared")
    if drill.dataset in busy:
        return waits(f"due, but {busy[drill.dataset]}: one drill of a dataset at a time")
    if drill.key not in keys:
        return waits(f"due, but the {drill.key} key is not here; run it where the key is: `quarterdeck drill run`")
    selected = select_point(drill.selection, points, drill.dataset, bucket, draw=draw)
    if isinstance(selected, NoneQualifies):
        return waits(f"due, but {selected.sentence}")
    late = "" if now - due_at < timedelta(minutes=1) else f", {span(now - due_at)} late"
    return DueDrill(spec=drill, bucket=bucket, selected=selected, sentence=f"{drill.name}: {selected.sentence}{late}")


def _due_at(drill: DrillSpec, drills: Sequence[Drill], now: datetime) -> datetime:
    """By the cadence from the last one that passed; sooner than that after a failure, but not at once."""
    own = sorted((row for row in drills if row.ended and _is_of(row, drill)), key=lambda row: row.asked_at)
    passed = [row.asked_at for row in own if row.phase is DrillPhase.PASSED]
    due_at = next_due(drill.cadence, passed[-1] if passed else None, now)
    failures = sum(1 for _ in _failed_last(own))
    if failures == 0:
        return due_at
    last = own[-1]
    retry_at = last.phase_since + wait_after(failures, first=RETRY_FIRST, most=RETRY_MOST)
    return min(retry_at, next_due(drill.cadence, last.asked_at, now))


def _failed_last(own: Sequence[Drill]) -> Iterator[Drill]:
    for row in reversed(own):
        if row.phase is not DrillPhase.FAILED:
            return
        yield row


def _is_of(row: Drill, drill: DrillSpec) -> bool:
    return row.name == drill.name and row.dataset == drill.dataset
