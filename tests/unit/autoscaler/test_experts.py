"""Demand one lead ahead: who is trusted on which load, and how wide the band is."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.experts import EXPERTS, expect, first_errors, judged
from controlplane.autoscaler.forecast import Demand, with_arrivals
from controlplane.autoscaler.model import Bucket, ForecastErrors, Tuning

TUNING = Tuning()
LEAD_S = 100.0

type Rate = Callable[[float], float]
"""Requests per second at a moment."""


def watched(
    rate: Rate, *, seconds: int = 1800, lead_s: float = LEAD_S, noisy: int | None = None
) -> tuple[tuple[Bucket, ...], ForecastErrors]:
    """What is left after watching it second by second; Poisson counts with a seed, else exact ones."""
    rng = random.Random(noisy)
    buckets: tuple[Bucket, ...] = ()
    errors = first_errors(0.0)
    for second in range(1, seconds + 1):
        mean = rate(float(second))
        count = mean if noisy is None else float(sum(rng.random() < mean / 50.0 for _ in range(50)))
        buckets = with_arrivals(buckets, end_s=float(second), seconds=1.0, arrivals=count, lead_s=lead_s, tuning=TUNING)
        errors = judged(errors, buckets, lead_s, TUNING)
    return buckets, errors


def expected(rate: Rate, *, seconds: int = 1800, lead_s: float = LEAD_S, noisy: int | None = None) -> Demand:
    buckets, errors = watched(rate, seconds=seconds, lead_s=lead_s, noisy=noisy)
    found = expect(buckets, errors, lead_s, TUNING)
    assert found is not None
    return found


def test_nothing_measured_is_no_demand_known() -> None:
    assert expect((), first_errors(0.0), LEAD_S, TUNING) is None


def test_a_steady_load_is_expected_as_it_is_with_a_narrow_band() -> None:
    found = expected(lambda _: 20.0)
    assert found.level_rps == pytest.approx(20.0)
    assert found.rise_rps == pytest.approx(0.0, abs=1e-6)
    assert found.error < 0.05
    assert found.up_rps == pytest.approx(20.0, rel=0.06)
    assert found.burst_rps == 0.0


@pytest.mark.parametrize("per_s", [0.05, 0.1, -0.05])
def test_a_slope_is_carried_to_the_horizon_upwards_and_downwards(per_s: float) -> None:
    found = expected(lambda second: 120.0 + per_s * second)
    truth = 120.0 + per_s * (1800.0 + LEAD_S)
    assert found.level_rps + found.rise_rps == pytest.approx(truth, rel=0.05)


def test_what_falls_is_kept_for_as_long_as_it_is_there() -> None:
    """Giving back looks at the larger of now and one lead ahead."""
    found = expected(lambda second: 200.0 - 0.1 * second)
    assert found.level_rps + found.rise_rps < 20.0
    assert found.keep_rps > 20.0


def test_a_wave_is_judged_and_its_band_holds_what_comes() -> None:
    """A period of one hour, 100 s ahead: the means are late by a tenth, the lines are trusted instead."""

    def wave(second: float) -> float:
        return 20.0 * (1.0 + 0.7 * math.sin(second / 3600.0 * 2.0 * math.pi))

    truths = []
    for seconds in range(1800, 5400, 600):
        found = expected(wave, seconds=seconds, noisy=1)
        truths.append(wave(seconds + LEAD_S) / (found.level_rps + found.rise_rps))
    assert all(abs(math.log(truth)) < 0.35 for truth in truths), truths
    assert sum(abs(math.log(truth)) for truth in truths) / len(truths) < 0.15


def test_a_restless_load_gets_a_wider_band_than_a_calm_one() -> None:
    rng = random.Random(5)
    levels = [rng.uniform(5.0, 35.0) for _ in range(100)]
    calm = expected(lambda _: 20.0, noisy=2)
    restless = expected(lambda second: levels[int(second // 60.0)], noisy=2)
    assert restless.error > 3.0 * calm.error


def test_a_step_is_believed_before_the_experts_follow() -> None:
    found = expected(lambda second: 2.0 if second < 1790.0 else 20.0)
    assert found.burst_rps > 12.0
    assert found.up_rps >= found.burst_rps


def test_before_anybody_was_judged_the_prior_is_the_band() -> None:
    buckets = (Bucket(end_s=1.0, seconds=1.0, arrivals=2.0, need=0),)
    found = expect(buckets, first_errors(0.0), LEAD_S, TUNING)
    assert found is not None
    assert found.level_rps == pytest.approx(2.0 / TUNING.first_window_s)
    assert found.error == pytest.approx(TUNING.error_prior)


def test_no_look_judges_twice_and_a_gap_judges_nothing_by_itself() -> None:
    buckets, errors = watched(lambda _: 5.0, seconds=600)
    assert judged(errors, buckets, LEAD_S, TUNING) == errors
    assert len(errors.squares) == EXPERTS + 1


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=120),
    st.sampled_from([2.0, 30.0, 240.0]),
)
def test_whatever_was_counted_the_expectation_is_a_number(counts: list[int], lead_s: float) -> None:
    buckets: tuple[Bucket, ...] = ()
    errors = first_errors(0.0)
    for place, count in enumerate(counts):
        end_s = 5.0 * (place + 1)
        buckets = with_arrivals(buckets, end_s=end_s, seconds=5.0, arrivals=float(count), lead_s=lead_s, tuning=TUNING)
        errors = judged(errors, buckets, lead_s, TUNING)
    found = expect(buckets, errors, lead_s, TUNING)
    assert found is not None
    assert all(math.isfinite(value) and value >= 0.0 for value in (found.up_rps, found.keep_rps, found.error))
    assert found.up_rps <= 10.0 * (max(counts) + 1.0), "no forecast beyond what any expert could say"


def test_a_start_from_nothing_leaves_a_band_that_means_something() -> None:
    """A factor of 80 is no error of an expert: nobody could have known."""
    found = expected(lambda second: 0.0 if second < 600.0 else 40.0, seconds=1000)
    assert found.error <= TUNING.error_most
    assert found.up_rps < 2.0 * 40.0


def test_a_peak_is_recalled_for_a_while_and_then_forgotten() -> None:
    def spiky(second: float) -> float:
        return 60.0 if 1000.0 < second <= 1060.0 else 20.0

    just_after, long_after = (expected(spiky, seconds=seconds) for seconds in (1080, 1400))
    assert just_after.peak_rps == pytest.approx(60.0, rel=0.01)
    assert min(just_after.up_rps, just_after.keep_rps) >= just_after.peak_rps
    assert long_after.peak_rps == pytest.approx(20.0, rel=0.01)
    assert long_after.keep_rps < 40.0


def test_peaks_fall_and_are_few() -> None:
    _, errors = watched(lambda second: 20.0 + 10.0 * math.sin(second / 40.0), noisy=5)
    rates = [peak.rate_rps for peak in errors.peaks]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) <= TUNING.recall_leads * TUNING.bucket_per_lead + 1
