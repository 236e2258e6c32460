"""Deployments and replicas as they are -> what the gateway should look like. Pure."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, assert_never

from controlplane.domain.deployment import Deployment
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.site import GatewaySpec
from controlplane.gateway.model import Route, RouteTable, Server, ServerMode
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName, ServedName

LOCAL_ADDRESS: Final = "127.0.0.1"
"""Where a replica is reached whose node has no known address: the embedded launcher's own machine."""

ENGINE_BACKLOG: Final = 1.25
"""Requests let through per sequence that the engine runs at once. Above 1 so that a finished sequence is followed by
one that already waits in the engine, without a round trip; barely above, so that what must wait waits in the gateway,
from where it can still go to a replica that comes up later."""

SPARE_SLOTS_MIN: Final = 4
"""Replicas beyond the maximum that may be in the gateway at once: the old ones of a roll that still drain."""

SPARE_SLOTS_SHARE: Final = 2
"""One spare slot for each so many replicas. A roll that needs more costs a hitless reload."""

SLOTS_STEP: Final = 4
"""Slots come in such steps, so that small changes of `replicas_max` need no reload."""

NO_ADDRESSES: Final[Mapping[NodeName, str]] = MappingProxyType({})


def build_route_table(
    deployments: Sequence[Deployment],
    replicas: Sequence[Replica],
    spec: GatewaySpec,
    addresses: Mapping[NodeName, str] = NO_ADDRESSES,
) -> RouteTable:
    """READY replicas take requests, DRAINING ones finish theirs, all others are absent.

    `addresses` are the nodes' IP addresses. A removed deployment keeps its backend until its row goes, so that its
    drains stay visible, but answers to no name any more. A name claimed twice belongs to the first deployment by name
    (the site check refuses such files).
    """
    by_deployment: dict[DeploymentName, list[Replica]] = defaultdict(list)
    for replica in replicas:
        by_deployment[replica.deployment].append(replica)
    taken: set[ServedName] = set()
    routes: list[Route] = []
    for deployment in sorted(deployments, key=lambda each: each.name):
        names = () if deployment.removed else deployment.spec.served_names
        free = tuple(dict.fromkeys(name for name in names if name not in taken))
        taken.update(free)
        routes.append(_route(deployment, free, by_deployment[deployment.name], addresses))
    return RouteTable(spec=spec, routes=tuple(routes))


def concurrency_limit(deployment: Deployment) -> int:
    """Requests in flight that one replica is given: its engine's batch and a small backlog. 0: no limit."""
    sequences = deployment.spec.max_num_seqs or deployment.plan.prior.max_num_seqs
    return math.ceil(sequences * ENGINE_BACKLOG)


def _route(
    deployment: Deployment,
    names: tuple[ServedName, ...],
    replicas: Sequence[Replica],
    addresses: Mapping[NodeName, str],
) -> Route:
    limit = concurrency_limit(deployment)
    servers: dict[ReplicaName, Server] = {}
    for replica in replicas:
        mode = _mode(replica.phase)
        if mode is not None:
            servers[replica.name] = Server(
                replica=replica.name,
                address=addresses.get(replica.node, LOCAL_ADDRESS),
                port=replica.port,
                mode=mode,
                maxconn=limit,
            )
    return Route(
        deployment=deployment.name,
        served_names=names,
        slots=_slots(deployment.spec.replicas_max, len(servers)),
        servers=tuple(servers[name] for name in sorted(servers)),
        health_path=deployment.plan.launch.health_path,
    )


def _mode(phase: ReplicaPhase) -> ServerMode | None:
    match phase:
        case ReplicaPhase.READY:
            return ServerMode.READY
        case ReplicaPhase.DRAINING:
            return ServerMode.DRAIN
        case (
            ReplicaPhase.PENDING
            | ReplicaPhase.STARTING
            | ReplicaPhase.SLEEPING
            | ReplicaPhase.WAKING
            | ReplicaPhase.STOPPING
        ):
            return None
        case _:
            assert_never(phase)


def _slots(replicas_max: int, servers: int) -> int:
    spare = max(SPARE_SLOTS_MIN, math.ceil(replicas_max / SPARE_SLOTS_SHARE))
    return math.ceil(max(replicas_max + spare, servers) / SLOTS_STEP) * SLOTS_STEP
