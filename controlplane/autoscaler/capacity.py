"""How much demand replicas carry within their objectives, from the engine's timing and the requests really seen.

Each step gives every running sequence a token and takes in what prompts there are. With arrivals at `x` per second and
replica, mean prompt n, mean output O, mean context c, a step of `a + B g` seconds for B sequences (g = b + k c) that a
prompt of its own makes p seconds longer:

    prefill takes the share x p of the time, so a token gap is   t = (a + B g) / (1 - x p)
    Little's law says                                            B = x O t
    hence                                                        t = a / (1 - x w),  w = p + g O

so w is the work that a request brings and x w the utilisation. p is without the fixed part of a prefill: that is one
pass over the weights, which the decoding sequences make anyway. A request's own gap is the mean of O of them: x t O
prompts stall it, as many more as a compound Poisson count has at the objective's percentile, so short outputs need more
room than long ones. Every limit (gap, KV cache, sequences, time to first token) bounds x. Form and coefficients: NVIDIA
aiconfigurator. What a replica carries in the simulator is measured there (`simulation.fleet.profile`); what the policy
makes of this belief is in docs/benchmarks.md.

Replicas pool their luck: the number of open requests varies like a Poisson count (M/G/inf), or as many times more as
arrivals are measured to scatter (`scatter`), so n replicas plan for a mean that lies z standard deviations below n
times the largest batch; the more replicas, the less is lost to variation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from controlplane.autoscaler.model import PolicyParams, PolicyState, Tuning
from controlplane.autoscaler.scatter import overdispersion

SEQUENCES: Final = "sequences"
_REPLICAS_SEARCHED: Final = 1 << 20
"""Nobody has a million replicas; demand beyond is a broken counter, and the clamp to replicas_max takes it."""
_PERCENTILE_DEFAULT: Final = 0.95
_BISECTION_STEPS: Final = 40
"""Halvings of the search for the utilisation that the TTFT limit allows: 1e-12 of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The mean request."""

    prompt_tokens: float
    output_tokens: float
    """1 at least for models that decode, 0 for those that do not."""

    @property
    def context_tokens(self) -> float:
        """Mean context of a running sequence.

        Equal outputs are half through on average; where they vary like an exponential, long ones run so much longer
        that those that run are through a whole mean. Real ones lie between.
        """
        return self.prompt_tokens + 0.75 * self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTiming:
    """One replica's speed as believed now."""

    step_base_s: float
    step_per_seq_s: float
    prefill_s: float
    """Of the mean prompt, alone."""
    stall_s: float
    """By which it makes a step longer that others decode in."""
    slowness: float
    """Measured over modelled step time, at the slow end of what is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What replicas carry within the objectives."""

    timing: ReplicaTiming
    workload: Workload
    batch_max: float
    """Sequences at which the first limit is reached."""
    limit: str
    """That limit, for people: `inter-token`, `KV cache`, `sequences`, `utilisation`, `first token`."""
    concurrency_z: float
    """Standard deviations of a Poisson count: more where arrivals scatter more."""
    dispersion: float
    """Index of dispersion of arrivals, 1 for Poisson."""
    discount: float

    def fleet_rps(self, replicas: int) -> float:
        """Requests per second that `replicas` carry together."""
        if replicas <= 0:
            return 0.0
        most = replicas * self.batch_max
        half_z = self.concurrency_z / 2.0
        mean = (math.sqrt(most + half_z * half_z) - half_z) ** 2
        return replicas * self._rate_at(mean / replicas) * self.discount

    def replicas_for(self, rate_rps: float) -> int:
        """The fewest replicas that carry the rate; 0 for none."""
        if rate_rps <= 0.0:
            return 0
        low, high = 0, 1
        while high < _REPLICAS_SEARCHED and self.fleet_rps(high) < rate_rps:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self.fleet_rps(middle) < rate_rps:
                low = middle
            else:
                high = middle
        return high

    def _rate_at(self, batch: float) -> float:
        """Arrivals per second that keep `batch` requests open in one replica."""
        return _rate_at(self.timing, self.workload, batch)


