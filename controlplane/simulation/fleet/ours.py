"""The product's own policy on the simulated fleet: the same `decide`, fed with what the same telemetry would show."""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.model import (
    ArrivalSource,
    LatencyDelta,
    Observation,
    PolicyParams,
    PolicyState,
    Trust,
    Tuning,
)
from controlplane.autoscaler.policy import decide
from controlplane.domain.deployment import CapacityPrior
from controlplane.domain.reason import Reason
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.simulation.fleet.policy import Counter, Facts, Gauge, Latency, Metrics, Seen
from controlplane.simulation.fleet.state import EDGES

NAME: Final = "quarterdeck"
_READ: Final = (Latency.TTFT, Latency.INTER_TOKEN, Latency.PER_OUTPUT_TOKEN, Latency.END_TO_END)
"""What an engine's own metrics page has."""
_STALE_S: Final = 3.0
"""Scrapes come every second: after this the product calls a reading stale."""
_MISSING_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """Counters as last read."""

    at_s: float
    arrived: float
    prompt_tokens: float
    output_tokens: float
    finished: float
    preemptions: float
    latencies: tuple[LatencyDelta, ...]
    """One per histogram: counts within the objective's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OurMemory:
    counted: _Counted | None = None
    state: PolicyState | None = None
    reason: Reason | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OurPolicy:
    """Implements `ScalingPolicy`."""

    params: PolicyParams
    name: str = NAME
    tick_s: float = 1.0
    scrape_s: float = 1.0

    def start(self) -> OurMemory:
        return OurMemory()

    def decide(self, seen: Seen, memory: OurMemory) -> tuple[int, OurMemory]:
        counted = _counted(seen.metrics, self.params.slo)
        decision = decide(self.params, _observation(seen, memory.counted or counted, counted), memory.state)
        left = OurMemory(counted=counted, state=decision.state, reason=decision.reason, sentence=decision.sentence)
        return decision.wanted, left


def our_policy(facts: Facts, *, tuning: Tuning | None = None, calibrated: bool = True) -> OurPolicy:
    """As the site file would declare it: objectives, and the catalog's prior of the engine.

    `Facts.replica_rps`, which an offline profile would measure, is not read.
    """
    return OurPolicy(params=our_params(facts, tuning=tuning, calibrated=calibrated))


def our_params(facts: Facts, *, tuning: Tuning | None = None, calibrated: bool = True) -> PolicyParams:
    timing, wake_s = facts.timing, facts.cold_start_s if facts.wake_s is None else facts.wake_s
    return PolicyParams(
        prior=CapacityPrior(
            step_base_s=timing.step_base_s,
            step_per_seq_s=timing.step_per_seq_s,
            step_per_context_token_s=timing.step_per_context_token_s,
            prefill_base_s=timing.prefill_base_s,
            prefill_per_token_s=timing.prefill_per_token_s,
            prefill_per_token2_s=timing.prefill_per_token2_s,
            kv_tokens=timing.kv_tokens,
            max_num_seqs=timing.max_num_seqs,
            cold_start=timedelta(seconds=facts.cold_start_s),
            wake=timedelta(seconds=wake_s),
            calibrated=calibrated,
        ),
        slo=Slo(
            ttft=_target(facts.ttft_slo_s, facts.percentile),
            inter_token=_target(facts.itl_slo_s, facts.percentile),
        ),
        decodes=True,
        idle_after=None,
        tuning=tuning or Tuning(),
    )


def _target(limit_s: float, percentile: float) -> LatencyTarget:
    return LatencyTarget(percentile=percentile, limit=timedelta(seconds=limit_s))


def _counted(metrics: Metrics, slo: Slo) -> _Counted:
    limits = {Latency.TTFT: slo.ttft, Latency.INTER_TOKEN: slo.inter_token, Latency.PER_OUTPUT_TOKEN: slo.inter_token}
    return _Counted(
        at_s=metrics.scraped_s(),
        arrived=metrics.grown(Counter.ARRIVED),
        prompt_tokens=metrics.grown(Counter.PROMPT_TOKENS),
        output_tokens=metrics.grown(Counter.OUTPUT_TOKENS),
        finished=metrics.grown(Counter.FINISHED),
        preemptions=metrics.grown(Counter.PREEMPTIONS),
        latencies=tuple(_within(metrics, latency, limits.get(latency)) for latency in _READ),
    )


def _within(metrics: Metrics, latency: Latency, target: LatencyTarget | None) -> LatencyDelta:
    """Certainly and possibly within the limit, as bucket edges tell it."""
    buckets, edges = metrics.observed(latency), EDGES[latency]
    total = float(buckets.sum())
    if target is None:
        return LatencyDelta(count=total, sum_s=metrics.observed_s(latency), within_low=total, within_high=total)
    limit_s = target.limit.total_seconds()
    place = bisect_left(edges, limit_s)
    high = float(buckets[: place + 1].sum())
    exact = place < len(edges) and edges[place] == limit_s
    low = high if exact else float(buckets[:place].sum())
    return LatencyDelta(count=total, sum_s=metrics.observed_s(latency), within_low=low, within_high=high)


def _observation(seen: Seen, before: _Counted, now: _Counted) -> Observation:
    metrics = seen.metrics
    age_s = seen.at_s - now.at_s
    trust = Trust.FRESH if age_s < _STALE_S else Trust.STALE if age_s < _MISSING_S else Trust.MISSING
    known = trust is Trust.FRESH
    running, waiting, kv_usage = (
        metrics.per_replica(gauge) for gauge in (Gauge.RUNNING, Gauge.WAITING, Gauge.KV_USAGE)
    )
    ttft, inter_token, per_output_token, end_to_end = (
        _grown(one, other) for one, other in zip(before.latencies, now.latencies, strict=True)
    )
    serving = seen.ready + seen.draining
    return Observation(
        at_s=seen.at_s,
        gateway=trust,
        engines=trust if seen.ready else Trust.FRESH,
        engines_fresh=seen.ready if known else 0,
        arrivals=now.arrived - before.arrived if known else None,
        arrivals_seconds=now.at_s - before.at_s if known else 0.0,
        arrivals_source=ArrivalSource.GATEWAY if known else ArrivalSource.NONE,
        arrivals_complete=known,
        held=int(metrics.held()) if known else 0,
        queued=0,
        in_flight=int(running.sum() + waiting.sum()) if known else 0,
        running=int(running.sum()) if known else 0,
        waiting=int(waiting.sum()) if known else 0,
        kv_usage=float(kv_usage.mean()) if known and len(kv_usage) else 0.0,
        engine_seconds=now.at_s - before.at_s if known else 0.0,
        engine_deltas=serving if known else 0,
        prompt_tokens=now.prompt_tokens - before.prompt_tokens,
        generation_tokens=now.output_tokens - before.output_tokens,
        finished=now.finished - before.finished,
        failed=0.0,
        preemptions=now.preemptions - before.preemptions,
        ttft=ttft,
        inter_token=inter_token,
        per_output_token=per_output_token,
        end_to_end=end_to_end,
        wanted=seen.wanted,
        ready=seen.ready,
        starting=seen.starting,
        draining=seen.draining,
        sleeping=seen.sleeping,
        starting_age_s=seen.starting_age_s,
        cold_starts_s=seen.cold_starts_s,
        replicas_min=seen.replicas_min,
        replicas_max=seen.replicas_max,
        pinned=None,
        paused=False,
    )


def _grown(before: LatencyDelta, now: LatencyDelta) -> LatencyDelta:
    return LatencyDelta(
        count=now.count - before.count,
        sum_s=max(now.sum_s - before.sum_s, 0.0),
        within_low=now.within_low - before.within_low,
        within_high=now.within_high - before.within_high,
    )
