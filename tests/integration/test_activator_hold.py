"""Scale from zero on the real parts: requests are held while no replica is up, bounded, then released in order."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import psutil
import pytest

from controlplane.adapters.haproxy.driver import THREADS_MAX
from controlplane.adapters.haproxy.processes import is_alive
from controlplane.domain.site import GatewaySpec
from controlplane.domain.telemetry import RouteTraffic
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName
from controlplane.kernel.units import KIB, MIB
from tests.integration.gateway_lab import Answer, Lab, Replica, eventually, open_lab

EMBED = DeploymentName("embed")


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab(GatewaySpec(hold_requests_max=20, hold_bytes_max=4 * MIB, body_bytes_max=2 * MIB)) as lab:
        await lab.converge()
        yield lab


async def route(lab: Lab) -> RouteTraffic:
    return (await lab.gateway.sample()).routes[EMBED]


def asks(lab: Lab, number: int, *, filler_bytes: int = 0) -> asyncio.Task[Answer]:
    """Request `number`; with a filler before the model that HAProxy does not see through, it takes the slow path."""
    body = json.dumps({"number": number, "input": "x" * filler_bytes, "model": "embed"})
    return asyncio.create_task(lab.post(body, path="/v1/embeddings"))


async def held(lab: Lab, count: int) -> None:
    async def reached() -> bool:
        return (await route(lab)).held == count

    await eventually(reached)


@pytest.mark.parametrize("filler_bytes", [0, 150 * KIB], ids=["fast-path", "slow-path"])
async def test_held_then_released_in_order(lab: Lab, filler_bytes: int) -> None:
    asking = []
    for number in range(20):
        asking.append(asks(lab, number, filler_bytes=filler_bytes))
        await held(lab, number + 1)
    before = await route(lab)
    assert (before.arrivals_total, before.servers_up, before.in_flight) == (20, 0, 0)
    assert list((await lab.gateway.arrivals()).values()) == [20], "held ones too"
    replica = await lab.replica("r0")
    await lab.serve("embed", replica)
    answers = await asyncio.gather(*asking)
    assert [answer.status for answer in answers] == [200] * 20
    served = [number_of(replica, index) for index in range(20)]
    assert sorted(served) == list(range(20))
    assert longest_fall(served) <= THREADS_MAX, (
        f"more disorder than {THREADS_MAX} orderly threads of HAProxy make: {served}"
    )
    after = await route(lab)
    assert (after.arrivals_total, after.held, after.responses_5xx_total) == (20, 0, 0)


def longest_fall(numbers: list[int]) -> int:
    """Of the longest decreasing subsequence: as many orderly queues, merged, explain the order. 1 is sorted."""
    falls: list[int] = []
    for index, number in enumerate(numbers):
        before = [falls[other] for other in range(index) if numbers[other] > number]
        falls.append(1 + max(before, default=0))
    return max(falls)


async def test_more_than_the_bound_is_503_with_retry_after(lab: Lab) -> None:
    waiting = [asks(lab, number) for number in range(20)]
    await held(lab, 20)
    refused = [await asks(lab, 100), await asks(lab, 101, filler_bytes=150 * KIB)]
    for answer in refused:
        assert (answer.status, answer.error_code, answer.headers["Retry-After"]) == (503, "service_unavailable", "5")
    now = await route(lab)
    assert (now.held, now.arrivals_total, now.responses_5xx_total) == (20, 22, 2)
    await lab.serve("embed", await lab.replica("r0"))
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


async def test_bodies_are_bounded_together(lab: Lab) -> None:
    waiting = [asks(lab, number, filler_bytes=1 * MIB) for number in range(3)]
    await held(lab, 3)
    refused = await asks(lab, 9, filler_bytes=1 * MIB)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    small = asks(lab, 10)
    await held(lab, 4)
    await lab.serve("embed", await lab.replica("r0"))
    assert {answer.status for answer in await asyncio.gather(*waiting, small)} == {200}


async def test_long_bodies_without_a_replica_are_held_and_not_broken_off(lab: Lab) -> None:
    """HAProxy's answer that no replica is up must not end the connection while the body is still being written."""
    replica = await lab.replica("r0")
    for _ in range(4):
        waiting = [asks(lab, number, filler_bytes=500 * KIB) for number in range(6)]
        await held(lab, 6)
        await lab.serve("embed", replica)
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 6
        lab.ready["embed"] = []
        await lab.converge()
        await eventually(lambda: no_server(lab))


async def no_server(lab: Lab) -> bool:
    await lab.converge()
    return (await route(lab)).servers_up == 0


