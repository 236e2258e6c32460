"""What counts as more than usual: nothing that chance or the load's own bursts bring, everything that is a step."""

import random
from collections.abc import Iterator
from itertools import accumulate, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.telemetry.surprise import Usual, learned

GLANCE_S = 0.25


def poisson(rng: random.Random, mean: float) -> int:
    """Arrivals within one unit of time, counted one by one."""
    count, at = 0, rng.expovariate(mean)
    while at < 1.0:
        count, at = count + 1, at + rng.expovariate(mean)
    return count


def after(counts: Iterator[float] | list[float], start: Usual | None = None) -> Usual:
    """What is usual after one round a second with these counts."""
    usual = start or Usual(at_s=0.0, total=0.0)
    for number, total in enumerate(accumulate(counts, initial=usual.total)):
        usual = learned(usual, total, usual.at_s + (1.0 if number else 0.0)) if number else usual
    return usual


def test_nothing_is_a_surprise_before_anything_is_usual() -> None:
    first = learned(None, 1000.0, 5.0)
    assert first == Usual(at_s=5.0, total=1000.0)
    assert not first.is_exceeded(2000.0, 5.25)


def test_the_rate_is_learned_and_soon_that_of_a_new_load() -> None:
    usual = after(list(repeat(20.0, 30)))
    assert usual.rate_rps == pytest.approx(20.0)
    assert after(list(repeat(80.0, 20)), usual).rate_rps == pytest.approx(80.0, rel=0.15)


def test_four_times_the_load_is_seen_within_half_a_second() -> None:
    usual = after(list(repeat(20.0, 30)))
    assert usual.is_exceeded(usual.total + 40.0, usual.at_s + 0.5)
    assert not usual.is_exceeded(usual.total + 12.0, usual.at_s + 0.5)


def test_a_few_requests_after_silence_prove_nothing() -> None:
    usual = after(list(repeat(0.0, 30)))
    assert not usual.is_exceeded(usual.total + 5.0, usual.at_s + GLANCE_S)
    assert usual.is_exceeded(usual.total + 20.0, usual.at_s + GLANCE_S)


@pytest.mark.parametrize("rate_rps", [2.0, 20.0, 100.0])
def test_chance_is_hardly_ever_taken_for_a_step(rate_rps: float) -> None:
    rng = random.Random(1)
    usual = after([float(poisson(rng, rate_rps)) for _ in range(60)])
    surprises = 0
    for _ in range(500):
        came = 0
        for glance in (1, 2, 3):
            came += poisson(rng, rate_rps * GLANCE_S)
            surprises += usual.is_exceeded(usual.total + came, usual.at_s + glance * GLANCE_S)
        came += poisson(rng, rate_rps * GLANCE_S)
        usual = learned(usual, usual.total + came, usual.at_s + 1.0)
    assert surprises <= 5, "of 1,500 glances"


def test_who_knows_bursts_is_not_surprised_by_them() -> None:
    calm, bursty = after([20.0] * 60), after([10.0, 10.0, 50.0, 10.0] * 15)
    assert bursty.rate_rps == pytest.approx(20.0, rel=0.3)
    assert bursty.spread > 4.0 * calm.spread
    assert calm.is_exceeded(calm.total + 45.0, calm.at_s + 0.75)
    assert not bursty.is_exceeded(bursty.total + 45.0, bursty.at_s + 0.75)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(-10, 10))
def test_a_counter_that_fell_or_a_clock_that_went_back_begins_anew(before: float, now: float, passed_s: float) -> None:
    usual = Usual(at_s=100.0, total=before, rate_rps=5.0, spread=3.0)
    found = learned(usual, now, 100.0 + passed_s)
    if now < before or passed_s <= 0.0:
        assert found == Usual(at_s=100.0 + passed_s, total=now)
    else:
        assert found.spread >= 1.0
        assert (found.rate_rps or 0.0) >= 0.0
    assert not usual.is_exceeded(min(now, before), 100.0 + passed_s)