def capacity(params: PolicyParams, state: PolicyState) -> Capacity:
    """The belief of this moment: prior, corrected by what was measured, cut by what objectives were missed."""
    workload = mean_request(params, state)
    timing = replica_timing(params, workload, slowness(params.tuning, state))
    batch_max, limit = _first_limit(params, timing, workload)
    dispersion = overdispersion(state.scatter, params.tuning)
    # A full batch is a cliff, behind which requests queue; the other limits are slopes.
    spread_z = _normal_quantile(_percentile(params)) if limit == SEQUENCES else params.tuning.concurrency_z
    return Capacity(
        timing=timing,
        workload=workload,
        batch_max=batch_max,
        limit=limit,
        concurrency_z=spread_z * math.sqrt(dispersion),
        dispersion=dispersion,
        discount=state.discount,
    )


def mean_request(params: PolicyParams, state: PolicyState) -> Workload:
    """Seen means, weighed with the prior by their number of requests."""
    tuning, tokens = params.tuning, state.tokens
    weight = tuning.tokens_prior_weight
    prompt = (weight * tuning.prompt_tokens_prior + tokens.prompt_tokens) / (weight + tokens.started)
    if not params.decodes:
        return Workload(prompt_tokens=max(prompt, 1.0), output_tokens=0.0)
    output = (weight * tuning.output_tokens_prior + tokens.output_tokens) / (weight + tokens.finished)
    return Workload(prompt_tokens=max(prompt, 1.0), output_tokens=max(output, 1.0))


def slowness(tuning: Tuning, state: PolicyState) -> float:
    """The factor on the prior's times: the mean plus `slowness_z` standard deviations of its logarithm."""
    return math.exp(state.slowness.mean + tuning.slowness_z * math.sqrt(state.slowness.variance))


def replica_timing(params: PolicyParams, workload: Workload, factor: float) -> ReplicaTiming:
    """The prior's formula at this workload, every time multiplied by `factor`."""
    prior, n = params.prior, workload.prompt_tokens
    stall_s = prior.prefill_per_token_s * n + prior.prefill_per_token2_s * n * n
    per_seq_s = prior.step_per_seq_s + prior.step_per_context_token_s * workload.context_tokens
    return ReplicaTiming(
        step_base_s=prior.step_base_s * factor,
        step_per_seq_s=per_seq_s * factor,
        prefill_s=(prior.prefill_base_s + stall_s) * factor,
        stall_s=(stall_s if params.decodes else prior.prefill_base_s + stall_s) * factor,
        slowness=factor,
    )


def work_s(timing: ReplicaTiming, workload: Workload) -> float:
    """Seconds of a replica's time that one request takes at a large batch."""
    return timing.stall_s + timing.step_per_seq_s * workload.output_tokens


def _rate_at(timing: ReplicaTiming, workload: Workload, batch: float) -> float:
    """From t = a / (1 - x w) and B = x O t. Without decode prompts are served one by one: B = x p / (1 - x p)."""
    work = work_s(timing, workload)
    unloaded = workload.output_tokens * timing.step_base_s if workload.output_tokens else work
    return batch / max(unloaded + batch * work, 1e-9)


def _batch_at(timing: ReplicaTiming, workload: Workload, utilization: float) -> float:
    """The inverse: open requests at x w = utilization."""
    work = work_s(timing, workload)
    unloaded = workload.output_tokens * timing.step_base_s if workload.output_tokens else work
    return utilization / max(work, 1e-9) * unloaded / (1.0 - utilization)


