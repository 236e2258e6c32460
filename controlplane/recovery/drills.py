"""The loop that proves restores: a drill is a row with a phase, taken one idempotent step further a tick.

Killed anywhere it goes on: until the copy is fetched by repeating the step, after that by cleaning up and beginning
again from an empty folder. Whatever happens, the last steps are cleaning and recording.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.dataset import BucketSpec, DatasetSpec, DrillSelection, RecoverySpec
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import DRILL_TRANSITIONS, Drill, DrillPhase, Inventory, Verdict
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock, IdSource, Rng
from controlplane.kernel.errors import QuarterdeckError, RetryableError, StaleClaimError, TerminalError
from controlplane.kernel.ids import DatasetName
from controlplane.kernel.units import format_duration
from controlplane.recovery.drill_plan import plan_drills
from controlplane.recovery.forecast import forecast_rto
from controlplane.recovery.gate import rto_of_drill
from controlplane.recovery.lineage import BrokenChain, Chain, chain_of
from controlplane.recovery.phrases import moment
from controlplane.recovery.rpo import SKEW_MAX
from controlplane.recovery.selection import NoneQualifies, Selected, select_point
from controlplane.recovery.standing import DRILLS_READ, inventory_in, rates_of
from controlplane.recovery.workshop import (
    LOST_AFTER,
    Broken,
    DrillMade,
    DrillOrder,
    Finished,
    Unknown,
    Working,
    Workshop,
)
from controlplane.runtime.reconciler import TickReport

LOOP: Final = "drills"

ATTEMPTS_MAX: Final = 3
"""Of one drill whose worker vanished."""
_LOOK_AGAIN: Final = timedelta(seconds=1)
_THAW_LOOK: Final = timedelta(minutes=1)
"""A retrieval takes hours (Glacier's Standard: three to five)."""
_SOON: Final = timedelta(milliseconds=200)
_ROOM_FACTOR: Final = 1.5
"""Of the copy's size: PostgreSQL replays WAL on top, and keeps some."""
_BELOW_ONE: Final = 1.0 - 1e-9
_WORKING: Final = frozenset({DrillPhase.RESTORING, DrillPhase.STARTING, DrillPhase.VERIFYING})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What a drill is about, as declared now."""

    dataset: DatasetSpec
    bucket: BucketSpec
    inventory: Inventory | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    drills: Sequence[Drill]
    """Of the dataset, newest first."""
    inventories: Sequence[Inventory]


class Drills:
    """Writes drills and nothing else."""

    name: Final = LOOP

    def __init__(
        self,
        *,
        store: Store,
        workshop: Workshop,
        clock: Clock,
        rng: Rng,
        ids: IdSource,
        declared: Callable[[], RecoverySpec],
        lost_after: timedelta = LOST_AFTER,
    ) -> None:
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._rng = rng
        self._ids = ids
        self._declared = declared
        self._lost_after = lost_after
        self._missing_since: dict[tuple[str, int], datetime] = {}
        """Attempts that a look did not find in this process."""

    async def resources(self) -> Sequence[str]:
        """Datasets, and those whose drill has not ended although they are no longer declared."""
        declared = [dataset.name for dataset in self._declared().datasets]
        async with self._store.transaction() as tx:
            active = [drill.dataset for drill in await tx.drills() if not drill.ended]
        return sorted({*declared, *active})

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        async with self._store.transaction() as tx:
            drills = await tx.drills(DatasetName(resource), limit=DRILLS_READ)
            inventories = await tx.inventories()
        active = [drill for drill in drills if not drill.ended]
        if not active:
            return await self._plan(resource, drills, inventories, claim)
        # One that has begun comes before any that waits, whatever the clocks of who asked say.
        drill = next((drill for drill in active if drill.phase is not DrillPhase.PENDING), active[-1])
        place = self._place(drill, inventories)
        if place is None and drill.phase not in {DrillPhase.CLEANING, DrillPhase.RECORDING}:
            return await self._give_up(
                drill, f"{drill.dataset} or {drill.bucket} is no longer declared, or no longer together", claim
            )
        try:
            return await self._step(drill, place, _Known(drills=drills, inventories=inventories), claim)
        except (RetryableError, StaleClaimError):
            raise
        except QuarterdeckError as error:
            if drill.phase in {DrillPhase.CLEANING, DrillPhase.RECORDING}:
                raise  # Nothing else may happen before nothing is left of it, and what evidence says stays said.
            return await self._give_up(drill, str(error), claim)

    async def _step(self, drill: Drill, place: _Place | None, known: _Known, claim: Claim) -> TickReport:
        match drill.phase:
            case DrillPhase.CLEANING:
                return await self._clean(drill, claim)
            case DrillPhase.RECORDING:
                return await self._record(drill, claim)
        assert place is not None, "only the last two phases do without"
        match drill.phase:
            case DrillPhase.PENDING:
                return await self._choose(drill, place, known, claim)
            case DrillPhase.RESERVING:
                return await self._reserve(drill, claim)
            case DrillPhase.FETCHING:
                return await self._fetch(drill, place, claim)
            case DrillPhase.MEASURING:
                return await self._measure(drill, place, claim)
            case _:
                assert drill.phase in _WORKING, drill.phase
                return await self._look(drill, claim)

    async def _plan(
        self, resource: str, drills: Sequence[Drill], inventories: Sequence[Inventory], claim: Claim
    ) -> TickReport:
        declared, now = self._declared(), self._clock.now()
        own = replace(declared, drills=tuple(one for one in declared.drills if one.dataset == resource))
        points = [point for inventory in inventories if not inventory.problem for point in inventory.points]
        draws = {one.name: self._draw() for one in own.drills}
        plan = plan_drills(own, points, drills, now, draws=draws, keys=self._workshop.keys())
        if not plan.due:
            times = [waiting.until for waiting in plan.waiting if waiting.until is not None]
            again = max(min(times) - now, _SOON) if times else None
            return TickReport(sentence="; ".join(waiting.sentence for waiting in plan.waiting), again_after=again)
        decision = plan.due[0]
        spec = decision.spec
        drill = Drill(
            drill=self._ids.new_id(),
            name=spec.name,
            dataset=spec.dataset,
            selection=spec.selection,
            key=spec.key,
            bucket=decision.bucket,
            phase=DrillPhase.PENDING,
            phase_since=now,
            asked_at=now,
            asked_by="schedule",
            sentence=decision.sentence,
        )
        await self._write(claim, drill)
        return TickReport(sentence=decision.sentence, changed=True, again_after=_SOON)

    async def _choose(self, drill: Drill, place: _Place, known: _Known, claim: Claim) -> TickReport:
        inventory = place.inventory
        if inventory is None or inventory.problem:
            return TickReport(sentence="waits until the bucket can be read", again_after=_LOOK_AGAIN)
        chosen = self._chosen(drill, inventory)
        if isinstance(chosen, NoneQualifies):
            return await self._give_up(drill, chosen.sentence, claim)
        forecast = forecast_rto(
            chosen.chain,
            rates_of(place.dataset, known.drills, known.inventories),
            log_bytes=inventory.log_bytes,
        )
        sentence = f"drill {drill.name} of {drill.dataset} restores {chosen.sentence}; {forecast.sentence}"
        turned = replace(
            self._turn(drill, DrillPhase.RESERVING),
            point=chosen.point.point,
            forecast_s=forecast.total_s,
            plain_bytes=chosen.chain.plain_bytes,
            sentence=sentence,
        )
        if not await self._start(claim, turned):
            return TickReport(sentence=f"{turned.point} was deleted meanwhile; chooses again", again_after=_SOON)
        return TickReport(sentence=sentence, changed=True, again_after=_SOON)

    def _chosen(self, drill: Drill, inventory: Inventory) -> Selected | NoneQualifies:
        """The point that a person named, or one by the drill's selection."""
        if drill.point is None:
            # A copy of later than the moment that is wanted cannot be rolled back to it.
            points = [one for one in inventory.points if drill.to_time is None or one.consistent_at <= drill.to_time]
            return select_point(drill.selection, points, drill.dataset, drill.bucket, draw=self._draw())
        named = inventory.find(drill.point)
        if named is None:
            return NoneQualifies(sentence=f"{drill.point} is not in {drill.bucket}")
        chain = chain_of(named, inventory.points)
        if isinstance(chain, BrokenChain):
            return NoneQualifies(sentence=chain.problem)
        return Selected(chain=chain, sentence=f"{named.point}, as asked for")

    def _draw(self) -> float:
        return min(self._rng.uniform(0.0, 1.0), _BELOW_ONE)

    async def _start(self, claim: Claim, drill: Drill) -> bool:
        """From this commit on its point is in use. False: retention took it before that."""
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            row = next((one for one in await tx.inventories() if _is_at(one, drill)), None)
            if row is None or all(point.point != drill.point or point.problems for point in row.points):
                return False
            await self._put(tx, drill, Reason.DRILL_STARTED)
        return True

    async def _reserve(self, drill: Drill, claim: Claim) -> TickReport:
        needed_bytes = int(drill.plain_bytes * _ROOM_FACTOR)
        scratch = await self._workshop.reserve(drill, needed_bytes=needed_bytes)
        await self._write(claim, replace(self._turn(drill, DrillPhase.FETCHING), scratch=scratch))
        return TickReport(sentence=f"reserved {scratch}", changed=True, again_after=_SOON)

    async def _fetch(self, drill: Drill, place: _Place, claim: Claim) -> TickReport:
        order = self._order(drill, place)
        thawing = await self._workshop.thaw(order)
        if thawing.pending:
            return TickReport(sentence=thawing.sentence, again_after=_THAW_LOOK)
        waited_s = (self._clock.now() - drill.phase_since).total_seconds() if thawing.archived else 0.0
        # After an attempt that was lost everything is thawed already: the first wait is the one that counts.
        waited_s = max(waited_s, drill.times.retrieval_wait_s)
        begun = replace(
            self._turn(drill, DrillPhase.RESTORING),
            attempt=drill.attempt + 1,
            worker=claim.holder,
            times=replace(drill.times, retrieval_wait_s=waited_s),
        )
        await self._write(claim, begun)
        self._workshop.begin_drill(begun, order)
        return TickReport(sentence=f"restores into {drill.scratch}", changed=True, again_after=_LOOK_AGAIN)

    async def _look(self, drill: Drill, claim: Claim) -> TickReport:
        found = self._workshop.look_drill(drill)
        match found:
            case Working(phase=phase, step=step):
                if phase is not None and phase is not drill.phase:
                    await self._write(claim, replace(self._forward(drill, phase), sentence=step))
                return TickReport(sentence=step, again_after=_LOOK_AGAIN)
            case Finished(made=made):
                await self._write(claim, _with_findings(self._forward(drill, DrillPhase.MEASURING), made))
                return TickReport(sentence="restored and looked through", changed=True, again_after=_SOON)
            case Broken(sentence=sentence, hopeless=True):
                return await self._give_up(drill, sentence, claim)
            case Broken(sentence=sentence):
                return await self._again(drill, sentence, claim)
            case Unknown():
                return await self._lost(drill, claim)
            case _:
                assert_never(found)

    async def _lost(self, drill: Drill, claim: Claim) -> TickReport:
        now, attempt = self._clock.now(), (drill.drill, drill.attempt)
        # Under one name there is one process: what it does not know was its predecessor's, which is dead.
        elsewhere = drill.worker != claim.holder
        if elsewhere and now - self._missing_since.setdefault(attempt, now) < self._lost_after:
            sentence = "nobody here restores it; waits until nobody elsewhere does"
            return TickReport(sentence=sentence, again_after=_LOOK_AGAIN)
        report = await self._again(drill, "the control plane that restored it is gone", claim)
        self._missing_since.pop(attempt, None)
        return report

    async def _again(self, drill: Drill, why: str, claim: Claim) -> TickReport:
        """Nobody knows what state the folder is in: it is emptied."""
        if drill.attempt >= ATTEMPTS_MAX:
            return await self._give_up(drill, f"{why}, for the {ATTEMPTS_MAX}rd time", claim)
        await self._workshop.clean(drill, self._declared().dataset(drill.dataset))
        await self._write(claim, replace(self._turn(drill, DrillPhase.RESERVING), scratch=None))
        return TickReport(sentence=f"{why}; begins again", changed=True, again_after=_SOON)

    async def _measure(self, drill: Drill, place: _Place, claim: Claim) -> TickReport:
        wanted = _wanted(drill, place)
        rpo = None if drill.newest_at is None or wanted is None else max(wanted - drill.newest_at, timedelta(0))
        measured = replace(
            self._turn(drill, DrillPhase.CLEANING), achieved_rpo=rpo, failure=_failure_of(drill, place, rpo)
        )
        await self._write(claim, measured)
        return TickReport(sentence="measured", changed=True, again_after=_SOON)

    async def _clean(self, drill: Drill, claim: Claim) -> TickReport:
        begin_s = self._clock.monotonic()
        proof = await self._workshop.clean(drill, self._declared().dataset(drill.dataset))
        times = replace(drill.times, clean_up_s=self._clock.monotonic() - begin_s)
        cleaned = replace(self._turn(drill, DrillPhase.RECORDING), scratch=None, clean_proof=proof, times=times)
        await self._write(claim, cleaned)
        return TickReport(sentence="cleaned up", changed=True, again_after=_SOON)

    async def _record(self, drill: Drill, claim: Claim) -> TickReport:
        verdict = DrillPhase.FAILED if drill.failure else DrillPhase.PASSED
        sentence = _told(drill)
        try:
            key = await self._workshop.record(replace(drill, phase=verdict, sentence=sentence))
        except RetryableError:
            raise
        except QuarterdeckError as error:
            return await self._end_unproven(drill, str(error), claim)
        reason = Reason.DRILL_FAILED if drill.failure else Reason.DRILL_PASSED
        ended = replace(self._turn(drill, verdict), evidence_key=key, sentence=sentence)
        await self._write(claim, ended, reason)
        return TickReport(sentence=sentence, changed=True)

    async def _end_unproven(self, drill: Drill, why: str, claim: Claim) -> TickReport:
        """A drill without evidence proves nothing."""
        unproven = f"its evidence could not be written: {why}"
        failed = replace(drill, failure=f"{drill.failure}; {unproven}" if drill.failure else unproven)
        sentence = _told(failed)
        await self._write(claim, replace(self._turn(failed, DrillPhase.FAILED), sentence=sentence), Reason.DRILL_FAILED)
        return TickReport(sentence=sentence, changed=True)

    async def _give_up(self, drill: Drill, sentence: str, claim: Claim) -> TickReport:
        await self._write(claim, replace(self._turn(drill, DrillPhase.CLEANING), failure=sentence, sentence=sentence))
        return TickReport(sentence=sentence, changed=True, again_after=_SOON)

    def _place(self, drill: Drill, inventories: Sequence[Inventory]) -> _Place | None:
        declared = self._declared()
        dataset, bucket = declared.dataset(drill.dataset), declared.bucket(drill.bucket)
        if dataset is None or bucket is None or bucket.name not in dataset.buckets:
            return None
        return _Place(dataset=dataset, bucket=bucket, inventory=inventory_in(inventories, dataset, drill.bucket))

    def _order(self, drill: Drill, place: _Place) -> DrillOrder:
        inventory = place.inventory
        point = None if inventory is None else inventory.find(drill.point)
        chain = None if inventory is None or point is None else chain_of(point, inventory.points)
        if not isinstance(chain, Chain) or drill.scratch is None:
            raise TerminalError(f"recovery point {drill.point} is no longer whole in {drill.bucket}")
        names = tuple(one.point for one in chain.links)
        return DrillOrder(dataset=place.dataset, bucket=place.bucket, chain=names, scratch=drill.scratch)

    def _forward(self, drill: Drill, phase: DrillPhase) -> Drill:
        """Through the phases between: a look may come too late to see each."""
        order = list(DrillPhase)
        while drill.phase is not phase:
            drill = self._turn(drill, order[order.index(drill.phase) + 1])
        return drill

    def _turn(self, drill: Drill, phase: DrillPhase) -> Drill:
        DRILL_TRANSITIONS.check(drill.phase, phase, subject=f"drill {drill.drill}")
        return replace(drill, phase=phase, phase_since=self._clock.now())

    async def _write(self, claim: Claim, drill: Drill, reason: Reason | None = None) -> None:
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            await self._put(tx, drill, reason)

    async def _put(self, tx: Transaction, drill: Drill, reason: Reason | None) -> None:
        await tx.put_drill(drill)
        if reason is not None:
            event = NewEvent(
                at=self._clock.now(),
                kind=EventKind.RECOVERY,
                subject=drill.dataset,
                reason=reason,
                sentence=drill.sentence,
                data=(("drill", drill.drill),),
            )
            await tx.append_events([event])


def _is_at(inventory: Inventory, drill: Drill) -> bool:
    return (inventory.dataset, inventory.bucket) == (drill.dataset, drill.bucket)


def _wanted(drill: Drill, place: _Place) -> datetime | None:
    """Up to when the data should be there: the moment that was asked for, or at which the latest copy was asked for.

    An older recovery point, chosen on purpose, owes only its own moment.
    """
    if drill.to_time is not None:
        return drill.to_time
    if drill.selection is DrillSelection.LATEST and not drill.named:
        return drill.asked_at
    point = None if place.inventory is None else place.inventory.find(drill.point)
    return None if point is None else point.consistent_at


def _with_findings(drill: Drill, made: DrillMade) -> Drill:
    times = replace(made.times, retrieval_wait_s=drill.times.retrieval_wait_s)
    return replace(
        drill,
        key_id=made.key_id,
        storage_classes=made.storage_classes,
        fetched_bytes=made.fetched_bytes,
        plain_bytes=made.plain_bytes,
        times=times,
        newest_at=made.newest_at,
        checks=made.checks,
        failure=made.failure,
    )


def _failure_of(drill: Drill, place: _Place, rpo: timedelta | None) -> str:
    """Empty: it passes."""
    if drill.failure:
        return drill.failure
    failed = [check for check in drill.checks if check.verdict is Verdict.FAILED]
    if failed:
        return "; ".join(f"{check.name}: {check.sentence}" for check in failed)
    if not any(check.verdict is Verdict.PASSED for check in drill.checks):
        return "nothing was verified"
    took, rto = timedelta(seconds=drill.times.rto_s), rto_of_drill(place.dataset, drill)
    if took > rto:
        return f"it took {format_duration(took)}, the RTO is {format_duration(rto)}"
    if drill.newest_at is not None and drill.newest_at > drill.phase_since + SKEW_MAX:
        return f"the newest restored moment is {moment(drill.newest_at)}, in the future: a clock is wrong"
    if rpo is not None and rpo > place.dataset.rpo:
        lost = f"the newest restored moment is {format_duration(rpo)} before the one that was asked for"
        return f"{lost}, the RPO is {format_duration(place.dataset.rpo)}"
    return ""


def _told(drill: Drill) -> str:
    if drill.failure:
        return f"drill {drill.name} of {drill.dataset} failed: {drill.failure}"
    took = format_duration(timedelta(seconds=drill.times.rto_s))
    forecast = f" (forecast {format_duration(timedelta(seconds=drill.forecast_s))})" if drill.forecast_s else ""
    lost = "" if drill.achieved_rpo is None else f", {format_duration(drill.achieved_rpo)} of data lost"
    passed = sum(check.verdict is Verdict.PASSED for check in drill.checks)
    return (
        f"drill {drill.name}: {drill.dataset} back from {drill.point} in {took}{forecast}{lost}; "
        f"{passed} checks passed, opened by {drill.key_id}"
    )
