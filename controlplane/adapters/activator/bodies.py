"""Bodies in memory, bounded: each by the body limit, all together by a budget."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

BODY_TIMEOUT: Final = timedelta(seconds=120)
"""For a whole body: 32 MiB within it needs 2.2 Mbit/s; slower clients hold memory for nothing."""

DRAIN_TIMEOUT: Final = timedelta(seconds=5)
"""How long the rest of a refused body is read away, so that the caller sees the answer instead of a broken pipe."""

DRAIN_BYTES_MAX: Final = 64 * 1024 * 1024
"""And how much of it."""


class BodyTooLargeError(Exception):
    """More than the body limit."""


class NoRoomError(Exception):
    """The budget for all bodies is used up."""


class Budget:
    """Bytes of bodies that are in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """NoRoomError when that many do not fit any more."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise NoRoomError
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0, "gave back more than was taken"


class Body:
    """One request's body; its bytes count against the budget until `free`, which may be called twice."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken_bytes = 0
        self.data = b""

    async def fill(self, chunks: AsyncIterator[bytes], *, expected_bytes: int | None, limit_bytes: int) -> None:
        """Read it all. BodyTooLargeError; NoRoomError; TimeoutError after BODY_TIMEOUT.

        A body that says its length takes its room before a byte is read: better one told at once than many half read.
        """
        if expected_bytes is not None:
            if expected_bytes > limit_bytes:
                raise BodyTooLargeError
            self._take(expected_bytes)
        parts: list[bytes] = []
        size_bytes = 0
        async with asyncio.timeout(BODY_TIMEOUT.total_seconds()):
            async for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise BodyTooLargeError
                if size_bytes > self._taken_bytes:
                    self._take(size_bytes - self._taken_bytes)
                parts.append(chunk)
        self.data = b"".join(parts)

    def free(self) -> None:
        self._budget.give_back(self._taken_bytes)
        self._taken_bytes = 0
        self.data = b""

    def _take(self, size_bytes: int) -> None:
        self._budget.take(size_bytes)
        self._taken_bytes += size_bytes


async def read_away(chunks: AsyncIterator[bytes]) -> None:
    """Read and forget, within DRAIN_TIMEOUT and DRAIN_BYTES_MAX."""
    size_bytes = 0
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT.total_seconds()):
            async for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > DRAIN_BYTES_MAX:
                    return
    except TimeoutError:
        return
