"""A plan while it is being written: the steps so far, whom they touch, and what the tick's budget still allows."""

from dataclasses import dataclass, field

from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ledger import GpuLedger
from controlplane.replicas.standing import Situation, Standing
from controlplane.replicas.steps import Hold, Kill, Release, Step, Terminate


@dataclass(slots=True, kw_only=True)
class Draft:
    """Local to one call of `plan_replicas`; nothing outside sees it change."""

    situation: Situation
    standings: tuple[Standing, ...]
    launches_left: int
    removals_left: int
    steps: list[Step] = field(default_factory=list)
    touched: set[ReplicaName] = field(default_factory=set)
    """At most one step a tick for an existing replica."""
    dying: set[ReplicaName] = field(default_factory=set)
    forked: GpuLedger | None = None

    @property
    def target(self) -> int:
        return self.situation.deployment.replicas_target

    @property
    def alive(self) -> tuple[Standing, ...]:
        """Replicas that this plan does not end."""
        return tuple(standing for standing in self.standings if standing.replica.name not in self.dying)

    @property
    def failed_starts(self) -> tuple[Replica, ...]:
        """Starts that this very plan gives up: they count at once, not from the next tick on."""
        steps = (step for step in self.steps if isinstance(step, Release | Terminate | Kill))
        return tuple(step.row for step in steps if step.failed_start)

    @property
    def open(self) -> tuple[Standing, ...]:
        """Replicas that this plan has not decided about."""
        return tuple(standing for standing in self.standings if standing.replica.name not in self.touched)

    @property
    def serving(self) -> tuple[Standing, ...]:
        return tuple(standing for standing in self.alive if standing.serving)

    @property
    def live(self) -> tuple[Standing, ...]:
        """Serving or on their way to it, and worth keeping: what is counted against the target."""
        return tuple(standing for standing in self.alive if standing.keepable and (standing.serving or standing.coming))

    def ledger(self) -> GpuLedger:
        """A fork to take places from; made only when a place is needed."""
        if self.forked is None:
            self.forked = self.situation.ledger.fork()
        return self.forked

    def add(self, replica: Replica, step: Step) -> None:
        assert replica.name not in self.touched, f"{replica.name} already has a step in this plan"
        self.steps.append(step)
        self.touched.add(replica.name)
        if isinstance(step, Release | Terminate | Kill):
            self.dying.add(replica.name)

    def hold(self, reason: Reason, sentence: str) -> None:
        self.steps.append(Hold(reason=reason, sentence=sentence))
