"""A gateway that follows the replica rows, late if told to, and whose requests take a while to end."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from controlplane.domain.node import Node
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import ServerTraffic
from controlplane.kernel.ids import NodeName
from controlplane.replicas.ports import TrafficSeen, TrafficSighting, TrafficUnseen


class FakeTraffic:
    """Implements `controlplane.replicas.ports.Traffic`."""

    def __init__(self) -> None:
        self.servers_by_endpoint: dict[str, ServerTraffic] = {}
        self.unseen: str | None = None
        """Why the gateway cannot be asked; None: it can."""

    async def servers(self) -> TrafficSighting:
        if self.unseen is not None:
            return TrafficUnseen(self.unseen)
        return TrafficSeen(dict(self.servers_by_endpoint))

    def follow(self, replicas: Iterable[Replica], nodes: Mapping[NodeName, Node]) -> None:
        """One pass of the gateway loop: READY is routed, DRAINING gets nothing new, all others are absent."""
        servers: dict[str, ServerTraffic] = {}
        for replica in replicas:
            state = {ReplicaPhase.READY: "UP", ReplicaPhase.DRAINING: "DRAIN"}.get(replica.phase)
            if state is None or replica.node not in nodes:
                continue
            endpoint = f"{nodes[replica.node].spec.address}:{replica.port}"
            before = self.servers_by_endpoint.get(endpoint)
            servers[endpoint] = replace(before, state=state) if before is not None else server(state)
        self.servers_by_endpoint = servers

    def set_in_flight(self, endpoint: str, in_flight: int) -> None:
        before = self.servers_by_endpoint[endpoint]
        begun = max(0, in_flight - before.in_flight)
        self.servers_by_endpoint[endpoint] = replace(
            before, in_flight=in_flight, requests_total=before.requests_total + begun
        )


def server(state: str = "UP", *, in_flight: int = 0) -> ServerTraffic:
    return ServerTraffic(
        state=state, in_flight=in_flight, queued=0, requests_total=float(in_flight), failures_total=0.0
    )
