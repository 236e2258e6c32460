"""What one replica carries, against what can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.profile import Limits, measure, within
from controlplane.simulation.fleet.state import Timing
from controlplane.simulation.fleet.subject import subject_of
from tests.unit.fleet_simulation.small_fleets import SMALL

QWEN_32B = subject_of("qwen3-32b", "h100", tensor_parallel=2).timing
"""As llm-d ran it."""
LLM_D_LIMITS = Limits(ttft_s=3.0, itl_s=0.1, percentile=0.5)


def profile(timing: Timing, prompt: int, output: int, limits: Limits, *, replicas: int = 1) -> tuple[float, float]:
    found = measure(timing, np.array([prompt]), np.array([output]), limits, replicas=replicas)
    return found.rate_rps, found.concurrency


def test_a_request_is_within_both_limits_or_not() -> None:
    nan = np.nan
    met = within(
        np.array([0.0, 0.0, 0.0, 0.0, 0.0]),
        np.array([1.0, 1.1, 1.0, 0.5, nan]),
        np.array([3.0, 3.1, 3.1, 0.5, nan]),
        np.array([5, 5, 5, 1, 5]),
        Limits(ttft_s=1.0, itl_s=0.5, percentile=0.9),
    )
    assert met.tolist() == [True, False, False, True, False], "at both limits; late; slow; one token; no answer"


def test_one_at_a_time_is_an_m_d_1_queue() -> None:
    """A batch of one: each request is served for 100 ms, and waits as in M/D/1.

    By Erlang's formula a wait is at most one service time with probability (1 - rho) e^rho: 0.8244 at a load of 0.5.
    """
    timing = SMALL._replace(
        prefill_base_s=0.0,
        prefill_per_token_s=0.01,
        prefill_per_token2_s=0.0,
        max_num_seqs=1,
        max_num_batched_tokens=64,
    )
    limits = Limits(ttft_s=0.2, itl_s=1.0, percentile=0.8244)
    rate_rps, concurrency = profile(timing, 10, 1, limits)
    assert rate_rps == pytest.approx(5.0, rel=0.06)
    # Pollaczek and Khinchine: rho + rho^2 / (2 (1 - rho)).
    assert concurrency == pytest.approx(0.75, rel=0.15)


def test_the_knee_of_qwen3_32b_on_two_h100s_is_where_llm_d_measured_it() -> None:
    """1.4 to 1.5 requests of 4000 and 1000 tokens per second: beyond it most time to first token is over 3 s."""
    rate_rps, concurrency = profile(QWEN_32B, 4000, 1000, LLM_D_LIMITS)
    assert 1.4 <= rate_rps <= 1.5
    assert concurrency == pytest.approx(QWEN_32B.kv_tokens / 4500, rel=0.1), "there the KV cache is full"


def test_pooled_replicas_carry_more_each() -> None:
    limits = Limits(ttft_s=3.0, itl_s=0.1, percentile=0.99)
    alone, _ = profile(QWEN_32B, 4000, 1000, limits)
    pooled, _ = profile(QWEN_32B, 4000, 1000, limits, replicas=4)
    assert alone * 1.02 < pooled < alone * 1.25


@settings(max_examples=15, deadline=None)
@given(ttft_s=st.floats(0.2, 5.0), itl_s=st.floats(0.015, 0.2), percentile=st.sampled_from([0.5, 0.9, 0.99]))
def test_looser_limits_never_carry_less(ttft_s: float, itl_s: float, percentile: float) -> None:
    """But for the one percent to which the rate is found."""
    tight = Limits(ttft_s=ttft_s, itl_s=itl_s, percentile=percentile)
    loose = Limits(ttft_s=ttft_s * 1.5, itl_s=itl_s * 1.5, percentile=percentile)
    assert profile(SMALL, 200, 30, tight)[0] <= profile(SMALL, 200, 30, loose)[0] * 1.011


def test_a_limit_that_no_request_meets_has_no_rate() -> None:
    assert profile(QWEN_32B, 4000, 1000, Limits(ttft_s=0.001, itl_s=0.1, percentile=0.9)) == (0.0, 0.0)
    assert profile(QWEN_32B, 4000, 1000, Limits(ttft_s=3.0, itl_s=0.001, percentile=0.9)) == (0.0, 0.0)
