"""A fleet in a real store, with everything around it played: what runs, what is measured, what the gateway says.

Nodes of 8 GPUs, two replicas a node, one deployment per ten nodes, sizes of 1 to 4 GPUs. One deployment in ten is told
to change its number in each round, so that each round launches and drains; the others are as wanted.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.adapters.db.engine import sqlite_url
from controlplane.adapters.db.store import SqlStore, open_store
from controlplane.autoscaler.codec import encode
from controlplane.autoscaler.model import PolicyState
from controlplane.autoscaler.params import params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.reconciler import Memory
from controlplane.domain.deployment import Deployment, DeploymentSpec, Intent, LaunchTemplate, ServingPlan
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.node import Node, NodeSpec, NodeState
from controlplane.domain.replica import Replica
from controlplane.domain.telemetry import Fresh, GatewaySample, NodeSample, RouteTraffic, TelemetrySnapshot
from controlplane.gateway.model import RouteTable
from controlplane.gateway.ports import Applied
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName
from controlplane.replicas.ports import LaunchOutcome, LaunchResult, LaunchSpec, Seen, SeenReplica, Sighting
from controlplane.testing.autoscaling import GAP_EDGES, TTFT_EDGES, make_observation
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.telemetry import make_engine_sample, make_histogram, make_node_sample
from controlplane.testing.traffic import FakeTraffic

NODES_PER_DEPLOYMENT: Final = 10
REPLICAS_PER_DEPLOYMENT: Final = 20
CHANGING: Final = 7
"""Deployments whose number ends in it change in each round."""
_SIZES: Final = (1, 1, 2, 4)
"""GPUs per replica, deployment by deployment: two replicas of any of them fit a node with room to spare."""
_MORE: Final = 3
_ROUND: Final = timedelta(seconds=1)
_HISTORY_S: Final = 600
"""Of decisions before the first round: the state of a policy that has run for long."""
_ARRIVALS_RPS: Final = 200.0


def node_specs(nodes: int) -> list[NodeSpec]:
    specs = (make_node_spec(f"node-{index:05d}") for index in range(nodes))
    return [
        replace(spec, address=f"10.{index // 65536}.{index // 256 % 256}.{index % 256}")
        for index, spec in enumerate(specs)
    ]


def deployments(nodes: int) -> list[tuple[DeploymentSpec, ServingPlan]]:
    count = max(1, nodes // NODES_PER_DEPLOYMENT)
    names = [f"model-{index:04d}" for index in range(count)]
    return [
        (
            make_spec(name, replicas_min=REPLICAS_PER_DEPLOYMENT, replicas_max=100),
            make_plan(name, gpus=_SIZES[index % len(_SIZES)]),
        )
        for index, name in enumerate(names)
    ]


def replicas(fleet: Sequence[NodeSpec], wanted: Sequence[tuple[DeploymentSpec, ServingPlan]]) -> Iterator[Replica]:
    """Two on each of a deployment's ten nodes, at the start of each NUMA domain."""
    for index, (spec, plan) in enumerate(wanted):
        for ordinal in range(REPLICAS_PER_DEPLOYMENT):
            node = fleet[(index * NODES_PER_DEPLOYMENT + ordinal // 2) % len(fleet)]
            first = 4 * (ordinal % 2)
            gpus = tuple(range(first, first + plan.gpus_per_replica))
            yield make_replica(spec.name, ordinal, node=node.name, gpus=gpus, port=20000 + ordinal % 2)


def settled_policy(deployment: Deployment) -> PolicyState:
    """After ten minutes of even load."""
    state: PolicyState | None = None
    for second in range(_HISTORY_S):
        seen = make_observation(
            at_s=START.timestamp() + second, arrivals=_ARRIVALS_RPS, ready=REPLICAS_PER_DEPLOYMENT, running=60
        )
        state = decide(params_for(deployment), seen, state).state
    assert state is not None, "decided at least once"
    return state


class PlayedWorld:
    """Launcher, engines, gateway, telemetry: whatever the store's rows say is so."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.traffic = FakeTraffic()
        self._processes: dict[ReplicaName, SeenReplica] = {}
        self._snapshot = TelemetrySnapshot(at=clock.now())
        self._node_readings: dict[NodeName, Fresh[NodeSample]] = {}
        self._rounds = 0

    def snapshot(self) -> TelemetrySnapshot:
        return self._snapshot

    async def observe(self) -> Sighting:
        return Seen(self._processes)

    async def launch(self, spec: LaunchSpec) -> LaunchOutcome:
        now = self.clock.now()
        seen = SeenReplica(name=spec.name, node=spec.node, port=spec.port, gpus=spec.gpus, alive=True, started_at=now)
        self._processes = {**self._processes, spec.name: seen}
        return LaunchResult.Accepted()

    async def terminate(self, name: ReplicaName) -> None:
        self._processes = {other: seen for other, seen in self._processes.items() if other != name}

    async def kill(self, name: ReplicaName) -> None:
        await self.terminate(name)

    async def log_tail(self, name: ReplicaName, lines: int) -> list[str]:
        del name, lines
        return []

    async def probe(self, replica: Replica, template: LaunchTemplate) -> ProbeResult:
        del replica, template
        return ProbeResult(verdict=ProbeVerdict.PASSED, detail="one token")

    async def sleep(self, replica: Replica) -> bool:
        del replica
        return True

    async def wake(self, replica: Replica) -> bool:
        del replica
        return True

    async def converge(self, table: RouteTable) -> Applied:
        del table
        return Applied(actions=())

    async def sample(self) -> GatewaySample:
        raise AssertionError("telemetry is played")

    async def stop(self) -> None:
        return

    def settle(self, rows: Sequence[Replica], nodes: Sequence[Node]) -> None:
        """Processes as the rows say: before the first round."""
        self._processes = {row.name: _seen(row) for row in rows}
        sample = make_node_sample(self.clock.now())
        self._node_readings = {node.name: Fresh(sample) for node in nodes}

    def measure(self, rows: Sequence[Replica], nodes: Mapping[NodeName, Node], names: Sequence[DeploymentName]) -> None:
        """One more second of even load at every replica, as a scrape would leave it."""
        self._rounds += 1
        self.traffic.follow(rows, nodes)
        now, count = self.clock.now(), self._rounds
        ttft = make_histogram(*_even(TTFT_EDGES, 10.0 * count), sum_=0.5 * count)
        gaps = make_histogram(*_even(GAP_EDGES, 2000.0 * count), sum_=20.0 * count)
        engine = make_engine_sample(
            now,
            running=3,
            kv_usage=0.3,
            prompt_tokens=10_000.0 * count,
            generation_tokens=2_000.0 * count,
            succeeded=10.0 * count,
        )
        engine = replace(engine, ttft=ttft, inter_token=gaps, end_to_end=ttft, time_per_output_token=gaps)
        routes = {
            name: RouteTraffic(
                arrivals_total=_ARRIVALS_RPS * count,
                in_flight=60,
                queued=0,
                held=0,
                responses_5xx_total=0.0,
                servers_up=REPLICAS_PER_DEPLOYMENT,
            )
            for name in names
        }
        gateway = GatewaySample(at=now, epoch="1", routes=routes, servers=dict(self.traffic.servers_by_endpoint))
        self._snapshot = TelemetrySnapshot(
            at=now,
            engines={row.name: Fresh(engine) for row in rows},
            gateway=Fresh(gateway),
            nodes=self._node_readings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingFleet:
    """The store and the world around it."""

    store: SqlStore
    world: PlayedWorld
    clock: FakeClock

    async def next_round(self, number: int) -> None:
        """A second later: measured anew, and a tenth of the deployments told another number."""
        self.clock.jump(_ROUND)
        pinned = REPLICAS_PER_DEPLOYMENT + _MORE * (number % 2)
        async with self.store.transaction() as tx:
            for deployment in await tx.deployments():
                if deployment.name.endswith(str(CHANGING)):
                    await tx.set_intent(deployment.name, Intent(replicas_pinned=pinned))
        async with self.store.transaction() as tx:
            rows = await tx.replicas()
            nodes = {node.name: node for node in await tx.nodes()}
            names = [deployment.name for deployment in await tx.deployments()]
        self.world.measure(rows, nodes, names)


@asynccontextmanager
async def standing_fleet(nodes: int, folder: Path) -> AsyncIterator[StandingFleet]:
    """A fleet whose replicas all run, in a SQLite file in `folder`."""
    clock = FakeClock(START + timedelta(seconds=_HISTORY_S))
    store = await open_store(sqlite_url(folder / "store.sqlite3"))
    try:
        await _fill(store, nodes)
        world = PlayedWorld(clock)
        async with store.transaction() as tx:
            world.settle(await tx.replicas(), await tx.nodes())
        yield StandingFleet(store=store, world=world, clock=clock)
    finally:
        await store.close()


async def _fill(store: SqlStore, nodes: int) -> None:
    specs, wanted = node_specs(nodes), deployments(nodes)
    async with store.transaction() as tx:
        for spec in specs:
            await tx.put_node_spec(spec)
            await tx.set_node_state(spec.name, NodeState.READY, "in sight")
        for row in replicas(specs, wanted):
            await tx.put_replica(row)
        policy: PolicyState | None = None
        for deployment_spec, plan in wanted:
            deployment = await tx.put_deployment_spec(deployment_spec, plan, START)
            policy = policy or settled_policy(deployment)
            await tx.put_policy_state(deployment.name, encode(Memory(policy=policy)))


def _even(edges: Sequence[float], total: float) -> list[tuple[float, float]]:
    """Observations spread evenly over the first half of the buckets."""
    half = len(edges) / 2
    return [(edge, total * min(1.0, (place + 1) / half)) for place, edge in enumerate(edges)]


def _seen(row: Replica) -> SeenReplica:
    return SeenReplica(
        name=row.name, node=row.node, port=row.port, gpus=row.gpus, alive=True, started_at=row.created_at
    )
