"""Large bodies through the real activator: all get through, and their memory is given back."""

import asyncio
import json
from collections.abc import AsyncIterator

import psutil
import pytest

from controlplane.domain.site import GatewaySpec
from controlplane.kernel.units import MIB
from tests.integration.gateway_lab import Lab, eventually, open_lab

LARGE_BYTES = 20 * MIB
GROWTH_BYTES_MAX = 24 * MIB
"""After large bodies, over the process as it started: interpreter's arenas and buffers, not much more than one body."""


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab(GatewaySpec()) as lab:
        await lab.serve("chat", await lab.replica("chat-1"))
        yield lab


def large(model: str) -> bytes:
    return json.dumps({"messages": "x" * LARGE_BYTES, "model": model}).encode()


async def test_more_large_bodies_than_fit_pass_one_after_the_other(lab: Lab) -> None:
    """The budget has room for three."""
    body = large("chat")
    answers = await asyncio.gather(*(lab.post(body) for _ in range(6)))
    assert [answer.status for answer in answers] == [200] * 6


async def test_the_memory_of_large_bodies_is_given_back(lab: Lab) -> None:
    activator = psutil.Process(lab.pid_of("activator"))
    before_bytes = activator.memory_info().rss

    def grown_little() -> bool:
        return int(activator.memory_info().rss) - before_bytes < GROWTH_BYTES_MAX

    for body, status in ((large("nope"), 404), (large("")[:-1], 400), (large("chat"), 200), (b"x" * 40 * MIB, 413)):
        for _ in range(4):
            assert (await lab.post(body)).status == status
        await eventually(grown_little)
    together = await asyncio.gather(*(lab.post(large("nope")) for _ in range(3)))
    assert [answer.status for answer in together] == [404] * 3
    await eventually(grown_little)
