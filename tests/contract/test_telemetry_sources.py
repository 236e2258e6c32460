"""One contract for every way that numbers come in: a direct scrape and a real Prometheus give the same values.

Prometheus is started here on a free port and scrapes every second; its first sample is visible some 5 s after its start
(its discovery waits that long), which is why this suite takes some seconds.
"""

import asyncio
import math
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from controlplane.adapters.agent.server import AgentOptions, serve_agent
from controlplane.adapters.gpu.source import GpuReader
from controlplane.adapters.system import SystemClock
from controlplane.adapters.telemetry.direct import DirectEngines, DirectNodes
from controlplane.adapters.telemetry.ports import EngineSource, EngineTarget, NodeSource
from controlplane.adapters.telemetry.prometheus import LabelMapping, PrometheusEngines, PrometheusNodes
from controlplane.domain.node import NodeSpec
from controlplane.domain.telemetry import EngineSample, GpuSample, Missing, NodeSample
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName
from controlplane.testing.builders import make_node_spec
from controlplane.testing.engine_page import EnginePage
from controlplane.testing.telemetry import make_gpu_sample

INSTALL = "no `prometheus` on PATH: install it with `apt-get install prometheus` (Debian) to run this"
VISIBLE_WITHIN_S = 40.0
GONE_WITHIN_S = 20.0
NODE = NodeName("node-1")


class PlayedGpus:
    def read(self) -> list[GpuSample]:
        return [
            replace(make_gpu_sample(index), utilization=0.5 + index / 10, sm_clock_mhz=1965.0) for index in range(2)
        ]


