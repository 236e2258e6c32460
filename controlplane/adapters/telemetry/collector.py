"""The loop that keeps the latest of everything measured. Every instance scrapes for itself, so it needs no claim."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.telemetry.freshness import Held, hold
from controlplane.adapters.telemetry.ports import EngineSource, EngineTarget, NodeSource
from controlplane.domain.node import NodeSpec
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import TelemetrySpec
from controlplane.domain.store import Store
from controlplane.domain.telemetry import EngineSample, GatewaySample, Missing, NodeSample, TelemetrySnapshot
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.kernel.units import format_duration

SCRAPED_PHASES: Final = frozenset(
    {ReplicaPhase.READY, ReplicaPhase.DRAINING, ReplicaPhase.WAKING, ReplicaPhase.SLEEPING}
)
"""A starting engine refuses connections until it has loaded; nothing can be learned from that."""
NODE_PERIOD: Final = timedelta(seconds=2)
"""GPU readings change slowly and cost the driver locks: every second or so is more often than anything acts on them."""
_GATEWAY_DEADLINE: Final = timedelta(seconds=2)
"""The gateway answers its socket in milliseconds."""
_STORE_DEADLINE: Final = timedelta(seconds=2)
"""Three small reads; when the store takes longer, the targets of the last round are scraped again."""

type GatewaySampler = Callable[[], Awaitable[GatewaySample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What there is to measure."""

    engines: tuple[EngineTarget, ...] = ()
    nodes: tuple[NodeSpec, ...] = ()


