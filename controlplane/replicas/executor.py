"""Carries a plan out: rows first, then the world, then what the world answered. No choices are made here.

A crash between any two of these is continued by the next tick: a row without its act is acted on again (every act is
idempotent by the replica's name), an act without its result row is found in the list of what runs.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.store import Claim, Store, Transaction
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.lifecycle import moved
from controlplane.replicas.memory import FAILED_START_REVISION
from controlplane.replicas.ports import Engines, Launcher, LaunchOutcome, LaunchResult
from controlplane.replicas.steps import (
    Adopt,
    Drain,
    Forget,
    Hold,
    Kill,
    Launch,
    MarkAsleep,
    MarkReady,
    Release,
    ReplicaPlan,
    Reserve,
    Retire,
    Sleep,
    Step,
    Terminate,
    Undrain,
    Wake,
)

ACT_DEADLINE: Final = timedelta(seconds=8)
"""One call to launcher or engine; below a tick's deadline, so that its result is still written."""
ACTS_AT_ONCE: Final = 16
"""Calls in flight of one tick: a plan has few more steps than this."""
LOG_DEADLINE: Final = timedelta(seconds=2)
"""A read of a local file, or one call to a cluster; all at once."""
LOG_LINES: Final = 15
"""Last lines of a dead replica's output kept in its event: enough for a stack's end or an out-of-memory line."""
LOG_CHARS_MAX: Final = 2000
"""Of those lines together, so that an event stays a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one act ended. `trouble` says why the world did not confirm; the next tick tries again."""

    step: Launch | Sleep | Wake | Terminate | Kill
    launch: LaunchOutcome | None = None
    asleep: bool | None = None
    trouble: str = ""


class Executor:
    """Thin: each method is one stage of the protocol above."""

    def __init__(self, *, store: Store, launcher: Launcher, engines: Engines, clock: Clock) -> None:
        self._store = store
        self._launcher = launcher
        self._engines = engines
        self._clock = clock

    async def write_ahead(self, plan: ReplicaPlan, claim: Claim, *, told: frozenset[Reason]) -> None:
        """Commit all rows that come before acts. ConflictError when another deployment took a GPU or port first.

        `told` are hold reasons already in the history. StaleClaimError when the claim has passed to somebody else.
        """
        logs = await self._logs_of_dead(plan.steps)
        events = [event for step in plan.steps if (event := _event_before(plan, step, logs, told, self._clock.now()))]
        if not events and not any(_writes_before(step) for step in plan.steps):
            return
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            for step in plan.steps:
                await _write_before(tx, step)
            await tx.append_events(events)

    async def act(self, plan: ReplicaPlan) -> tuple[Answer, ...]:
        """All acts of the plan at once, each with its deadline; an expected failure is an answer."""
        acts = [step for step in plan.steps if isinstance(step, Launch | Sleep | Wake | Terminate | Kill)]
        if not acts:
            return ()
        gate = asyncio.Semaphore(ACTS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guarded(step, gate), name=f"act-{type(step).__name__}") for step in acts]
        return tuple(task.result() for task in tasks)

    async def write_results(self, plan: ReplicaPlan, answers: Sequence[Answer], claim: Claim) -> None:
        """Commit what the world confirmed or refused."""
        now = self._clock.now()
        results = [result for answer in answers if (result := _result(plan, answer, now)) is not None]
        if not results:
            return
        async with self._store.transaction() as tx:
            await tx.require_claim(claim.resource, claim.token)
            for result in results:
                if result.forget:
                    await tx.delete_replica(result.row.name)
                else:
                    await tx.put_replica(result.row)
            await tx.append_events([result.event for result in results])

    async def _guarded(self, step: Launch | Sleep | Wake | Terminate | Kill, gate: asyncio.Semaphore) -> Answer:
        async with gate:
            try:
                async with asyncio.timeout(ACT_DEADLINE.total_seconds()):
                    return await self._do(step)
            except TimeoutError:
                return Answer(step=step, trouble=f"no answer within {ACT_DEADLINE.total_seconds():.0f}s")
            except QuarterdeckError as error:
                return Answer(step=step, trouble=str(error))

    async def _do(self, step: Launch | Sleep | Wake | Terminate | Kill) -> Answer:
        match step:
            case Launch(spec=spec):
                return Answer(step=step, launch=await self._launcher.launch(spec))
            case Sleep(draining_row=row):
                return Answer(step=step, asleep=await self._engines.sleep(row))
            case Wake(row=row):
                accepted = await self._engines.wake(row)
                return Answer(step=step, trouble="" if accepted else "the engine did not accept to wake")
            case Terminate(row=row):
                await self._launcher.terminate(row.name)
            case Kill(row=row):
                await self._launcher.kill(row.name)
            case _:
                assert_never(step)
        return Answer(step=step)

    async def _logs_of_dead(self, steps: Sequence[Step]) -> Mapping[ReplicaName, str]:
        names = [s.row.name for s in steps if isinstance(s, Release | Terminate | Kill) and s.with_log]
        if not names:
            return {}
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(self._log_of(name), name=f"log-{name}") for name in names}
        return {name: task.result() for name, task in tasks.items()}

    async def _log_of(self, name: ReplicaName) -> str:
        """Empty when it cannot be had in time: an event without a log is better than none."""
        try:
            async with asyncio.timeout(LOG_DEADLINE.total_seconds()):
                lines = await self._launcher.log_tail(name, LOG_LINES)
        except (TimeoutError, QuarterdeckError):
            return ""
        return "\n".join(lines)[-LOG_CHARS_MAX:]


