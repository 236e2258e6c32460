"""A blocking library behind a deadline: one call at a time, in a thread that nobody has to wait for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta

from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.units import format_duration


class OneAtATime:
    """Runs blocking calls of one library, at most one at any time.

    A call that outlives its deadline keeps its thread (nothing can end it: NVML hangs in the driver when a GPU fell off
    the bus), and until it returns every further call is refused at once, so that a hang costs one thread, not one per
    tick. The thread is a daemon: it never holds up the end of the process.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._busy_since: float | None = None

    async def call[T](self, work: Callable[[], T], *, deadline: timedelta) -> T:
        """What `work` returns or raises. RetryableError when it takes too long, or an earlier call still hangs."""
        if self._busy_since is not None:
            waited = format_duration(timedelta(seconds=self._clock.monotonic() - self._busy_since))
            raise RetryableError(f"{self._name} has not answered for {waited}; it is not asked again until it does")
        self._busy_since = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(outcome: Callable[[], None]) -> None:
            self._busy_since = None
            if not future.done():
                outcome()

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  # carried over to the awaiting side, whatever it is
                failure = error
                outcome: Callable[[], None] = lambda: future.set_exception(failure)  # noqa: E731  # carries the value
            else:
                outcome = lambda: future.set_result(result)  # noqa: E731  # carries the value
            # A loop that is closed by now has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, outcome)

        threading.Thread(target=run, name=f"blocking-{self._name}", daemon=True).start()
        try:
            return await asyncio.wait_for(future, deadline.total_seconds())
        except TimeoutError as error:
            raise RetryableError(f"{self._name} did not answer within {format_duration(deadline)}") from error
