"""How long one planning pass over a whole fleet takes, how much memory, and how both grow.

    python -m benchmarks.tick [--nodes 1000] [--json FILE]

The world: nodes of 8 GPUs, two replicas per node, one deployment per ten nodes, sizes of 1 to 4 GPUs. Seven of ten
deployments are as wanted; the others want more, want less, or roll. A pass is what the loops compute in one tick for
all deployments, without waiting for anything: the ledger of all rows, then per deployment memory, plan and linter.
"""

import argparse
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.domain.deployment import Deployment
from controlplane.domain.node import Node
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import EngineSample, Fresh, Histogram, Reading, ServerTraffic
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName, RevisionId
from controlplane.replicas.attention import needs_traffic, replicas_to_probe, vitals_of
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.limits import Limits
from controlplane.replicas.lint import lint_plan
from controlplane.replicas.memory import Breaker, Memory, begin_tick, feel_pulses
from controlplane.replicas.plan import plan_replicas
from controlplane.replicas.ports import Seen, SeenReplica, TrafficSeen
from controlplane.replicas.standing import Situation
from controlplane.testing.builders import REVISION, make_deployment, make_node, make_replica
from controlplane.testing.effects import START

AIM_MS: Final = 250.0
"""For 1,000 nodes, 8,000 GPUs, 2,000 replicas on one core."""
NOW: Final = START + timedelta(hours=1)
_NODES_PER_DEPLOYMENT: Final = 10
_REPLICAS_PER_DEPLOYMENT: Final = 20
_SIZES: Final = (1, 1, 2, 4)
"""GPUs per replica, deployment by deployment: two replicas of any of them fit a node with room to spare."""
_ROUNDS: Final = 7
_MIB: Final = 1024**2
_EMPTY: Final = Histogram(edges=(), counts=(), sum=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A fleet's rows and what was seen of it."""

    nodes: list[Node]
    deployments: list[Deployment]
    replicas: dict[DeploymentName, tuple[Replica, ...]]
    seen: Seen
    engines: dict[ReplicaName, Reading[EngineSample]]
    servers: dict[str, ServerTraffic]
    memories: dict[DeploymentName, Memory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One size. Times are of one core."""

    nodes: int
    gpus: int
    replicas: int
    deployments: int
    steps: int
    median_ms: float
    best_ms: float
    worst_ms: float
    peak_mib: float
    """Allocated by a pass on top of the world."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="the largest size; a quarter and a half are run too")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    results = [measure(options.nodes // 4), measure(options.nodes // 2), measure(options.nodes)]
    print(table(results))
    if options.json is not None:
        options.json.write_text(
            json.dumps({"benchmark": "tick", "aim_ms": AIM_MS, "results": [asdict(r) for r in results]}, indent=2)
            + "\n"
        )
    return 0


def measure(nodes: int, one_pass: Callable[[World], int] | None = None) -> Result:
    """Times `one_pass` (default: `replica_pass`) over a fresh world of that many nodes."""
    world = build(nodes)
    run = one_pass or replica_pass
    steps = run(world)
    times_ms: list[float] = []
    for _ in range(_ROUNDS):
        gc.collect()
        began = time.perf_counter()
        run(world)
        times_ms.append((time.perf_counter() - began) * 1e3)
    tracemalloc.start()
    run(world)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Result(
        nodes=nodes,
        gpus=sum(node.spec.gpus for node in world.nodes),
        replicas=sum(len(rows) for rows in world.replicas.values()),
        deployments=len(world.deployments),
        steps=steps,
        median_ms=round(statistics.median(times_ms), 2),
        best_ms=round(min(times_ms), 2),
        worst_ms=round(max(times_ms), 2),
        peak_mib=round(peak / _MIB, 2),
    )


def replica_pass(world: World) -> int:
    """The replica loop's decisions for every deployment; how many steps came out."""
    ledger = GpuLedger(world.nodes, [row for rows in world.replicas.values() for row in rows])
    nodes = {node.name: node for node in world.nodes}
    traffic = TrafficSeen(world.servers)
    limits = Limits()
    steps = 0
    for deployment in world.deployments:
        rows = world.replicas[deployment.name]
        memory = begin_tick(
            world.memories[deployment.name],
            replicas=rows,
            revision=deployment.plan.revision,
            generation=deployment.generation,
            limits=limits,
            now=NOW,
        )
        situation = Situation(
            deployment=deployment,
            replicas=rows,
            sighting=world.seen,
            traffic=traffic,
            nodes=nodes,
            ledger=ledger,
            memory=memory,
            now=NOW,
            probes={},
            engines=world.engines,
            gateway_servers=world.servers,
            limits=limits,
        )
        situation = replace(situation, memory=feel_pulses(memory, rows, vitals_of(situation), NOW))
        needs_traffic(situation)
        replicas_to_probe(situation)
        plan = plan_replicas(situation)
        assert not lint_plan(situation, plan), "the planner's own rules hold"
        steps += len(plan.steps)
    return steps


def build(nodes: int) -> World:
    """A fleet in good order with a little work for every kind of step."""
    fleet = [_node(index) for index in range(nodes)]
    deployments = [_deployment(index) for index in range(max(1, nodes // _NODES_PER_DEPLOYMENT))]
    replicas = {deployment.name: _replicas(index, deployment, fleet) for index, deployment in enumerate(deployments)}
    rows = [row for of_one in replicas.values() for row in of_one]
    addresses = {node.name: node.spec.address for node in fleet}
    return World(
        nodes=fleet,
        deployments=deployments,
        replicas=replicas,
        seen=Seen({row.name: _seen(row) for row in rows}),
        engines={row.name: Fresh(_sample()) for row in rows},
        servers={f"{addresses[row.node]}:{row.port}": _server() for row in rows},
        memories={
            deployment.name: Memory(breaker=Breaker(revision=REVISION, generation=1)) for deployment in deployments
        },
    )


def table(results: list[Result]) -> str:
    """For people: the sizes, and growth of time per growth of size (1.0 is linear)."""
    heads = (f"{'nodes':>6} {'GPUs':>6} {'replicas':>9} {'steps':>6}", f"{'median ms':>10} {'worst ms':>9}")
    lines = [" ".join([*heads, f"{'peak MiB':>9} {'growth':>7}"])]
    before: Result | None = None
    for result in results:
        growth = "" if before is None else f"{result.median_ms / before.median_ms / (result.nodes / before.nodes):.2f}"
        lines.append(
            f"{result.nodes:>6} {result.gpus:>6} {result.replicas:>9} {result.steps:>6} {result.median_ms:>10.1f} "
            f"{result.worst_ms:>9.1f} {result.peak_mib:>9.1f} {growth:>7}"
        )
        before = result
    last = results[-1]
    verdict = "within" if last.median_ms <= AIM_MS else "ABOVE"
    lines.append(
        f"aim for 1,000 nodes: {AIM_MS:.0f} ms on one core; {last.nodes} nodes: {last.median_ms:.0f} ms, {verdict}"
    )
    return "\n".join(lines)


def _node(index: int) -> Node:
    node = make_node(f"node-{index:04d}")
    return replace(node, spec=replace(node.spec, address=f"10.{index // 65536}.{index // 256 % 256}.{index % 256}"))


def _deployment(index: int) -> Deployment:
    """Of ten: one wants more, one wants less, one rolls (its replicas are of an older revision), seven are content."""
    wanted = _REPLICAS_PER_DEPLOYMENT + {7: 3, 8: -3}.get(index % 10, 0)
    size = _SIZES[index % len(_SIZES)]
    deployment = make_deployment(f"model-{index:03d}", wanted=wanted, replicas_min=0, replicas_max=100, gpus=size)
    if index % 10 == 9:
        return replace(deployment, plan=replace(deployment.plan, revision=RevisionId("ffffffff")))
    return deployment


def _replicas(index: int, deployment: Deployment, fleet: list[Node]) -> tuple[Replica, ...]:
    """Two on each of the deployment's ten nodes, at the start of each NUMA domain."""
    rows: list[Replica] = []
    for ordinal in range(_REPLICAS_PER_DEPLOYMENT):
        node = fleet[(index * _NODES_PER_DEPLOYMENT + ordinal // 2) % len(fleet)]
        first = 4 * (ordinal % 2)
        gpus = tuple(range(first, first + deployment.plan.gpus_per_replica))
        row = make_replica(deployment.name, ordinal, node=node.name, gpus=gpus, port=20000 + ordinal % 2)
        rows.append(replace(row, phase=ReplicaPhase.READY, node=NodeName(node.name)))
    return tuple(sorted(rows, key=lambda row: row.name))


def _seen(row: Replica) -> SeenReplica:
    return SeenReplica(
        name=row.name, node=row.node, port=row.port, gpus=row.gpus, alive=True, started_at=row.created_at
    )


def _server() -> ServerTraffic:
    return ServerTraffic(state="UP", in_flight=3, queued=0, requests_total=1000.0, failures_total=0.0)


def _sample() -> EngineSample:
    return EngineSample(
        at=NOW,
        process_start_s=START.timestamp(),
        running=3,
        waiting=0,
        kv_usage=0.3,
        sleeping=False,
        prompt_tokens=1e6,
        generation_tokens=1e5,
        requests_succeeded=1000.0,
        requests_failed=0.0,
        preemptions=0.0,
        ttft=_EMPTY,
        inter_token=_EMPTY,
        end_to_end=_EMPTY,
    )


if __name__ == "__main__":
    sys.exit(main())