def _writes_before(step: Step) -> bool:
    return not isinstance(step, Launch | Sleep | Hold)


async def _write_before(tx: Transaction, step: Step) -> None:
    match step:
        case Reserve(row=row) | Adopt(row=row) | MarkReady(row=row) | Drain(row=row) | Undrain(row=row):
            await tx.put_replica(row)
        case MarkAsleep(row=row) | Wake(row=row) | Release(row=row) | Terminate(row=row) | Kill(row=row):
            await tx.put_replica(row)
        case Forget(replica=replica):
            await tx.delete_replica(replica.name)
        case Retire(deployment=deployment):
            await tx.delete_deployment(deployment)
        case Launch() | Sleep() | Hold():
            return
        case _:
            assert_never(step)


def _event_before(
    plan: ReplicaPlan, step: Step, logs: Mapping[ReplicaName, str], told: frozenset[Reason], now: datetime
) -> NewEvent | None:
    match step:
        case Launch() | Sleep():
            return None
        case Hold():
            return None if step.reason in told else _deployment_event(plan, step, now)
        case Retire():
            return _deployment_event(plan, step, now)
        case Forget(replica=replica):
            used = ((GPUS_KEY, len(replica.gpus)), (HELD_SINCE_KEY, replica.created_at.isoformat()))
            return _replica_event(plan, replica, step.reason, step.sentence, now, used)
        case _:
            extra: tuple[tuple[str, str | int | float | bool], ...] = ()
            if isinstance(step, Release | Terminate | Kill):
                extra += ((FAILED_START_REVISION, step.row.revision),) if step.failed_start else ()
                extra += (("log", logs[step.row.name]),) if logs.get(step.row.name) else ()
            return _replica_event(plan, step.row, step.reason, step.sentence, now, extra)


def _deployment_event(plan: ReplicaPlan, step: Hold | Retire, now: datetime) -> NewEvent:
    return NewEvent(
        at=now,
        kind=EventKind.DEPLOYMENT,
        subject=plan.deployment,
        reason=step.reason,
        sentence=step.sentence,
        deployment=plan.deployment,
    )


def _replica_event(
    plan: ReplicaPlan,
    row: Replica,
    reason: Reason,
    sentence: str,
    now: datetime,
    extra: tuple[tuple[str, str | int | float | bool], ...] = (),
) -> NewEvent:
    return NewEvent(
        at=now,
        kind=EventKind.REPLICA,
        subject=row.name,
        reason=reason,
        sentence=sentence,
        deployment=plan.deployment,
        data=(("phase", row.phase.value), ("node", row.node), ("port", row.port), *extra),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What an act leaves in the store: a row to write, or one to delete since nothing was started under it."""

    row: Replica
    event: NewEvent
    forget: bool = False


def _result(plan: ReplicaPlan, answer: Answer, now: datetime) -> _Result | None:
    """None where the row written ahead says all there is to say, or where the world did not confirm."""
    match answer.step:
        case Launch() as step if isinstance(answer.launch, LaunchResult.Accepted):
            row = replace(step.done_row, launched_at=now, phase_since=now)
            return _Result(row=row, event=_replica_event(plan, row, step.reason, step.sentence, now))
        case Launch() as step if isinstance(answer.launch, LaunchResult.Refused):
            return _refused(plan, step.pending_row, answer.launch, now)
        case Sleep() as step if answer.asleep:
            row = step.done_row
            return _Result(row=row, event=_replica_event(plan, row, step.reason, step.sentence, now))
        case _:
            return None


def _refused(plan: ReplicaPlan, pending: Replica, refusal: LaunchResult.Refused, now: datetime) -> _Result:
    """A taken port says nothing about the revision: the row goes at once, and the next tick takes another port."""
    sentence = f"not started: {refusal.sentence}"
    row = moved(pending, ReplicaPhase.STOPPING, Reason.LAUNCH_REFUSED, sentence, now)
    extra = () if refusal.port_taken else ((FAILED_START_REVISION, row.revision),)
    event = _replica_event(plan, row, Reason.LAUNCH_REFUSED, sentence, now, extra)
    return _Result(row=row, event=event, forget=refusal.port_taken)
