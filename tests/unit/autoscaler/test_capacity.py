"""The capacity formula against known points, and its directions."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.capacity import Capacity, capacity
from controlplane.autoscaler.learning import first_state
from controlplane.autoscaler.model import PolicyParams, Scatter, Slowness, TokenMemory, Tuning
from controlplane.domain.deployment import CapacityPrior
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import PRIOR_8B_B200, make_slo

QWEN3_32B_TP2_H100 = CapacityPrior(
    step_base_s=0.0136,
    step_per_seq_s=0.000175,
    step_per_context_token_s=0.0,
    prefill_base_s=0.0,
    prefill_per_token_s=1 / 15_928,
    prefill_per_token2_s=0.0,
    kv_tokens=316_000,
    max_num_seqs=1024,
    cold_start=timedelta(seconds=100),
    wake=timedelta(seconds=5),
    calibrated=True,
)
"""Step through the two aiconfigurator points at B 32 and 48, prefill from llm-d's measured 15,928 tokens/s."""


def slo(ttft_s: float | None, gap_s: float | None, *, e2e_s: float | None = None) -> Slo:
    def target(limit_s: float | None) -> LatencyTarget | None:
        return None if limit_s is None else LatencyTarget(percentile=0.9, limit=timedelta(seconds=limit_s))

    return Slo(ttft=target(ttft_s), inter_token=target(gap_s), end_to_end=target(e2e_s))


def capacity_of(
    prior: CapacityPrior,
    objectives: Slo,
    *,
    prompt: float = 1000.0,
    output: float = 200.0,
    slowness: float = 0.0,
    decodes: bool = True,
) -> Capacity:
    """With the request lengths known for certain."""
    params = PolicyParams(prior=prior, slo=objectives, decodes=decodes, idle_after=None, tuning=Tuning(slowness_z=0.0))
    many = 1e9
    state = replace(
        first_state(params, make_observation()),
        tokens=TokenMemory(first_tokens=many, prompt_tokens=prompt * many, finished=many, output_tokens=output * many),
        slowness=Slowness(mean=slowness, variance=0.0),
    )
    return capacity(params, state)


def test_the_knee_that_llm_d_measured() -> None:
    """Qwen3-32B TP2 on H100, 4000 in, 1000 out, TTFT 3 s, TPOT 100 ms: 1.4 to 1.5 requests/s per replica."""
    found = capacity_of(QWEN3_32B_TP2_H100, slo(3.0, 0.1), prompt=4000.0, output=1000.0)
    assert found.limit == "KV cache"
    assert 1.2 < found.fleet_rps(8) / 8 < 1.5


def test_the_closed_form_is_littles_law() -> None:
    """Batch = rate x output x gap, gap = step over the share that prefill leaves, and nine in ten keep the limit."""
    found = capacity_of(PRIOR_8B_B200, slo(None, 0.02))
    assert found.limit == "inter-token"
    timing, batch, output = found.timing, found.batch_max, 200
    x = batch / (output * timing.step_base_s + batch * (timing.stall_s + output * timing.step_per_seq_s))
    gap = (timing.step_base_s + batch * timing.step_per_seq_s) / (1 - x * timing.stall_s)
    assert batch == pytest.approx(x * output * gap, rel=1e-6)
    scatter = 1.2815516 * timing.stall_s * math.sqrt(x * gap * 2.0 / (output * 0.25))
    assert gap + scatter == pytest.approx(0.02, rel=1e-6)


def test_short_answers_need_more_room_than_long_ones() -> None:
    """The same work in prompts: fewer tokens to spread a stall over."""
    long, short = (capacity_of(QWEN3_32B_TP2_H100, slo(None, 0.05), prompt=2000, output=out) for out in (800, 20))
    assert short.batch_max < 0.5 * long.batch_max


@pytest.mark.parametrize(
    ("objectives", "prior", "limit"),
    [
        (slo(None, None), PRIOR_8B_B200, "sequences"),
        (slo(None, None), replace(PRIOR_8B_B200, kv_tokens=20_000), "KV cache"),
        (slo(None, 0.005), PRIOR_8B_B200, "inter-token"),
        (slo(0.02, None), PRIOR_8B_B200, "first token"),
        (slo(None, None, e2e_s=1.2), PRIOR_8B_B200, "inter-token"),
        (slo(None, None), replace(PRIOR_8B_B200, max_num_seqs=100_000, kv_tokens=10**9), "utilisation"),
    ],
)
def test_the_first_limit_is_named(objectives: Slo, prior: CapacityPrior, limit: str) -> None:
    assert capacity_of(prior, objectives).limit == limit


