"""Requests that callers give up, as the real HAProxy counts them: no answer of the replica, so no sign of life."""

import json

import aiohttp
import pytest

from controlplane.replicas.ports import TrafficSeen
from tests.integration.gateway_lab import eventually, open_lab


async def test_a_request_that_is_given_up_counts_as_abandoned() -> None:
    async with open_lab() as lab:
        replica = await lab.replica("one")
        await lab.serve("chat", replica)
        assert (await lab.ask_model("chat")).status == 200
        impatient = aiohttp.ClientTimeout(total=0.2)
        url = f"{lab.url}/v1/chat/completions?pause=30"
        headers = {"Content-Type": "application/json"}
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await lab.session.post(url, data=json.dumps({"model": "chat"}), headers=headers, timeout=impatient)

        async def counted() -> bool:
            sighting = await lab.traffic.servers()
            assert isinstance(sighting, TrafficSeen)
            server = sighting.servers[f"127.0.0.1:{replica.port}"]
            told = (server.requests_total, server.in_flight, server.failures_total, server.abandoned_total)
            return told == (4, 0, 0, 3)

        await eventually(counted)
        sample = await lab.gateway.sample()
        assert sample.servers[f"127.0.0.1:{replica.port}"].abandoned_total == 3
