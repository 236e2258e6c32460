"""How much arrivals scatter beyond Poisson: measured on loads whose scatter is known."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.model import Scatter, Tuning
from controlplane.autoscaler.scatter import beyond_poisson, overdispersion, scattered

TUNING = Tuning()
HOUR_S = 3600


def watched(count: Callable[[int], float], *, seconds: int = HOUR_S, served_s: float = 1.0) -> float:
    scatter = Scatter()
    for second in range(seconds):
        scatter = scattered(scatter, arrivals=count(second), seconds=1.0, served_s=served_s, tuning=TUNING)
    return overdispersion(scatter, TUNING)


def poisson(mean: float, rng: random.Random) -> float:
    """Knuth's count of uniform numbers until their product is small."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return float(count)


def test_before_anything_was_compared_arrivals_are_poisson() -> None:
    assert overdispersion(Scatter(), TUNING) == 1.0


@pytest.mark.parametrize("mean", [0.3, 5.0, 60.0])
def test_independent_requests_scatter_like_poisson(mean: float) -> None:
    rng = random.Random(11)
    found = [watched(lambda _: poisson(mean, rng)) for _ in range(8)]
    assert sum(found) / len(found) < 1.03


def test_bursts_as_long_as_a_span_show_with_their_size() -> None:
    """A rate drawn anew every ten seconds, 0 or twice the mean: counts of ten seconds vary by 1 + mean count."""
    rng = random.Random(3)
    doubled = [2.0 * rng.randrange(2) for _ in range(HOUR_S // 10)]
    mean = 4.0
    assert watched(lambda second: mean * doubled[second // 10]) == pytest.approx(8.0 * mean, rel=0.4)


def test_a_trend_is_no_scatter() -> None:
    assert watched(lambda second: 10.0 + 0.02 * second) == 1.0


def test_what_long_requests_even_out_does_not_count() -> None:
    """Ups and downs of ten seconds within requests that are served for thirty."""
    assert watched(lambda second: 8.0 * (second // 5 % 2), served_s=30.0) < 1.1 < watched(
        lambda second: 8.0 * (second // 10 % 2), served_s=1.0
    )  # fmt: skip


def test_a_time_that_was_not_seen_compares_nothing() -> None:
    scatter = Scatter()
    for seconds, arrivals in ((10.0, 10.0), (600.0, 60_000.0), (10.0, 1000.0), (10.0, 1000.0), (10.0, 1000.0)):
        scatter = scattered(scatter, arrivals=arrivals, seconds=seconds, served_s=1.0, tuning=TUNING)
    assert scatter.compared > 1.0
    assert overdispersion(scatter, TUNING) == 1.0


def test_a_few_comparisons_prove_nothing_and_many_do() -> None:
    """Spans of 10 and 40 requests by turns: 18 times Poisson."""
    scatter, found = Scatter(), []
    for place in range(60):
        arrivals = 40.0 if place % 2 else 10.0
        scatter = scattered(scatter, arrivals=arrivals, seconds=10.0, served_s=1.0, tuning=TUNING)
        found.append(overdispersion(scatter, TUNING))
    assert found[3] == 1.0
    assert found == sorted(found)
    assert 9.0 < found[-1] < 18.0


def test_steady_arrivals_pay_nothing_and_bursts_the_spread_of_a_span() -> None:
    assert beyond_poisson(100.0, 1.0, TUNING) == 0.0
    # 1,000 requests in ten seconds with 10 times the variance of Poisson: 9,000 beyond it, over ten seconds.
    assert beyond_poisson(100.0, 10.0, TUNING) == pytest.approx(math.sqrt(9_000.0) / 10.0)


@given(st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e3)), max_size=60), st.floats(0.0, 1e4))
def test_whatever_was_counted_it_is_a_number_within_its_bounds(
    spans: list[tuple[float, float]], served_s: float
) -> None:
    scatter = Scatter()
    for arrivals, seconds in spans:
        scatter = scattered(scatter, arrivals=arrivals, seconds=seconds, served_s=served_s, tuning=TUNING)
        assert 1.0 <= overdispersion(scatter, TUNING) <= TUNING.scatter_max
