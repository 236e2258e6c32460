"""Recovery: how it stands, copies, drills, the question that risky work asks, and a person's override of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from controlplane.api.context import ApiContext, Context
from controlplane.api.drill_choice import check_choice
from controlplane.api.idempotency import IdempotencyKey, once
from controlplane.api.wire_recovery import (
    AcceptedOut,
    BackupIn,
    BackupRunOut,
    DatasetOut,
    DrillIn,
    DrillOut,
    EvidenceOut,
    FurtherOut,
    KeepOut,
    OverrideIn,
    PermissionOut,
    PointOut,
    RecoveryOut,
    ScheduleOut,
    drill_out,
    point_out,
    run_out,
)
from controlplane.domain.dataset import DatasetSpec, KeyPurpose, RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import (
    BackupCause,
    BackupPhase,
    BackupRun,
    Drill,
    DrillPhase,
    Inventory,
    Override,
    RecoveryPoint,
    RiskyAction,
)
from controlplane.domain.refusals import not_found
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, Problem
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.cost import inventory_cost
from controlplane.recovery.deletions import points_in_use
from controlplane.recovery.drill_plan import bucket_of, plan_drills
from controlplane.recovery.feasibility import judge_feasibility
from controlplane.recovery.forecast import Load, forecast_rto
from controlplane.recovery.gate import Permission, override_problem
from controlplane.recovery.lineage import Chain, chain_of
from controlplane.recovery.proofs import evidence_lost, restores_now
from controlplane.recovery.rates import Rates
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.schedule import next_due
from controlplane.recovery.standing import inventory_in, judge_inventory, permission_now, rates_of

router = APIRouter(prefix="/recovery", tags=["recovery"])

RUNS_MAX: Final = 1000
DRILLS_MAX: Final = 1000
"""Rows of one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The rows of recovery at one moment."""

    declared: RecoverySpec
    inventories: Sequence[Inventory]
    runs: Sequence[BackupRun]
    drills: Sequence[Drill]
    now: datetime

    def rates(self, dataset: DatasetSpec) -> Rates:
        return rates_of(dataset, self.drills, self.inventories)


@router.get("")
async def get_recovery(context: Context) -> RecoveryOut:
    """Every dataset with its recovery-point age, copies and drills; and whether risky work may proceed."""
    declared, now = _declared(context), context.clock.now()
    async with context.store.transaction() as tx:
        permissions = [await permission_now(tx, declared, action, now) for action in RiskyAction]
        seen = await _seen(context, tx)
    return RecoveryOut(
        now=now,
        datasets=[_dataset_out(seen, dataset) for dataset in declared.datasets],
        permissions=[_permission_out(permission) for permission in permissions],
    )


@router.get("/may-proceed")
async def get_may_proceed(context: Context, action: RiskyAction) -> PermissionOut:
    """The one question that risky work asks. The answer is 200 either way: refusing is the asker's business."""
    async with context.store.transaction() as tx:
        return _permission_out(await permission_now(tx, _declared(context), action, context.clock.now()))


@router.get("/points")
async def list_points(context: Context, dataset: str | None = None, bucket: str | None = None) -> list[PointOut]:
    """Newest first, as last seen in the buckets."""
    async with context.store.transaction() as tx:
        seen = await _seen(context, tx)
    if dataset is not None:
        _dataset(seen.declared, dataset)
    if bucket is not None and seen.declared.bucket(bucket) is None:
        raise not_found("bucket", bucket, [one.name for one in seen.declared.buckets])
    return [
        _point_out(seen, inventory, point)
        for inventory in seen.inventories
        if dataset in (None, inventory.dataset) and bucket in (None, inventory.bucket)
        for point in reversed(inventory.points)
    ]


@router.get("/points/{point}")
async def get_point(context: Context, point: str, bucket: str | None = None) -> PointOut:
    rows = {row.point: row for row in reversed(await list_points(context, None, bucket))}
    if point not in rows:
        raise not_found("recovery point", point, rows)
    return rows[point]


@router.get("/retention")
async def get_retention(context: Context, dataset: str) -> list[KeepOut]:
    """What stays and what goes by the dataset's rules, each with its reasons. Nothing is deleted by asking."""
    spec = _dataset(_declared(context), dataset)
    async with context.store.transaction() as tx:
        in_use = await points_in_use(tx, dataset)
        inventories = [one for one in await tx.inventories() if one.dataset == dataset]
    rows: list[KeepOut] = []
    for inventory in inventories:
        now = context.clock.now()
        plan = plan_retention(inventory.points, spec.retention, now, in_use=in_use, unread=inventory.unread)
        for judged, stays in ((plan.kept, True), (plan.deletions, False)):
            rows += [
                KeepOut(point=one.point.point, bucket=inventory.bucket, stays=stays, sentence=one.sentence)
                for one in judged
            ]
    return rows


