"""Long work in threads, each with its own watch: begun, looked at, never waited for."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from controlplane.domain.recovery import DrillPhase
from controlplane.kernel.errors import QuarterdeckError, RetryableError
from controlplane.recovery.ports import CancelledWorkError
from controlplane.recovery.workshop import Broken, Finished, Unknown, Working


@dataclass(slots=True)
class JobWatch:
    """A Watch that others may read. Numbers are written by the work's threads and read by the loop: whole each time."""

    phase: DrillPhase | None = None
    step_name: str = "begins"
    done_bytes: int = 0
    total_bytes: int | None = None
    all_bytes: int = 0
    """Of every step together."""
    cancelled: bool = False
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def step(self, name: str, total_bytes: int | None = None) -> None:
        with self._mutex:
            self.step_name, self.total_bytes, self.done_bytes = name, total_bytes, 0

    def advance(self, plain_bytes: int) -> None:
        with self._mutex:
            self.done_bytes += plain_bytes
            self.all_bytes += plain_bytes
        if self.cancelled:
            raise CancelledWorkError("stopped on request")

    def enter(self, phase: DrillPhase) -> None:
        self.phase = phase


@dataclass(slots=True)
class _Job[M]:
    watch: JobWatch
    looked_at_s: float
    """Of the monotonic clock."""
    made: M | None = None
    broken: Broken | None = None
    thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        return self.made is not None or self.broken is not None


class Jobs[M]:
    """By name. Ended ones are remembered until they were looked at once more than `KEPT_MAX` others ended."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._mutex = threading.Lock()
        self._jobs: dict[str, _Job[M]] = {}

    def begin(self, name: str, work: Callable[[JobWatch], M]) -> None:
        """Nothing happens when one of that name was begun already. Daemons: the process does not wait for them."""
        with self._mutex:
            if name in self._jobs:
                return
            self._forget_old()
            job = self._jobs[name] = _Job[M](watch=JobWatch(), looked_at_s=time.monotonic())
        job.thread = threading.Thread(target=self._run, args=(job, work), name=f"{self._what}-{name[:8]}", daemon=True)
        job.thread.start()

    def look(self, name: str) -> Working | Finished[M] | Broken | Unknown:
        with self._mutex:
            job = self._jobs.get(name)
        if job is None:
            return Unknown()
        job.looked_at_s = time.monotonic()
        if job.broken is not None:
            return job.broken
        if job.made is not None:
            return Finished(made=job.made)
        watch = job.watch
        return Working(
            phase=watch.phase, step=watch.step_name, done_bytes=watch.done_bytes, total_bytes=watch.total_bytes
        )

    def cancel_idle(self, lease: timedelta) -> None:
        """Ask those to stop that nobody looked at for so long."""
        limit_s = time.monotonic() - lease.total_seconds()
        for job in self._running(""):
            if job.looked_at_s < limit_s:
                job.watch.cancelled = True

    def cancel_all(self, wait_s: float, *, prefix: str = "") -> bool:
        """Ask every one whose name begins so to stop, and give them so long together. Whether all of them ended."""
        running = self._running(prefix)
        for job in running:
            job.watch.cancelled = True
        for job in running:
            if job.thread is not None:
                job.thread.join(wait_s / len(running))
        return all(job.ended for job in running)

    def _running(self, prefix: str) -> list[_Job[M]]:
        with self._mutex:
            return [job for name, job in self._jobs.items() if name.startswith(prefix) and not job.ended]

    def _run(self, job: _Job[M], work: Callable[[JobWatch], M]) -> None:
        try:
            job.made = work(job.watch)
        except CancelledWorkError as error:
            job.broken = Broken(sentence=str(error), hopeless=False)
        except QuarterdeckError as error:
            job.broken = Broken(sentence=str(error), hopeless=not isinstance(error, RetryableError))
        except Exception as error:  # noqa: BLE001 - a thread's failure becomes a value, as a tick's does in the driver
            job.broken = Broken(sentence=f"{type(error).__name__}: {error}", hopeless=True)

    def _forget_old(self) -> None:
        ended = [name for name, job in self._jobs.items() if job.ended]
        for name in ended[:-KEPT_MAX]:
            del self._jobs[name]


KEPT_MAX = 64
"""Ended jobs: more than loops begin between two looks."""
