"""SkyServe's request-rate autoscaler.

Rule: target = ceil(requests of the last 60 s / 60 / target_qps_per_replica), looked at every 20 s; it is set once it
was above the number at 300 s / 20 s looks in a row, or below it at 1200 s / 20 s looks.

Assumed: `target_qps_per_replica` has no default (without it nothing scales); the rate that the offline profile
measured is given. From zero replicas SkyServe looks every 5 s, here every 20 s, and follows at once. The load balancer
tells the controller its requests every 20 s. No report means no requests.
"""

from dataclasses import dataclass
from typing import Final

from controlplane.simulation.fleet.policy import Counter, Facts, Peer, Seen
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import known, replicas_for

TICK_S: Final = 20.0
"""AUTOSCALER_DEFAULT_DECISION_INTERVAL_SECONDS, and LB_CONTROLLER_SYNC_INTERVAL_SECONDS."""
WINDOW_S: Final = 60.0
"""AUTOSCALER_QPS_WINDOW_SIZE_SECONDS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Looks in a row that asked for more, for fewer."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyServePolicy:
    name: str
    qps_per_replica: float
    up_looks: int
    down_looks: int
    tick_s: float = TICK_S
    scrape_s: float = TICK_S

    def start(self) -> Counters:
        return Counters()

    def decide(self, seen: Seen, memory: Counters) -> tuple[int, Counters]:
        rate = known(seen.metrics.rate(Counter.ARRIVED, WINDOW_S))
        target = max(seen.replicas_min, min(seen.replicas_max, replicas_for(rate, self.qps_per_replica)))
        if seen.wanted == 0:
            return target, memory
        if target > seen.wanted:
            up = memory.up + 1
            return (target, Counters()) if up >= self.up_looks else (seen.wanted, Counters(up=up))
        if target < seen.wanted:
            down = memory.down + 1
            return (target, Counters()) if down >= self.down_looks else (seen.wanted, Counters(down=down))
        return seen.wanted, Counters()


def _make(facts: Facts, knobs: Knobs) -> SkyServePolicy:
    at = settled("skyserve", SKYSERVE.defaults, knobs, positive=("target_share",))
    return SkyServePolicy(
        name="skyserve",
        qps_per_replica=at["target_share"] * facts.replica_rps,
        up_looks=int(at["up_delay_s"] / TICK_S),
        down_looks=int(at["down_delay_s"] / TICK_S),
    )


SKYSERVE: Final = Peer(
    name="skyserve",
    source="skypilot sky/serve/autoscalers.py, sky/serve/constants.py",
    make=_make,
    defaults={"target_share": 1.0, "up_delay_s": 300.0, "down_delay_s": 1200.0},
    search={
        "target_share": (0.7, 0.85, 1.0),
        "up_delay_s": (20.0, 60.0, 120.0, 300.0),
        "down_delay_s": (300.0, 1200.0),
    },
)