@router.get("/backups")
async def list_backups(
    context: Context, dataset: str | None = None, limit: Annotated[int, Query(ge=1, le=RUNS_MAX)] = 50
) -> list[BackupRunOut]:
    """Runs, newest first."""
    async with context.store.transaction() as tx:
        runs = await tx.backup_runs(DatasetName(dataset) if dataset is not None else None, limit=limit)
    _check_known(context, dataset, runs)
    return [run_out(run) for run in runs]


@router.post("/datasets/{name}/backup", status_code=202, response_model=BackupRunOut)
async def backup_now(
    context: Context, request: Request, name: str, body: BackupIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Take a copy now. ConflictError while one is being taken."""
    dataset = _dataset(_declared(context), name)

    async def change(tx: Transaction) -> BackupRunOut:
        active = [run for run in await tx.backup_runs(dataset.name) if not run.ended]
        if active:
            raise ConflictError(f"a copy of {name} is under way already: {active[0].sentence}")
        now = context.clock.now()
        run = BackupRun(
            run=str(uuid4()),
            dataset=dataset.name,
            cause=BackupCause.PERSON,
            phase=BackupPhase.PENDING,
            phase_since=now,
            asked_at=now,
            asked_by=body.asked_by,
            sentence=f"{body.asked_by} asks for a copy of {name}",
        )
        await tx.put_backup_run(run)
        return run_out(run)

    response = await once(context, request, key, change)
    context.hints.hint("backups")
    return response


@router.get("/drills")
async def list_drills(
    context: Context, dataset: str | None = None, limit: Annotated[int, Query(ge=1, le=DRILLS_MAX)] = 50
) -> list[DrillOut]:
    """Newest first."""
    async with context.store.transaction() as tx:
        drills = await tx.drills(DatasetName(dataset) if dataset is not None else None, limit=limit)
    _check_known(context, dataset, drills)
    return [drill_out(drill) for drill in drills]


@router.get("/schedule")
async def get_schedule(context: Context) -> list[ScheduleOut]:
    """Every declared drill: when it last passed, when it is due, and what it waits for."""
    declared, now = _declared(context), context.clock.now()
    async with context.store.transaction() as tx:
        seen = await _seen(context, tx)
    points = [point for one in seen.inventories if not one.problem for point in one.points]
    plan = plan_drills(
        declared, points, seen.drills, now, draws={one.name: 0.0 for one in declared.drills}, keys=frozenset(KeyPurpose)
    )
    told = {one.spec.name: (one.until, one.sentence) for one in plan.waiting}
    told |= {one.spec.name: (now, one.sentence) for one in plan.due}
    rows: list[ScheduleOut] = []
    for spec in declared.drills:
        passed = [one for one in seen.drills if one.name == spec.name and one.phase is DrillPhase.PASSED]
        due_at, sentence = told[spec.name]
        rows.append(
            ScheduleOut(
                name=spec.name,
                dataset=spec.dataset,
                cadence=str(spec.cadence),
                selection=spec.selection,
                key=spec.key,
                bucket=bucket_of(spec, declared),
                last_passed_at=passed[0].phase_since if passed else None,
                due_at=due_at,
                sentence=sentence,
            )
        )
    return rows


@router.get("/drills/{drill}")
async def get_drill(context: Context, drill: str) -> DrillOut:
    return drill_out(await _drill(context, drill))


@router.get("/drills/{drill}/evidence")
async def get_evidence(context: Context, drill: str) -> EvidenceOut:
    """The signed bundle, read from the bucket."""
    row = await _drill(context, drill)
    if row.evidence_key is None:
        raise NotFoundError(f"drill {drill} has no evidence: it is {row.phase}")
    return EvidenceOut(drill=drill, key=row.evidence_key, bundle=await context.evidence(row))


@router.post("/drills", status_code=202, response_model=DrillOut)
async def start_drill(context: Context, request: Request, body: DrillIn, key: IdempotencyKey = None) -> JSONResponse:
    """Restore into a scratch folder and prove it, now. ConflictError while a drill of the dataset runs."""
    declared = _declared(context)
    named = next((one for one in declared.drills if one.name == body.dataset), None)
    if named is not None and declared.dataset(body.dataset) is None:
        # As it is declared: its pass is what the gate waits for.
        body = body.model_copy(
            update={
                "dataset": named.dataset,
                "name": named.name,
                "selection": named.selection,
                "key": named.key,
                "bucket": body.bucket or named.bucket,
            }
        )
    dataset = _dataset(declared, body.dataset, *(one.name for one in declared.drills))
    bucket = body.bucket or dataset.buckets[0]
    if bucket not in dataset.buckets:
        raise InvalidError(
            [
                Problem(
                    field="bucket", found=bucket, expected=f"a bucket of {body.dataset}: {', '.join(dataset.buckets)}"
                )
            ]
        )
    if body.key is KeyPurpose.BREAK_GLASS and not context.has_break_glass():
        raise ConflictError(
            "the break-glass key is not here, which is as it should be; for the time of the drill start the control "
            "plane with QUARTERDECK_BREAK_GLASS_KEY=FILE (docs/recovery.md), or run `quarterdeck restore` where it is"
        )

    async def change(tx: Transaction) -> DrillOut:
        active = [drill for drill in await tx.drills(dataset.name) if not drill.ended]
        if active:
            raise ConflictError(f"a drill of {body.dataset} runs already ({active[0].drill}, {active[0].phase})")
        now = context.clock.now()
        check_choice(inventory_in(await tx.inventories(), dataset, BucketName(bucket)), body, now)
        drill = Drill(
            drill=str(uuid4()),
            name=body.name,
            dataset=dataset.name,
            selection=body.selection,
            key=body.key,
            bucket=BucketName(bucket),
            phase=DrillPhase.PENDING,
            phase_since=now,
            asked_at=now,
            asked_by=body.asked_by,
            point=PointId(body.point) if body.point is not None else None,
            named=body.point is not None,
            to_time=body.to_time,
            sentence=f"{body.asked_by} asks for a drill of {body.dataset}",
        )
        await tx.put_drill(drill)
        return drill_out(drill)

    response = await once(context, request, key, change)
    context.hints.hint("drills")
    return response


@router.post("/overrides", status_code=202, response_model=AcceptedOut)
async def add_override(
    context: Context, request: Request, body: OverrideIn, key: IdempotencyKey = None
) -> JSONResponse:
    """Let risky work proceed although recovery says no. Named, for hours at most, and an event for everybody."""

    async def change(tx: Transaction) -> AcceptedOut:
        now = context.clock.now()
        override = Override(
            action=body.action, by=body.by, reason=body.reason, at=now, until=now + timedelta(hours=body.hours)
        )
        problem = override_problem(override)
        if problem is not None:
            raise InvalidError([Problem(field="override", found=body.reason, expected=problem)])
        await tx.append_override(override)
        sentence = f"{body.by} lets {body.action} proceed until {override.until:%Y-%m-%d %H:%M} UTC: {body.reason}"
        event = NewEvent(
            at=now, kind=EventKind.RECOVERY, subject=body.action, reason=Reason.GATE_OVERRIDDEN, sentence=sentence
        )
        await tx.append_events([event])
        return AcceptedOut(subject=body.action, sentence=sentence)

    return await once(context, request, key, change)


async def _seen(context: ApiContext, tx: Transaction) -> _Seen:
    return _Seen(
        declared=_declared(context),
        inventories=await tx.inventories(),
        runs=await tx.backup_runs(limit=RUNS_MAX),
        drills=await tx.drills(limit=DRILLS_MAX),
        now=context.clock.now(),
    )


def _declared(context: ApiContext) -> RecoverySpec:
    site = context.site()
    return RecoverySpec() if site is None else site.recovery


def _dataset(declared: RecoverySpec, name: str, *drills: str) -> DatasetSpec:
    """`drills`: names that would have done as well."""
    found = declared.dataset(name)
    if found is None:
        known = [dataset.name for dataset in declared.datasets]
        raise not_found("dataset or drill" if drills else "dataset", name, [*known, *drills])
    return found


def _check_known(context: ApiContext, dataset: str | None, rows: Sequence[object]) -> None:
    """NotFoundError for rows of a dataset that never was: a slip, and not a dataset without any."""
    if dataset is not None and not rows:
        _dataset(_declared(context), dataset)


async def _drill(context: ApiContext, drill: str) -> Drill:
    """By its identifier, or the beginning of it where that is of one only."""
    async with context.store.transaction() as tx:
        drills = await tx.drills(limit=DRILLS_MAX)
    found = [row for row in drills if row.drill.startswith(drill)]
    if len(found) != 1:
        raise not_found("drill", drill, [row.drill for row in drills])
    return found[0]


def _permission_out(permission: Permission) -> PermissionOut:
    by = permission.overridden_by
    return PermissionOut(
        action=permission.action,
        allowed=permission.allowed,
        sentence=permission.sentence,
        reasons=list(permission.reasons),
        notes=list(permission.notes),
        overridden_by=None if by is None else by.by,
    )


def _point_out(seen: _Seen, inventory: Inventory, point: RecoveryPoint) -> PointOut:
    dataset = seen.declared.dataset(inventory.dataset)
    forecast = None if dataset is None else _forecast_s(seen, dataset, inventory, point)
    return point_out(point, rto_forecast_s=forecast)


def _forecast_s(seen: _Seen, dataset: DatasetSpec, inventory: Inventory, point: RecoveryPoint) -> float | None:
    chain = chain_of(point, inventory.points)
    if not isinstance(chain, Chain):
        return None
    return forecast_rto(chain, seen.rates(dataset), log_bytes=inventory.log_bytes).total_s


def _dataset_out(seen: _Seen, dataset: DatasetSpec) -> DatasetOut:
    first = inventory_in(seen.inventories, dataset, dataset.buckets[0])
    verdict = judge_inventory(dataset, first, seen.now)
    runs = [run for run in seen.runs if run.dataset == dataset.name]
    drills = [drill for drill in seen.drills if drill.dataset == dataset.name and drill.ended]
    points = first.points if first is not None else ()
    own = [one for one in seen.inventories if one.dataset == dataset.name]
    base = first.find(verdict.base) if first is not None else None
    done = next((run for run in runs if run.phase is BackupPhase.DONE), None)
    return DatasetOut(
        name=dataset.name,
        kind=dataset.kind,
        rpo_s=dataset.rpo.total_seconds(),
        rto_s=dataset.rto.total_seconds(),
        rpo_state=verdict.state,
        age_s=None if verdict.age is None else verdict.age.total_seconds(),
        covered_at=verdict.covered_at,
        by_log=verdict.by_log,
        sentence=verdict.sentence,
        notes=[*([first.problem] if first is not None and first.problem else []), *verdict.notes],
        promises=_promises(seen, dataset, base, first),
        points=len(points),
        stored_bytes=sum(point.stored_bytes for point in points),
        log_bytes=first.log_bytes if first is not None else 0,
        newest_point=verdict.base,
        rto_forecast_s=None if base is None or first is None else _forecast_s(seen, dataset, first, base),
        cost_per_month=inventory_cost(points).per_month if points else None,
        next_backup_at=next_due(dataset.cadence, done.asked_at if done is not None else None, seen.now),
        running=next((run_out(run) for run in runs if not run.ended), None),
        last_backup=next((run_out(run) for run in runs if run.ended), None),
        last_drill=drill_out(drills[0]) if drills else None,
        restoring=list(restores_now(own, seen.now)),
        evidence_lost=[one.problem for one in evidence_lost(own)],
        held=[sentence for one in own for sentence in _held(one)],
        further=[_further_out(seen, dataset, bucket) for bucket in dataset.buckets[1:]],
    )


def _held(inventory: Inventory) -> Iterator[str]:
    """Why retention deletes nothing there, as far as it is a copy that cannot be read."""
    named = {problem: row.point for row in inventory.points for problem in row.problems}
    for why in inventory.unreadable:
        command = f"quarterdeck backup delete {named.get(why, 'POINT')} --dataset {inventory.dataset} --dry-run"
        yield (
            f"retention deletes nothing of {inventory.dataset} in {inventory.bucket} while a copy there cannot be "
            f"read: {why}; `{command}` tells more"
        )


def _further_out(seen: _Seen, dataset: DatasetSpec, bucket: BucketName) -> FurtherOut:
    inventory = inventory_in(seen.inventories, dataset, bucket)
    verdict = judge_inventory(dataset, inventory, seen.now, bucket=bucket)
    points = inventory.points if inventory is not None else ()
    return FurtherOut(
        bucket=bucket,
        rpo_state=verdict.state,
        age_s=None if verdict.age is None else verdict.age.total_seconds(),
        covered_at=verdict.covered_at,
        by_log=verdict.by_log,
        sentence=verdict.sentence,
        notes=[*([inventory.problem] if inventory is not None and inventory.problem else []), *verdict.notes],
        points=len(points),
        stored_bytes=sum(point.stored_bytes for point in points),
        log_bytes=inventory.log_bytes if inventory is not None else 0,
    )


def _promises(seen: _Seen, dataset: DatasetSpec, base: RecoveryPoint | None, inventory: Inventory | None) -> list[str]:
    """By the size of the newest copy and what drills measured. A guess alone is not worth a line."""
    if base is None or inventory is None:
        return []
    rates = seen.rates(dataset)
    judged = judge_feasibility(dataset, Load(plain_bytes=base.plain_bytes, log_bytes=inventory.log_bytes), rates)
    return [one.problem or one.caution for one in judged if one.problem or (one.caution and rates.samples)]
