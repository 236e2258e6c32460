"""What an observation teaches: demand history, mean request, step time, cold starts, attained objectives."""

import math
from dataclasses import dataclass, replace

from controlplane.autoscaler.capacity import mean_request, replica_timing
from controlplane.autoscaler.experts import first_errors, judged
from controlplane.autoscaler.forecast import with_arrivals
from controlplane.autoscaler.model import (
    AttainmentMemory,
    LatencyDelta,
    Observation,
    PolicyParams,
    PolicyState,
    Scatter,
    Slowness,
    TokenMemory,
    Trust,
    Tuning,
)
from controlplane.autoscaler.scatter import overdispersion, scattered

_OVERDUE_LEADS = 3.0
"""A start that takes this many times the expected is stuck, not slow: planning further ahead for it helps nobody."""
_BUSY_STEP = 2.0
"""A step of a replica at work, in steps of an empty one: at half of its utilisation."""
_PREFILL_SHARE_MAX = 0.9
"""A measured prefill share above this is a sampling artefact; the modelled gap would divide by nearly nothing."""


def first_state(params: PolicyParams, observation: Observation) -> PolicyState:
    """What is known before anything was seen."""
    tuning = params.tuning
    sd = tuning.slowness_sd_calibrated if params.prior.calibrated else tuning.slowness_sd_derived
    return PolicyState(
        since_s=observation.at_s,
        at_s=observation.at_s,
        buckets=(),
        last_request_s=observation.at_s,
        cold_starts_s=(),
        errors=first_errors(observation.at_s),
        scatter=Scatter(),
        tokens=TokenMemory(),
        slowness=Slowness(mean=0.0, variance=sd * sd),
        attainment=AttainmentMemory(),
        kv_usage=0.0,
        discount=1.0,
        discounted_s=observation.at_s,
        short_s=observation.at_s,
        changed_s=observation.at_s,
        turned_s=observation.at_s,
        direction=0,
    )


def learn(params: PolicyParams, observation: Observation, state: PolicyState) -> PolicyState:
    """The state after looking, before deciding."""
    tuning = params.tuning
    elapsed_s = max(observation.at_s - state.at_s, 0.0)
    seen = replace(
        state,
        at_s=observation.at_s,
        cold_starts_s=(*state.cold_starts_s, *observation.cold_starts_s)[-tuning.lead_samples_max :],
        tokens=_tokens(state.tokens, observation, elapsed_s, tuning),
        attainment=_attainment(state.attainment, observation, elapsed_s, tuning),
        kv_usage=_smoothed(state.kv_usage, observation.kv_usage, elapsed_s / tuning.kv_memory_s),
        discount=1.0 - (1.0 - state.discount) * math.exp(-elapsed_s / tuning.discount_recovery_s),
    )
    silent = observation.arrivals == 0.0 and observation.arrivals_complete and observation.work_open == 0
    if not silent or observation.gateway is not Trust.FRESH:
        # Time that was not seen is not idle time.
        seen = replace(seen, last_request_s=observation.at_s)
    if observation.arrivals is not None and observation.arrivals_complete:
        reach = reach_s(params, seen, lead_s(params, observation, seen))
        buckets = with_arrivals(
            state.buckets,
            end_s=observation.at_s,
            seconds=observation.arrivals_seconds,
            arrivals=observation.arrivals,
            lead_s=reach,
            tuning=tuning,
        )
        scatter = scattered(
            state.scatter,
            arrivals=observation.arrivals,
            seconds=observation.arrivals_seconds,
            served_s=_served_s(params, seen),
            tuning=tuning,
        )
        errors = judged(state.errors, buckets, reach, tuning, dispersion=overdispersion(scatter, tuning))
        seen = replace(seen, buckets=buckets, errors=errors, scatter=scatter)
    return replace(seen, slowness=_slowness(params, observation, seen, elapsed_s))


def lead_s(params: PolicyParams, observation: Observation, state: PolicyState) -> float:
    """How long a replica started now takes to be ready: a high quantile of the measured cold starts.

    Until enough were measured, not less than the catalog expects; never less than a start that is still under way.
    """
    tuning = params.tuning
    expected_s = params.prior.cold_start.total_seconds()
    measured = sorted(state.cold_starts_s)
    if measured:
        rank = math.ceil(tuning.lead_quantile * len(measured)) - 1
        enough = len(measured) >= tuning.lead_samples_min
        expected_s = measured[rank] if enough else max(expected_s, measured[rank])
    under_way_s = min(observation.starting_age_s, _OVERDUE_LEADS * expected_s)
    return max(expected_s, under_way_s, tuning.lead_floor_s)


def wake_lead_s(params: PolicyParams) -> float:
    """How long one that sleeps takes."""
    return max(params.prior.wake.total_seconds(), params.tuning.lead_floor_s)


