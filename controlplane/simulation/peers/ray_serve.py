"""Ray Serve's default policy on ongoing requests.

Rule: desired = ceil(n + factor x (total / target - n)) for n running replicas, where total is the mean of all ongoing
requests (queued at the handles included) over the look-back; it is set once it was above the number for 30 s without a
break, or below it for 600 s. From zero replicas the first request asks for one at once.

Assumed: the controller counts decisions of 0.1 s each; here the delays are measured by the clock, and looked at every
5 s, for its data is new only every 10 s. A deployment that reports nothing has no requests: stale reports are dropped.
"""

from dataclasses import dataclass
from typing import Final

from controlplane.simulation.fleet.policy import Facts, Peer, Seen
from controlplane.simulation.peers.knobs import Knobs, settled, share_or
from controlplane.simulation.peers.signals import known, ongoing, replicas_for

TARGET_ONGOING: Final = 2.0
LOOK_BACK_S: Final = 30.0
PUSH_S: Final = 10.0
"""RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S."""
TICK_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaning:
    """Which way it wants to go, without a break since when."""

    sign: int = 0
    since_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayServePolicy:
    name: str
    target: float
    """Ongoing requests per replica."""
    up_delay_s: float
    down_delay_s: float
    up_factor: float
    down_factor: float
    tick_s: float = TICK_S
    scrape_s: float = PUSH_S

    def start(self) -> Leaning:
        return Leaning()

    def decide(self, seen: Seen, memory: Leaning) -> tuple[int, Leaning]:
        total = known(ongoing(seen.metrics, LOOK_BACK_S))
        if seen.ready == 0:
            first = replicas_for(self.up_factor, 1) if total > 0 else 0
            return max(first, seen.wanted), memory
        desired = max(seen.replicas_min, min(seen.replicas_max, self._scaled(total, seen.ready)))
        sign = (desired > seen.wanted) - (desired < seen.wanted)
        if sign == 0:
            return seen.wanted, Leaning()
        if sign != memory.sign:
            memory = Leaning(sign=sign, since_s=seen.at_s)
        if seen.at_s - memory.since_s < (self.up_delay_s if sign > 0 else self.down_delay_s):
            return seen.wanted, memory
        # To zero only from one.
        return (desired if sign > 0 or seen.wanted == 1 else max(1, desired)), Leaning()

    def _scaled(self, total: float, running: int) -> int:
        delta = total / self.target - running
        scaled = replicas_for(running + (self.up_factor if delta > 0 else self.down_factor) * delta, 1)
        stuck = replicas_for(total, self.target) < running and scaled == running
        return scaled - stuck


def _make(facts: Facts, knobs: Knobs) -> RayServePolicy:
    at = settled("ray-serve", RAY_SERVE.defaults, knobs)
    return RayServePolicy(
        name="ray-serve",
        target=share_or(at["target_share"], of=facts.replica_concurrency, default=TARGET_ONGOING),
        up_delay_s=at["up_delay_s"],
        down_delay_s=at["down_delay_s"],
        up_factor=at["up_factor"],
        down_factor=at["down_factor"],
    )


RAY_SERVE: Final = Peer(
    name="ray-serve",
    source="ray python/ray/serve/autoscaling_policy.py, serve/config.py (AutoscalingConfig)",
    make=_make,
    defaults={
        "target_share": 0.0,
        "up_delay_s": 30.0,
        "down_delay_s": 600.0,
        "up_factor": 1.0,
        "down_factor": 1.0,
    },
    search={
        "target_share": (0.0, 0.6, 0.8, 1.0),
        "up_delay_s": (0.0, 30.0),
        "down_delay_s": (60.0, 300.0, 600.0),
    },
)
