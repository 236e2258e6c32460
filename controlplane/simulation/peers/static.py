"""A fixed number of replicas: the site's maximum, or as many as the operator says."""

from dataclasses import dataclass
from typing import Final

from controlplane.simulation.fleet.policy import Facts, Peer, Seen
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import replicas_for

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPolicy:
    name: str
    replicas: int
    """0: a share of the maximum instead."""
    share: float
    tick_s: float = 60.0
    scrape_s: float = _DAY_S
    """It reads nothing."""

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        count = self.replicas or replicas_for(self.share * seen.replicas_max, 1)
        return max(seen.replicas_min, min(seen.replicas_max, count)), memory


def _make(facts: Facts, knobs: Knobs) -> StaticPolicy:  # noqa: ARG001  # one shape for every peer's maker
    at = settled("static", STATIC.defaults, knobs)
    return StaticPolicy(name="static", replicas=round(at["replicas"]), share=at["share"])


STATIC: Final = Peer(
    name="static",
    source="no autoscaler: what an operator provisions for the peak",
    make=_make,
    defaults={"replicas": 0.0, "share": 1.0},
    search={"share": (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)},
)
