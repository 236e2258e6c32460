"""What a plan consists of: a closed union of steps, each with the rows to write: the executor chooses nothing.

Three kinds of writing. `row` is written before anything is done to the world (write-ahead: a crash right after it is
continued by the next tick). `done_row` is written after the world confirmed. `Forget` and `Retire` delete.
"""

from dataclasses import dataclass

from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.ports import LaunchSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Common to every step: the closed reason and a sentence for people."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(Why):
    """A new PENDING row: GPUs and port are taken before anything runs."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Why):
    """Start the process of a PENDING row; `done_row` is STARTING."""

    spec: LaunchSpec
    pending_row: Replica
    done_row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt(Why):
    """The process of a PENDING row already runs (a crash came between launch and row): STARTING."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkReady(Why):
    """A probe passed: STARTING or WAKING becomes READY."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Why):
    """READY becomes DRAINING: the gateway stops routing to it."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrain(Why):
    """DRAINING, not signalled yet, becomes READY again."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep(Why):
    """Put a drained engine to sleep; `done_row` is SLEEPING."""

    draining_row: Replica
    done_row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkAsleep(Why):
    """The engine of a DRAINING row is found asleep (a crash came between sleep and row): SLEEPING."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake(Why):
    """SLEEPING becomes WAKING, then the engine is told; also repeats a wake that was lost."""

    row: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Why):
    """STOPPING without a signal: nothing runs (any more) under that name. Its GPUs go with the row, one tick later."""

    row: Replica
    failed_start: bool = False
    with_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate(Why):
    """STOPPING, and SIGTERM to the leader; the row counts the signal first."""

    row: Replica
    failed_start: bool = False
    with_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Why):
    """STOPPING, and SIGKILL to all that is left of the group; the row counts the signal first."""

    row: Replica
    failed_start: bool = False
    with_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Why):
    """Nothing of the group is left: delete the row."""

    replica: Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire(Why):
    """A deployment that left the site has no replica any more: delete its row."""

    deployment: DeploymentName


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Why):
    """Deliberately nothing, and why."""


type Step = (
    Reserve
    | Launch
    | Adopt
    | MarkReady
    | Drain
    | Undrain
    | Sleep
    | MarkAsleep
    | Wake
    | Release
    | Terminate
    | Kill
    | Forget
    | Retire
    | Hold
)

type RowStep = Adopt | MarkReady | Drain | Undrain | MarkAsleep | Wake | Release | Terminate | Kill
"""Steps that replace the row of an existing replica before anything else happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """All that one tick does, in order."""

    deployment: DeploymentName
    template: LaunchTemplate
    """Of the present revision: probes, sleeps and launches of this plan use it."""
    steps: tuple[Step, ...]
    sentence: str
    """The state in words, e.g. `3 of 4 ready, 1 starting`."""

    @property
    def holds(self) -> tuple[Hold, ...]:
        return tuple(step for step in self.steps if isinstance(step, Hold))

    @property
    def changes(self) -> bool:
        return any(not isinstance(step, Hold) for step in self.steps)
