"""Keeps the latest of everything measured. Every instance scrapes for itself, so it needs no claim.

Two beats: engines and nodes, of which a slow one holds up the others; and the gateway, whose counters say first that
load has changed, and which answers in milliseconds. Between two of its rounds it is asked only how many came.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.telemetry.freshness import Held, hold
from controlplane.adapters.telemetry.ports import EngineSource, EngineTarget, NodeSource
from controlplane.adapters.telemetry.surprise import Usual, learned
from controlplane.domain.node import NodeSpec
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import TelemetrySpec
from controlplane.domain.store import Store
from controlplane.domain.telemetry import EngineSample, GatewaySample, Missing, NodeSample, TelemetrySnapshot
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName
from controlplane.kernel.units import format_duration

SCRAPED_PHASES: Final = frozenset(
    {ReplicaPhase.READY, ReplicaPhase.DRAINING, ReplicaPhase.WAKING, ReplicaPhase.SLEEPING}
)
"""A starting engine refuses connections until it has loaded; nothing can be learned from that."""
NODE_PERIOD: Final = timedelta(seconds=2)
"""GPU readings change slowly and cost the driver locks: every second or so is more often than anything acts on them."""
GLANCE_PERIOD: Final = timedelta(milliseconds=250)
"""A question for one line per deployment, about a millisecond. A step that can be proven at all is proven in about such
a time; looking more often would only see less of it."""
_GATEWAY_DEADLINE: Final = timedelta(seconds=2)
"""The gateway answers its socket in milliseconds."""
_STORE_DEADLINE: Final = timedelta(seconds=2)
"""Three small reads; when the store takes longer, the targets of the last round are scraped again."""

type GatewaySampler = Callable[[], Awaitable[GatewaySample]]
type ArrivalCounter = Callable[[], Awaitable[Mapping[DeploymentName, float]]]
"""The gateway's arrival counters alone."""


def _nobody() -> None:
    """Is told nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What there is to measure."""

    engines: tuple[EngineTarget, ...] = ()
    nodes: tuple[NodeSpec, ...] = ()


class TelemetryCollector:
    """Implements Telemetry. `snapshot` never waits and judges ages at the moment asked.

    `round` and `watch_gateway` are the bodies of the two beats, which may run at the same time.
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
        arrivals: ArrivalCounter | None = None,
        on_gateway: Callable[[], None] = _nobody,
    ) -> None:
        """`arrivals`: what is glanced at between rounds of the gateway; None: nothing.

        `on_gateway` is called after each such round, answered or not, once the snapshot has it.
        """
        self._store = store
        self._engine_source = engines
        self._node_source = nodes
        self._gateway_sampler = gateway
        self._clock = clock
        self._spec = spec
        self._metrics = metrics
        self._arrival_counter = arrivals
        self._on_gateway = on_gateway
        self._targets = Targets()
        self._engines: Mapping[ReplicaName, Held[EngineSample]] = {}
        self._nodes: Mapping[NodeName, Held[NodeSample]] = {}
        self._nodes_due_s = float("-inf")
        self._gateway: Held[GatewaySample] = _never_asked(clock.now())
        self._gateway_due_s = float("-inf")
        self._usual: Mapping[DeploymentName, Usual] = {}

    async def round(self) -> str:
        """Measure engines and nodes once; a sentence on how that went. Raises nothing for sources that fail."""
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
        """Ask every engine, and the nodes if they are due, all at the same time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect_engines(targets.engines), name="telemetry-engines")
            group.create_task(self._collect_nodes(targets.nodes), name="telemetry-nodes")

    async def watch_gateway(self) -> None:
        """Every GLANCE_PERIOD: a round of the gateway when one is due, and at once when more came than lately."""
        now_s, interval_s = self._clock.monotonic(), self._spec.interval.total_seconds()
        # Half a period of grace: a beat that came a little early is the one that was meant.
        if now_s >= self._gateway_due_s - GLANCE_PERIOD.total_seconds() / 2.0:
            next_s = self._gateway_due_s + interval_s
            self._gateway_due_s = next_s if next_s > now_s else now_s + interval_s
        elif not await self._is_surprised():
            return
        await self.gateway_round()

    async def gateway_round(self) -> None:
        """Ask the gateway once, then say so. Raises nothing when it does not answer: that is a reading too."""
        started_s = self._clock.monotonic()
        result = await self._ask_gateway()
        if isinstance(result, GatewaySample):
            self._usual = {
                name: learned(self._usual.get(name), route.arrivals_total, result.at.timestamp())
                for name, route in result.routes.items()
            }
        self._gateway = _hold(self._gateway, result, "gateway", self._clock.now())
        self._report("gateway", {"gateway": result}, started_s)
        self._on_gateway()

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

    async def _is_surprised(self) -> bool:
        if self._arrival_counter is None:
            return False
        at_s = self._clock.now().timestamp()
        try:
            async with asyncio.timeout(GLANCE_PERIOD.total_seconds()):
                counted = await self._arrival_counter()
        except (QuarterdeckError, TimeoutError):
            # The next round tells what the matter is.
            return False
        return any(usual.is_exceeded(counted[name], at_s) for name, usual in self._usual.items() if name in counted)

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
