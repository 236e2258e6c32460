"""A deadline by our own clock, so that it passes in fake time as in real time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from controlplane.kernel.effects import Clock


@asynccontextmanager
async def deadline(clock: Clock, limit: timedelta) -> AsyncIterator[asyncio.Timeout]:
    """TimeoutError when the body takes longer than `limit`; `.expired()` of what is yielded tells it from others."""
    async with asyncio.timeout(None) as scope:
        alarm = asyncio.create_task(_ring(clock, limit, scope), name="deadline")
        try:
            yield scope
        finally:
            alarm.cancel()


async def _ring(clock: Clock, limit: timedelta, scope: asyncio.Timeout) -> None:
    await clock.sleep(limit)
    scope.reschedule(asyncio.get_running_loop().time())


async def wait_for(clock: Clock, event: asyncio.Event, limit: timedelta | None) -> bool:
    """Whether the event was set within `limit` (None: wait for ever)."""
    if event.is_set():
        return True
    if limit is None:
        return await event.wait()
    try:
        async with deadline(clock, limit):
            return await event.wait()
    except TimeoutError:
        return False