def _first_limit(params: PolicyParams, timing: ReplicaTiming, workload: Workload) -> tuple[float, str]:
    """The largest batch that keeps every limit, one at least: below one request at a time nothing gets faster."""
    tuning = params.tuning
    limits = [
        (_batch_at(timing, workload, tuning.utilization_max), "utilisation"),
        (float(params.prior.max_num_seqs), SEQUENCES),
    ]
    if params.prior.kv_tokens > 0 and workload.output_tokens:
        limits.append((tuning.kv_fill * params.prior.kv_tokens / workload.context_tokens, "KV cache"))
    gap_s = _gap_limit_s(params, timing, workload)
    if gap_s is not None and workload.output_tokens:
        utilization = _largest(lambda at: _gap_s(params, timing, workload, at) <= gap_s, tuning.utilization_max)
        limits.append((_batch_at(timing, workload, utilization), "inter-token"))
    wait_s = _first_token_limit_s(params)
    if wait_s is not None:
        utilization = _largest(
            lambda at: _first_token_s(params, timing, workload, at) <= wait_s, tuning.utilization_max
        )
        limits.append((_batch_at(timing, workload, utilization), "first token"))
    batch, limit = min(limits)
    return max(batch, 1.0), limit


def _gap_s(params: PolicyParams, timing: ReplicaTiming, workload: Workload, utilization: float) -> float:
    """A request's mean time per output token, at the objective's percentile."""
    mean_s = timing.step_base_s / (1.0 - utilization)
    rate_rps = utilization / max(work_s(timing, workload), 1e-9)
    # The variance of a compound Poisson count of prompts, each as long as its square's mean, over O tokens.
    tokens = max(workload.output_tokens * params.tuning.short_output, 1.0)
    stalls = rate_rps * mean_s * (1.0 + params.tuning.prompt_cv**2) / tokens
    return mean_s + _normal_quantile(_percentile(params)) * timing.stall_s * math.sqrt(stalls)


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """The largest value up to `most` for which a condition that fails from some value on still holds."""
    if holds(most):
        return most
    low, high = 0.0, most
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2.0
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _gap_limit_s(params: PolicyParams, timing: ReplicaTiming, workload: Workload) -> float | None:
    """The stated inter-token limit, and what an end-to-end limit leaves per token of the mean request."""
    gaps = []
    if params.slo.inter_token is not None:
        gaps.append(params.slo.inter_token.limit.total_seconds())
    if params.slo.end_to_end is not None and workload.output_tokens:
        left_s = params.slo.end_to_end.limit.total_seconds() - timing.prefill_s
        gaps.append(max(left_s, 1e-6) / workload.output_tokens)
    return min(gaps) if gaps else None


def _first_token_limit_s(params: PolicyParams) -> float | None:
    """TTFT; for models that do not decode the first answer is the whole answer, so end-to-end counts too."""
    limits = [] if params.slo.ttft is None else [params.slo.ttft.limit.total_seconds()]
    if not params.decodes and params.slo.end_to_end is not None:
        limits.append(params.slo.end_to_end.limit.total_seconds())
    return min(limits) if limits else None


def _first_token_s(params: PolicyParams, timing: ReplicaTiming, workload: Workload, utilization: float) -> float:
    """Wait for prefills, own prefill and one step, at the objective's percentile.

    Prefills queue like M/G/1; its waiting time's tail is taken as exponential with the Pollaczek-Khinchine mean of a
    service time as variable as an exponential one, which real prompt lengths are about.
    """
    tail = 1.0 - _percentile(params)
    share = utilization * timing.stall_s / max(work_s(timing, workload), 1e-9)
    step_s = timing.step_base_s / (1.0 - utilization) if params.decodes else 0.0
    queue_s = timing.stall_s / (1.0 - share) * max(0.0, math.log(share / tail)) if share > 0.0 else 0.0
    return queue_s + timing.prefill_s + step_s


def _percentile(params: PolicyParams) -> float:
    """The strictest one that the SLO states."""
    targets = (params.slo.ttft, params.slo.inter_token, params.slo.end_to_end)
    stated = [target.percentile for target in targets if target is not None]
    return max(stated, default=_PERCENTILE_DEFAULT)


def _normal_quantile(probability: float) -> float:
    return max(NormalDist().inv_cdf(probability), 0.0)
