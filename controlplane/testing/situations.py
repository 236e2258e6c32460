"""Situations for the replica planner: a fleet in good order, to be varied where a test means something by it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from controlplane.domain.deployment import Deployment
from controlplane.domain.node import Node
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import ServerTraffic
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.memory import Breaker, Memory
from controlplane.replicas.ports import Seen, SeenReplica, TrafficSeen
from controlplane.replicas.standing import Situation
from controlplane.testing.builders import REVISION, make_deployment, make_node
from controlplane.testing.effects import START
from controlplane.testing.traffic import server

NOW: Final = START + timedelta(minutes=10)
"""Long after everything that the builders date at START."""


def make_situation(
    replicas: Iterable[Replica] = (),
    *,
    deployment: Deployment | None = None,
    gone: Iterable[ReplicaName] = (),
    nodes: Iterable[Node] | None = None,
    now: datetime = NOW,
    **changes: Any,
) -> Situation:
    """Every replica but PENDING ones runs, except those in `gone`; the gateway is up to date; nothing was probed."""
    rows = tuple(replicas)
    fleet = [make_node("node-1"), make_node("node-2")] if nodes is None else list(nodes)
    missing = set(gone) | {row.name for row in rows if row.phase is ReplicaPhase.PENDING}
    plain = Situation(
        deployment=deployment or make_deployment(wanted=len(rows), replicas_min=0, replicas_max=20),
        replicas=rows,
        sighting=Seen({row.name: seen_of(row) for row in rows if row.name not in missing}),
        traffic=TrafficSeen(servers_of(rows)),
        nodes={node.name: node for node in fleet},
        ledger=GpuLedger(fleet, rows),
        memory=Memory(breaker=Breaker(revision=REVISION, generation=1)),
        now=now,
        probes={},
        engines={},
        gateway_servers={},
    )
    return replace(plain, **changes)


def seen_of(replica: Replica, *, alive: bool = True) -> SeenReplica:
    return SeenReplica(
        name=replica.name, node=replica.node, port=replica.port, gpus=replica.gpus, alive=alive, started_at=START
    )


def servers_of(replicas: Iterable[Replica]) -> dict[str, ServerTraffic]:
    """As a gateway has them that is up to date and idle."""
    states = {ReplicaPhase.READY: "UP", ReplicaPhase.DRAINING: "DRAIN"}
    return {f"127.0.0.1:{row.port}": server(states[row.phase]) for row in replicas if row.phase in states}
