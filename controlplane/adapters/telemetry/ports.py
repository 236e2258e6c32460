"""What the collector reads from, whichever way the numbers come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.domain.node import NodeSpec
from controlplane.domain.telemetry import EngineSample, Missing, NodeSample
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTarget:
    """A replica that should show its metrics."""

    replica: ReplicaName
    deployment: DeploymentName
    node: NodeName
    address: str
    port: int
    metrics_path: str

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}{self.metrics_path}"


class EngineSource(Protocol):
    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        """An answer for every target, within a limit of its own; never raises for a target or a server that fails.

        A sample's `at` is when it was measured, which may be before the call.
        """
        ...

    async def close(self) -> None: ...


class NodeSource(Protocol):
    async def nodes(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        """As EngineSource.engines."""
        ...

    async def close(self) -> None: ...
