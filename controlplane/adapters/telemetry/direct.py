"""Engines and nodes asked directly: the embedded default, and the sure way when no Prometheus runs."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from controlplane.adapters.agent.server import METRICS_PATH
from controlplane.adapters.gpu.exposition import node_parser
from controlplane.adapters.gpu.simulated import GpuStateFolder, simulated_nodes
from controlplane.adapters.gpu.source import GpuReader
from controlplane.adapters.telemetry.blocking import OneAtATime
from controlplane.adapters.telemetry.engine_layout import engine_parser
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.adapters.telemetry.scrape import ScrapeLimits, Scraper
from controlplane.domain.node import NodeSpec
from controlplane.domain.telemetry import EngineSample, Missing, NodeSample
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import NodeName, ReplicaName

_FOLDER_DEADLINE: Final = timedelta(seconds=2)
"""A folder of small files on a local disk; longer means a disk that hangs."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class DirectEngines:
    """Implements EngineSource by GET of each replica's metrics page."""

    def __init__(self, clock: Clock, limits: ScrapeLimits | None = None) -> None:
        self._scraper = Scraper(clock, limits)
        self._parser = engine_parser()

    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        self._parser.retain({target.replica for target in targets})
        urls = {target.replica: target.url for target in targets}
        return await self._scraper.scrape(urls, self._parser.parse)

    async def close(self) -> None:
        await self._scraper.close()


class DirectNodes:
    """Implements NodeSource: agents over HTTP, simulated nodes from their folder, this machine through its driver.

    A real node without `agent_url` that is not this machine cannot be seen; its reading says what to configure.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        states: GpuStateFolder | None = None,
        local: GpuReader | None = None,
        limits: ScrapeLimits | None = None,
    ) -> None:
        """`states`: where simulated engines write. `local`: this machine's GPUs."""
        self._clock = clock
        self._states = states
        self._local = local
        self._scraper = Scraper(clock, limits)
        self._parser = node_parser()
        self._folder = OneAtATime("the folder of GPU states", clock)

    async def nodes(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        remote = {spec.name: f"{spec.agent_url.rstrip('/')}{METRICS_PATH}" for spec in specs if spec.agent_url}
        simulated = [spec for spec in specs if spec.simulated and not spec.agent_url]
        rest = [spec for spec in specs if not spec.simulated and not spec.agent_url]
        self._parser.retain(set(remote))
        scraped = await self._scraper.scrape(remote, self._parser.parse)
        played = await self._simulated(simulated)
        return {**scraped, **played, **{spec.name: await self._here(spec) for spec in rest}}

    async def close(self) -> None:
        await self._scraper.close()

    async def _simulated(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        if not specs:
            return {}
        if self._states is None:
            return _all_missing(specs, "no folder of simulated GPU states is configured")
        folder = self._states
        read = _reading(specs, folder, self._clock.now())
        try:
            return await self._folder.call(read, deadline=_FOLDER_DEADLINE)
        except QuarterdeckError as error:
            return _all_missing(specs, str(error))

    async def _here(self, spec: NodeSpec) -> NodeSample | Missing:
        if spec.address not in _LOOPBACK or self._local is None:
            return Missing(
                f"node {spec.name} at {spec.address} has no agent_url: run `quarterdeck agent` there and set it"
            )
        try:
            return await self._local.read()
        except QuarterdeckError as error:
            return Missing(str(error))


def _reading(
    specs: Sequence[NodeSpec], folder: GpuStateFolder, at: datetime
) -> Callable[[], Mapping[NodeName, NodeSample | Missing]]:
    return lambda: simulated_nodes(specs, folder, at)


def _all_missing(specs: Sequence[NodeSpec], why: str) -> Mapping[NodeName, NodeSample | Missing]:
    return {spec.name: Missing(why) for spec in specs}
