"""Requests that wait for a replica: bounded per deployment, in order of arrival, gone when the caller is gone."""

import asyncio
from datetime import timedelta
from typing import Final

from controlplane.kernel.ids import DeploymentName

RELEASED_TOGETHER: Final = 4
RELEASE_PAUSE: Final = timedelta(milliseconds=1)
"""Between such groups: long enough for HAProxy to have queued them, and 256 requests are gone within 0.1 s."""


class HoldFullError(Exception):
    """As many wait for this deployment as may."""


class ClosingError(Exception):
    """The activator stops; nobody would release the request."""


class HoldQueue:
    """Who waits for what. A ticket is the request's place in the order of arrivals; it keeps it when it waits again."""

    def __init__(self, requests_max: int) -> None:
        self.requests_max = requests_max
        self._waiting: dict[DeploymentName, dict[int, asyncio.Future[None]]] = {}
        self._somebody = asyncio.Event()
        self._closing = False

    def is_full(self, deployment: DeploymentName) -> bool:
        return len(self._waiting.get(deployment, ())) >= self.requests_max

    async def wait(self, deployment: DeploymentName, ticket: int) -> None:
        """Return when released. HoldFullError; ClosingError. Cancelled (a deadline, a hang-up), it frees its place."""
        if self._closing:
            raise ClosingError
        if self.is_full(deployment):
            raise HoldFullError
        released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(deployment, {})
        waiting[ticket] = released
        self._somebody.set()
        try:
            await released
        finally:
            waiting.pop(ticket, None)
            if not waiting and self._waiting.get(deployment) is waiting:
                del self._waiting[deployment]
            if not self._waiting:
                self._somebody.clear()

    async def release(self, deployment: DeploymentName) -> int:
        """Let all go that wait for it now, oldest first, a few at a time; how many went.

        At once they would overtake each other on HAProxy's threads, and meet a fresh replica all together.
        """
        waiting = self._waiting.get(deployment, {})
        tickets = sorted(waiting)
        going = 0
        for place, ticket in enumerate(tickets):
            released = waiting.get(ticket)
            if released is None or released.done():
                continue
            released.set_result(None)
            going += 1
            if place % RELEASED_TOGETHER == RELEASED_TOGETHER - 1:
                await asyncio.sleep(RELEASE_PAUSE.total_seconds())
        return going

    def close(self) -> None:
        """Send all away with ClosingError, now and from now on."""
        self._closing = True
        for waiting in self._waiting.values():
            for released in waiting.values():
                if not released.done():
                    released.set_exception(ClosingError())

    def counts(self) -> dict[DeploymentName, int]:
        return {deployment: len(waiting) for deployment, waiting in self._waiting.items()}

    async def somebody(self) -> None:
        """Return at once while anybody waits, else when somebody does."""
        await self._somebody.wait()
