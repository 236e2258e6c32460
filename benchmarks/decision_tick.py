"""One decision over a whole fleet: everything read in one transaction, every decision computed, everything written."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.fleet import StandingFleet
from benchmarks.measuring import Stopwatch
from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.model import Decision, Observation, PolicyParams
from controlplane.autoscaler.observe import ObserverMemory, observe
from controlplane.autoscaler.params import params_for
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.reconciler import Memory
from controlplane.autoscaler.replay import record
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment
from controlplane.domain.node import Node
from controlplane.domain.replica import Replica
from controlplane.domain.site import GatewaySpec
from controlplane.domain.telemetry import Fresh
from controlplane.fleet.verdict import FleetLimits, plan_fleet
from controlplane.gateway.table import build_route_table
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.attention import needs_traffic, replicas_to_probe, vitals_of
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.limits import DEFAULT_LIMITS
from controlplane.replicas.lint import lint_plan
from controlplane.replicas.memory import Breaker, begin_tick, feel_pulses
from controlplane.replicas.memory import Memory as ReplicaMemory
from controlplane.replicas.plan import plan_replicas
from controlplane.replicas.ports import TrafficSeen
from controlplane.replicas.standing import Situation


@dataclass(slots=True, kw_only=True)
class _Known:
    """What the loops keep in memory between two ticks."""

    policies: dict[DeploymentName, tuple[str, Memory]] = field(default_factory=dict)
    """The text that is in the store, and its meaning."""
    replicas: dict[DeploymentName, ReplicaMemory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    nodes: Sequence[Node]
    deployments: Sequence[Deployment]
    replicas: Sequence[Replica]
    by_deployment: dict[DeploymentName, list[Replica]]
    texts: dict[DeploymentName, str]


async def decision_ticks(fleet: StandingFleet, rounds: int) -> tuple[Stopwatch, dict[str, int]]:
    known, first, watch = _Known(), Stopwatch(), Stopwatch()
    rows = await _tick(fleet, known, first)
    for number in range(rounds):
        await fleet.next_round(number)
        rows = await _tick(fleet, known, watch)
    return watch, {
        "GPUs": sum(node.spec.gpus for node in rows.nodes),
        "replicas": len(rows.replicas),
        "deployments": len(rows.deployments),
    }


async def _tick(fleet: StandingFleet, known: _Known, watch: Stopwatch) -> _Rows:
    with watch.round():
        with watch.stage("read the store"):
            rows = await _read(fleet)
        decided = _decide_numbers(fleet, rows, known, watch)
        await _plan_replicas(fleet, rows, known, watch)
        with watch.stage("gateway table"):
            addresses = {node.name: node.spec.address for node in rows.nodes}
            build_route_table(rows.deployments, rows.replicas, GatewaySpec(), addresses)
        with watch.stage("node verdicts"):
            now = fleet.clock.now()
            plan_fleet(
                rows.nodes,
                fleet.world.snapshot().nodes,
                Counter(replica.node for replica in rows.replicas),
                now=now,
                watching_since=now,
                limits=FleetLimits(),
            )
        with watch.stage("write what changed"):
            await _write(fleet, decided)
    return rows


async def _read(fleet: StandingFleet) -> _Rows:
    async with fleet.store.transaction() as tx:
        nodes, deployments, replicas = await tx.nodes(), await tx.deployments(), await tx.replicas()
        texts = {each.name: await tx.policy_state(each.name) or "" for each in deployments}
    by_deployment: dict[DeploymentName, list[Replica]] = defaultdict(list)
    for replica in replicas:
        by_deployment[replica.deployment].append(replica)
    return _Rows(nodes=nodes, deployments=deployments, replicas=replicas, by_deployment=by_deployment, texts=texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """What is written: each deployment's state, and the decisions that changed a number."""

    texts: dict[DeploymentName, str]
    records: list[DecisionRecord]


def _decide_numbers(fleet: StandingFleet, rows: _Rows, known: _Known, watch: Stopwatch) -> _Decided:
    now, snapshot = fleet.clock.now(), fleet.world.snapshot()
    with watch.stage("observe (autoscaler)"):
        memories = {name: _memory(known, name, text) for name, text in rows.texts.items()}
        seen: list[tuple[Deployment, Observation, ObserverMemory]] = [
            (each, *observe(each, rows.by_deployment[each.name], snapshot, memories[each.name].observer, now))
            for each in rows.deployments
        ]
    with watch.stage("decide (autoscaler)"):
        decisions: list[tuple[PolicyParams, Decision]] = []
        for deployment, observation, _ in seen:
            params = params_for(deployment)
            decisions.append((params, decide(params, observation, memories[deployment.name].policy)))
    with watch.stage("encode decisions"):
        texts: dict[DeploymentName, str] = {}
        records: list[DecisionRecord] = []
        for (deployment, observation, observer), (params, decision) in zip(seen, decisions, strict=True):
            name = deployment.name
            left = replace(memories[name], observer=observer, policy=decision.state)
            texts[name] = encode(left)
            known.policies[name] = (texts[name], left)
            if decision.wanted != observation.wanted:
                records.append(record(name, params, observation, memories[name].policy, decision))
    return _Decided(texts=texts, records=records)


def _memory(known: _Known, name: DeploymentName, text: str) -> Memory:
    """As the loop does: a text that it wrote itself is not decoded again."""
    remembered = known.policies.get(name)
    return remembered[1] if remembered is not None and remembered[0] == text else decode(Memory, text)


async def _plan_replicas(fleet: StandingFleet, rows: _Rows, known: _Known, watch: Stopwatch) -> None:
    with watch.stage("GPU ledger"):
        ledger = GpuLedger(rows.nodes, rows.replicas)
        nodes = {node.name: node for node in rows.nodes}
    now, snapshot = fleet.clock.now(), fleet.world.snapshot()
    sighting, traffic = await fleet.world.observe(), TrafficSeen(fleet.world.traffic.servers_by_endpoint)
    servers = snapshot.gateway.value.servers if isinstance(snapshot.gateway, Fresh) else {}
    with watch.stage("plan and lint (replicas)"):
        for deployment in rows.deployments:
            replicas, revision = tuple(rows.by_deployment[deployment.name]), deployment.plan.revision
            memory = known.replicas.get(deployment.name) or ReplicaMemory(
                breaker=Breaker(revision=revision, generation=deployment.generation)
            )
            memory = begin_tick(
                memory,
                replicas=replicas,
                revision=revision,
                generation=deployment.generation,
                limits=DEFAULT_LIMITS,
                now=now,
            )
            situation = Situation(
                deployment=deployment,
                replicas=replicas,
                sighting=sighting,
                traffic=traffic,
                nodes=nodes,
                ledger=ledger,
                memory=memory,
                now=now,
                probes={},
                engines=snapshot.engines,
                gateway_servers=servers,
            )
            memory = feel_pulses(memory, replicas, vitals_of(situation), now)
            situation = replace(situation, memory=memory)
            needs_traffic(situation)
            replicas_to_probe(situation)
            problems = lint_plan(situation, plan_replicas(situation))
            assert not problems, f"the planner keeps its own rules: {problems}"
            known.replicas[deployment.name] = memory


async def _write(fleet: StandingFleet, decided: _Decided) -> None:
    async with fleet.store.transaction() as tx:
        for name, text in decided.texts.items():
            await tx.put_policy_state(name, text)
        for kept in decided.records:
            await tx.append_decision(kept)
