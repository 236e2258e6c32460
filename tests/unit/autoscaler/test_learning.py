"""What observations teach: cold starts, step time, request lengths, attained objectives."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.autoscaler.capacity import mean_request, slowness
from controlplane.autoscaler.learning import first_state, lead_s, learn, next_lead_s
from controlplane.autoscaler.model import LatencyDelta, Observation, PolicyParams, PolicyState, Trust
from controlplane.autoscaler.params import params_for
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import PRIOR_8B_B200, make_deployment

PARAMS = params_for(make_deployment())
T0 = make_observation().at_s


def state_of(params: PolicyParams = PARAMS) -> PolicyState:
    return first_state(params, make_observation())


def serving(second: int, *, gap_s: float, batch: float = 8.0) -> Observation:
    """One second of one replica that decodes `batch` sequences with this gap between tokens."""
    gaps = batch / gap_s
    return make_observation(
        at_s=T0 + second,
        inter_token=LatencyDelta(count=gaps, sum_s=batch, within_low=gaps, within_high=gaps),
        generation_tokens=gaps,
        finished=gaps / 200.0,
        running=int(batch),
    )


def modelled_gap_s(batch: float) -> float:
    context = PARAMS.tuning.prompt_tokens_prior + PARAMS.tuning.output_tokens_prior
    return PRIOR_8B_B200.step_base_s + batch * (
        PRIOR_8B_B200.step_per_seq_s + PRIOR_8B_B200.step_per_context_token_s * context
    )


# -- lead


@pytest.mark.parametrize(
    ("measured", "expected_s"),
    [
        ((), 60.0),
        ((8.0,), 60.0),
        ((90.0,), 90.0),
        ((8.0, 9.0, 7.0), 9.0),
        (tuple(float(second) for second in range(10, 20)), 18.0),
        ((0.5, 0.5, 0.5), 2.0),
    ],
)
def test_the_lead_is_measured_once_there_is_enough(measured: tuple[float, ...], expected_s: float) -> None:
    state = replace(state_of(), cold_starts_s=measured)
    assert lead_s(PARAMS, make_observation(), state) == pytest.approx(expected_s)


def test_a_start_that_takes_longer_stretches_the_lead_up_to_a_bound() -> None:
    assert lead_s(PARAMS, make_observation(starting=1, starting_age_s=100.0), state_of()) == 100.0
    assert lead_s(PARAMS, make_observation(starting=1, starting_age_s=9e9), state_of()) == 180.0


def test_a_sleeping_replica_needs_only_its_wake_time() -> None:
    assert next_lead_s(PARAMS, make_observation(sleeping=1), state_of()) == 5.0
    assert next_lead_s(PARAMS, make_observation(sleeping=0), state_of()) == lead_s(
        PARAMS, make_observation(), state_of()
    )


def test_only_the_last_cold_starts_are_kept() -> None:
    state = state_of()
    for _ in range(10):
        state = learn(PARAMS, make_observation(cold_starts_s=(1.0, 2.0, 3.0)), state)
    assert len(state.cold_starts_s) == PARAMS.tuning.lead_samples_max


# -- step time


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_the_step_time_is_found_within_two_minutes(factor: float) -> None:
    state = state_of()
    for second in range(1, 121):
        state = learn(PARAMS, serving(second, gap_s=factor * modelled_gap_s(8.0)), state)
    assert math.exp(state.slowness.mean) == pytest.approx(factor, rel=0.15)
    assert slowness(PARAMS.tuning, state) >= math.exp(state.slowness.mean)


def test_measuring_narrows_the_belief_and_silence_widens_it() -> None:
    prior = replace(PARAMS, prior=replace(PARAMS.prior, calibrated=False))
    state = state_of(prior)
    start = state.slowness.variance
    for second in range(1, 31):
        state = learn(prior, serving(second, gap_s=modelled_gap_s(8.0)), state)
    narrowed = state.slowness.variance
    later = learn(prior, make_observation(at_s=T0 + 630.0), state).slowness.variance
    assert narrowed < start / 5
    assert narrowed < later <= start


def test_one_strange_tick_moves_the_belief_only_so_far() -> None:
    state = learn(PARAMS, serving(1, gap_s=modelled_gap_s(8.0)), state_of())
    after = learn(PARAMS, serving(2, gap_s=100.0 * modelled_gap_s(8.0), batch=800.0), state)
    assert math.exp(after.slowness.mean) < 1.3


@pytest.mark.parametrize("trust", [Trust.STALE, Trust.MISSING])
def test_nothing_is_learned_of_speed_without_fresh_engines(trust: Trust) -> None:
    blind = replace(serving(1, gap_s=1.0), engines=trust)
    assert learn(PARAMS, blind, state_of()).slowness.mean == 0.0


# -- request lengths


def test_the_mean_request_goes_from_the_prior_to_what_is_seen() -> None:
    state = state_of()
    assert mean_request(PARAMS, state).prompt_tokens == PARAMS.tuning.prompt_tokens_prior
    for second in range(1, 200):
        seen = make_observation(
            at_s=T0 + second,
            ttft=LatencyDelta(count=10.0, sum_s=1.0, within_low=10.0, within_high=10.0),
            prompt_tokens=5000.0,
            finished=10.0,
            generation_tokens=800.0,
        )
        state = learn(PARAMS, seen, state)
    found = mean_request(PARAMS, state)
    assert found.prompt_tokens == pytest.approx(500.0, rel=0.02)
    assert found.output_tokens == pytest.approx(80.0, rel=0.02)


def test_a_model_that_does_not_decode_has_no_output() -> None:
    params = replace(PARAMS, decodes=False)
    assert mean_request(params, state_of(params)).output_tokens == 0.0


# -- idleness


def test_time_that_was_not_seen_is_not_idle_time() -> None:
    state = state_of()
    for second in range(1, 100):
        state = learn(PARAMS, make_observation(at_s=T0 + second), state)
    assert state.last_request_s == T0
    blind = make_observation(at_s=T0 + 200.0, gateway=Trust.MISSING, arrivals=None, arrivals_complete=False)
    assert learn(PARAMS, blind, state).last_request_s == T0 + 200.0
    assert learn(PARAMS, make_observation(at_s=T0 + 101.0, held=1), state).last_request_s == T0 + 101.0
    assert learn(PARAMS, make_observation(at_s=T0 + 101.0, arrivals=1.0), state).last_request_s == T0 + 101.0


def test_incomplete_arrivals_are_in_no_bucket() -> None:
    state = learn(PARAMS, make_observation(arrivals=500.0, arrivals_complete=False), state_of())
    assert state.buckets == ()


def test_a_cut_heals_with_time() -> None:
    state = replace(state_of(), discount=0.5)
    after = learn(PARAMS, make_observation(at_s=T0 + timedelta(hours=2).total_seconds()), state)
    assert 0.98 < after.discount < 1.0
