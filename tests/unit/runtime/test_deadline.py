"""Deadlines by the clock that is given."""

import asyncio
from datetime import timedelta

import pytest

from controlplane.runtime.deadline import deadline, wait_for
from controlplane.testing.effects import FakeClock, settle

SECOND = timedelta(seconds=1)


async def test_a_body_in_time_is_left_alone() -> None:
    clock = FakeClock()

    async def work() -> str:
        async with deadline(clock, 2 * SECOND) as scope:
            await clock.sleep(SECOND)
        assert not scope.expired()
        await clock.sleep(5 * SECOND)
        return "done"

    task = asyncio.create_task(work())
    await clock.advance(10 * SECOND)
    assert await task == "done"


async def test_a_body_over_time_is_cancelled() -> None:
    clock = FakeClock()

    async def work() -> None:
        async with deadline(clock, SECOND):
            await clock.sleep(2 * SECOND)

    task = asyncio.create_task(work())
    await clock.advance(SECOND)
    assert task.done()
    with pytest.raises(TimeoutError):
        await task


async def test_waiting_for_an_event() -> None:
    clock, event = FakeClock(), asyncio.Event()
    assert not await wait_for(clock, event, timedelta(0))
    waiting = asyncio.create_task(wait_for(clock, event, SECOND))
    await clock.advance(SECOND)
    assert not await waiting
    waiting, eternal = (asyncio.create_task(wait_for(clock, event, limit)) for limit in (SECOND, None))
    await settle()
    event.set()
    assert await waiting
    assert await eternal
    assert await wait_for(clock, event, timedelta(0))
