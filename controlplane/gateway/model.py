"""What the gateway should look like."""

from dataclasses import dataclass
from enum import StrEnum

from controlplane.domain.site import GatewaySpec
from controlplane.kernel.ids import DeploymentName, ReplicaName, ServedName


class ServerMode(StrEnum):
    READY = "ready"
    DRAIN = "drain"
    """No new requests; those in flight finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    replica: ReplicaName
    address: str
    port: int
    mode: ServerMode
    weight: int = 100
    """0..256, HAProxy's scale."""
    maxconn: int = 0
    """Requests in flight at most, the rest wait in the gateway's queue; 0: no limit."""

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One deployment's backend."""

    deployment: DeploymentName
    served_names: tuple[ServedName, ...]
    slots: int
    """Server slots in the configuration: more than replicas_max, so that a roll needs no reload."""
    servers: tuple[Server, ...]
    """Sorted by replica name."""
    health_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All of it. Equal tables mean nothing is to be done."""

    spec: GatewaySpec
    routes: tuple[Route, ...]
    """Sorted by deployment."""
