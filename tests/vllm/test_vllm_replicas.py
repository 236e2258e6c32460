"""The replica loop, telemetry and HAProxy around real vLLM replicas: a drain, a hang, a lost SIGTERM, an orphan.

One site for the whole file: each test says how many replicas it needs and takes those that are there. Limits are
shorter than a site's, the order is the same.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable

import psutil
import pytest
import pytest_asyncio

from controlplane.adapters.instance import ROLE_VARIABLE
from controlplane.domain.event import Event
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.kernel.ids import ReplicaName
from tests.vllm.vllm_lab import (
    COMES_UP_S,
    ENDS_S,
    Stream,
    VllmSite,
    engine_core_of,
    find_vllm,
    open_site,
    processes_of,
    stop,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

type Record = Callable[[str, object], None]
"""Measured times, for the JUnit report."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[VllmSite]:
    async with open_site(find_vllm()) as site:
        yield site


async def test_a_drain_under_load_breaks_no_stream(site: VllmSite, record_property: Record) -> None:
    """Two replicas, streams all the time, one is drained and stopped: every stream whole, no 5xx."""
    await site.want(2)
    before = await site.until_serving(2)
    ended = asyncio.Event()
    streams: list[Stream] = []

    async def keep_asking() -> None:
        while not ended.is_set():
            streams.append(await site.ask(tokens=400))

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(keep_asking())

        async def both_busy() -> bool:
            return all(count > 0 for count in (await in_flight(site)).values())

        await site.until(both_busy, within_s=ENDS_S)
        await site.want(1)

        async def one_left() -> bool:
            return len(await site.rows()) == 1

        record_property("drained_and_gone_s", await site.until(one_left, within_s=2 * ENDS_S))
        ended.set()

    record_property("streams", len(streams))
    assert len(streams) > 6
    assert [stream for stream in streams if not stream.is_whole] == []
    (gone,) = before.keys() - site.leaders().keys()
    reasons = [event.event.reason for event in await events_of(site, gone)]
    assert in_order([Reason.SURPLUS, Reason.DRAINED, Reason.STOPPED], reasons), reasons
    assert Reason.STOP_FORCED not in reasons
    sample = await site.telemetry._ask_gateway()
    assert sample.routes[next(iter(sample.routes))].responses_5xx_total == 0  # type: ignore[union-attr]


async def test_a_hung_engine_is_found_out_replaced_and_ended(site: VllmSite, record_property: Record) -> None:
    """SIGSTOP to the engine process: /health and /metrics go on, tokens do not. Its callers are impatient."""
    await site.want(1)
    ((victim, leader),) = (await site.until_serving(1)).items()
    core = engine_core_of(leader)
    assert core is not None
    group = [member.process for member in site.launcher._groups()[victim]]
    stop(core.pid)
    ended = asyncio.Event()

    async def keep_asking() -> None:
        while not ended.is_set():
            try:
                await site.ask(tokens=5, timeout_s=2.0)
            except TimeoutError:
                continue

    async with asyncio.TaskGroup() as task_group:
        for _ in range(2):
            task_group.create_task(keep_asking())

        async def found_out() -> bool:
            return any(event.event.reason is Reason.HUNG for event in await events_of(site, victim))

        found_after_s = await site.until(found_out, within_s=30)
        record_property("found_out_s", found_after_s)

        async def ended_whole() -> bool:
            return all(row.name != victim for row in await site.rows())

        record_property("ended_s", await site.until(ended_whole, within_s=2 * ENDS_S))
        ended.set()

    assert [process.pid for process in group if is_alive(process)] == []
    reasons = [event.event.reason for event in await events_of(site, victim)]
    assert in_order([Reason.HUNG, Reason.STOP_FORCED, Reason.STOPPED], reasons), reasons
    ((heir, other),) = (await site.until_serving(1)).items()
    assert (heir, other) != (victim, leader)
    assert (await site.ask(tokens=5)).is_whole


async def test_an_engine_whose_api_server_was_killed_is_ended_too(site: VllmSite) -> None:
    """SIGKILL to the leader leaves the engine process, with all that it holds of the GPUs."""
    await site.want(1)
    ((victim, leader),) = (await site.until_serving(1)).items()
    core = engine_core_of(leader)
    assert core is not None
    await site.want(0)
    os.kill(leader, signal.SIGKILL)
    await site.until_gone()
    assert not is_alive(core)
    assert Reason.ORPHANS_LEFT in [event.event.reason for event in await events_of(site, victim)]
    assert replica_processes(site) == []


async def test_a_sigterm_lost_during_the_start_is_sent_again(site: VllmSite, record_property: Record) -> None:
    """One that comes while vLLM spawns its engine process gets lost. Nothing is left by the deadline."""
    await site.want(0)
    await site.until_gone()
    await site.want(1)

    async def spawning() -> bool:
        return any(engine_core_of(leader) is not None for leader in site.leaders().values())

    await site.until(spawning, within_s=COMES_UP_S)
    (row,) = await site.rows()
    assert row.phase is ReplicaPhase.STARTING
    await site.want(0)
    record_property("gone_s", await site.until_gone())
    reasons = [event.event.reason for event in await events_of(site, row.name)]
    record_property("reasons", " ".join(reasons))
    assert reasons[-1] is Reason.STOPPED
    assert replica_processes(site) == []


async def in_flight(site: VllmSite) -> dict[str, int]:
    snapshot = site.telemetry.snapshot().gateway
    servers = getattr(getattr(snapshot, "value", None), "servers", {})
    return {endpoint: server.in_flight for endpoint, server in servers.items()}


async def events_of(site: VllmSite, name: ReplicaName) -> list[Event]:
    return [event for event in await site.events() if event.event.subject == name]


def replica_processes(site: VllmSite) -> list[psutil.Process]:
    """All that is left, but for the gateway."""
    return [process for process in processes_of(site.state_dir) if ROLE_VARIABLE not in process.environ()]


def in_order(wanted: Iterable[Reason], found: list[Reason]) -> bool:
    rest = iter(found)
    return all(reason in rest for reason in wanted)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
