"""Requests that wait for a replica: bounded per deployment, in order of arrival, gone when the caller is gone."""

import asyncio

from controlplane.kernel.ids import DeploymentName


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

    def release(self, deployment: DeploymentName) -> int:
        """Let all go that wait for it, oldest first; how many went."""
        waiting = self._waiting.get(deployment, {})
        going = [waiting[ticket] for ticket in sorted(waiting) if not waiting[ticket].done()]
        for released in going:
            released.set_result(None)
        return len(going)

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
