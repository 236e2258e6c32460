"""Runs the process's services together and ends them in order: none outlives it, none ends unnoticed."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import TerminalError
from controlplane.runtime.deadline import wait_for

_LOG = logging.getLogger(__name__)

STOP_DEADLINE: Final = timedelta(seconds=10)
"""For one service: longer than the deadline of any tick that it may have to let end."""
_CANCEL_GRACE: Final = timedelta(seconds=5)
"""For a cancelled task to leave its `finally` blocks; whoever needs longer is left behind, and named in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Something that runs until it is told to stop."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    """Returns only after `stop`; before that, returning is an error."""
    stop: Callable[[], None]
    """Asks it to end; does not wait."""
    stop_deadline: timedelta = STOP_DEADLINE
    """Then it is cancelled."""


class Supervisor:
    """Services start in the order given and stop in the reverse one, each after the one before it has ended."""

    def __init__(self, services: Sequence[Service], *, clock: Clock) -> None:
        assert services, "a supervisor needs something to run"
        names = [service.name for service in services]
        assert len(set(names)) == len(names), f"two services have one name: {names}"
        self._services = tuple(services)
        self._clock = clock
        self._ending = asyncio.Event()
        self._stopping: set[str] = set()

    def stop(self) -> None:
        """Begin the orderly stop; `run()` returns at its end. On the event loop's thread only, e.g. a signal handler.

        A service that fails has the same effect, and its error comes out of `run()`.
        """
        self._ending.set()

    async def run(self) -> None:
        """Until `stop()`, or until a service fails: its error, or an ExceptionGroup of several, is raised."""
        tasks = {
            service.name: asyncio.create_task(self._serve(service), name=service.name) for service in self._services
        }
        try:
            await self._ending.wait()
            for service in reversed(self._services):
                await self._end(service, tasks[service.name])
        finally:
            await self._cancel([task for task in tasks.values() if not task.done()])
        errors = [error for task in tasks.values() if (error := self._error_of(task)) is not None]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("several services failed", errors)

    async def _serve(self, service: Service) -> None:
        try:
            await service.run()
        finally:
            self._ending.set()
        if service.name not in self._stopping:
            raise TerminalError(f"the service {service.name!r} ended by itself; it should run until it is stopped")

    async def _end(self, service: Service, task: asyncio.Task[None]) -> None:
        if task.done():
            return
        self._stopping.add(service.name)
        service.stop()
        ended = asyncio.Event()
        task.add_done_callback(lambda _: ended.set())
        if not await wait_for(self._clock, ended, service.stop_deadline):
            limit_s = service.stop_deadline.total_seconds()
            _LOG.warning("a service did not stop in time", extra={"service": service.name, "limit_s": limit_s})
            await self._cancel([task])

    async def _cancel(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """End them now; what does not even end then is named in the log and left behind."""
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=_CANCEL_GRACE.total_seconds())
        for task in left:
            _LOG.error("a service ignores its cancellation", extra={"service": task.get_name()})

    def _error_of(self, task: asyncio.Task[None]) -> BaseException | None:
        if not task.done():
            return None
        if not task.cancelled():
            return task.exception()
        if task.get_name() in self._stopping:
            return None
        return TerminalError(f"the service {task.get_name()!r} was cancelled by something inside it")
