"""llm-d's workload-variant-autoscaler (WVA), one variant: V2 on token capacity, V1 on spare KV and queue.

V2, per replica: k1 = KV tokens x 0.8; k2 = the tokens in use while its queue is 5 or longer, else the mean of the last
10 such observations, else N (I + O/2) with N = min(B O / (I + O), S), else k1; capacity = min(k1, k2), of a replica in
general the median. Demand = tokens in use + waiting requests x I. More: ceil((demand / 0.85 - (ready + starting) x
capacity) / capacity); fewer: floor((ready x capacity - demand / 0.70) / capacity), at least one stays.

V1: a replica is saturated at KV use 0.80 or a queue of 5. One more if the others' mean spare KV is below 0.10 or spare
queue below 3, and nothing starts; one fewer if two or more are not saturated and the spare would still do.

Both read the maximum of the last minute every 60 s, and the number passes through an HPA with a window of 240 s both
ways and the HPA's tolerance.

Assumed: observations of k2 are kept apart by output length (< 100, < 500 tokens, longer) as in the code. B is
max_num_batched_tokens and S max_num_seqs, read from the deployment's arguments. What waits in the gateway is its
scheduler queue (bytes / 4 = prompt tokens). Without metrics of any replica the safety net keeps the number.
"""

import math
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import Counter, Facts, Gauge, Metrics, Peer, Seen
from controlplane.simulation.fleet.state import Timing
from controlplane.simulation.peers.behavior import Behavior, Direction, History, settle
from controlplane.simulation.peers.hpa import SCRAPE_S, desired_for_total
from controlplane.simulation.peers.knobs import Knobs, settled
from controlplane.simulation.peers.signals import known, pods

TICK_S: Final = 60.0
PEAK_WINDOW_S: Final = 60.0
SHAPE_WINDOW_S: Final = 300.0
"""Over which the mean request is measured."""
QUEUE_SATURATED: Final = 5.0
KV_SPARE: Final = 0.10
QUEUE_SPARE: Final = 3.0
UNSATURATED_MIN: Final = 2
"""Fewer of them never give one up."""
OBSERVATIONS: Final = 10
"""RollingAverageWindowSize."""
SHORT_OUTPUT: Final = 100.0
MEDIUM_OUTPUT: Final = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WvaMemory:
    history: History = field(default_factory=History)
    observed: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """(bucket of output length, the last k2 seen under a queue)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The mean request, in tokens."""

    prompt: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WvaV2Policy:
    name: str
    timing: Timing
    shape: Shape
    """Until any was measured."""
    kv_threshold: float
    up_threshold: float
    down_boundary: float
    behavior: Behavior
    tick_s: float = TICK_S
    scrape_s: float = SCRAPE_S

    def start(self) -> WvaMemory:
        return WvaMemory()

    def decide(self, seen: Seen, memory: WvaMemory) -> tuple[int, WvaMemory]:
        usage, waiting = _peaks(seen.metrics)
        if len(usage) == 0:
            return seen.wanted, memory
        shape = _measured(seen.metrics, self.shape)
        in_use = usage * self.timing.kv_tokens
        capacity, memory = self._capacity(in_use, waiting, shape, memory)
        queued = float(waiting.sum()) + known(seen.metrics.held())
        demand = float(in_use.sum()) + queued * shape.prompt
        change = self.change(demand=demand, capacity=capacity, ready=len(usage), starting=seen.starting)
        return _through_hpa(self.behavior, memory, seen, max(1, seen.wanted + change))

    def change(self, *, demand: float, capacity: float, ready: int, starting: int) -> int:
        """Replicas more (above 0) or fewer that `demand` tokens ask for at `capacity` tokens per replica."""
        required = demand / self.up_threshold - (ready + starting) * capacity
        if required > 0:
            return math.ceil(required / capacity)
        spare = ready * capacity - demand / self.down_boundary
        return -math.floor(spare / capacity) if spare > 0 else 0

    def _capacity(self, in_use: Floats, waiting: Floats, shape: Shape, memory: WvaMemory) -> tuple[float, WvaMemory]:
        bucket = 0 if shape.output < SHORT_OUTPUT else 1 if shape.output < MEDIUM_OUTPUT else 2
        kept = dict(memory.observed)
        k1 = self.timing.kv_tokens * self.kv_threshold
        capacities = []
        for tokens, queue in zip(in_use.tolist(), waiting.tolist(), strict=True):
            if queue >= QUEUE_SATURATED and tokens > 0:
                kept[bucket] = (*kept.get(bucket, ()), tokens)[-OBSERVATIONS:]
                k2 = tokens
            elif earlier := kept.get(bucket):
                k2 = fmean(earlier)
            else:
                k2 = derived_capacity(self.timing, shape)
            capacities.append(min(k1, k2) if k2 > 0 else k1)
        return median(capacities), replace(memory, observed=tuple(sorted(kept.items())))


