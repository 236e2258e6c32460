"""Counters with resets, windows, coverage, bounds: tables by hand, and laws by hypothesis."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.series import (
    Bounds,
    CounterWindow,
    Coverage,
    HistogramWindow,
    Partial,
    Rate,
    Whole,
    add_histograms,
    attainment_bounds,
    cover,
    engine_increase,
    histogram_increase,
    increase,
    is_cumulative,
    mean,
    quantile_bounds,
)
from controlplane.domain.telemetry import EMPTY_HISTOGRAM, Fresh, Histogram, Missing, Reading, Stale
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_engine_sample, make_histogram

SECOND = timedelta(seconds=1)
STALE = timedelta(seconds=5)


def window(*samples: tuple[int, float], span_s: int = 60) -> CounterWindow:
    result = CounterWindow(span=span_s * SECOND)
    for at_s, value in samples:
        result = result.seen(START + at_s * SECOND, value)
    return result


def test_a_counter_that_fell_began_anew() -> None:
    assert increase(10.0, 12.0) == 2.0
    assert increase(10.0, 3.0) == 3.0
    assert increase(10.0, 12.0, restarted=True) == 12.0


def test_a_rate_needs_two_samples() -> None:
    assert isinstance(window().rate(START, over=SECOND, stale_after=STALE), Missing)
    assert isinstance(window((0, 5.0)).rate(START, over=SECOND, stale_after=STALE), Missing)


def test_a_rate_covers_the_window_and_no_more() -> None:
    counter = window((0, 0.0), (10, 100.0), (20, 110.0))
    now = START + 20 * SECOND
    assert counter.rate(now, over=10 * SECOND, stale_after=STALE) == Fresh(Rate(increase=10.0, span=10 * SECOND))
    assert counter.rate(now, over=60 * SECOND, stale_after=STALE) == Fresh(Rate(increase=110.0, span=20 * SECOND))


def test_a_gap_is_averaged_over_its_real_length() -> None:
    counter = window((0, 0.0), (30, 60.0))
    reading = counter.rate(START + 30 * SECOND, over=10 * SECOND, stale_after=STALE)
    assert reading == Fresh(Rate(increase=60.0, span=30 * SECOND))


def test_a_rate_goes_stale_with_its_last_sample() -> None:
    counter = window((0, 0.0), (1, 1.0))
    reading = counter.rate(START + 9 * SECOND, over=10 * SECOND, stale_after=STALE)
    assert reading == Stale(Rate(increase=1.0, span=SECOND), age=8 * SECOND)


def test_resets_are_absorbed_and_counted() -> None:
    counter = window((0, 100.0), (1, 110.0), (2, 4.0))
    assert counter.resets == 1
    reading = counter.rate(START + 2 * SECOND, over=2 * SECOND, stale_after=STALE)
    assert reading == Fresh(Rate(increase=14.0, span=2 * SECOND))


def test_a_new_epoch_is_a_reset_even_when_the_counter_has_overtaken_itself() -> None:
    counter = CounterWindow(span=60 * SECOND).seen(START, 100.0, epoch="a").seen(START + SECOND, 120.0, epoch="b")
    reading = counter.rate(START + SECOND, over=SECOND, stale_after=STALE)
    assert reading == Fresh(Rate(increase=120.0, span=SECOND))


def test_a_repeated_sample_changes_nothing() -> None:
    counter = window((0, 1.0), (1, 2.0))
    assert counter.seen(START + SECOND, 2.0) is counter


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=2, max_size=40))
def test_a_window_never_grows_beyond_its_span_and_sums_its_increases(added: list[float]) -> None:
    total, counter, raws = 0.0, CounterWindow(span=10 * SECOND), []
    for at_s, amount in enumerate(added):
        total += amount
        raws.append(total)
        counter = counter.seen(START + at_s * SECOND, total)
    assert len(counter.points) <= 12
    last = len(added) - 1
    first = max(0, last - 10)
    reading = counter.rate(START + last * SECOND, over=10 * SECOND, stale_after=STALE)
    assert isinstance(reading, Fresh)
    assert reading.value.increase == pytest.approx(raws[last] - raws[first], rel=1e-9, abs=1e-6)


def covered(*readings: Reading[float]) -> Coverage[float]:
    return cover(readings, math.fsum)


def test_coverage_says_how_much_of_the_whole_is_known() -> None:
    assert covered(Fresh(1.0), Fresh(2.0)) == Whole(3.0)
    assert covered(Fresh(1.0), Missing("refused"), Stale(9.0, SECOND)) == Partial(1.0, known=1, expected=3)
    assert covered() == Whole(0.0)
    assert covered(Missing("refused"), Stale(1.0, 7 * SECOND)) == Missing("none of 2 is fresh: refused")


def test_histograms_are_subtracted_bucket_by_bucket() -> None:
    before = make_histogram((1.0, 2), (2.0, 3), (math.inf, 4), sum_=5.0)
    after = make_histogram((1.0, 2), (2.0, 5), (math.inf, 7), sum_=9.0)
    assert histogram_increase(before, after) == make_histogram((1.0, 0), (2.0, 2), (math.inf, 3), sum_=4.0)
    assert histogram_increase(after, before) == before
    assert histogram_increase(before, after, restarted=True) == after
    other = make_histogram((9.0, 1))
    assert histogram_increase(before, other) == other


def test_histograms_add_up_on_the_edges_they_share() -> None:
    left = make_histogram((1.0, 1), (2.0, 2), sum_=1.0)
    right = make_histogram((2.0, 10), (3.0, 11), sum_=2.0)
    assert add_histograms([left, EMPTY_HISTOGRAM, right]) == make_histogram((2.0, 12), (math.inf, 13), sum_=3.0)
    assert add_histograms([left, left]) == make_histogram((1.0, 2), (2.0, 4), sum_=2.0)
    assert add_histograms([]) == EMPTY_HISTOGRAM


def test_a_limit_inside_a_bucket_gives_bounds_not_a_guess() -> None:
    # vLLM's TTFT has edges at 1 and 2.5 s: what a limit of 2 s splits is not known.
    ttft = make_histogram((1.0, 60), (2.5, 90), (math.inf, 100))
    assert attainment_bounds(ttft, 2.0) == Bounds(lower=0.6, upper=0.9)
    assert attainment_bounds(ttft, 2.5) == Bounds(lower=0.9, upper=0.9)
    assert attainment_bounds(ttft, 0.5) == Bounds(lower=0.0, upper=0.6)
    assert attainment_bounds(ttft, 9.0) == Bounds(lower=0.9, upper=1.0)
    assert attainment_bounds(make_histogram((1.0, 0)), 1.0) is None
    assert attainment_bounds(EMPTY_HISTOGRAM, 1.0) is None


def test_quantiles_lie_between_edges() -> None:
    ttft = make_histogram((1.0, 60), (2.5, 90), (math.inf, 100), sum_=120.0)
    assert quantile_bounds(ttft, 0.5) == Bounds(lower=0.0, upper=1.0)
    assert quantile_bounds(ttft, 0.6) == Bounds(lower=0.0, upper=1.0)
    assert quantile_bounds(ttft, 0.61) == Bounds(lower=1.0, upper=2.5)
    assert quantile_bounds(ttft, 0.99) == Bounds(lower=2.5, upper=math.inf)
    assert quantile_bounds(EMPTY_HISTOGRAM, 0.5) is None
    assert mean(ttft) == 1.2
    assert mean(EMPTY_HISTOGRAM) is None


latencies = st.lists(st.floats(min_value=0.001, max_value=20.0), min_size=1, max_size=60)
edges = st.lists(st.floats(min_value=0.01, max_value=10.0), min_size=1, max_size=8, unique=True).map(sorted)


def observed(values: list[float], at: list[float]) -> Histogram:
    all_edges = (*at, math.inf)
    counts = tuple(float(sum(value <= edge for value in values)) for edge in all_edges)
    return Histogram(all_edges, counts, sum(values))


@given(latencies, edges, st.floats(min_value=0.005, max_value=15.0))
def test_bounds_always_hold_the_truth(values: list[float], at: list[float], limit_s: float) -> None:
    histogram = observed(values, at)
    assert is_cumulative(histogram)
    share = attainment_bounds(histogram, limit_s)
    truth = sum(value <= limit_s for value in values) / len(values)
    assert share is not None
    assert share.lower <= truth <= share.upper
    assert not share.exact or share.lower == truth
    quantile = quantile_bounds(histogram, 0.9)
    assert quantile is not None
    smallest = sorted(values)[math.ceil(0.9 * len(values)) - 1]
    assert quantile.lower <= smallest <= quantile.upper


def test_a_histogram_window_keeps_its_span() -> None:
    one = make_histogram((1.0, 1), sum_=0.5)
    kept = HistogramWindow(span=10 * SECOND)
    for at_s in range(15):
        kept = kept.seen(START + at_s * SECOND, one)
    now = START + 14 * SECOND
    assert len(kept.parts) == 10
    assert kept.over(now, over=10 * SECOND).count == 10
    assert kept.over(now, over=3 * SECOND).count == 3
    assert kept.over(now + 60 * SECOND, over=10 * SECOND) == EMPTY_HISTOGRAM


def test_one_fallen_counter_restarts_them_all() -> None:
    before = make_engine_sample(prompt_tokens=100, generation_tokens=50, succeeded=5)
    # More prompt tokens than before, but fewer successes: a fast new process, not a slow old one.
    after = make_engine_sample(START + SECOND, prompt_tokens=120, generation_tokens=60, succeeded=2)
    grown = engine_increase(before, after)
    assert grown.restarted
    assert (grown.prompt_tokens, grown.generation_tokens, grown.succeeded) == (120, 60, 2)
    assert grown.span == SECOND


def test_a_new_process_start_is_a_restart() -> None:
    before = make_engine_sample(prompt_tokens=100)
    after = make_engine_sample(START + SECOND, prompt_tokens=120, process_start_s=before.process_start_s + 60)
    assert engine_increase(before, after).prompt_tokens == 120
    same = replace(after, process_start_s=before.process_start_s)
    assert engine_increase(before, same).prompt_tokens == 20
