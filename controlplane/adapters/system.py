"""The machine's own time, randomness and identity."""

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta


class SystemClock:
    """Implements `controlplane.kernel.effects.Clock`."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(max(0.0, duration.total_seconds()))


class SystemRng:
    """Implements `controlplane.kernel.effects.Rng` from the kernel's entropy: no seed, no shared state."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice[T](self, options: Sequence[T]) -> T:
        return self._random.choice(options)


class UuidIds:
    """Implements `controlplane.kernel.effects.IdSource` with random UUIDs (version 4), 36 characters."""

    def new_id(self) -> str:
        return str(uuid.uuid4())
