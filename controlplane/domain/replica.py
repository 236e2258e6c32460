"""A replica: one engine process group that serves one deployment's model on a set of GPUs."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from controlplane.domain.reason import Reason
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName, RevisionId
from controlplane.kernel.transitions import TransitionTable


class ReplicaPhase(StrEnum):
    PENDING = "pending"
    """GPUs and port are reserved; the launcher may or may not have started it yet."""
    STARTING = "starting"
    """Launched; loading."""
    READY = "ready"
    """Answered a probe completion; the gateway may route to it."""
    DRAINING = "draining"
    """Leaves the gateway; in-flight requests finish. Ends asleep or stopping."""
    SLEEPING = "sleeping"
    """The engine sleeps; not routed; its GPUs stay reserved."""
    WAKING = "waking"
    STOPPING = "stopping"
    """Signalled; ends when no process of the group is left. Then the row is deleted."""


REPLICA_TRANSITIONS: Final = TransitionTable(
    {
        ReplicaPhase.PENDING: frozenset({ReplicaPhase.STARTING, ReplicaPhase.STOPPING}),
        ReplicaPhase.STARTING: frozenset({ReplicaPhase.READY, ReplicaPhase.STOPPING}),
        ReplicaPhase.READY: frozenset({ReplicaPhase.DRAINING, ReplicaPhase.STOPPING}),
        ReplicaPhase.DRAINING: frozenset({ReplicaPhase.STOPPING, ReplicaPhase.SLEEPING, ReplicaPhase.READY}),
        ReplicaPhase.SLEEPING: frozenset({ReplicaPhase.WAKING, ReplicaPhase.STOPPING}),
        ReplicaPhase.WAKING: frozenset({ReplicaPhase.READY, ReplicaPhase.STOPPING}),
    }
)
"""STOPPING is final: the row is deleted once nothing of the process group is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A replica's row. The replica reconciler alone writes it."""

    name: ReplicaName
    deployment: DeploymentName
    revision: RevisionId
    ordinal: int
    phase: ReplicaPhase
    phase_since: datetime
    node: NodeName
    gpus: tuple[int, ...]
    """Indices on the node, ascending."""
    port: int
    created_at: datetime
    reason: Reason
    sentence: str
    launched_at: datetime | None = None
    ready_at: datetime | None = None
    """When it became ready for the first time; the cold start is ready_at - launched_at."""
    sleep_after_drain: bool = False
    stop_signals: int = 0
    """Stop signals sent so far: 1, 2 are SIGTERM, from 3 on SIGKILL to the group."""
    stop_signal_at: datetime | None = None

    @property
    def holds_gpus(self) -> bool:
        """Every row does, until it is deleted: a process that is only believed dead may still hold memory."""
        return True
