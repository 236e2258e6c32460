"""Knative, Ray Serve and SkyServe: what their documentation and their own tests say of windows and delays."""

import math
from dataclasses import replace

import pytest

from controlplane.simulation.fleet.policy import Counter
from controlplane.simulation.peers.registry import make_peer
from tests.unit.peers.steady import FACTS, Steady, first, look, run, running

# -- Knative ----------------------------------------------------------------------------------------------------------


def concurrency(stable: float, panic: float) -> Steady:
    return Steady(recent={60.0: stable, 6.0: panic})


def test_stable_mode_is_concurrency_over_the_target() -> None:
    knative = make_peer("knative", FACTS)
    assert first(knative, look(concurrency(140, 140), wanted=1)) == 2
    assert first(knative, look(concurrency(70, 70), wanted=1)) == 1
    assert first(knative, look(running(71), wanted=1)) == 2


def test_the_target_may_follow_the_profile() -> None:
    assert first(make_peer("knative", FACTS, {"target_share": 0.5}), look(concurrency(40, 40), wanted=1)) == 2


def test_panic_begins_at_twice_the_ready_pods_and_ends_after_a_calm_minute() -> None:
    knative = make_peer("knative", FACTS)
    calm, burst = concurrency(70, 70), concurrency(70, 210)
    wanted, memory = knative.decide(look(calm, wanted=1), knative.start())
    assert (wanted, memory.panic_s) == (1, None)
    wanted, memory = knative.decide(look(concurrency(70, 140), wanted=1, at_s=2), memory)
    assert (wanted, memory.panic_s) == (2, 2), "ceil(140 / 70) is twice the one that is ready"
    wanted, memory = knative.decide(look(burst, wanted=2, ready=1, at_s=4), memory)
    assert wanted == 3
    wanted, memory = knative.decide(look(calm, wanted=3, at_s=6), memory)
    assert wanted == 3, "no decrease in panic"
    wanted, memory = knative.decide(look(calm, wanted=3, at_s=64), memory)
    assert (wanted, memory.panic_s) == (3, 4)
    wanted, memory = knative.decide(look(calm, wanted=3, at_s=66), memory)
    assert (wanted, memory.panic_s) == (1, None)


def test_it_begins_in_panic_where_several_pods_run() -> None:
    assert run(make_peer("knative", FACTS), concurrency(0, 0), wanted=8, until_s=120) == [
        (62.0, 4),
        (64.0, 2),
        (66.0, 1),
        (68.0, 0),
    ]


def test_its_scale_down_delay_holds_the_most_of_the_window() -> None:
    knative = make_peer("knative", FACTS, {"down_delay_s": 120})
    assert run(knative, concurrency(70, 70), wanted=1, until_s=300) == []
    wanted, memory = knative.decide(look(concurrency(280, 280), wanted=4), knative.start())
    for at_s in range(2, 200, 2):
        wanted, memory = knative.decide(look(concurrency(140, 140), wanted=4, at_s=float(at_s)), memory)
        if wanted < 4:
            break
    assert (wanted, at_s) == (2, 180), "a minute of panic at the start, then the delay"


def test_without_data_no_decision_is_valid() -> None:
    assert run(make_peer("knative", FACTS), Steady(), wanted=5, until_s=120) == []


def test_what_waits_in_the_gateway_counts() -> None:
    assert first(make_peer("knative", FACTS), look(Steady(waiting_in_gateway=100), wanted=0, low=0)) == 2


# -- Ray Serve --------------------------------------------------------------------------------------------------------


def test_ongoing_requests_over_the_target_after_thirty_seconds() -> None:
    assert run(make_peer("ray-serve", FACTS), running(10, 10), wanted=2, until_s=300) == [(30.0, 10)]


def test_fewer_after_ten_minutes() -> None:
    assert run(make_peer("ray-serve", FACTS), running(2, 1, 1, 1), wanted=4, until_s=900) == [(600.0, 3)]


def test_a_break_starts_the_delay_again() -> None:
    ray = make_peer("ray-serve", FACTS)
    wanted, memory = ray.decide(look(running(10, 10), wanted=2), ray.start())
    wanted, memory = ray.decide(look(running(2, 2), wanted=2, at_s=25), memory)
    wanted, memory = ray.decide(look(running(10, 10), wanted=2, at_s=30), memory)
    assert wanted == 2
    assert ray.decide(look(running(10, 10), wanted=2, at_s=60), memory)[0] == 10


@pytest.mark.parametrize(("factor", "wanted"), [(0.5, 6), (2.0, 18)])
def test_factors_scale_the_difference(factor: float, wanted: int) -> None:
    ray = make_peer("ray-serve", FACTS, {"up_factor": factor, "up_delay_s": 0})
    assert first(ray, look(running(10, 10), wanted=2)) == wanted


def test_a_small_down_factor_still_gives_one_up() -> None:
    ray = make_peer("ray-serve", FACTS, {"down_factor": 0.3, "down_delay_s": 0})
    assert first(ray, look(running(2, 2, 0), wanted=3)) == 2


def test_zero_only_from_one_and_back_at_the_first_request() -> None:
    ray = make_peer("ray-serve", FACTS, {"down_delay_s": 0})
    assert first(ray, look(running(0, 0, 0), wanted=3, low=0)) == 1
    assert first(ray, look(running(0), wanted=1, low=0)) == 0
    assert first(ray, look(Steady(waiting_in_gateway=3), wanted=0, low=0)) == 1


def test_ray_counts_silence_as_idle() -> None:
    changes = run(make_peer("ray-serve", FACTS), Steady(recent={30.0: math.nan}), wanted=4, until_s=700)
    assert changes == [(600.0, 1)]


# -- SkyServe ---------------------------------------------------------------------------------------------------------


def arrivals(per_s: float) -> Steady:
    return Steady(rates={Counter.ARRIVED: per_s})


def test_more_after_fifteen_looks_in_a_row() -> None:
    changes = run(make_peer("skyserve", FACTS), arrivals(5.6), wanted=2, until_s=600)
    assert changes == [(280.0, 4)], "300 s / 20 s is 15 looks, the first at 0"


def test_fewer_after_sixty_looks_in_a_row() -> None:
    assert run(make_peer("skyserve", FACTS), arrivals(1.4), wanted=4, until_s=1500) == [(1180.0, 1)]


def test_one_look_the_other_way_resets_the_count() -> None:
    sky = make_peer("skyserve", FACTS, {"up_delay_s": 60})
    memory = sky.start()
    found = []
    for step, rate in enumerate([5.6, 5.6, 1.4, 5.6, 5.6, 5.6]):
        wanted, memory = sky.decide(look(arrivals(rate), wanted=2, at_s=20.0 * step), memory)
        found.append(wanted)
    assert found == [2, 2, 2, 2, 2, 4]


def test_from_zero_it_follows_at_once_and_silence_is_no_traffic() -> None:
    sky = make_peer("skyserve", FACTS)
    assert first(sky, look(arrivals(2.8), wanted=0, low=0)) == 2
    assert run(sky, Steady(), wanted=3, until_s=1300) == [(1180.0, 1)]


def test_bounds_count_before_the_hysteresis() -> None:
    sky = make_peer("skyserve", FACTS)
    at_most = replace(look(arrivals(100), wanted=5), replicas_max=5)
    assert sky.decide(at_most, sky.start())[1] == sky.start()
