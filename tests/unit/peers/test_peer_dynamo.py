"""Dynamo's planner: both loops, what each waits for, and the stand-in for its predictor."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.simulation.fleet.policy import Counter, Gauge
from controlplane.simulation.peers.dynamo import Target
from controlplane.simulation.peers.engines import observed, prefill_wait_s, slot_wait_s, token_gap_s
from controlplane.simulation.peers.forecast import next_value
from controlplane.simulation.peers.registry import make_peer
from tests.unit.peers.steady import FACTS, QWEN_32B, Steady, first, look, run

SLA = {"target": float(Target.SLA)}


def engines(*loads: tuple[float, float], rps: float = 1.0) -> Steady:
    """(KV use, queued prompt tokens) by replica; 4,500 tokens a sequence, `rps` arrivals at each."""
    return Steady(
        gauges={
            Gauge.KV_USAGE: [use for use, _ in loads],
            Gauge.QUEUED_PROMPT_TOKENS: [queued for _, queued in loads],
            Gauge.RUNNING: [use * QWEN_32B.kv_tokens / 4500 for use, _ in loads],
            Gauge.WAITING: [0.0] * len(loads),
        },
        rates={Counter.ARRIVED: rps * len(loads)},
    )


# -- load loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ([(0.9, 0), (0.9, 0)], 2),
        ([(0.9, 40_000), (0.1, 0)], 3),  # 0.9 + 40,000 / 316,000: any one is enough
        ([(0.59, 0), (0.5, 0)], 1),
        ([(0.61, 0), (0.1, 0)], 2),  # all must be below
    ],
)
def test_throughput_target_looks_at_the_cache(loads: list[tuple[float, float]], wanted: int) -> None:
    assert first(make_peer("dynamo-load", FACTS), look(engines(*loads), wanted=2)) == wanted


def test_latency_target_has_lower_thresholds() -> None:
    latency = make_peer("dynamo-load", FACTS, {"target": float(Target.LATENCY)})
    assert first(latency, look(engines((0.41, 0), (0.1, 0)), wanted=2)) == 3
    assert first(latency, look(engines((0.09, 0), (0.09, 0)), wanted=2)) == 1


def test_sla_target_adds_one_only_if_all_engines_are_late() -> None:
    planner = make_peer("dynamo-load", FACTS, SLA)
    late = (0.3, 60_000.0)  # 64,000 tokens of 62.5 us are 4 s
    assert first(planner, look(engines(late, late, late))) == 4
    assert first(planner, look(engines(late, late, (0.5, 0.0)))) == 3, "one hot engine, or two, change nothing"


def test_sla_target_adds_one_for_slow_tokens() -> None:
    tight = replace(FACTS, itl_slo_s=0.02)
    assert first(make_peer("dynamo-load", tight, SLA), look(engines((0.6, 0), (0.6, 0)), wanted=2)) == 3


def test_sla_target_gives_one_up_only_if_the_others_can_carry_it() -> None:
    planner = make_peer("dynamo-load", FACTS, SLA)
    assert first(planner, look(engines((0.3, 0), (0.3, 0), (0.3, 0)))) == 2
    assert first(planner, look(engines((0.6, 0), (0.6, 0)), wanted=2)) == 2, "1.2 caches do not fit into one"
    queued = (0.3, 25_000.0)  # half more is 2.3 s of queue where 0.8 of 2.75 s is allowed
    assert first(planner, look(engines(queued, queued, queued))) == 3
    assert first(planner, look(engines((0.01, 0)), wanted=1)) == 1


@pytest.mark.parametrize("knobs", [{}, SLA])
def test_it_holds_while_a_replica_starts_and_for_ever_if_it_never_does(knobs: dict[str, float]) -> None:
    planner = make_peer("dynamo-load", FACTS, knobs)
    hot = engines((1.0, 90_000), (1.0, 90_000))
    assert run(planner, hot, wanted=2, until_s=0) == [(0.0, 3)]
    assert run(planner, hot, wanted=3, ready=2, until_s=3600) == []


def test_it_holds_while_a_replica_drains() -> None:
    calm = look(engines((0.1, 0), (0.1, 0)), wanted=2)
    planner = make_peer("dynamo-load", FACTS)
    assert first(planner, calm) == 1
    assert first(planner, replace(calm, draining=1)) == 2


def test_it_holds_where_reports_are_missing() -> None:
    planner = make_peer("dynamo-load", FACTS)
    assert first(planner, look(Steady(), wanted=4)) == 4
    assert first(planner, look(engines((0.1, 0), (0.1, 0)), wanted=3)) == 3, "two reports for three workers"
    broken = engines((0.1, 0), (math.nan, 0))
    assert first(planner, look(broken, wanted=2)) == 2


# -- throughput loop --------------------------------------------------------------------------------------------------


def rate(per_s: float) -> Steady:
    return Steady(rates={Counter.ARRIVED: per_s})


def test_throughput_decides_every_three_minutes_from_the_profile() -> None:
    planner = make_peer("dynamo-throughput", FACTS)
    assert planner.tick_s == 180
    assert run(planner, rate(6.9), wanted=1, until_s=900) == [(180.0, 5)]
    assert run(planner, rate(100), wanted=1, until_s=200, high=8) == [(180.0, 8)]
    tighter = make_peer("dynamo-throughput", FACTS, {"slo_share": 0.7})
    assert run(tighter, rate(6.9), wanted=1, until_s=200) == [(180.0, 8)]


def test_throughput_skips_an_interval_without_data_and_sheds_an_idle_one() -> None:
    planner = make_peer("dynamo-throughput", FACTS)
    assert run(planner, Steady(), wanted=4, until_s=900) == []
    assert run(planner, rate(0), wanted=4, until_s=900) == [(180.0, 1)]


def test_throughput_follows_a_rise_ahead_of_it() -> None:
    ahead, behind = make_peer("dynamo-throughput", FACTS), make_peer("dynamo-throughput", FACTS, {"constant": 1})
    found = []
    for planner in (ahead, behind):
        memory, wanted = planner.start(), 1
        for step in range(13):
            wanted, memory = planner.decide(look(rate(1.4 * step), wanted=wanted, at_s=180.0 * step), memory)
        found.append(wanted)
    assert found == [13, 12]


# -- hybrid -----------------------------------------------------------------------------------------------------------


def test_hybrid_moves_above_the_floor_of_the_throughput_loop() -> None:
    planner = make_peer("dynamo-hybrid", FACTS)
    calm = engines((0.1, 0), (0.1, 0), (0.1, 0), rps=1.2)  # 3.6 a second need three
    memory = planner.start()
    wanted, memory = planner.decide(look(calm), memory)
    assert wanted == 2, "no floor yet"
    wanted, memory = planner.decide(look(calm, at_s=180), memory)
    wanted, memory = planner.decide(look(calm, at_s=185), memory)
    assert (wanted, memory.floor) == (3, 3)
    two = engines((0.1, 0), (0.1, 0), rps=1.2)
    assert planner.decide(look(two, wanted=2, at_s=190), memory)[0] == 3, "the floor raises a number that is below it"
    assert planner.decide(look(two, wanted=2, ready=1, at_s=190), memory)[0] == 2, "but not while a replica starts"


# -- predictor --------------------------------------------------------------------------------------------------------


def test_too_short_a_history_repeats_its_last_value() -> None:
    assert next_value(()) == 0
    assert next_value((1.0, 5.0, 2.0)) == 2.0
    assert next_value((3.0,) * 40) == 3.0


def test_it_carries_a_line_and_a_wave_on() -> None:
    line = [2.0 * step for step in range(20)]
    assert next_value(line) == pytest.approx(40, rel=1e-6)
    wave = [10 + math.sin(step / 3) for step in range(60)]
    assert next_value(wave) == pytest.approx(10 + math.sin(20), abs=1e-6)


def test_noise_around_a_level_goes_back_to_the_level() -> None:
    values = np.random.default_rng(7).normal(10, 1, 200).tolist()
    assert next_value([*values, 14.0]) == pytest.approx(10, abs=1)


@given(st.lists(st.floats(0, 1e4), max_size=40))
def test_a_forecast_is_finite_and_never_negative(history: list[float]) -> None:
    forecast = next_value(history)
    assert math.isfinite(forecast)
    assert forecast >= 0
    assert forecast == next_value(tuple(history))


# -- the model of an engine -------------------------------------------------------------------------------------------


def test_latencies_of_the_next_request_by_hand() -> None:
    found = observed(engines((0.0, 0), rps=0.0), FACTS)
    assert found is not None
    assert prefill_wait_s(found, FACTS, tokens=4000) == pytest.approx([0.25 + 0.0136])
    assert token_gap_s(found, FACTS) == pytest.approx([0.0136])
    busy = observed(engines((40 * 4500 / 316_000, 0), rps=1.4), FACTS)
    assert busy is not None
    # 13.6 ms + 40 x 0.175 ms, and prefills take 1.4 x 0.25 = 0.35 of the time.
    assert token_gap_s(busy, FACTS) == pytest.approx([0.0206 / 0.65])
    assert slot_wait_s(busy, FACTS) == pytest.approx([0.0])
    full = replace(busy, running=np.array([63.0]), waiting=np.array([9.0]))
    gap_s = (0.0136 + 63 * 0.000175) / 0.65
    assert slot_wait_s(full, FACTS) == pytest.approx([10 * 1000 * gap_s / 63])
