"""The decision: a table of situations, and properties that hold in all of them."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.learning import first_state
from controlplane.autoscaler.model import (
    Bucket,
    Decision,
    LatencyDelta,
    Observation,
    PolicyParams,
    PolicyState,
    TokenMemory,
    Trust,
)
from controlplane.autoscaler.params import params_for
from controlplane.autoscaler.policy import decide, view_of
from controlplane.autoscaler.replay import record, replay, replay_all
from controlplane.domain.reason import Reason
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import PRIOR_8B_B200, make_deployment

T0 = make_observation().at_s
CHAT = DeploymentName("chat")


def make_params(*, idle_after: timedelta | None = None, max_num_seqs: int = 16) -> PolicyParams:
    deployment = make_deployment()
    deployment = replace(
        deployment,
        spec=replace(deployment.spec, idle_after=idle_after),
        plan=replace(deployment.plan, prior=replace(PRIOR_8B_B200, max_num_seqs=max_num_seqs)),
    )
    return params_for(deployment)


PARAMS = make_params()
"""One replica carries about 12 requests/s (16 sequences at once)."""


def after_calm(rate_rps: float, *, seconds: int = 400, need: int | None = None, **changes: object) -> PolicyState:
    """The state after `seconds` of steady arrivals, all of it seen."""
    many = 1000.0
    buckets = tuple(
        Bucket(end_s=T0 - seconds + 3.0 * (place + 1), seconds=3.0, arrivals=3.0 * rate_rps, need=need or 0)
        for place in range(seconds // 3)
        if 3.0 * (place + 1) > seconds - 180.0
    )
    state = replace(
        first_state(PARAMS, make_observation(at_s=T0 - seconds)),
        at_s=T0 - 1.0,
        buckets=buckets,
        tokens=TokenMemory(first_tokens=many, prompt_tokens=many * 1000, finished=many, output_tokens=many * 200),
        last_request_s=T0 - 1.0,
    )
    return replace(state, **changes)  # type: ignore[arg-type]  # a builder's keywords are checked when it runs


def tick(rate_rps: float, **changes: object) -> Observation:
    return replace(make_observation(arrivals=rate_rps), **changes)  # type: ignore[arg-type]  # as above


def missed(requests: float = 100.0) -> LatencyDelta:
    return LatencyDelta(count=requests, sum_s=requests * 9, within_low=0.5 * requests, within_high=0.6 * requests)


CALM = after_calm(20.0)
SITUATIONS: list[tuple[str, Observation, PolicyState, int, Reason]] = [
    ("enough", tick(20.0, wanted=2, ready=2, engines_fresh=2), CALM, 2, Reason.STEADY),
    ("too few", tick(20.0, wanted=1), CALM, 2, Reason.DEMAND_UP),
    ("far too few", tick(60.0, wanted=1), after_calm(60.0), 5, Reason.DEMAND_UP),
    ("the maximum binds", tick(60.0, wanted=4, ready=4, engines_fresh=4, replicas_max=4), after_calm(60.0), 4,
     Reason.ABOVE_MAXIMUM),
    ("up to the maximum", tick(60.0, wanted=2, ready=2, engines_fresh=2, replicas_max=4), after_calm(60.0), 4,
     Reason.DEMAND_UP),
    ("far too many", tick(20.0, wanted=6, ready=6, engines_fresh=6), CALM, 2, Reason.DEMAND_DOWN),
    ("needed lately", tick(20.0, wanted=6, ready=6, engines_fresh=6), after_calm(20.0, need=6), 6,
     Reason.HOLD_COOLDOWN),
    ("needed less lately", tick(20.0, wanted=6, ready=6, engines_fresh=6), after_calm(20.0, need=4), 4,
     Reason.DEMAND_DOWN),
    ("not watched for long", tick(20.0, wanted=6, ready=6, engines_fresh=6), after_calm(20.0, seconds=45), 6,
     Reason.HOLD_COOLDOWN),
    ("the minimum binds", tick(0.0, wanted=3, ready=3, engines_fresh=3, replicas_min=2), after_calm(0.0), 2,
     Reason.DEMAND_DOWN),
    ("below the minimum", tick(1.0, wanted=1, replicas_min=3), after_calm(1.0), 3, Reason.BELOW_MINIMUM),
    ("above the maximum", tick(20.0, wanted=9, ready=9, engines_fresh=9), after_calm(20.0, need=9), 8,
     Reason.HOLD_COOLDOWN),
    ("paused", tick(60.0, wanted=1, paused=True), after_calm(60.0), 1, Reason.PAUSED),
    ("pinned", tick(60.0, wanted=1, pinned=3), after_calm(60.0), 3, Reason.PINNED),
    ("gateway gone", tick(0.0, wanted=6, ready=6, engines_fresh=6, gateway=Trust.MISSING), CALM, 6,
     Reason.HOLD_MISSING_DATA),
    ("gateway stale", tick(0.0, wanted=6, ready=6, engines_fresh=6, gateway=Trust.STALE), CALM, 6,
     Reason.HOLD_STALE_DATA),
    ("a replica unseen", tick(20.0, wanted=6, ready=6, engines_fresh=5, engines=Trust.MISSING), CALM, 6,
     Reason.HOLD_MISSING_DATA),
    ("counters anew", tick(0.0, wanted=6, ready=6, engines_fresh=6, arrivals_complete=False), CALM, 6,
     Reason.HOLD_STALE_DATA),
    ("blind, but surely too few", tick(0.0, wanted=1, gateway=Trust.MISSING, arrivals=None), CALM, 2,
     Reason.DEMAND_UP),
    ("a queue beyond what fits", tick(20.0, wanted=2, ready=2, engines_fresh=2, waiting=2000, running=32), CALM, 4,
     Reason.QUEUE_GROWING),
    ("a full cache", tick(20.0, wanted=2, ready=2, engines_fresh=2, kv_usage=0.97, running=32),
     after_calm(20.0, kv_usage=0.97), 3, Reason.KV_PRESSURE),
    ("objectives missed with enough replicas",
     tick(20.0, wanted=3, ready=3, engines_fresh=3, ttft=missed()), after_calm(20.0, need=3), 4, Reason.SLO_AT_RISK),
    ("objectives missed by few requests",
     tick(20.0, wanted=3, ready=3, engines_fresh=3, ttft=missed(5.0)), after_calm(20.0, need=3), 3,
     Reason.HOLD_COOLDOWN),
    ("objectives missed just after a shortage",
     tick(20.0, wanted=3, ready=3, engines_fresh=3, ttft=missed()), after_calm(20.0, need=3, short_s=T0 - 20.0), 3,
     Reason.HOLD_COOLDOWN),
    ("those that start are enough",
     tick(20.0, wanted=2, ready=1, starting=1, held=3), after_calm(20.0, need=2), 2, Reason.HOLD_STARTING),
    ("a turn within the lead", tick(20.0, wanted=1, ready=1),
     after_calm(20.0, direction=-1, turned_s=T0 - 5.0), 1, Reason.HOLD_COOLDOWN),
    ("a turn within the lead, but requests wait", tick(20.0, wanted=1, ready=1, held=2),
     after_calm(20.0, direction=-1, turned_s=T0 - 5.0), 2, Reason.DEMAND_UP),
]  # fmt: skip


@pytest.mark.parametrize(
    ("observation", "state", "wanted", "reason"),
    [situation[1:] for situation in SITUATIONS],
    ids=[situation[0] for situation in SITUATIONS],
)
def test_situations(observation: Observation, state: PolicyState, wanted: int, reason: Reason) -> None:
    decision = decide(PARAMS, observation, state)
    assert (decision.wanted, decision.reason) == (wanted, reason), decision.sentence


# -- zero

IDLE = make_params(idle_after=timedelta(seconds=120))


@pytest.mark.parametrize(
    ("observation", "last_request_s", "wanted", "reason"),
    [
        (tick(0.0, replicas_min=0, wanted=1), T0 - 119.0, 1, Reason.STEADY),
        (tick(0.0, replicas_min=0, wanted=1), T0 - 120.0, 0, Reason.IDLE),
        (tick(0.0, replicas_min=0, wanted=3, ready=3, engines_fresh=3), T0 - 500.0, 0, Reason.IDLE),
        (tick(0.0, replicas_min=0, wanted=1, running=1), T0 - 500.0, 1, Reason.STEADY),
        (tick(0.0, replicas_min=0, wanted=1, in_flight=1), T0 - 500.0, 1, Reason.STEADY),
        (tick(0.0, replicas_min=1, wanted=1), T0 - 500.0, 1, Reason.STEADY),
        (tick(0.0, replicas_min=0, wanted=1, gateway=Trust.MISSING), T0 - 500.0, 1, Reason.HOLD_MISSING_DATA),
        (tick(0.0, replicas_min=0, wanted=0, ready=0, engines_fresh=0), T0 - 500.0, 0, Reason.IDLE),
        (tick(0.0, replicas_min=0, wanted=0, ready=0, engines_fresh=0, held=1), T0 - 500.0, 1, Reason.WAKE),
        (tick(1.0, replicas_min=0, wanted=0, ready=0, engines_fresh=0), T0 - 500.0, 1, Reason.WAKE),
        (tick(0.0, replicas_min=0, wanted=0, ready=0, engines_fresh=0, paused=True, held=1), T0, 0, Reason.PAUSED),
    ],
)
def test_to_zero_and_back(observation: Observation, last_request_s: float, wanted: int, reason: Reason) -> None:
    state = after_calm(0.0, last_request_s=last_request_s)
    decision = decide(IDLE, observation, state)
    assert (decision.wanted, decision.reason) == (wanted, reason), decision.sentence


def test_a_backlog_at_zero_orders_as_many_as_it_needs() -> None:
    seen = tick(100.0, replicas_min=0, wanted=0, ready=0, engines_fresh=0, held=400)
    decision = decide(IDLE, seen, after_calm(0.0))
    assert decision.reason is Reason.WAKE
    assert decision.wanted > 1


# -- tiers


@pytest.mark.parametrize(("sleeping", "lead_s"), [(0, 100.0), (1, 100.0), (3, 5.0)])
def test_only_sleepers_that_cover_what_may_come_shorten_the_look_ahead(sleeping: int, lead_s: float) -> None:
    """40 requests/s need four; two are ready."""
    params = replace(PARAMS, prior=replace(PARAMS.prior, cold_start=timedelta(seconds=100), wake=timedelta(seconds=5)))
    state = after_calm(40.0, need=4)
    found = view_of(params, tick(40.0, wanted=2, ready=2, engines_fresh=2, sleeping=sleeping), state)
    assert found.lead_s == lead_s
    assert found.needs.to_order >= 4


# -- the first look


@pytest.mark.parametrize(("watched_s", "wanted"), [(100.0, 5), (190.0, 5), (260.0, 1)])
def test_nothing_is_given_back_before_three_leads_were_watched(watched_s: float, wanted: int) -> None:
    """Leads of 80 s; the need was low for all of the hold time."""
    lead = timedelta(seconds=80)
    params = replace(PARAMS, prior=replace(PARAMS.prior, cold_start=lead))
    state = after_calm(2.0, since_s=T0 - watched_s)
    assert decide(params, tick(2.0, wanted=5, ready=5, engines_fresh=5), state).wanted == wanted


# -- correction


def test_missed_objectives_cut_the_capacity_once_and_not_at_every_tick() -> None:
    seen = tick(20.0, wanted=3, ready=3, engines_fresh=3, ttft=missed())
    first = decide(PARAMS, seen, after_calm(20.0, need=3))
    again = decide(PARAMS, replace(seen, at_s=T0 + 1.0, wanted=4, starting=1), first.state)
    assert first.state.discount == pytest.approx(PARAMS.tuning.discount_step)
    assert again.state.discount >= first.state.discount
    assert again.wanted == 4


# -- sentences


def test_the_sentence_carries_the_numbers() -> None:
    sentence = decide(PARAMS, tick(20.0, wanted=1), CALM).sentence
    assert sentence.startswith("1 -> 2: 20.00 req/s over 181s, up to ")
    assert "a replica carries" in sentence
    assert "needs 2" in sentence
    assert "1 ready" in sentence


@pytest.mark.parametrize("situation", SITUATIONS, ids=[situation[0] for situation in SITUATIONS])
def test_every_sentence_is_short_and_plain(
    situation: tuple[str, Observation, PolicyState, int, Reason],
) -> None:
    sentence = decide(PARAMS, situation[1], situation[2]).sentence
    assert 10 < len(sentence) <= 360
    assert "nan" not in sentence
    assert "None" not in sentence


# -- properties

COUNT = st.integers(0, 200)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    replicas_max = draw(st.integers(0, 20))
    ready = draw(st.integers(0, 20))
    arrivals = draw(st.none() | st.integers(0, 3000).map(float))
    gaps = draw(st.floats(0.0, 5000.0))
    within = draw(st.floats(0.0, 1.0))
    return make_observation(
        at_s=T0 + draw(st.floats(0.0, 100.0)),
        gateway=draw(st.sampled_from(Trust)),
        engines=draw(st.sampled_from(Trust)),
        engines_fresh=draw(st.integers(0, ready)),
        arrivals=arrivals,
        arrivals_seconds=0.0 if arrivals is None else draw(st.floats(0.0, 30.0)),
        arrivals_complete=arrivals is not None and draw(st.booleans()),
        held=draw(COUNT),
        queued=draw(COUNT),
        in_flight=draw(COUNT),
        running=draw(COUNT),
        waiting=draw(COUNT),
        kv_usage=draw(st.floats(0.0, 1.0)),
        engine_seconds=draw(st.floats(0.0, 30.0)),
        engine_deltas=ready,
        prompt_tokens=draw(st.floats(0.0, 1e7)),
        generation_tokens=draw(st.floats(0.0, 1e6)),
        finished=draw(st.floats(0.0, 1e4)),
        ttft=LatencyDelta(count=gaps, sum_s=gaps, within_low=0.0, within_high=gaps * within),
        inter_token=LatencyDelta(count=gaps, sum_s=draw(st.floats(0.0, 1e4)), within_low=0.0, within_high=gaps),
        wanted=draw(st.integers(0, 25)),
        ready=ready,
        starting=draw(st.integers(0, 5)),
        sleeping=draw(st.integers(0, 2)),
        starting_age_s=draw(st.floats(0.0, 1e4)),
        cold_starts_s=tuple(draw(st.lists(st.floats(0.0, 1000.0), max_size=3))),
        replicas_min=draw(st.integers(0, replicas_max)),
        replicas_max=replicas_max,
        pinned=draw(st.none() | st.integers(0, 30)),
        paused=draw(st.booleans()),
    )


@st.composite
def histories(draw: st.DrawFn) -> PolicyState | None:
    """A state that decisions really leave: a few observations decided one after the other."""
    state: PolicyState | None = None
    for place in range(draw(st.integers(0, 4))):
        state = decide(IDLE, replace(draw(observations()), at_s=T0 - 500.0 + 60.0 * place), state).state
    return state


def _decided(observation: Observation, state: PolicyState | None) -> Decision:
    return decide(IDLE, observation, state)


@given(observations(), histories())
def test_never_outside_the_limits(observation: Observation, state: PolicyState | None) -> None:
    decision = _decided(observation, state)
    assert observation.replicas_min <= decision.wanted <= observation.replicas_max


@given(observations(), histories())
def test_never_fewer_on_missing_or_stale_data(observation: Observation, state: PolicyState | None) -> None:
    seen = replace(observation, paused=False, pinned=None, gateway=Trust.MISSING)
    before = min(seen.wanted, seen.replicas_max)
    assert _decided(seen, state).wanted >= before
    assert _decided(replace(seen, gateway=Trust.FRESH, engines=Trust.STALE), state).wanted >= before


@given(observations(), histories(), st.integers(1, 500))
def test_more_arrivals_never_want_fewer(observation: Observation, state: PolicyState | None, more: int) -> None:
    seen = replace(observation, arrivals=observation.arrivals or 0.0, arrivals_complete=True, arrivals_seconds=1.0)
    busier = replace(seen, arrivals=(seen.arrivals or 0.0) + more)
    assert _decided(busier, state).wanted >= _decided(seen, state).wanted


@given(observations(), histories())
def test_the_same_input_gives_the_same_answer_and_replays(observation: Observation, state: PolicyState | None) -> None:
    decision = _decided(observation, state)
    assert _decided(observation, state) == decision
    kept = record(CHAT, IDLE, observation, state, decision)
    assert replay(kept) == decision
    assert replay_all([kept]).is_clean
    assert decode(PolicyState, encode(decision.state)) == decision.state


@given(observations(), histories())
def test_the_state_stays_small(observation: Observation, state: PolicyState | None) -> None:
    assert len(encode(_decided(observation, state).state)) < 20_000
