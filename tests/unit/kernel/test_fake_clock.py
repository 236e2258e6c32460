import asyncio
from datetime import timedelta

from controlplane.testing.effects import START, FakeClock


async def test_sleepers_wake_in_order_and_see_their_own_time() -> None:
    clock = FakeClock()
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(timedelta(seconds=seconds))
        seen.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3.0), ("early", 1.0)):
            group.create_task(sleeper(name, seconds))
        await clock.advance(timedelta(seconds=5))
    assert seen == [("early", 1.0), ("late", 3.0)]
    assert clock.now() == START + timedelta(seconds=5)
