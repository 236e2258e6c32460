"""Fake time, seeded randomness, counted identity."""

import asyncio
import heapq
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final

START: Final = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
"""A Monday morning: the moment at which fake worlds begin."""


class FakeClock:
    """Time that moves only when told. Sleepers wake in order of their deadlines, each before time goes on."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    async def sleep(self, duration: timedelta) -> None:
        if duration <= timedelta(0):
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + duration.total_seconds(), next(self._order), future))
        await future

    def jump(self, duration: timedelta) -> None:
        """Move time on without waking anybody: for code that only reads the clock."""
        self._elapsed_s += duration.total_seconds()

    async def advance(self, duration: timedelta) -> None:
        """Move time on, waking sleepers on the way and letting each run until it waits again."""
        end_s = self._elapsed_s + duration.total_seconds()
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            due_s, _, future = heapq.heappop(self._sleepers)
            self._elapsed_s = max(self._elapsed_s, due_s)
            if not future.done():
                future.set_result(None)
            await settle()
        self._elapsed_s = end_s


async def settle(rounds: int = 20) -> None:
    """Let every ready task run until all of them wait."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class SeededRng:
    """Randomness that repeats from its seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice[T](self, options: Sequence[T]) -> T:
        return self._random.choice(options)


class CountingIds:
    """`id-1`, `id-2`, ..."""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._next = count(1)

    def new_id(self) -> str:
        return f"{self._prefix}-{next(self._next)}"
