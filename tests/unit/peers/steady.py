"""Metrics that stand still: the same answer for every window, and nothing where nothing was set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import Counter, Facts, Gauge, Latency, ScalingPolicy, Seen
from controlplane.simulation.fleet.state import Timing

QWEN_32B: Final = Timing(
    step_base_s=0.0136,
    step_per_seq_s=0.000175,
    step_per_context_token_s=0.0,
    prefill_base_s=0.0,
    prefill_per_token_s=0.25 / 4000,
    prefill_per_token2_s=0.0,
    kv_tokens=316_000,
    max_num_seqs=63,
    max_num_batched_tokens=8192,
)
"""Of llm-d's ramp, as the reference's feasibility probe sets it by hand: 0.25 s per 4,000 prompt tokens."""

FACTS: Final = Facts(
    ttft_slo_s=3.0,
    itl_slo_s=0.1,
    percentile=0.95,
    timing=QWEN_32B,
    gpus_per_replica=2,
    cold_start_s=100.0,
    replica_rps=1.4,
    replica_concurrency=40.0,
    mean_prompt_tokens=4000.0,
    mean_output_tokens=1000.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Rates per second, latencies in seconds."""

    gauges: Mapping[Gauge, Sequence[float]] = field(default_factory=dict)
    waiting_in_gateway: float = math.nan
    rates: Mapping[Counter, float] = field(default_factory=dict)
    latencies: Mapping[Latency, float] = field(default_factory=dict)
    recent: Mapping[float, float] = field(default_factory=dict)
    """Running requests by window, where the windows differ."""

    def per_replica(self, gauge: Gauge) -> Floats:
        return np.array(self.gauges.get(gauge, ()), dtype=np.float64)

    def total(self, gauge: Gauge) -> float:
        values = self.per_replica(gauge)
        return float(values.sum()) if len(values) else math.nan

    def held(self) -> float:
        return self.waiting_in_gateway

    def mean_over(self, gauge: Gauge, window_s: float) -> float:
        if gauge is not Gauge.RUNNING:
            return self.total(gauge)
        if window_s in self.recent:
            return self.recent[window_s]
        parts = [part for part in (self.total(gauge), self.held()) if not math.isnan(part)]
        return sum(parts) if parts else math.nan

    def peak_over(self, gauge: Gauge, window_s: float) -> Floats:
        return self.per_replica(gauge)

    def increase(self, counter: Counter, window_s: float) -> float:
        return self.rate(counter, window_s) * window_s

    def rate(self, counter: Counter, window_s: float) -> float:
        return self.rates.get(counter, math.nan)

    def quantile(self, latency: Latency, q: float, window_s: float) -> float:
        return self.latencies.get(latency, math.nan)

    def mean_latency(self, latency: Latency, window_s: float) -> float:
        return self.latencies.get(latency, math.nan)

    def scraped_s(self) -> float:
        return 0.0 if self.gauges else math.nan

    def grown(self, counter: Counter) -> float:
        return math.nan

    def observed(self, latency: Latency) -> Floats:
        return np.zeros(0)

    def observed_s(self, latency: Latency) -> float:
        return 0.0


def running(*values: float) -> Steady:
    return Steady(gauges={Gauge.RUNNING: values, Gauge.WAITING: [0.0] * len(values)})


def look(
    metrics: Steady,
    *,
    at_s: float = 0.0,
    wanted: int = 3,
    ready: int | None = None,
    low: int = 1,
    high: int = 100,
) -> Seen:
    """`wanted` replicas of which `ready` are, all unless told; the rest start."""
    up = wanted if ready is None else ready
    return Seen(
        at_s=at_s,
        wanted=wanted,
        ready=up,
        starting=max(0, wanted - up),
        draining=0,
        starting_age_s=0.0,
        cold_starts_s=(),
        replicas_min=low,
        replicas_max=high,
        metrics=metrics,
    )


def first(policy: ScalingPolicy, seen: Seen) -> int:
    return policy.decide(seen, policy.start())[0]


def run(
    policy: ScalingPolicy,
    metrics: Steady,
    *,
    wanted: int,
    until_s: float,
    ready: int | None = None,
    low: int = 1,
    high: int = 100,
) -> list[tuple[float, int]]:
    """Decide at every tick under metrics that stand still, the number followed at once: each change and its time."""
    memory, at_s, changes = policy.start(), 0.0, []
    while at_s <= until_s:
        now, memory = policy.decide(look(metrics, at_s=at_s, wanted=wanted, ready=ready, low=low, high=high), memory)
        if now != wanted:
            changes.append((at_s, now))
            wanted = now
        at_s += policy.tick_s
    return changes
