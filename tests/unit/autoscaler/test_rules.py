"""Decisions by rules: a table of cases, and properties that hold in all of them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.model import Observation, Trust
from controlplane.autoscaler.params import rules_params_for
from controlplane.autoscaler.replay import record, replay, replay_all
from controlplane.autoscaler.rules import decide_by_rules
from controlplane.autoscaler.rules_model import (
    RulesDecision,
    RulesObservation,
    RulesParams,
    RulesState,
)
from controlplane.autoscaler.signals import Buckets, LatencySeen, Signals
from controlplane.domain.reason import Reason
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.kernel.ids import DeploymentName
from controlplane.testing.autoscaling import make_observation
from controlplane.testing.builders import make_deployment

CHAT = DeploymentName("chat")
T0 = make_observation().at_s
KV = ScalingRule(signal=Signal.KV_CACHE, target=0.5)
BANDED = ScalingRule(signal=Signal.GPU_MEMORY, target=0.75, above=0.85, below=0.5)
QUEUE = ScalingRule(signal=Signal.QUEUE_DEPTH, above=1000, step_up=2)
FLIGHT = ScalingRule(signal=Signal.IN_FLIGHT, target=10.0)
RATE = ScalingRule(signal=Signal.REQUESTS_PER_SECOND, target=4.0)
STEPS = ScalingRule(signal=Signal.RUNNING, above=30.0, below=10.0, step_up=3, step_down=2)
TTFT = ScalingRule(signal=Signal.TTFT, above=0.5)
TTFT_TARGET = ScalingRule(signal=Signal.TTFT, target=0.5, percentile=0.9)
ERRORS = ScalingRule(signal=Signal.ERROR_RATE, above=0.01)
CPU = ScalingRule(signal=Signal.CPU, target=0.7, above=0.8, below=0.4)
EDGES = (0.1, 0.25, 0.5, 1.0, 2.5)


def make_params(*rules: ScalingRule, idle_after: timedelta | None = None, **changes: object) -> RulesParams:
    spec = AutoscalingSpec(policy=ScalingPolicy.RULES, rules=rules, cooldown_down=timedelta(seconds=60))
    spec = replace(spec, **changes)  # type: ignore[arg-type]  # a builder's keywords are checked when it runs
    deployment = make_deployment()
    return rules_params_for(replace(deployment, spec=replace(deployment.spec, autoscaling=spec, idle_after=idle_after)))


def tick(
    second: int,
    *,
    replicas: int = 2,
    latencies: tuple[LatencySeen, ...] = (),
    requests: float | None = 0.0,
    errors: float | None = 0.0,
    cpu: float | None = 0.5,
    **changes: object,
) -> RulesObservation:
    seen = make_observation(
        at_s=T0 + second, wanted=replicas, ready=replicas, engines_fresh=replicas, engine_deltas=replicas
    )
    return RulesObservation(
        seen=replace(seen, **changes),  # type: ignore[arg-type]  # as above
        signals=Signals(latencies=latencies, gateway_requests=requests, gateway_errors=errors, cpu=cpu),
    )


def latency(*counts: float, signal: Signal = Signal.TTFT, complete: bool = True) -> LatencySeen:
    """Observations up to each edge of EDGES, and all."""
    return LatencySeen(signal=signal, buckets=Buckets(edges=EDGES, counts=counts), complete=complete)


def last(params: RulesParams, moments: Sequence[RulesObservation], state: RulesState | None = None) -> RulesDecision:
    """Each moment decided, `wanted` and what serves as they are given; the last decision."""
    decision = None
    for moment in moments:
        decision = decide_by_rules(params, moment, state)
        state = decision.state
    assert decision is not None
    return decision


def steady(count: int = 40, **changes: object) -> list[RulesObservation]:
    return [tick(second, **changes) for second in range(count)]  # type: ignore[arg-type]  # as above


FAST = latency(90.0, 98.0, 100.0, 100.0, 100.0, 100.0)
SLOW = latency(10.0, 40.0, 70.0, 90.0, 100.0, 100.0)
"""p90 is 1 s, p99 between 1 and 2.5 s."""

CASES: list[tuple[str, tuple[ScalingRule, ...], list[RulesObservation], int, Reason, str]] = [
    ("at the target", (KV,), steady(kv_usage=0.5), 2, Reason.STEADY, "kv_cache 50% over 30s (target 50%): asks for 2"),
    ("inside the tolerance", (KV,), steady(kv_usage=0.549), 2, Reason.STEADY, "asks for 2"),
    ("beyond the tolerance", (KV,), steady(kv_usage=0.56), 3, Reason.KV_PRESSURE, "2 -> 3: kv_cache 56%"),
    ("in proportion", (KV,), steady(kv_usage=0.99), 4, Reason.KV_PRESSURE, "asks for 4"),
    ("rounding asks for no more", (KV,), steady(replicas=3, kv_usage=0.5 * 1.0000000001), 3, Reason.STEADY, ""),
    ("inside the stated band", (BANDED,), steady(kv_usage=0.84), 2, Reason.STEADY, "gpu_memory 84%"),
    ("above the band: to the target", (BANDED,), steady(kv_usage=0.95), 3, Reason.KV_PRESSURE,
     "is above 85% (target 75%): asks for 3"),
    ("below the band: to the target", (BANDED,), steady(61, replicas=6, kv_usage=0.3), 3, Reason.DEMAND_DOWN,
     "is below 50% (target 75%): asks for 3"),
    ("per replica", (FLIGHT,), steady(in_flight=33), 4, Reason.DEMAND_UP, "in_flight 16.5 each"),
    ("a rate per replica", (RATE,), steady(arrivals=12.0), 3, Reason.DEMAND_UP, "requests_per_second 6 each"),
    ("of the whole deployment", (QUEUE,), steady(waiting=600, queued=401), 4, Reason.QUEUE_GROWING,
     "queue_depth 1001 over 30s is above 1000: asks for 4"),
    ("an alarm that is silent holds nothing up", (QUEUE,), steady(waiting=10), 2, Reason.STEADY, "is not above 1000"),
    ("steps up from what is ready", (STEPS,), steady(replicas=2, running=40, wanted=5, starting=3), 5,
     Reason.STEADY, "asks for 5"),
    ("steps down", (STEPS,), steady(61, replicas=6, running=3), 4, Reason.DEMAND_DOWN, "asks for 4"),
    ("between the steps", (STEPS,), steady(running=20), 2, Reason.STEADY, "asks for 2"),
    ("a percentile beyond doubt", (TTFT,), steady(latencies=(SLOW,)), 3, Reason.SLO_AT_RISK,
     "ttft p99 2.35s over 30s is above 500ms: asks for 3"),
    ("a percentile within", (TTFT,), steady(latencies=(FAST,)), 2, Reason.STEADY, "is not above 500ms"),
    ("a percentile that may be within", (replace(TTFT, above=2.0),), steady(latencies=(SLOW,)), 2, Reason.STEADY, ""),
    ("a percentile in proportion", (TTFT_TARGET,), steady(latencies=(SLOW,)), 4, Reason.SLO_AT_RISK, "ttft p90 1.00s"),
    ("errors at the gateway", (ERRORS,), steady(requests=10.0, errors=1.0), 3, Reason.SLO_AT_RISK, "error_rate 10%"),
    ("errors of engines", (ERRORS,), steady(requests=10.0, failed=2.0, finished=8.0), 3, Reason.SLO_AT_RISK, "20%"),
    ("few errors", (ERRORS,), steady(requests=10.0, errors=0.05), 2, Reason.STEADY, "error_rate 0.5%"),
    ("too few requests for a share", (ERRORS,), steady(requests=0.1, errors=0.1), 2, Reason.STEADY, "hardly a request"),
    ("CPU of the nodes", (CPU,), steady(cpu=0.9), 3, Reason.DEMAND_UP, "cpu 90% over 30s is above 80% (target 70%)"),
    ("the largest answer wins", (FLIGHT, KV, RATE), steady(in_flight=33, kv_usage=0.1, arrivals=1.0), 4,
     Reason.DEMAND_UP, "2 -> 4: in_flight 16.5 each"),
    ("one that asks to stay keeps the others from going down", (FLIGHT, KV), steady(100, in_flight=1, kv_usage=0.5), 2,
     Reason.STEADY, ""),
    ("the maximum binds", (KV,), steady(replicas=4, kv_usage=0.99, replicas_max=4), 4, Reason.ABOVE_MAXIMUM,
     "allows 4"),
    ("below the minimum", (KV,), steady(replicas=1, kv_usage=0.5, replicas_min=3), 3, Reason.BELOW_MINIMUM, ""),
    ("paused", (KV,), steady(kv_usage=0.99, paused=True), 2, Reason.PAUSED, "paused by a person"),
    ("pinned", (KV,), steady(kv_usage=0.99, pinned=5), 5, Reason.PINNED, "pinned at 5"),
    ("gateway gone", (KV,), steady(100, replicas=6, gateway=Trust.MISSING, arrivals=None), 6,
     Reason.HOLD_MISSING_DATA, "never fewer"),
    ("replicas unseen", (KV,), steady(100, replicas=6, engines=Trust.STALE), 6, Reason.HOLD_STALE_DATA, "never fewer"),
    ("a signal that nobody measures", (CPU, KV), steady(100, replicas=6, cpu=None), 6, Reason.HOLD_MISSING_DATA,
     "cpu cannot be read in full; never fewer"),
    ("latencies of some replicas only", (TTFT, KV),
     steady(100, replicas=6, latencies=(latency(9, 9, 9, 9, 9, 9, complete=False),)), 6, Reason.HOLD_MISSING_DATA,
     "ttft p99 cannot be read in full"),
    ("blind, but surely too few", (FLIGHT,), steady(in_flight=33, engines=Trust.MISSING, engines_fresh=1), 4,
     Reason.DEMAND_UP, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "moments", "wanted", "reason", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_cases(
    rules: tuple[ScalingRule, ...], moments: list[RulesObservation], wanted: int, reason: Reason, said: str
) -> None:
    decision = last(make_params(*rules), moments)
    assert (decision.wanted, decision.reason) == (wanted, reason), decision.sentence
    assert said in decision.sentence
    assert len(decision.sentence) <= 400


# -- over time


def played(params: RulesParams, seconds: int, *, wanted: int = 2, lead: int = 0, **levels: object) -> list[int]:
    """The numbers wanted, second by second, replicas following after `lead`.

    `levels` may be functions of the second and of what is ready.
    """
    state, asked = None, []
    ordered = [wanted] * (lead + 1)
    for second in range(seconds):
        ready = min(ordered[-lead - 1 :])
        seen: dict[str, Any] = {
            name: level(second, ready) if callable(level) else level for name, level in levels.items()
        }
        moment = tick(second, replicas=ready, wanted=wanted, starting=max(wanted - ready, 0), **seen)
        decision = decide_by_rules(params, moment, state)
        state, wanted = decision.state, decision.wanted
        ordered.append(wanted)
        asked.append(wanted)
    return asked


def test_rises_are_limited_per_minute() -> None:
    asked = played(make_params(FLIGHT, up_per_minute_max=2), 130, in_flight=200, replicas_max=30)
    assert [asked[0], asked[59], asked[61], asked[122]] == [4, 4, 6, 8]


def test_falls_wait_for_the_cooldown_and_are_limited_per_minute() -> None:
    params = make_params(FLIGHT, down_per_minute_max=3, cooldown_down=timedelta(seconds=60))
    asked = played(params, 260, wanted=10, in_flight=15, replicas_max=12)
    assert asked[55] == 10
    assert sorted(set(asked), reverse=True) == [10, 7, 4, 2]
    changes = [second for second in range(1, 260) if asked[second] != asked[second - 1]]
    assert all(later - earlier >= 60 for earlier, later in pairwise(changes))


def test_a_cooldown_holds_rises_too() -> None:
    def rising(second: int, _: int) -> int:
        return 20 + second

    asked = played(make_params(FLIGHT, cooldown_up=timedelta(seconds=30)), 100, in_flight=rising, replicas_max=30)
    changes = [second for second in range(1, 100) if asked[second] != asked[second - 1]]
    assert len(changes) >= 2
    assert all(later - earlier >= 30 for earlier, later in pairwise(changes))


def test_a_step_is_taken_once_until_its_replicas_serve() -> None:
    asked = played(make_params(STEPS), 60, lead=20, running=40, replicas_max=30)
    assert [asked[0], asked[19], asked[25], asked[45]] == [5, 5, 8, 11]


def test_a_lookahead_orders_for_the_demand_to_come() -> None:
    def rising(second: int, _: int) -> float:
        return 1.0 + second / 60.0

    ahead = make_params(RATE, lookahead=timedelta(seconds=300), confidence=0.95)
    looking = played(ahead, 300, arrivals=rising, replicas_max=30)
    blind = played(make_params(RATE), 300, arrivals=rising, replicas_max=30)
    assert looking[-1] > blind[-1]
    assert looking[-1] <= 2 * 11
    sure = played(
        make_params(RATE, lookahead=timedelta(seconds=300), confidence=0.5), 300, arrivals=rising, replicas_max=30
    )
    assert sure[-1] <= looking[-1]


def test_a_quiet_night_gives_replicas_back_one_by_one() -> None:
    quiet = latency(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    asked = played(make_params(TTFT_TARGET), 400, wanted=5, latencies=(quiet,))
    assert asked[-1] == 1
    assert {before - after for before, after in pairwise(asked)} == {0, 1}


def test_to_zero_and_back() -> None:
    params = make_params(KV, idle_after=timedelta(seconds=30))
    asked = played(params, 100, wanted=1, replicas_min=0)
    assert asked[-1] == 0
    woken = decide_by_rules(params, tick(500, replicas=0, wanted=0, replicas_min=0, held=3), None)
    assert (woken.wanted, woken.reason) == (1, Reason.WAKE)


def test_a_changed_rule_begins_anew_and_the_others_go_on() -> None:
    before = last(make_params(KV, FLIGHT), steady(kv_usage=0.4, in_flight=20))
    after = decide_by_rules(
        make_params(replace(KV, target=0.6), FLIGHT), tick(41, kv_usage=0.4, in_flight=20), before.state
    )
    assert [len(memory.slices) for memory in after.state.memories] == [1, len(before.state.memories[1].slices)]


# -- properties

ALL = (BANDED, QUEUE, FLIGHT, RATE, STEPS, TTFT, TTFT_TARGET, ERRORS, CPU)
PARAMS = make_params(
    *ALL,
    up_per_minute_max=10,
    down_per_minute_max=5,
    lookahead=timedelta(minutes=5),
    idle_after=timedelta(seconds=120),
)
COUNT = st.integers(0, 3000)


@st.composite
def observations(draw: st.DrawFn, second: int = 0) -> RulesObservation:
    replicas_max = draw(st.integers(0, 20))
    ready = draw(st.integers(0, 20))
    arrivals = draw(st.none() | st.integers(0, 3000).map(float))
    counts = tuple(sorted(draw(st.lists(st.integers(0, 500).map(float), min_size=6, max_size=6))))
    seen = make_observation(
        at_s=T0 + second,
        gateway=draw(st.sampled_from(Trust)),
        engines=draw(st.sampled_from(Trust)),
        engines_fresh=draw(st.integers(0, ready)),
        engine_deltas=draw(st.integers(0, ready)),
        arrivals=arrivals,
        arrivals_seconds=0.0 if arrivals is None else draw(st.floats(0.0, 30.0)),
        arrivals_complete=arrivals is not None and draw(st.booleans()),
        held=draw(COUNT),
        queued=draw(COUNT),
        in_flight=draw(COUNT),
        running=draw(COUNT),
        waiting=draw(COUNT),
        kv_usage=draw(st.floats(0.0, 1.0)),
        finished=draw(st.floats(0.0, 1e4)),
        failed=draw(st.floats(0.0, 1e4)),
        wanted=draw(st.integers(0, 25)),
        ready=ready,
        starting=draw(st.integers(0, 5)),
        replicas_min=draw(st.integers(0, replicas_max)),
        replicas_max=replicas_max,
        pinned=draw(st.none() | st.integers(0, 30)),
        paused=draw(st.booleans()),
        shadow_of=draw(st.none() | st.integers(0, 25)),
    )
    requests = draw(st.none() | st.floats(0.0, 1e4))
    return RulesObservation(
        seen=seen,
        signals=Signals(
            latencies=draw(st.sampled_from([(), (latency(*counts, complete=draw(st.booleans())),)])),
            gateway_requests=requests,
            gateway_errors=None if requests is None else draw(st.floats(0.0, requests)),
            cpu=draw(st.none() | st.floats(0.0, 1.0)),
        ),
    )


@st.composite
def histories(draw: st.DrawFn) -> RulesState | None:
    """A state that decisions really leave."""
    state: RulesState | None = None
    for place in range(draw(st.integers(0, 4))):
        state = decide_by_rules(PARAMS, draw(observations(60 * place - 500)), state).state
    return state


@given(observations(), histories())
def test_never_outside_the_limits(observation: RulesObservation, state: RulesState | None) -> None:
    decision = decide_by_rules(PARAMS, observation, state)
    assert observation.seen.replicas_min <= decision.wanted <= observation.seen.replicas_max
    assert "nan" not in decision.sentence
    assert "None" not in decision.sentence


@given(observations(), histories())
def test_never_fewer_on_missing_or_stale_data(observation: RulesObservation, state: RulesState | None) -> None:
    seen = replace(observation.seen, paused=False, pinned=None)
    before = min(seen.wanted, seen.replicas_max)
    for blind in (
        replace(seen, gateway=Trust.MISSING),
        replace(seen, gateway=Trust.FRESH, engines=Trust.STALE),
        replace(seen, arrivals=None),
    ):
        assert decide_by_rules(PARAMS, replace(observation, seen=blind), state).wanted >= before
    fresh = replace(seen, gateway=Trust.FRESH, engines=Trust.FRESH, engines_fresh=seen.ready)
    untold = replace(observation.signals, cpu=None)
    assert decide_by_rules(PARAMS, RulesObservation(seen=fresh, signals=untold), state).wanted >= before


@given(observations(), histories())
def test_the_same_input_gives_the_same_answer_and_replays(
    observation: RulesObservation, state: RulesState | None
) -> None:
    decision = decide_by_rules(PARAMS, observation, state)
    assert decide_by_rules(PARAMS, observation, state) == decision
    kept = record(CHAT, PARAMS, observation, state, decision)
    assert replay(kept) == decision
    assert replay_all([kept]).is_clean
    assert kept.in_shadow == (observation.seen.shadow_of is not None)


@given(observations(), histories())
def test_values_come_back_exactly(observation: RulesObservation, state: RulesState | None) -> None:
    left = decide_by_rules(PARAMS, observation, state).state
    assert decode(RulesState, encode(left)) == left
    assert decode(RulesParams, encode(PARAMS)) == PARAMS
    assert decode(RulesObservation, encode(observation)) == observation


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0.0, 1.0), st.floats(0.0, 40.0)), min_size=20, max_size=60))
def test_never_two_turns_within_a_lead_without_a_fault(levels: list[tuple[int, float, float]]) -> None:
    """Load as wild as it gets, replicas there as soon as they are wanted, no alarm among the rules."""
    params = make_params(FLIGHT, KV, RATE, cooldown_down=timedelta(0))
    lead_s = params.base.prior.cold_start.total_seconds()
    state, wanted, turns, direction = None, 4, [], 0
    for place, (in_flight, kv_usage, arrivals) in enumerate(levels):
        moment = tick(
            5 * place, replicas=wanted, in_flight=in_flight, kv_usage=kv_usage, arrivals=arrivals, replicas_max=30,
            arrivals_seconds=5.0,
        )  # fmt: skip
        decision = decide_by_rules(params, moment, state)
        state = decision.state
        now = (decision.wanted > wanted) - (decision.wanted < wanted)
        if now and direction and now != direction:
            turns.append(moment.at_s)
        direction, wanted = now or direction, decision.wanted
    assert all(later - earlier >= lead_s for earlier, later in pairwise(turns))


def test_the_state_stays_small() -> None:
    params = make_params(*ALL, cooldown_down=timedelta(hours=1), lookahead=timedelta(minutes=5))
    moments = [
        tick(second, latencies=(SLOW,), in_flight=second % 50, arrivals=float(second % 7), requests=10.0)
        for second in range(1200)
    ]
    assert len(encode(last(params, moments).state)) < 30_000


def test_the_first_look_of_all_holds() -> None:
    first: Observation = make_observation(arrivals=None, arrivals_complete=False, wanted=3, ready=3, engines_fresh=3)
    decision = decide_by_rules(make_params(KV), RulesObservation(seen=first, signals=Signals()), None)
    assert (decision.wanted, decision.reason) == (3, Reason.HOLD_MISSING_DATA)
