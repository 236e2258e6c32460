"""What the replica reconciler needs of the world, in its own words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.health import ProbeResult
from controlplane.domain.replica import Replica
from controlplane.domain.telemetry import ServerTraffic
from controlplane.kernel.ids import NodeName, ReplicaName


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One replica to start, complete: the launcher has no choices left."""

    name: ReplicaName
    node: NodeName
    gpus: tuple[int, ...]
    gpu_model: str
    numa_domain: int | None
    port: int
    template: LaunchTemplate


class PortHolder(StrEnum):
    """Who listens on a replica's port. An answer there is the replica's own only where it is OWN."""

    OWN = "own"
    """Processes of its group, and nobody else."""
    NOBODY = "nobody"
    """It has not come that far yet."""
    OTHER = "other"
    """Somebody else listens there, alone or as well."""
    UNTOLD = "untold"
    """This launcher or system cannot tell: answers are believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReplica:
    """A replica that the engine's own list shows. `alive` is False when only remains of it are left."""

    name: ReplicaName
    node: NodeName
    port: int
    gpus: tuple[int, ...]
    alive: bool
    """The process that serves (the leader of the group) runs. False with an entry: orphans of the group are left."""
    started_at: datetime
    exit_code: int | None = None
    """Known only for own children; never trusted as a verdict (a crashed vLLM exits 0)."""
    port_holder: PortHolder = PortHolder.UNTOLD
    port_stranger: str = ""
    """Who else listens on the port, for people, e.g. `process 4711 (python3)`; with OTHER only."""

    @property
    def port_lost(self) -> bool:
        """What answers on its port need not be the replica."""
        return self.port_holder is PortHolder.OTHER


@dataclass(frozen=True, slots=True)
class Seen:
    """A complete list."""

    replicas: Mapping[ReplicaName, SeenReplica]


@dataclass(frozen=True, slots=True)
class Unseen:
    """The list could not be had, or not whole. Never read as empty: nothing is stopped or replaced on it."""

    why: str


type Sighting = Seen | Unseen


class LaunchResult:
    """How a launch call ended."""

    @dataclass(frozen=True, slots=True)
    class Accepted:
        """Started, or was running already under that name."""

    @dataclass(frozen=True, slots=True)
    class Refused:
        """Not started; `port_taken` asks for another port, otherwise the sentence is for people."""

        sentence: str
        port_taken: bool = False


type LaunchOutcome = LaunchResult.Accepted | LaunchResult.Refused


class Launcher(Protocol):
    """The engine that runs replicas. Every call is idempotent by the replica's name."""

    async def observe(self) -> Sighting:
        """All replicas of this site that run or left remains, on every node it can reach."""
        ...

    async def launch(self, spec: LaunchSpec) -> LaunchOutcome: ...
    async def terminate(self, name: ReplicaName) -> None:
        """Ask the group's leader to stop (SIGTERM). No error when it is gone."""
        ...

    async def kill(self, name: ReplicaName) -> None:
        """End every process of the group (SIGKILL). No error when it is gone."""
        ...

    async def log_tail(self, name: ReplicaName, lines: int) -> list[str]:
        """The last lines of the replica's output; empty when there is none."""
        ...


class Engines(Protocol):
    """The engine's HTTP interface, for probes and sleep.

    Each call has its own deadline and never raises for a sick engine: what it found is the result.
    """

    async def probe(self, replica: Replica, template: LaunchTemplate) -> ProbeResult:
        """/health, then one real request for the template's task."""
        ...

    async def sleep(self, replica: Replica) -> bool:
        """True when the engine confirms that it sleeps."""
        ...

    async def wake(self, replica: Replica) -> bool:
        """True when the engine accepted to wake; a probe tells when it has."""
        ...


@dataclass(frozen=True, slots=True)
class TrafficSeen:
    """By `address:port`. A replica that is absent is not routed."""

    servers: Mapping[str, ServerTraffic]


@dataclass(frozen=True, slots=True)
class TrafficUnseen:
    """The gateway could not be asked. A drain waits for its deadline then."""

    why: str


type TrafficSighting = TrafficSeen | TrafficUnseen


class Traffic(Protocol):
    """The gateway's own word about its servers, asked live."""

    async def servers(self) -> TrafficSighting: ...