def next_lead_s(params: PolicyParams, observation: Observation, state: PolicyState) -> float:
    """Of the next replica: one that sleeps is woken before any is started."""
    return wake_lead_s(params) if observation.sleeping > 0 else lead_s(params, observation, state)


def reach_s(params: PolicyParams, state: PolicyState, lead: float) -> float:
    """How far ahead demand matters: the lead, or where that is shorter the time that a request is served.

    What is open at once is what came within a service time: ups and downs that are shorter even out in the batch.
    """
    return max(lead, min(_served_s(params, state), params.tuning.reach_max_s))


def _served_s(params: PolicyParams, state: PolicyState) -> float:
    return _BUSY_STEP * params.prior.step_base_s * mean_request(params, state).output_tokens


def _tokens(memory: TokenMemory, observation: Observation, elapsed_s: float, tuning: Tuning) -> TokenMemory:
    keep = math.exp(-elapsed_s / tuning.tokens_memory_s)
    # Requests that run have made half of their tokens on average: those count where they were made.
    seen = observation.engines is Trust.FRESH and observation.engine_deltas > 0
    running = observation.running if seen else memory.running
    made = max(observation.finished + (running - memory.running) / 2.0, 0.0)
    return TokenMemory(
        first_tokens=memory.first_tokens * keep + observation.ttft.count,
        prompt_tokens=memory.prompt_tokens * keep + observation.prompt_tokens,
        finished=memory.finished * keep + made,
        output_tokens=memory.output_tokens * keep + observation.generation_tokens,
        running=running,
    )


def _attainment(
    memory: AttainmentMemory, observation: Observation, elapsed_s: float, tuning: Tuning
) -> AttainmentMemory:
    keep = math.exp(-elapsed_s / tuning.attainment_memory_s)
    per_token = observation.per_output_token
    if per_token.count <= 0.0 < observation.finished:
        # An engine that does not tell it of requests. The gaps themselves are stricter: a stall is a share of them.
        per_token = observation.inter_token
    return AttainmentMemory(
        ttft=_faded(memory.ttft, keep, observation.ttft),
        per_output_token=_faded(memory.per_output_token, keep, per_token),
        end_to_end=_faded(memory.end_to_end, keep, observation.end_to_end),
    )


def _smoothed(before: float, now: float, memories: float) -> float:
    return now + (before - now) * math.exp(-memories)


def _faded(memory: LatencyDelta, keep: float, new: LatencyDelta) -> LatencyDelta:
    return LatencyDelta(
        count=memory.count * keep + new.count,
        sum_s=memory.sum_s * keep + new.sum_s,
        within_low=memory.within_low * keep + new.within_low,
        within_high=memory.within_high * keep + new.within_high,
    )


def _slowness(params: PolicyParams, observation: Observation, state: PolicyState, elapsed_s: float) -> Slowness:
    """One step of a scalar Kalman filter on ln(measured gap / modelled gap at the measured batch)."""
    tuning, belief = params.tuning, state.slowness
    drifted = belief.variance + tuning.slowness_drift_per_s * elapsed_s
    variance = min(drifted, max(tuning.slowness_sd_derived**2, belief.variance))
    measured = _measured(params, observation, state)
    if measured is None:
        return Slowness(mean=belief.mean, variance=variance)
    noise = (tuning.slowness_sd_measured / (1.0 - measured.prefill_share)) ** 2
    surprise = math.log(measured.gap_ratio) - belief.mean
    most = tuning.slowness_surprise_max * math.sqrt(variance + noise)
    gain = variance / (variance + noise)
    bound = math.log(tuning.slowness_max)
    mean = min(max(belief.mean + gain * min(max(surprise, -most), most), -bound), bound)
    return Slowness(mean=mean, variance=(1.0 - gain) * variance)


@dataclass(frozen=True, slots=True)
class _Measured:
    gap_ratio: float
    """Measured over modelled time between tokens."""
    prefill_share: float
    """Of the replicas' time; decoding stalls for it."""


def _measured(params: PolicyParams, observation: Observation, state: PolicyState) -> _Measured | None:
    """None when the tick teaches nothing.

    The mean batch over the interval is exact by Little's law: the gaps that ended within it, summed, per second.
    """
    gaps = observation.inter_token
    replica_s = observation.engine_seconds * observation.engine_deltas
    if observation.engines is not Trust.FRESH or replica_s <= 0.0 or gaps.count < params.tuning.tokens_to_learn:
        return None
    timing = replica_timing(params, mean_request(params, state), 1.0)
    batch = max(gaps.sum_s / replica_s, 1.0)
    prefill_share = min(observation.ttft.count / replica_s * timing.stall_s, _PREFILL_SHARE_MAX)
    modelled_s = (timing.step_base_s + batch * timing.step_per_seq_s) / (1.0 - prefill_share)
    ratio = gaps.sum_s / gaps.count / modelled_s if modelled_s > 0.0 else 0.0
    return _Measured(ratio, prefill_share) if ratio > 0.0 else None