@asynccontextmanager
async def serve_page(page: EnginePage) -> AsyncIterator[int]:
    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=page.body(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def make_pages() -> tuple[EnginePage, EnginePage]:
    busy = EnginePage(model_name='a "quoted" name', engines=2)
    busy.set("num_requests_running", 3, engine=0)
    busy.set("num_requests_running", 4, engine=1)
    busy.set("num_requests_waiting", 18)
    busy.set("kv_cache_usage_perc", 0.25)
    busy.add("generation_tokens", 1.5e9)
    busy.finish("length", 46)
    busy.finish("abort", 2)
    busy.observe("time_to_first_token_seconds", [0.3, 1.7, 4000.0])
    sick = EnginePage(full=False)
    sick.set("kv_cache_usage_perc", math.nan)
    return busy, sick


def target(name: str, port: int) -> EngineTarget:
    return EngineTarget(
        replica=ReplicaName(name),
        deployment=DeploymentName("chat"),
        node=NODE,
        address="127.0.0.1",
        port=port,
        metrics_path="/metrics",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Two engines, one port where nothing listens, one node; and a way to stop the busy engine."""

    busy: EngineTarget
    sick: EngineTarget
    dead: EngineTarget
    node: NodeSpec
    stop_busy: Callable[[], Awaitable[None]]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    busy, sick = make_pages()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(AsyncExitStack())
        busy_port = await engine.enter_async_context(serve_page(busy))
        sick_port = await stack.enter_async_context(serve_page(sick))
        reader = GpuReader(PlayedGpus(), SystemClock())
        agent_port = await stack.enter_async_context(serve_agent(reader, AgentOptions(node=NODE), port=0))
        yield World(
            busy=target("busy", busy_port),
            sick=target("sick", sick_port),
            dead=target("dead", 1),
            node=replace(make_node_spec(NODE, gpus=2), agent_url=f"http://127.0.0.1:{agent_port}", simulated=False),
            stop_busy=engine.aclose,
        )


@asynccontextmanager
async def direct(_world: World, _folder: Path) -> AsyncIterator[tuple[EngineSource, NodeSource]]:
    engines, nodes = DirectEngines(SystemClock()), DirectNodes(SystemClock())
    try:
        yield engines, nodes
    finally:
        await engines.close()
        await nodes.close()


@asynccontextmanager
async def prometheus(seen: World, folder: Path) -> AsyncIterator[tuple[EngineSource, NodeSource]]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip(INSTALL)
    async with serve_page(EnginePage(full=False)) as port:
        # Closed again right away: a port that was free a moment ago.
        own_port = port
    agent = seen.node.agent_url or ""
    targets = [f"127.0.0.1:{one.port}" for one in (seen.busy, seen.sick)]
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: engines, static_configs: [{{targets: {targets}, labels: {{site: here}}}}]}}\n"
        f"- {{job_name: nodes, static_configs: [{{targets: ['{agent.removeprefix('http://')}'], "
        "labels: {site: here}}]}\n"
    )
    process = await asyncio.create_subprocess_exec(
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{own_port}",
        "--log.level=error",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{own_port}"
    mapping = LabelMapping(matchers=(("site", "here"),))
    try:
        yield (
            PrometheusEngines(url, SystemClock(), mapping=mapping),
            PrometheusNodes(url, SystemClock(), mapping=mapping),
        )
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def eventually[T](ask: Callable[[], Awaitable[T]], good: Callable[[T], bool], *, within_s: float) -> T:
    """The first good answer, or the last one after `within_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    answer = await ask()
    while not good(answer) and loop.time() < end:
        await asyncio.sleep(0.25)
        answer = await ask()
    return answer


type Sources = AbstractAsyncContextManager[tuple[EngineSource, NodeSource]]

SOURCES = pytest.mark.parametrize("connect", [direct, prometheus])


@SOURCES
async def test_engines_and_nodes(connect: Callable[[World, Path], Sources], tmp_path: Path) -> None:
    async with world() as seen, connect(seen, tmp_path) as (engines, nodes):

        async def ask_all() -> tuple[EngineSample | Missing, ...]:
            answers = await engines.engines([seen.busy, seen.sick, seen.dead])
            return tuple(answers[one.replica] for one in (seen.busy, seen.sick, seen.dead))

        busy, sick, dead = await eventually(
            ask_all,
            lambda found: isinstance(found[0], EngineSample) and "is nan" in str(found[1]),
            within_s=VISIBLE_WITHIN_S,
        )
        check_busy(busy)
        assert sick == Missing("vllm:kv_cache_usage_perc is nan")
        assert isinstance(dead, Missing)
        assert "127.0.0.1:1" in dead.why

        async def ask_node() -> NodeSample | Missing:
            return (await nodes.nodes([seen.node]))[NODE]

        node = await eventually(ask_node, lambda found: isinstance(found, NodeSample), within_s=VISIBLE_WITHIN_S)
        check_node(node)

        await seen.stop_busy()
        gone, *_ = await eventually(ask_all, lambda found: isinstance(found[0], Missing), within_s=GONE_WITHIN_S)
        assert isinstance(gone, Missing)


def check_busy(sample: EngineSample | Missing) -> None:
    assert isinstance(sample, EngineSample), sample
    assert abs(datetime.now(UTC) - sample.at) < timedelta(seconds=5)
    assert (sample.running, sample.waiting, sample.kv_usage) == (7, 18, 0.125)
    assert (sample.generation_tokens, sample.requests_succeeded, sample.requests_failed) == (1.5e9, 46, 2)
    assert sample.ttft.counts[-2:] == (2, 3)
    assert sample.ttft.edges[-2:] == (2560.0, math.inf)
    assert sample.ttft.sum == pytest.approx(4002.0)
    assert sample.process_start_s == 1_767_600_000.0
    assert not sample.sleeping


def check_node(sample: NodeSample | Missing) -> None:
    assert isinstance(sample, NodeSample), sample
    assert [gpu.utilization for gpu in sample.gpus] == [0.5, pytest.approx(0.6)]
    assert sample.gpus[1].memory_total_bytes == 192_265_846_784
    assert sample.gpus[1].sm_clock_mhz == 1965.0


async def test_a_prometheus_that_is_down_is_missing_not_an_error() -> None:
    engines = PrometheusEngines("http://127.0.0.1:1", SystemClock())
    answer = (await engines.engines([target("chat", 20000)]))[ReplicaName("chat")]
    assert isinstance(answer, Missing)
    assert answer.why.startswith("Prometheus at http://127.0.0.1:1 cannot be asked: ")
    assert await engines.engines([]) == {}
