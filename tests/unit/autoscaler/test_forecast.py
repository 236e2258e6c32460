"""Level, change point, trend and band from counted arrivals."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.forecast import Demand, estimate, hold_s, window_s, with_arrivals
from controlplane.autoscaler.model import Bucket, Tuning

TUNING = Tuning()
LEAD_S = 60.0


def history(rates: list[float], *, seconds: float = 3.0) -> tuple[Bucket, ...]:
    return tuple(
        Bucket(end_s=(place + 1) * seconds, seconds=seconds, arrivals=rate * seconds, need=0)
        for place, rate in enumerate(rates)
    )


def demand(rates: list[float], *, lead_s: float = LEAD_S) -> Demand:
    found = estimate(history(rates), lead_s=lead_s, tuning=TUNING)
    assert found is not None
    return found


def test_nothing_measured_is_no_demand_known() -> None:
    assert estimate((), lead_s=LEAD_S, tuning=TUNING) is None


def test_steady_arrivals_get_a_poisson_band() -> None:
    found = demand([10.0] * 60)
    sd = math.sqrt(10.0 / 180.0)
    assert found.level_rps == pytest.approx(10.0)
    assert found.rise_rps == 0.0
    assert found.burst_rps == 0.0
    assert found.up_rps == pytest.approx(10.0 + TUNING.up_z * sd)
    assert found.keep_rps == pytest.approx(10.0 + TUNING.keep_z * sd)


def test_a_rising_trend_is_carried_to_the_horizon() -> None:
    found = demand([10.0 + 0.1 * 3.0 * place for place in range(60)])
    truth = 10.0 + 0.1 * (180.0 + LEAD_S)
    assert truth * 0.85 < found.up_rps < truth * 1.15


def test_a_falling_trend_promises_nothing() -> None:
    found = demand([40.0 - 0.2 * place for place in range(60)])
    assert found.rise_rps == 0.0
    assert found.up_rps >= found.level_rps


def test_a_step_is_a_change_point() -> None:
    found = demand([2.0] * 55 + [12.0] * 5)
    assert found.burst_s == pytest.approx(15.0)
    assert 9.0 < found.burst_rps < 12.0
    assert found.up_rps >= found.burst_rps


def test_two_requests_in_the_first_second_are_not_two_per_second() -> None:
    found = estimate((Bucket(end_s=1.0, seconds=1.0, arrivals=2.0, need=0),), lead_s=LEAD_S, tuning=TUNING)
    assert found is not None
    assert found.level_rps == pytest.approx(0.2)


def test_real_bursts_widen_the_band() -> None:
    rng = random.Random(3)
    calm = demand([10.0] * 60)
    wild = demand([rng.choice([0.0, 20.0]) for _ in range(60)])
    assert wild.up_rps - wild.level_rps > 2.0 * (calm.up_rps - calm.level_rps)


def test_spans_are_merged_into_buckets_and_old_ones_forgotten() -> None:
    buckets: tuple[Bucket, ...] = ()
    for second in range(1, 1001):
        buckets = with_arrivals(buckets, end_s=float(second), seconds=1.0, arrivals=4.0, lead_s=LEAD_S, tuning=TUNING)
    assert max(bucket.seconds for bucket in buckets) <= LEAD_S / TUNING.bucket_per_lead
    assert buckets[0].end_s > 1000.0 - window_s(LEAD_S, TUNING) - LEAD_S, "a window, and a lead to judge forecasts by"
    assert len(buckets) <= 81
    assert sum(bucket.arrivals for bucket in buckets) == pytest.approx(4.0 * sum(bucket.seconds for bucket in buckets))


def test_a_gap_starts_a_new_bucket_and_no_time_adds_none() -> None:
    one = with_arrivals((), end_s=1.0, seconds=0.5, arrivals=1.0, lead_s=LEAD_S, tuning=TUNING)
    assert with_arrivals(one, end_s=2.0, seconds=0.0, arrivals=0.0, lead_s=LEAD_S, tuning=TUNING) == one
    two = with_arrivals(one, end_s=50.0, seconds=0.5, arrivals=1.0, lead_s=LEAD_S, tuning=TUNING)
    assert [bucket.end_s for bucket in two] == [1.0, 50.0]


@pytest.mark.parametrize(
    ("lead", "hold"), [(2.0, 15.0), (5.0, 30.0), (10.0, 60.0), (40.0, 60.0), (100.0, 60.0), (400.0, 120.0)]
)
def test_the_hold_time_follows_the_cold_start(lead: float, hold: float) -> None:
    assert hold_s(lead, TUNING) == pytest.approx(hold)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=60),
    st.integers(0, 200),
    st.integers(1, 50),
    st.sampled_from([5.0, 60.0, 240.0]),
)
def test_one_more_arrival_now_never_lowers_the_demand(counts: list[int], newest: int, more: int, lead_s: float) -> None:
    def with_newest(arrivals: int) -> Demand:
        buckets = history([count / 3.0 for count in [*counts, arrivals]])
        found = estimate(buckets, lead_s=lead_s, tuning=TUNING)
        assert found is not None
        return found

    before, after = with_newest(newest), with_newest(newest + more)
    assert after.up_rps >= before.up_rps - 1e-9
    assert after.keep_rps >= before.keep_rps - 1e-9


@given(st.lists(st.floats(0.0, 1e4), min_size=1, max_size=80), st.floats(2.0, 600.0))
def test_the_bands_are_ordered_and_finite(rates: list[float], lead_s: float) -> None:
    found = demand(rates, lead_s=lead_s)
    assert 0.0 <= found.up_rps <= found.keep_rps < math.inf
    assert found.rise_rps >= 0.0
