"""The loop that makes copies: one at a time for each dataset; begun here, made beside it, looked at until it ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.dataset import DatasetSpec, LockMode, RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BACKUP_TRANSITIONS, BackupPhase, BackupRun, Inventory
from controlplane.domain.store import Claim, Store
from controlplane.kernel.effects import Clock, IdSource
from controlplane.kernel.units import format_bytes
from controlplane.recovery.backup_plan import choose_parent, plan_backup
from controlplane.recovery.lineage import lineage_of
from controlplane.recovery.locks import lock_until
from controlplane.recovery.names import point_id
from controlplane.recovery.standing import inventory_in, judge_inventory
from controlplane.recovery.tiering import class_of_new
from controlplane.recovery.workshop import LOST_AFTER, Broken, CopyMade, CopyOrder, Finished, Unknown, Working, Workshop
from controlplane.runtime.hints import Hints
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "backups"

ATTEMPTS_MAX: Final = 3
"""Of one run whose worker vanished: a copy that kills its control plane must not do so for ever."""
_LOOK_AGAIN: Final = timedelta(seconds=1)
"""While a copy is made: people watch its progress."""
_SOON: Final = timedelta(milliseconds=200)
_WAITS: Final = "waits for a look into the bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Situation:
    dataset: DatasetSpec
    runs: Sequence[BackupRun]
    """Newest first."""
    inventory: Inventory | None
    """Of the first bucket."""
    now: datetime


class Backups:
    """Writes backup runs and nothing else."""

    name: Final = LOOP

    def __init__(
        self,
        *,
        store: Store,
        workshop: Workshop,
        clock: Clock,
        ids: IdSource,
        hints: Hints,
        declared: Callable[[], RecoverySpec],
        lost_after: timedelta = LOST_AFTER,
    ) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._ids = ids
        self._hints = hints
        self._declared = declared
        self._lost_after = lost_after
        self._missing_since: dict[str, datetime] = {}
        """Attempts that a look did not find in this process."""

    async def resources(self) -> Sequence[str]:
        return [dataset.name for dataset in self._declared().datasets]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        dataset = self._declared().dataset(resource)
        if dataset is None:
            return TickReport(sentence="no longer declared")
        situation = await self._read(dataset)
        active = [run for run in situation.runs if not run.ended]
        if not active:
            return await self._plan(situation, claim)
        # The one that is being made comes before any that waits, whatever the clocks of who asked say.
        run = next((run for run in active if run.phase is not BackupPhase.PENDING), active[-1])
        match run.phase:
            case BackupPhase.PENDING:
                return await self._begin(situation, run, claim)
            case _:
                return await self._look(run, claim)

    async def _read(self, dataset: DatasetSpec) -> _Situation:
        async with self._store.transaction() as tx:
            runs = await tx.backup_runs(dataset.name)
            inventories = await tx.inventories()
        first = inventory_in(inventories, dataset, dataset.buckets[0])
        return _Situation(dataset=dataset, runs=runs, inventory=first, now=self._clock.now())

    async def _plan(self, situation: _Situation, claim: Claim) -> TickReport:
        if situation.inventory is None or situation.inventory.problem:
            return TickReport(sentence=_WAITS, again_after=_LOOK_AGAIN)
        decision = plan_backup(
            situation.dataset,
            situation.inventory.points,
            situation.runs,
            judge_inventory(situation.dataset, situation.inventory, situation.now),
            situation.now,
        )
        if decision.cause is None:
            again = None if decision.again_at is None else max(decision.again_at - situation.now, _SOON)
            return TickReport(sentence=decision.sentence, again_after=again)
        run = BackupRun(
            run=self._ids.new_id(),
            dataset=situation.dataset.name,
            cause=decision.cause,
            phase=BackupPhase.PENDING,
            phase_since=situation.now,
            asked_at=situation.now,
            asked_by=decision.cause,
            sentence=decision.sentence,
        )
        await self._write(claim, run)
        return TickReport(sentence=decision.sentence, changed=True, again_after=_SOON)

    async def _begin(self, situation: _Situation, run: BackupRun, claim: Claim) -> TickReport:
        """The row says which point is written before a byte of it is: what a crash leaves can be named and swept."""
        if situation.inventory is None or situation.inventory.problem:
            return TickReport(sentence=_WAITS, again_after=_LOOK_AGAIN)
        swept = await self._workshop.sweep(situation.dataset, writing=frozenset())
        incremental = self._workshop.makes_increments(situation.dataset)
        points = lineage_of(situation.inventory.points, run.dataset, situation.dataset.buckets[0])
        parent, form = choose_parent(points, incremental=incremental)
        order = CopyOrder(
            dataset=situation.dataset,
            point=point_id(situation.now, self._ids.new_id()),
            parent=parent,
            storage_class=class_of_new(situation.dataset),
            locked_until=self._locked_until(situation.dataset, situation.now),
        )
        left = f" ({len(swept)} objects of an unfinished copy were removed)" if swept else ""
        sentence = f"copies {run.dataset} as {order.point}, {form}{left}"
        begun = replace(
            self._turn(run, BackupPhase.COPYING),
            point=order.point,
            parent=parent,
            attempt=run.attempt + 1,
            worker=claim.holder,
            sentence=sentence,
        )
        await self._write(claim, begun, Reason.BACKUP_STARTED)
        self._workshop.begin_copy(_work_name(begun), order)
        return TickReport(sentence=sentence, changed=True, again_after=_LOOK_AGAIN)

    def _locked_until(self, dataset: DatasetSpec, now: datetime) -> datetime | None:
        buckets = (self._declared().bucket(name) for name in dataset.buckets)
        locks = any(bucket is not None and bucket.lock is not LockMode.NONE for bucket in buckets)
        return lock_until(dataset.retention, now) if locks else None

    async def _look(self, run: BackupRun, claim: Claim) -> TickReport:
        found = self._workshop.look_copy(_work_name(run))
        match found:
            case Working(done_bytes=done, total_bytes=total, step=step):
                if (done, total) != (run.done_bytes, run.total_bytes):
                    await self._write(claim, replace(run, done_bytes=done, total_bytes=total))
                return TickReport(sentence=f"{step}, {format_bytes(done)} so far", again_after=_LOOK_AGAIN)
            case Finished(made=made):
                return await self._end(run, BackupPhase.DONE, Reason.BACKUP_DONE, _told(run, made), claim, made=made)
            case Broken(sentence=sentence):
                return await self._end(run, BackupPhase.FAILED, Reason.BACKUP_FAILED, sentence, claim)
            case Unknown():
                return await self._lost(run, claim)
            case _:
                assert_never(found)

    async def _lost(self, run: BackupRun, claim: Claim) -> TickReport:
        now, elsewhere = self._clock.now(), run.worker != claim.holder
        # Under one name there is one process: what it does not know was its predecessor's, which is dead.
        if elsewhere and now - self._missing_since.setdefault(_work_name(run), now) < self._lost_after:
            sentence = f"nobody here copies {run.dataset}; waits until nobody elsewhere does"
            return TickReport(sentence=sentence, again_after=_LOOK_AGAIN)
        self._missing_since.pop(_work_name(run), None)
        if run.attempt >= ATTEMPTS_MAX:
            sentence = f"the control plane ended {run.attempt} times while it copied {run.dataset}; ask for it by hand"
            return await self._end(run, BackupPhase.FAILED, Reason.BACKUP_FAILED, sentence, claim)
        sentence = f"the control plane that copied {run.dataset} is gone; it begins again"
        await self._write(
            claim, replace(self._turn(run, BackupPhase.PENDING), sentence=sentence, point=None), Reason.BACKUP_LOST
        )
        return TickReport(sentence=sentence, changed=True, again_after=_SOON)

    async def _end(
        self,
        run: BackupRun,
        phase: BackupPhase,
        reason: Reason,
        sentence: str,
        claim: Claim,
        *,
        made: CopyMade | None = None,
    ) -> TickReport:
        done = made.plain_bytes if made is not None else run.done_bytes
        await self._write(claim, replace(self._turn(run, phase), sentence=sentence, done_bytes=done), reason)
        self._hints.hint("recovery-points")
        return TickReport(sentence=sentence, changed=True)

    def _turn(self, run: BackupRun, phase: BackupPhase) -> BackupRun:
        BACKUP_TRANSITIONS.check(run.phase, phase, subject=f"backup run {run.run}")
        return replace(run, phase=phase, phase_since=self._clock.now())

    async def _write(self, claim: Claim, run: BackupRun, reason: Reason | None = None) -> None:
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await tx.put_backup_run(run)
            if reason is not None:
                event = NewEvent(
                    at=self._clock.now(),
                    kind=EventKind.RECOVERY,
                    subject=run.dataset,
                    reason=reason,
                    sentence=run.sentence,
                    data=(("run", run.run),),
                )
                await tx.append_events([event])


def _work_name(run: BackupRun) -> str:
    return f"{run.run}/{run.attempt}"


def _told(run: BackupRun, made: CopyMade) -> str:
    where = ", ".join(made.buckets)
    missing = f"; not in {'; '.join(made.failed_buckets)}" if made.failed_buckets else ""
    sizes = f"{format_bytes(made.plain_bytes)} as {format_bytes(made.stored_bytes)}"
    return f"recovery point {made.point} of {run.dataset}: {sizes} in {made.took_s:.1f} s, in {where}{missing}"
