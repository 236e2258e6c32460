"""Bodies in memory, bounded: each by the body limit, all together by a budget."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

BODY_TIMEOUT: Final = timedelta(seconds=120)
"""For a whole body: 32 MiB within it needs 2.2 Mbit/s; slower clients hold memory for nothing."""

ROOM_PATIENCE: Final = timedelta(seconds=5)
"""How long an arrival waits for others' bodies to go. A body of the default limit passes through to a warm replica
in a fraction of a second, so this is many of them; what is held for a waking replica does not go by waiting."""

ROOM_WAITERS_MAX: Final = 64
"""Who waits for room. Each may keep a few socket and parser buffers (some 0.5 MiB) filled meanwhile."""

DRAIN_TIMEOUT: Final = timedelta(seconds=5)
"""How long the rest of a refused body is read away, so that the caller sees the answer instead of a broken pipe."""

PIECE_BYTES: Final = 256 * 1024
"""Handed to the socket at once: large enough to cost little, small enough not to stop other requests."""

DRAIN_BYTES_MAX: Final = 64 * 1024 * 1024
"""And how much of it."""


class BodyTooLargeError(Exception):
    """More than the body limit."""


class NoRoomError(Exception):
    """The budget for all bodies is used up."""


class Budget:
    """Bytes of bodies that are in memory, and who waits for room.

    Room goes to the first in line whom it is enough for: a small body never waits behind a large one, and the large
    one's wait is bounded anyway.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.used_bytes = 0
        self._limit_bytes = limit_bytes
        self._waiting: dict[asyncio.Future[None], int] = {}

    def take(self, size_bytes: int) -> None:
        """NoRoomError when that many do not fit any more."""
        if not self._fits(size_bytes):
            raise NoRoomError
        self.used_bytes += size_bytes

    async def take_soon(self, size_bytes: int, patience: timedelta) -> None:
        """Take as soon as it fits. NoRoomError when it never can, when too many wait, or after `patience`."""
        if self._fits(size_bytes):
            self.used_bytes += size_bytes
            return
        if size_bytes > self._limit_bytes or len(self._waiting) >= ROOM_WAITERS_MAX:
            raise NoRoomError
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[granted] = size_bytes
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await granted
        except BaseException as error:
            if self._waiting.pop(granted, None) is None:  # granted in the same moment
                self.give_back(size_bytes)
            if isinstance(error, TimeoutError):
                raise NoRoomError from error
            raise

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0, "gave back more than was taken"
        self._grant()

    def resize(self, limit_bytes: int) -> None:
        """A smaller limit takes nothing away from those who have room."""
        self._limit_bytes = limit_bytes
        self._grant()

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self._limit_bytes

    def _grant(self) -> None:
        for granted, size_bytes in tuple(self._waiting.items()):
            if self._fits(size_bytes) and not granted.done():
                self.used_bytes += size_bytes
                del self._waiting[granted]
                granted.set_result(None)


class Body:
    """One request's body; its bytes count against the budget until `free`, which may be called twice."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken_bytes = 0
        self.data = bytearray()
        """Grown in place (large blocks are remapped, not copied): there is never a second copy."""

    async def fill(
        self,
        chunks: AsyncIterator[bytes],
        *,
        expected_bytes: int | None,
        limit_bytes: int,
        patience: timedelta = ROOM_PATIENCE,
    ) -> None:
        """Read it all. BodyTooLargeError; NoRoomError; TimeoutError after BODY_TIMEOUT.

        A body that says its length takes its room before a byte is read, and waits for it with `patience`: better a
        few that wait unread than many half read. One of unknown length takes as it grows, and does not wait.
        """
        if expected_bytes is not None:
            if expected_bytes > limit_bytes:
                raise BodyTooLargeError
            await self._budget.take_soon(expected_bytes, patience)
            self._taken_bytes = expected_bytes
        size_bytes = 0
        async with asyncio.timeout(BODY_TIMEOUT.total_seconds()):
            async for chunk in chunks:
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise BodyTooLargeError
                if size_bytes > self._taken_bytes:
                    self._budget.take(size_bytes - self._taken_bytes)
                    self._taken_bytes = size_bytes
                self.data += chunk

    async def pieces(self) -> AsyncIterator[memoryview]:
        """For sending; each is a view, no copy."""
        whole = memoryview(self.data)
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]

    def free(self) -> None:
        self._budget.give_back(self._taken_bytes)
        self._taken_bytes = 0
        self.data = bytearray()  # a new one: the old one may still be viewed by what is being sent


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
