"""Drives the scheduler in real time: one wake per engine step, none while idle, and no drift when late.

The scheduler's clock runs from step end to step end, not from wake to wake. A wake that comes late finds several steps
due and runs them at once; each stream then gets one larger piece, as a vLLM client that reads slowly does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from controlplane.simulation.engine.families import FinishReason
from controlplane.simulation.engine.scheduler import Scheduler
from controlplane.simulation.engine.sequence import Sequence, SequencePhase, Step
from controlplane.simulation.engine.tally import EngineTally

_TIMER_S: Final = 1e-3
"""Resolution of the event loop's timers (libuv counts milliseconds): never asked for less, so it cannot spin."""
_SLACK_S: Final = 0.5e-3
"""A step that ends so soon is taken as ended: half a timer tick, below what a client could see."""
_ROUNDS_PER_WAKE: Final = 1000
"""Bounds one wake after a long stall; the rest follows after other events had their turn."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timekeeper(Protocol):
    """Time as the engine sees it: an event loop's, or a test's."""

    def now(self) -> float:
        """Seconds, monotonic."""
        ...

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Timer: ...


class Receiver(Protocol):
    """Who waits for a request's tokens. Calls come from the event loop and must not wait."""

    streams: bool
    """True: wants `advance` as tokens come, not only the end."""

    def advance(self, generated: int) -> None:
        """So many tokens exist now."""
        ...

    def finish(self, generated: int, reason: FinishReason) -> None: ...
    def fail(self, message: str) -> None:
        """The engine gave the request up."""
        ...


class Hold(StrEnum):
    """Why an engine stands still."""

    ASLEEP = "asleep"
    HUNG = "hung"


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request in the engine."""

    sequence: Sequence
    receiver: Receiver
    reason: FinishReason
    """Why it will have ended when all its tokens are out."""
    max_tokens: int
    """As the client asked, for the metrics."""


class EngineCore:
    """One engine."""

    def __init__(self, scheduler: Scheduler, tally: EngineTally, time: Timekeeper) -> None:
        self.scheduler = scheduler
        self.tally = tally
        self.time = time
        self._now = time.now
        self._jobs: dict[int, Job] = {}
        self._streams: dict[int, Job] = {}
        self._pending: Step | None = None
        """The step under way. The scheduler is one step ahead of what clients may see."""
        self._shown_steps = 0
        self._timer: Timer | None = None
        self._holds: set[Hold] = set()
        self._busy_s = 0.0
        self.on_drained: Callable[[], None] | None = None
        """Called whenever the last request has ended."""

    @property
    def unfinished(self) -> int:
        return len(self._jobs)

    def busy_s(self) -> float:
        """Seconds of step time since start, the present step's past included."""
        pending = self._pending
        if pending is None or self._holds:
            return self._busy_s
        return self._busy_s + max(0.0, self._now() - pending.started_at)

    def submit(self, job: Job) -> None:
        now = self._now()
        if self._pending is not None and not self._holds and self._pending.ends_at <= now:
            # Late: what is due runs first, or the newcomer would be served before it arrived.
            self._run_due(now)
        self._jobs[id(job.sequence)] = job
        if job.receiver.streams:
            self._streams[id(job.sequence)] = job
        self.scheduler.submit(job.sequence)
        if self._pending is None and not self._holds:
            self._begin(now, now)
            self._arm()

    def abandon(self, job: Job) -> None:
        """The client has gone: drop the request, tell nobody."""
        if self._forget(job.sequence) is None:
            return
        self.scheduler.abort(job.sequence, self._now())
        self.tally.record_end(job.sequence, FinishReason.ABORT, job.max_tokens)
        self._tell_drained()

    def abort_all(self) -> None:
        """End every request now with finish_reason `abort`."""
        for job, generated in self._drop_all(FinishReason.ABORT):
            job.receiver.finish(generated, FinishReason.ABORT)
        self._tell_drained()

    def fail_all(self, message: str) -> None:
        """End every request now with an error."""
        for job, _ in self._drop_all(FinishReason.ERROR):
            job.receiver.fail(message)
        self._tell_drained()

    def hold(self, why: Hold) -> None:
        """Freeze: no step, no token. New requests wait."""
        self._holds.add(why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self, why: Hold) -> None:
        """Go on from where it stopped, as if no time had passed, unless something else still holds."""
        if why not in self._holds:
            return
        self._holds.discard(why)
        if self._holds:
            return
        now = self._now()
        if self._pending is not None:
            self._pending.ends_at = max(self._pending.ends_at, now)
        else:
            self._begin(now, now)
        self._arm()

    def _drop_all(self, reason: FinishReason) -> list[tuple[Job, int]]:
        """Every job with the tokens it had been given, after all have left the engine."""
        dropped = [(job, self._shown(job.sequence)) for job in self._jobs.values()]
        for job, _ in dropped:
            self._forget(job.sequence)
            self.scheduler.abort(job.sequence, self._now())
            self.tally.record_end(job.sequence, reason, job.max_tokens)
        self._pending = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return dropped

    def _wake(self) -> None:
        self._timer = None
        self._run_due(self._now())
        self._arm()

    def _run_due(self, now: float) -> None:
        """Deliver every step that has ended, then show the streams where things stand."""
        pending = self._pending
        for _ in range(_ROUNDS_PER_WAKE):
            if pending is None or pending.ends_at > now + _SLACK_S:
                break
            self._busy_s += pending.ends_at - pending.started_at
            self.tally.record_step(pending)
            self._pending = None
            if pending.finished:
                self._finish(pending)
            pending = self._begin(pending.ends_at, now)
        for job in self._streams.values():
            job.receiver.advance(self._shown(job.sequence))
        self._tell_drained()

    def _begin(self, start: float, now: float) -> Step | None:
        self._shown_steps = self.scheduler.steps
        self._pending = self.scheduler.step(start, until=now)
        return self._pending

    def _finish(self, step: Step) -> None:
        for sequence in step.finished:
            job = self._forget(sequence)
            if job is None:
                continue
            self.tally.record_end(sequence, job.reason, job.max_tokens)
            job.receiver.finish(sequence.generated_base, job.reason)

    def _shown(self, sequence: Sequence) -> int:
        """Tokens that exist at the end of the last delivered step, with the next one planned already."""
        if sequence.phase is SequencePhase.DECODE:
            return sequence.generated_base + self._shown_steps - sequence.decoding_since
        if sequence.phase is SequencePhase.DONE and self._pending is not None:
            return sequence.generated_base - self._pending.count
        return sequence.generated_base

    def _forget(self, sequence: Sequence) -> Job | None:
        self._streams.pop(id(sequence), None)
        return self._jobs.pop(id(sequence), None)

    def _arm(self) -> None:
        if self._pending is None or self._timer is not None or self._holds:
            return
        delay_s = max(_TIMER_S, self._pending.ends_at - self._now())
        self._timer = self.time.call_later(delay_s, self._wake)

    def _tell_drained(self) -> None:
        if not self._jobs and self.on_drained is not None:
            self.on_drained()