def derived_capacity(timing: Timing, shape: Shape) -> float:
    """Tokens that one replica holds in steady state, from its engine's arguments; 0 where that cannot be told."""
    if shape.output <= 0:
        return 0.0
    steady = timing.max_num_batched_tokens * shape.output / (shape.prompt + shape.output)
    return min(steady, timing.max_num_seqs) * (shape.prompt + shape.output / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class WvaV1Policy:
    name: str
    kv_threshold: float
    behavior: Behavior
    tick_s: float = TICK_S
    scrape_s: float = SCRAPE_S

    def start(self) -> WvaMemory:
        return WvaMemory()

    def decide(self, seen: Seen, memory: WvaMemory) -> tuple[int, WvaMemory]:
        usage, waiting = _peaks(seen.metrics)
        if len(usage) == 0:
            return seen.wanted, memory
        change = self.change(usage, waiting, starting=seen.starting)
        return _through_hpa(self.behavior, memory, seen, max(1, seen.wanted + change))

    def change(self, usage: Floats, waiting: Floats, *, starting: int) -> int:
        free = (usage < self.kv_threshold) & (waiting < QUEUE_SATURATED)
        count = int(free.sum())
        kv_spare = self.kv_threshold - float(usage[free].mean()) if count else 0.0
        queue_spare = QUEUE_SATURATED - float(waiting[free].mean()) if count else 0.0
        if kv_spare < KV_SPARE or queue_spare < QUEUE_SPARE:
            return 0 if starting else 1
        if count < UNSATURATED_MIN:
            return 0
        # What the one that goes carried falls to the others.
        kv_after = self.kv_threshold - float(usage[free].sum()) / (count - 1)
        queue_after = QUEUE_SATURATED - float(waiting[free].sum()) / (count - 1)
        return -1 if kv_after >= KV_SPARE and queue_after >= QUEUE_SPARE else 0


def _peaks(metrics: Metrics) -> tuple[Floats, Floats]:
    """KV use and waiting requests of every replica that reports, the most of the last minute; no queue reads as 0."""
    usage = metrics.peak_over(Gauge.KV_USAGE, PEAK_WINDOW_S)
    waiting = metrics.peak_over(Gauge.WAITING, PEAK_WINDOW_S)
    if len(waiting) != len(usage):
        waiting = np.zeros(len(usage))
    there = ~np.isnan(usage)
    return usage[there], np.nan_to_num(waiting[there])


def _measured(metrics: Metrics, fallback: Shape) -> Shape:
    started = known(metrics.increase(Counter.STARTED, SHAPE_WINDOW_S))
    finished = known(metrics.increase(Counter.FINISHED, SHAPE_WINDOW_S))
    if started <= 0 or finished <= 0:
        return fallback
    return Shape(
        prompt=known(metrics.increase(Counter.PROMPT_TOKENS, SHAPE_WINDOW_S)) / started,
        output=known(metrics.increase(Counter.OUTPUT_TOKENS, SHAPE_WINDOW_S)) / finished,
    )


def _through_hpa(behavior: Behavior, memory: WvaMemory, seen: Seen, target: int) -> tuple[int, WvaMemory]:
    desired = desired_for_total(target, current=pods(seen), target=1.0)
    wanted, history = settle(behavior, memory.history, desired=desired, seen=seen, floor=max(1, seen.replicas_min))
    return wanted, replace(memory, history=history)


def _behavior(window_s: float) -> Behavior:
    return Behavior(
        up=Direction(window_s=window_s, period_s=15, pods=4, percent=100),
        down=Direction(window_s=window_s, period_s=15, percent=100),
    )


def _make_v2(facts: Facts, knobs: Knobs) -> WvaV2Policy:
    at = settled("wva-v2", WVA_V2.defaults, knobs, positive=("kv_threshold", "up_threshold", "down_boundary", "tick_s"))
    return WvaV2Policy(
        name="wva-v2",
        timing=facts.timing,
        shape=Shape(prompt=facts.mean_prompt_tokens, output=facts.mean_output_tokens),
        kv_threshold=at["kv_threshold"],
        up_threshold=at["up_threshold"],
        down_boundary=at["down_boundary"],
        behavior=_behavior(at["window_s"]),
        tick_s=at["tick_s"],
    )


def _make_v1(facts: Facts, knobs: Knobs) -> WvaV1Policy:  # noqa: ARG001  # one shape for every peer's maker
    at = settled("wva-v1", WVA_V1.defaults, knobs, positive=("kv_threshold", "tick_s"))
    return WvaV1Policy(
        name="wva-v1", kv_threshold=at["kv_threshold"], behavior=_behavior(at["window_s"]), tick_s=at["tick_s"]
    )


_SOURCE: Final = "llm-d workload-variant-autoscaler v0.9.0: saturation analyzers, cost-aware optimizer, Helm chart"
WVA_V2: Final = Peer(
    name="wva-v2",
    source=_SOURCE,
    make=_make_v2,
    defaults={
        "kv_threshold": 0.8,
        "up_threshold": 0.85,
        "down_boundary": 0.70,
        "window_s": 240.0,
        "tick_s": TICK_S,
    },
    search={
        "up_threshold": (0.7, 0.85),
        "down_boundary": (0.5, 0.70),
        "window_s": (0.0, 60.0, 240.0),
        "tick_s": (30.0, TICK_S),
    },
)
WVA_V1: Final = Peer(
    name="wva-v1",
    source=_SOURCE,
    make=_make_v1,
    defaults={"kv_threshold": 0.8, "window_s": 240.0, "tick_s": TICK_S},
    search={"kv_threshold": (0.5, 0.65, 0.8), "window_s": (0.0, 60.0, 240.0), "tick_s": (30.0, TICK_S)},
)
