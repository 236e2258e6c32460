"""Nodes and their GPUs as the control plane knows them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from controlplane.kernel.ids import NodeName, PoolName

NEVER_SEEN: Final = "not heard from yet"
"""The state's reason of a node that was only declared so far."""

LEFT_SITE: Final = "the site file no longer has it"
"""The state's reason of a draining node whose row goes once nothing runs on it."""


class NodeState(StrEnum):
    UNKNOWN = "unknown"
    """Not heard from yet, or not for a while. Nothing new is placed here; nothing is stopped here either."""
    READY = "ready"
    CORDONED = "cordoned"
    """A person or a fault keeps new replicas away; running ones stay."""
    DRAINING = "draining"
    """Running replicas are to be moved away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What the site file declares of one node."""

    name: NodeName
    pool: PoolName
    gpu_model: str
    """Catalog name, e.g. `b200`."""
    gpus: int
    numa_of_gpu: tuple[int, ...] = ()
    """NUMA domain of each GPU by index; empty where not known."""
    address: str = "127.0.0.1"
    agent_url: str | None = None
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node's row. Writers: site apply (spec), fleet loop (seen_at, state READY/UNKNOWN), API (cordon, drain)."""

    spec: NodeSpec
    state: NodeState
    state_reason: str
    generation: int
    seen_at: datetime | None = None

    @property
    def name(self) -> NodeName:
        return self.spec.name

    @property
    def removed_from_site(self) -> bool:
        """Site apply drains it with the reason LEFT_SITE; the fleet loop deletes the row when nothing runs on it."""
        return self.state is NodeState.DRAINING and self.state_reason == LEFT_SITE

    @property
    def accepts_replicas(self) -> bool:
        return self.state is NodeState.READY
