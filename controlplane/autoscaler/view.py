"""What one decision looks at, put together: the rules choose from it, the sentence tells it."""

from dataclasses import dataclass

from controlplane.autoscaler.capacity import Capacity
from controlplane.autoscaler.forecast import Demand
from controlplane.autoscaler.model import Observation, PolicyState
from controlplane.domain.reason import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Replicas that each concern asks for; 0: it asks for nothing."""

    demand: int
    """For the arrivals expected at the horizon."""
    backlog: int
    """For those and the requests that wait already."""
    kv: int
    slo: int
    keep: int
    """Below this nothing is given back."""

    @property
    def to_order(self) -> int:
        return max(self.demand, self.backlog, self.kv, self.slo)

    @property
    def reason(self) -> Reason:
        """Of the concern that asks for the most; demand first, since it leads the others."""
        asked = (
            (self.demand, Reason.DEMAND_UP),
            (self.backlog, Reason.QUEUE_GROWING),
            (self.kv, Reason.KV_PRESSURE),
            (self.slo, Reason.SLO_AT_RISK),
        )
        return max(asked, key=lambda part: part[0])[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stance:
    """What the order of the rules looks at, whichever policy it came from."""

    observation: Observation
    state: PolicyState
    lead_s: float
    hold_s: float
    needs: Needs
    missed: str
    """The objective that is missed now, in words; empty: none."""

    @property
    def needed_within_hold(self) -> int:
        """The most that any moment of the hold time thought worth keeping, this one included."""
        now_s = self.observation.at_s
        past = [bucket.need for bucket in self.state.buckets if bucket.end_s > now_s - self.hold_s]
        return max([self.needs.keep, self.needs.to_order, *past])

    @property
    def pressed(self) -> bool:
        """Users feel it already, or replicas were lost: reason enough to turn round within a lead."""
        seen = self.observation
        expected = seen.wanted if seen.shadow_of is None else seen.shadow_of
        lost = seen.ready + seen.starting < min(expected, seen.replicas_max)
        return bool(lost or seen.held or self.needs.backlog or self.needs.kv or self.missed)


@dataclass(frozen=True, slots=True, kw_only=True)
class View(Stance):
    """A stance of the policy that works for the SLO, with what it was made from."""

    demand: Demand | None
    capacity: Capacity
