"""KEDA's Prometheus scaler on vLLM's queue.

Rule: the HPA that KEDA makes asks for ceil(sum(num_requests_waiting) / threshold) (AverageValue), with the HPA's
tolerance and behaviour; KEDA itself only goes between 0 and 1. Several triggers: the largest answer counts.

Assumed: the threshold of 5 is that of vLLM's production stack. The HPA asks every 15 s and KEDA answers from the query
of that moment (`useCachedMetrics` is off by default), so that `pollingInterval` (30 s) and `cooldownPeriod` (300 s)
matter only around 0. From 0 no engine can tell a queue; there what waits in the gateway counts, which is kind to KEDA.
An empty result is 0 (`ignoreNullValues: true`, the default), so an outage of the metrics scales down.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

from controlplane.simulation.fleet.policy import Facts, Gauge, Peer, Seen
from controlplane.simulation.peers.behavior import SYNC_S, Behavior, History, settle
from controlplane.simulation.peers.hpa import SCRAPE_S, behavior_of, desired_for_total
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import known, pods

POLLING_S: Final = 30.0
COOLDOWN_S: Final = 300.0
THRESHOLD: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaMemory:
    history: History = field(default_factory=History)
    polled_s: float = -math.inf
    active_s: float = -math.inf
    """When a poll last found a trigger above its activation threshold of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaPolicy:
    name: str
    threshold: float
    """Waiting requests per pod."""
    running_target: float
    """Running requests per pod, as a second trigger; 0: none."""
    behavior: Behavior
    tick_s: float = SYNC_S
    scrape_s: float = SCRAPE_S

    def start(self) -> KedaMemory:
        return KedaMemory()

    def decide(self, seen: Seen, memory: KedaMemory) -> tuple[int, KedaMemory]:
        waiting = known(seen.metrics.total(Gauge.WAITING))
        running = known(seen.metrics.total(Gauge.RUNNING)) if self.running_target else 0.0
        active = waiting + running + known(seen.metrics.held()) > 0
        memory = _polled(memory, seen, active=active)
        if seen.wanted == 0:
            return int(active and memory.polled_s == seen.at_s), memory
        if seen.replicas_min == 0 and seen.at_s - memory.active_s >= COOLDOWN_S:
            return 0, memory
        current = pods(seen)
        desired = desired_for_total(waiting, current=current, target=self.threshold)
        if self.running_target:
            desired = max(desired, desired_for_total(running, current=current, target=self.running_target))
        wanted, history = settle(
            self.behavior, memory.history, desired=desired, seen=seen, floor=max(1, seen.replicas_min)
        )
        return wanted, replace(memory, history=history)


def _polled(memory: KedaMemory, seen: Seen, *, active: bool) -> KedaMemory:
    if seen.at_s - memory.polled_s < POLLING_S:
        return memory
    first = math.isinf(memory.polled_s)
    return replace(memory, polled_s=seen.at_s, active_s=seen.at_s if active or first else memory.active_s)


def _make(facts: Facts, knobs: Knobs) -> KedaPolicy:
    at = settled("keda-queue", KEDA_QUEUE.defaults, knobs, positive=("threshold",))
    return KedaPolicy(
        name="keda-queue",
        threshold=at["threshold"],
        running_target=at["running_share"] * facts.replica_concurrency,
        behavior=behavior_of(at),
    )


KEDA_QUEUE: Final = Peer(
    name="keda-queue",
    source="keda.sh/docs: scaledobject-spec, scalers/prometheus; vllm production-stack, Autoscaling with KEDA",
    make=_make,
    defaults={"threshold": THRESHOLD, "running_share": 0.0, "up_window_s": 0.0, "down_window_s": 300.0},
    search={
        "threshold": (1.0, 5.0, 10.0),
        "running_share": (0.0, 0.6, 0.75, 0.9),
        "down_window_s": (120.0, 300.0),
    },
)