class TelemetryCollector:
    """Implements Telemetry. `round` is the loop's body; `snapshot` never waits and judges ages at the moment asked.

    Between rounds only the last value per source is kept; a source that left the store is forgotten at the next round.
    """

    name = "telemetry"

    def __init__(
        self,
        *,
        store: Store,
        engines: EngineSource,
        nodes: NodeSource,
        gateway: GatewaySampler | None,
        clock: Clock,
        spec: TelemetrySpec,
        metrics: SelfMetrics | None = None,
    ) -> None:
        self._store = store
        self._engine_source = engines
        self._node_source = nodes
        self._gateway_sampler = gateway
        self._clock = clock
        self._spec = spec
        self._metrics = metrics
        self._targets = Targets()
        self._engines: Mapping[ReplicaName, Held[EngineSample]] = {}
        self._nodes: Mapping[NodeName, Held[NodeSample]] = {}
        self._nodes_due_s = float("-inf")
        self._gateway: Held[GatewaySample] = _never_asked(clock.now())

    async def round(self) -> str:
        """Measure everything once; a sentence on how that went. Raises nothing for sources that fail."""
        started_s = self._clock.monotonic()
        trouble = ""
        try:
            async with asyncio.timeout(_STORE_DEADLINE.total_seconds()):
                self._targets = await self._read_targets()
        except (QuarterdeckError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            trouble = f"; the store could not be read ({why}), so the targets are the last known"
        await self.collect(self._targets)
        elapsed = timedelta(seconds=self._clock.monotonic() - started_s)
        seen, nodes_seen = _known(self._engines), _known(self._nodes)
        return (
            f"measured {seen} of {len(self._engines)} engines and {nodes_seen} of {len(self._nodes)} nodes"
            f" in {format_duration(elapsed)}{trouble}"
        )

    async def collect(self, targets: Targets) -> None:
        """Ask every target, the nodes if they are due, and the gateway, all at the same time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect_engines(targets.engines), name="telemetry-engines")
            group.create_task(self._collect_nodes(targets.nodes), name="telemetry-nodes")
            group.create_task(self._collect_gateway(), name="telemetry-gateway")

    def snapshot(self) -> TelemetrySnapshot:
        now = self._clock.now()
        stale = self._spec.stale_after
        return TelemetrySnapshot(
            at=now,
            engines={name: held.reading(now, stale_after=stale) for name, held in self._engines.items()},
            gateway=self._gateway.reading(now, stale_after=stale),
            nodes={name: held.reading(now, stale_after=stale + NODE_PERIOD) for name, held in self._nodes.items()},
        )

    async def close(self) -> None:
        """Close the sources' connections."""
        await self._engine_source.close()
        await self._node_source.close()

    async def _read_targets(self) -> Targets:
        async with self._store.transaction() as tx:
            nodes = await tx.nodes()
            deployments = await tx.deployments()
            replicas = await tx.replicas()
        if self._metrics is not None:
            self._metrics.rows(deployments, replicas, nodes)
        addresses = {node.name: node.spec.address for node in nodes}
        paths = {deployment.name: deployment.plan.launch.metrics_path for deployment in deployments}
        engines = tuple(
            EngineTarget(
                replica=replica.name,
                deployment=replica.deployment,
                node=replica.node,
                address=addresses[replica.node],
                port=replica.port,
                metrics_path=paths[replica.deployment],
            )
            for replica in replicas
            if replica.phase in SCRAPED_PHASES and replica.node in addresses and replica.deployment in paths
        )
        return Targets(engines=engines, nodes=tuple(node.spec for node in nodes))

    async def _collect_engines(self, targets: tuple[EngineTarget, ...]) -> None:
        started_s = self._clock.monotonic()
        results = await self._engine_source.engines(targets)
        before = self._engines
        self._engines = {
            target.replica: _hold(
                before.get(target.replica), results.get(target.replica, _NO_ANSWER), target.url, self._clock.now()
            )
            for target in targets
        }
        self._report("engines", results, started_s)

    async def _collect_nodes(self, specs: tuple[NodeSpec, ...]) -> None:
        started_s = self._clock.monotonic()
        unknown = any(spec.name not in self._nodes for spec in specs)
        if started_s < self._nodes_due_s and not unknown:
            return
        self._nodes_due_s = started_s + NODE_PERIOD.total_seconds()
        results = await self._node_source.nodes(specs)
        before = self._nodes
        self._nodes = {
            spec.name: _hold(
                before.get(spec.name),
                results.get(spec.name, _NO_ANSWER),
                spec.agent_url or spec.address,
                self._clock.now(),
            )
            for spec in specs
        }
        self._report("nodes", results, started_s)

    async def _collect_gateway(self) -> None:
        started_s = self._clock.monotonic()
        result = await self._ask_gateway()
        self._gateway = _hold(self._gateway, result, "gateway", self._clock.now())
        self._report("gateway", {"gateway": result}, started_s)

    async def _ask_gateway(self) -> GatewaySample | Missing:
        if self._gateway_sampler is None:
            return Missing("no gateway is configured")
        try:
            async with asyncio.timeout(_GATEWAY_DEADLINE.total_seconds()):
                return await self._gateway_sampler()
        except QuarterdeckError as error:
            return Missing(str(error))
        except TimeoutError:
            return Missing(f"the gateway did not answer within {format_duration(_GATEWAY_DEADLINE)}")

    def _report[K, T](self, kind: str, results: Mapping[K, T | Missing], started_s: float) -> None:
        if self._metrics is None:
            return
        missing = sum(isinstance(result, Missing) for result in results.values())
        elapsed = timedelta(seconds=self._clock.monotonic() - started_s)
        self._metrics.scraped(kind, fresh=len(results) - missing, missing=missing, duration=elapsed)


_NO_ANSWER: Final = Missing("the source has no answer for it")

type _Sample = EngineSample | NodeSample | GatewaySample


def _hold[T: _Sample](before: Held[T] | None, result: T | Missing, source: str, now: datetime) -> Held[T]:
    return hold(before, result, source=source, at=now if isinstance(result, Missing) else result.at)


def _never_asked(now: datetime) -> Held[GatewaySample]:
    return Held(source="gateway", value=None, at=now, failure="not asked yet")


def _known[K, T](held: Mapping[K, Held[T]]) -> int:
    return sum(not one.failure for one in held.values())
