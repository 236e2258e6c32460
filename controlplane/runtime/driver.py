"""Runs one reconciler: finds its resources, shares them with other instances, ticks each at its pace.

The only place of the program that catches `Exception`: whatever a tick raises becomes its outcome.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.store import Store, TickRecord
from controlplane.kernel.effects import Clock, IdSource, Rng
from controlplane.kernel.errors import QuarterdeckError, RetryableError, StaleClaimError
from controlplane.kernel.ids import InstanceId
from controlplane.runtime.claims import ClaimKeeper, survey_period
from controlplane.runtime.deadline import deadline, wait_for
from controlplane.runtime.reconciler import Pace, Reconciler, TickReport
from controlplane.runtime.schedule import JITTER_LOW, Schedule
from controlplane.runtime.status import SURVEY, LoopStatus, SilentObserver, TickObserver, TickOutcome

_LOG = logging.getLogger(__name__)

CONCURRENCY: Final = 8
"""Ticks of one loop at the same time: they wait for engines and launchers, not for this process."""
_STORE_DEADLINE: Final = timedelta(seconds=10)
"""For the driver's own short transactions; the store's own waits end sooner."""
_OVERDUE_PACES: Final = 3
"""A loop counts as hanging after so many of its longest regular intervals without an end of a tick."""
_RESOLUTION_S: Final = 1e-6
"""timedelta's: what is due nearer than this is due now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """How a tick ended."""

    outcome: TickOutcome
    sentence: str
    again_after: timedelta | None = None
    """After a success: sooner than the period. After a failure: the failure's own advice."""


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One resource that this instance works on."""

    resource: str
    schedule: Schedule
    known_since: datetime
    busy: bool = False
    last: _Ended | None = None
    last_tick_at: datetime | None = None
    duration: timedelta = field(default=timedelta(0))


class Driver:
    """`run()` until `stop()`. Cancelling `run()` is the crash: claims stay behind and expire."""

    def __init__(
        self,
        *,
        reconciler: Reconciler,
        pace: Pace,
        store: Store,
        clock: Clock,
        rng: Rng,
        ids: IdSource,
        instance: InstanceId,
        observer: TickObserver | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        assert pace.claim_ttl > pace.deadline, f"{reconciler.name}: a claim must outlive the tick that it covers"
        assert concurrency >= 1, f"{reconciler.name}: at least one tick at a time"
        self._reconciler = reconciler
        self._pace = pace
        self._store = store
        self._clock = clock
        self._rng = rng
        self._instance = instance
        self._observer = observer or SilentObserver()
        self._concurrency = concurrency
        self._claims = ClaimKeeper(
            store=store, clock=clock, ids=ids, instance=instance, loop=reconciler.name, pace=pace
        )
        survey_pace = replace(pace, period=survey_period(pace))
        self._survey = _Slot(resource=SURVEY, schedule=Schedule(pace=survey_pace), known_since=clock.now())
        self._work: frozenset[str] = frozenset()
        self._slots: dict[str, _Slot] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def name(self) -> str:
        return self._reconciler.name

    def hint(self) -> None:
        """Look sooner. On the event loop's thread only; `HintBoard` is for the others."""
        self._survey.schedule.hint()
        for slot in self._slots.values():
            slot.schedule.hint()
        self._wake.set()

    def stop(self) -> None:
        """Start no tick any more, let those under way end, give the claims back; then `run()` returns."""
        self._stopping = True
        self._wake.set()

    def status(self) -> Sequence[LoopStatus]:
        """The loop's own survey first, then by resource."""
        slots = [self._survey, *(self._slots[resource] for resource in sorted(self._slots))]
        return [self._status_of(slot) for slot in slots]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as ticks:
            while not self._stopping:
                self._wake.clear()
                await self._survey_if_due()
                pause = self._start_due(ticks)
                await wait_for(self._clock, self._wake, pause)
        await self._give_back()

    async def _survey_if_due(self) -> None:
        slot = self._survey
        if slot.schedule.next_s <= self._clock.monotonic() + _RESOLUTION_S:
            await self._run_slot(slot)

    def _start_due(self, ticks: asyncio.TaskGroup) -> timedelta | None:
        """Start what is due, the longest waiting first; how long until the next is (None: until something ends)."""
        now_s = self._clock.monotonic()
        idle = sorted((slot for slot in self._slots.values() if not slot.busy), key=lambda slot: slot.schedule.next_s)
        free = self._concurrency - (len(self._slots) - len(idle))
        due = [slot for slot in idle if slot.schedule.next_s <= now_s + _RESOLUTION_S][:free]
        for slot in due:
            slot.busy = True
            ticks.create_task(self._run_slot(slot), name=f"{self.name}/{slot.resource}")
        waiting = [self._survey, *(idle[len(due) :] if len(due) < free else ())]
        next_s = min(slot.schedule.next_s for slot in waiting)
        return timedelta(seconds=max(0.0, next_s - now_s))

    async def _run_slot(self, slot: _Slot) -> None:
        """One tick from its start to its place in the books. Raises nothing but cancellation."""
        started_at, started_s = self._clock.now(), self._clock.monotonic()
        slot.schedule.start(started_s)
        try:
            ended = await self._attempt(slot)
        finally:
            slot.busy = False
            self._wake.set()
            if slot is not self._survey and slot.resource not in self._work:
                self._slots.pop(slot.resource, None)
        if ended is None:
            self._slots.pop(slot.resource, None)
            return
        now_s = self._clock.monotonic()
        slot.duration = timedelta(seconds=now_s - started_s)
        self._note_change(slot, ended)
        slot.last, slot.last_tick_at = ended, self._clock.now()
        self._reschedule(slot, ended, now_s)
        self._observer.on_tick(self.name, slot.resource, ended.outcome, slot.duration)
        if ended.outcome is not TickOutcome.QUIET:
            await self._record(slot, ended, started_at)

    async def _attempt(self, slot: _Slot) -> _Ended | None:
        """None: another instance has the resource."""
        scope: asyncio.Timeout | None = None
        try:
            async with deadline(self._clock, self._pace.deadline) as scope:
                report = await (self._look_around() if slot is self._survey else self._tick(slot.resource))
        except StaleClaimError as error:
            self._claims.forget(slot.resource)
            return _Ended(outcome=TickOutcome.STALE_CLAIM, sentence=str(error))
        except Exception as error:  # noqa: BLE001 - the driver is where a tick's failure becomes a value
            self._claims.forget(slot.resource)
            if isinstance(error, TimeoutError) and scope is not None and scope.expired():
                limit_s = self._pace.deadline.total_seconds()
                return _Ended(outcome=TickOutcome.TIMED_OUT, sentence=f"not finished after {limit_s:g} s")
            return self._failure(slot, error)
        if report is None:
            return None
        outcome = TickOutcome.CHANGED if report.changed else TickOutcome.QUIET
        return _Ended(outcome=outcome, sentence=report.sentence, again_after=report.again_after)

    async def _tick(self, resource: str) -> TickReport | None:
        claim = await self._claims.hold(resource)
        return None if claim is None else await self._reconciler.tick(resource, claim)

    async def _look_around(self) -> TickReport:
        """Find the resources and this instance's part of them."""
        resources = await self._reconciler.resources()
        busy = {slot.resource for slot in self._slots.values() if slot.busy}
        self._work = work = await self._claims.survey(resources, busy)
        self._slots = {resource: slot for resource, slot in self._slots.items() if resource in work or slot.busy}
        for resource in work - self._slots.keys():
            schedule = Schedule(pace=self._pace)
            self._slots[resource] = _Slot(resource=resource, schedule=schedule, known_since=self._clock.now())
        return TickReport(sentence=f"works on {len(work)} of {len(resources)}")

    def _failure(self, slot: _Slot, error: Exception) -> _Ended:
        if isinstance(error, ExceptionGroup) and error.split(StaleClaimError)[1] is None:
            return _Ended(outcome=TickOutcome.STALE_CLAIM, sentence=str(error.exceptions[0]))
        if not isinstance(error, QuarterdeckError) and (slot.last is None or not slot.last.outcome.is_failure):
            _LOG.error("a tick raised what it should not", extra=self._place(slot), exc_info=error)
        sentence = str(error) if isinstance(error, QuarterdeckError) else f"{type(error).__name__}: {error}"
        advice = error.after if isinstance(error, RetryableError) else None
        return _Ended(outcome=TickOutcome.FAILED, sentence=sentence, again_after=advice)

    def _note_change(self, slot: _Slot, ended: _Ended) -> None:
        failing = slot.last is not None and slot.last.outcome.is_failure
        if ended.outcome.is_failure and (slot.last is None or slot.last.sentence != ended.sentence):
            _LOG.warning("a tick failed", extra={**self._place(slot), "sentence": ended.sentence})
        elif failing and not ended.outcome.is_failure:
            _LOG.info("ticks succeed again", extra=self._place(slot))

    def _reschedule(self, slot: _Slot, ended: _Ended, now_s: float) -> None:
        if ended.outcome.is_failure:
            jitter = self._rng.uniform(JITTER_LOW, 1.0)
            slot.schedule.fail(now_s, jitter=jitter, after=ended.again_after)
        else:
            slot.schedule.succeed(now_s, again_after=ended.again_after)

    async def _record(self, slot: _Slot, ended: _Ended, started_at: datetime) -> None:
        tick = TickRecord(
            loop=self.name,
            resource=slot.resource,
            holder=self._instance,
            started_at=started_at,
            duration=slot.duration,
            outcome=ended.outcome,
            sentence=ended.sentence,
        )
        try:
            async with deadline(self._clock, _STORE_DEADLINE), self._store.transaction() as tx:
                await tx.append_tick(tick)
        except Exception as error:  # noqa: BLE001 - the record is for people; without it the loop goes on
            _LOG.warning("a tick could not be recorded", extra={**self._place(slot), "error": str(error)})

    async def _give_back(self) -> None:
        try:
            async with deadline(self._clock, _STORE_DEADLINE):
                await self._claims.release_all()
        except Exception as error:  # noqa: BLE001 - the claims expire by themselves, only later
            _LOG.warning("claims could not be given back", extra={"loop": self.name, "error": str(error)})

    def _status_of(self, slot: _Slot) -> LoopStatus:
        pace = slot.schedule.pace
        pause = max(pace.period, pace.backoff_max) if slot.schedule.failures else pace.period
        since = slot.last_tick_at or slot.known_since
        return LoopStatus(
            loop=self.name,
            resource=slot.resource,
            last_tick_at=slot.last_tick_at,
            outcome=slot.last.outcome if slot.last else None,
            sentence=slot.last.sentence if slot.last else "",
            consecutive_failures=slot.schedule.failures,
            duration=slot.duration,
            overdue=self._clock.now() - since > (pause + pace.deadline) * _OVERDUE_PACES,
        )

    def _place(self, slot: _Slot) -> dict[str, str]:
        return {"loop": self.name, "resource": slot.resource}