async def test_the_hold_has_a_deadline(lab: Lab) -> None:
    lab.spec = replace(lab.spec, hold_timeout=timedelta(seconds=0.5))
    await lab.converge()
    begin = time.monotonic()
    for answer in await asyncio.gather(asks(lab, 0), asks(lab, 1, filler_bytes=150 * KIB)):
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert b"came up within 0.5 s" in answer.body
    assert time.monotonic() - begin < 5
    assert (await route(lab)).responses_5xx_total == 2


async def test_hanging_up_frees_the_place(lab: Lab) -> None:
    waiting = [asks(lab, number) for number in range(20)]
    await held(lab, 20)
    for task in waiting[:5]:
        task.cancel()
    await held(lab, 15)
    later = asks(lab, 99)
    await held(lab, 16)
    replica = await lab.replica("r0")
    await lab.serve("embed", replica)
    assert {answer.status for answer in await asyncio.gather(*waiting[5:], later)} == {200}
    assert len(replica.requests) == 16, "nothing was sent for those who hung up"


async def test_a_released_answer_streams(lab: Lab) -> None:
    asking = asyncio.create_task(lab.post('{"model":"embed"}', path="/v1/completions?tokens=20&pause=0.01"))
    await held(lab, 1)
    await lab.serve("embed", await lab.replica("r0"))
    assert (await asking).whole_stream


async def test_a_replica_that_breaks_off_breaks_the_released_stream_too(lab: Lab) -> None:
    asking = asyncio.create_task(lab.post('{"model":"embed"}', path="/v1/completions?tokens=1000&pause=0.01"))
    await held(lab, 1)
    replica = await lab.replica("r0")
    await lab.serve("embed", replica)
    await eventually(lambda: replica.open == 1)
    await replica.stop()
    with pytest.raises(Exception, match=r"(?i)payload|disconnected|reset"):
        await asking


async def test_a_killed_activator_is_started_again(lab: Lab) -> None:
    """Until then cold deployments and long bodies get a 503 that says when to try again; the rest is not touched."""
    await lab.serve("chat", await lab.replica("chat-1"))
    process = psutil.Process(lab.pid_of("activator"))
    epoch = (await lab.gateway.sample()).epoch
    process.kill()
    await eventually(lambda: not is_alive(process))
    refused = await asks(lab, 0)
    assert (refused.status, refused.error_code, refused.headers["Retry-After"]) == (503, "service_unavailable", "5")
    assert b"the gateway's activator, which would hold it, restarts" in refused.body
    long = await lab.post(json.dumps({"messages": "x" * 150 * KIB, "model": "chat"}))
    assert (long.status, long.error_code, long.headers["Retry-After"]) == (503, "service_unavailable", "5")
    assert b"The gateway's activator restarts" in long.body
    assert (await lab.ask_model("chat")).status == 200
    with pytest.raises(RetryableError):
        await lab.gateway.sample()
    assert (await lab.converge()).actions == ("start the activator",)
    assert (await lab.gateway.sample()).epoch != epoch
    asking = asks(lab, 0)
    await held(lab, 1)
    lab.ready["embed"] = [(await lab.replica("r0")).port]
    await lab.settle()
    assert (await asking).status == 200


async def test_new_limits_reach_the_running_activator(lab: Lab) -> None:
    pid = lab.pid_of("activator")
    lab.spec = replace(lab.spec, hold_requests_max=1)
    await lab.converge()
    waiting = asks(lab, 0)
    await held(lab, 1)
    assert (await asks(lab, 1)).status == 503
    assert lab.pid_of("activator") == pid
    await lab.serve("embed", await lab.replica("r0"))
    assert (await waiting).status == 200


async def test_what_is_held_survives_a_reload(lab: Lab) -> None:
    waiting = [asks(lab, number) for number in range(5)]
    await held(lab, 5)
    lab.deployments = ("chat", "embed", "third")
    assert (await lab.converge()).reloaded
    await lab.serve("embed", await lab.replica("r0"))
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


async def test_a_removed_deployments_callers_are_told(lab: Lab) -> None:
    waiting = asks(lab, 0)
    await held(lab, 1)
    lab.deployments = ("chat",)
    assert (await lab.converge()).reloaded
    answer = await waiting
    assert (answer.status, answer.error_code) == (404, "model_not_found")


async def test_a_graceful_stop_sends_away_what_is_held(lab: Lab) -> None:
    waiting = asks(lab, 0)
    await held(lab, 1)
    await lab.gateway.stop()
    answer = await waiting
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


def number_of(replica: Replica, index: int) -> int:
    body = replica.requests[index]["body"]
    assert isinstance(body, bytes)
    number: int = json.loads(body)["number"]
    return number