def test_an_objective_that_no_batch_meets_leaves_one_request_at_a_time() -> None:
    found = capacity_of(PRIOR_8B_B200, slo(None, 0.001))
    assert found.batch_max == 1.0
    assert found.fleet_rps(1) > 0.0


def test_an_embedding_model_is_prefill_and_its_queue() -> None:
    prior = replace(PRIOR_8B_B200, kv_tokens=0, step_base_s=0.0, step_per_seq_s=0.0, step_per_context_token_s=0.0)
    found = capacity_of(prior, slo(None, None, e2e_s=0.1), prompt=400.0, output=0.0, decodes=False)
    service_s = 2.98e-3 + 400 * 8.48e-6 + 400**2 * 3.3e-10
    assert 0.3 / service_s < found.fleet_rps(100) / 100 < 0.95 / service_s
    assert capacity_of(prior, slo(None, None, e2e_s=0.02), prompt=400.0, output=0.0, decodes=False).fleet_rps(
        10
    ) < found.fleet_rps(10)


def test_more_replicas_lose_less_to_variation() -> None:
    found = capacity_of(replace(PRIOR_8B_B200, max_num_seqs=16), make_slo())
    per_replica = [found.fleet_rps(count) / count for count in (1, 2, 4, 16, 64)]
    assert per_replica == sorted(per_replica)


@given(st.floats(0.001, 1e3), st.floats(1.0, 30_000.0), st.floats(1.0, 4000.0), st.floats(-1.0, 1.0))
def test_the_count_found_carries_the_rate_and_one_less_does_not(
    rate: float, prompt: float, output: float, slowness: float
) -> None:
    found = capacity_of(PRIOR_8B_B200, make_slo(), prompt=prompt, output=output, slowness=slowness)
    count = found.replicas_for(rate)
    assert found.fleet_rps(count) >= rate
    assert count == 1 or found.fleet_rps(count - 1) < rate


@given(st.floats(10.0, 20_000.0), st.floats(2.0, 2000.0), st.floats(-1.0, 1.0), st.floats(1.05, 3.0))
def test_longer_prompts_or_slower_steps_never_carry_more(
    prompt: float, output: float, slow: float, more: float
) -> None:
    base = capacity_of(PRIOR_8B_B200, make_slo(), prompt=prompt, output=output, slowness=slow).fleet_rps(4)
    longer_prompts = capacity_of(PRIOR_8B_B200, make_slo(), prompt=prompt * more, output=output, slowness=slow)
    slower = capacity_of(PRIOR_8B_B200, make_slo(), prompt=prompt, output=output, slowness=slow + more - 1.0)
    assert longer_prompts.fleet_rps(4) <= base * (1 + 1e-9)
    assert slower.fleet_rps(4) <= base * (1 + 1e-9)


def test_longer_outputs_carry_fewer_requests_where_decoding_is_the_limit() -> None:
    rates = [capacity_of(PRIOR_8B_B200, make_slo(), output=output).fleet_rps(4) for output in (100.0, 200.0, 800.0)]
    assert rates == sorted(rates, reverse=True)


def test_no_demand_needs_nothing() -> None:
    assert capacity_of(PRIOR_8B_B200, make_slo()).replicas_for(0.0) == 0


def test_arrivals_that_scatter_need_more_room() -> None:
    """Sixteen times Poisson's variance: four times its standard deviation."""
    params = PolicyParams(prior=QWEN3_32B_TP2_H100, slo=slo(3.0, 0.1), decodes=True, idle_after=None)
    calm = first_state(params, make_observation())
    wild = replace(calm, scatter=Scatter(squares=16e6, poisson=1e6, compared=1e6))
    poisson, bursts = capacity(params, calm), capacity(params, wild)
    assert bursts.concurrency_z == pytest.approx(4.0 * poisson.concurrency_z, rel=0.01)
    assert all(bursts.fleet_rps(count) < poisson.fleet_rps(count) for count in (1, 2, 4, 16))
