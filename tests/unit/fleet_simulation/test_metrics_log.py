"""Queries on scrapes, as Prometheus answers them: numbers worked out by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from controlplane.simulation.fleet.metrics import MetricsLog, histogram_quantile
from controlplane.simulation.fleet.policy import Counter, Gauge, Latency
from controlplane.simulation.fleet.state import DRAINING, EDGES, EMPTY, READY, Fleet
from tests.unit.fleet_simulation.small_fleets import SMALL, fleet_of

SLOTS = 3
COUNTED = {"arrived": Counter.ARRIVED, "tokens": Counter.OUTPUT_TOKENS}


class Page:
    """What the engines would show, set by hand, scraped at will."""

    def __init__(self, *, scrape_s: float = 15.0) -> None:
        self.fleet: Fleet = fleet_of([(0.0, 1, 1)], SMALL, replicas=SLOTS)
        self.log = MetricsLog(scrape_s=scrape_s, slots=SLOTS)

    def scrape(self, at_s: float, **counted: float) -> None:
        for name, value in counted.items():
            self.fleet.totals[0].counters[COUNTED[name]] = value
        self.log.scrape(self.fleet, SMALL, at_s)
        self.log.look(at_s)

    def observe(self, seconds: Sequence[float], latency: Latency = Latency.TTFT) -> None:
        totals = self.fleet.totals[0]
        for value in seconds:
            totals.buckets[latency, np.searchsorted(EDGES[latency], value)] += 1.0
            totals.sums[latency] += value

    def runs(self, *running: int, waiting: Sequence[int] = (0, 0, 0)) -> None:
        self.fleet.slots.running, self.fleet.slots.waiting = running, waiting


# -- counters ---------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_growth_between_first_and_last_sample_of_the_window() -> None:
    page = Page()
    for at_s, arrived in [(0, 0), (15, 30), (30, 60), (45, 105), (60, 165)]:
        page.scrape(at_s, arrived=arrived)
    assert page.log.rate(Counter.ARRIVED, 60.0) == pytest.approx(165 / 60)
    assert page.log.rate(Counter.ARRIVED, 30.0) == pytest.approx((165 - 60) / 30)
    assert page.log.increase(Counter.ARRIVED, 30.0) == pytest.approx(105.0)


def test_a_window_that_the_samples_do_not_fill_is_extrapolated() -> None:
    """`rate` of 40 within the 30 s between the samples at 15 and 45; `increase` over the minute is twice that."""
    page = Page()
    for at_s, arrived in [(15, 100), (30, 120), (45, 140)]:
        page.scrape(at_s, arrived=arrived)
    page.log.look(50.0)
    assert page.log.rate(Counter.ARRIVED, 60.0) == pytest.approx(40 / 30)
    assert page.log.increase(Counter.ARRIVED, 60.0) == pytest.approx(80.0)


def test_one_sample_has_no_rate() -> None:
    page = Page()
    page.scrape(0.0, arrived=5)
    assert math.isnan(page.log.rate(Counter.ARRIVED, 60.0))
    page.scrape(15.0, arrived=9)
    assert math.isnan(page.log.rate(Counter.ARRIVED, 10.0)), "only the last one is in the window"


def test_old_samples_fall_out_of_the_ring_and_not_into_a_window() -> None:
    page = Page(scrape_s=1.0)
    for second in range(2000):
        page.scrape(float(second), arrived=3.0 * second)
    assert page.log.rate(Counter.ARRIVED, 60.0) == pytest.approx(3.0)
    assert page.log.increase(Counter.ARRIVED, 600.0) == pytest.approx(1800.0)


# -- histograms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.5, 1.0), (0.25, 0.5), (0.75, 1.5), (0.9, 1.8), (1.0, 2.0)],
)
def test_a_quantile_is_linear_inside_its_bucket(q: float, expected: float) -> None:
    """Ten observations up to 1 s and ten up to 2 s: the median is the edge, P90 four fifths into the second bucket."""
    assert histogram_quantile(q, np.array([10.0, 10.0, 0.0]), (1.0, 2.0)) == pytest.approx(expected)


@pytest.mark.parametrize("value_s", [0.2501, 0.3, 0.4999])
def test_it_sees_a_bucket_and_not_the_value(value_s: float) -> None:
    """All between 0.25 and 0.5 s: P90 is 0.475 wherever they are; the documentation's own warning."""
    page = Page()
    page.scrape(0.0)
    page.observe([value_s] * 40)
    page.scrape(15.0)
    assert page.log.quantile(Latency.TTFT, 0.9, 60.0) == pytest.approx(0.25 + 0.9 * 0.25)


def test_the_lowest_bucket_begins_at_0_and_beyond_the_last_edge_is_the_edge() -> None:
    assert histogram_quantile(0.5, np.array([8.0, 0.0, 0.0]), (0.1, 0.2)) == pytest.approx(0.05)
    assert histogram_quantile(0.9, np.array([1.0, 0.0, 9.0]), (0.1, 0.2)) == 0.2
    assert math.isnan(histogram_quantile(0.9, np.zeros(3), (0.1, 0.2)))


def test_a_quantile_is_of_the_window_alone() -> None:
    page = Page()
    page.observe([9.0] * 1000)
    page.scrape(0.0)
    page.observe([0.3] * 10)
    page.scrape(15.0)
    assert page.log.quantile(Latency.TTFT, 0.5, 60.0) == pytest.approx(0.375)
    assert page.log.mean_latency(Latency.TTFT, 60.0) == pytest.approx(0.3)
    page.scrape(30.0)
    assert math.isnan(page.log.quantile(Latency.TTFT, 0.5, 15.0)), "nothing was observed since"
    assert math.isnan(page.log.mean_latency(Latency.TTFT, 15.0))


def test_a_histogram_is_read_as_it_stands() -> None:
    page = Page()
    page.observe([0.3, 0.3, 700.0])
    page.scrape(0.0)
    buckets = page.log.observed(Latency.TTFT)
    assert buckets.sum() == 3
    assert buckets[EDGES[Latency.TTFT].index(0.5)] == 2
    assert page.log.observed_s(Latency.TTFT) == pytest.approx(700.6)


# -- gauges -----------------------------------------------------------------------------------------------------------


def test_gauges_are_those_of_the_ready_replicas_at_the_last_scrape() -> None:
    page = Page()
    page.runs(4, 6, 9, waiting=(1, 0, 3))
    page.fleet.slots.phase = [READY, READY, DRAINING]
    page.fleet.slots.used[1] = SMALL.kv_tokens // 4
    page.scrape(0.0)
    page.runs(100, 100, 100)
    assert page.log.per_replica(Gauge.RUNNING).tolist() == [4.0, 6.0]
    assert page.log.total(Gauge.WAITING) == 1.0
    assert page.log.per_replica(Gauge.KV_USAGE).tolist() == [0.0, 0.25]


def test_means_and_peaks_over_a_window() -> None:
    page = Page()
    page.fleet.slots.phase = [READY, READY, EMPTY]
    for at_s, one, other, held in [(0, 50, 50, 9), (15, 1, 2, 0), (30, 5, 0, 3), (45, 3, 1, 0)]:
        page.runs(one, other, 0)
        page.fleet.totals[0].held = held
        page.scrape(at_s)
    assert page.log.mean_over(Gauge.RUNNING, 30.0) == pytest.approx((3 + 5 + 3 + 4) / 3), "3 were held once"
    assert page.log.peak_over(Gauge.RUNNING, 30.0).tolist() == [5.0, 2.0]
    assert page.log.held() == 0.0


def test_without_a_ready_replica_there_is_no_series() -> None:
    page = Page()
    page.fleet.slots.phase = EMPTY
    page.scrape(0.0)
    assert math.isnan(page.log.total(Gauge.RUNNING))
    assert len(page.log.per_replica(Gauge.RUNNING)) == 0
    assert len(page.log.peak_over(Gauge.RUNNING, 60.0)) == 0


# -- scrapes that do not come -----------------------------------------------------------------------------------------


def test_an_instant_query_believes_its_last_sample_for_five_minutes() -> None:
    page = Page()
    page.runs(7, 0, 0)
    page.scrape(1000.0)
    page.log.look(1300.0)
    assert page.log.total(Gauge.RUNNING) == 7.0
    page.log.look(1300.5)
    assert math.isnan(page.log.total(Gauge.RUNNING))
    assert math.isnan(page.log.held())
    assert page.log.scraped_s() == 1000.0


def test_windows_empty_as_scrapes_stay_out() -> None:
    page = Page()
    for at_s, arrived in [(0, 0), (15, 30), (30, 60)]:
        page.observe([0.3])
        page.scrape(at_s, arrived=arrived)
    page.log.look(70.0)
    assert page.log.rate(Counter.ARRIVED, 60.0) == pytest.approx(2.0), "the samples at 15 and 30"
    page.log.look(80.0)
    assert math.isnan(page.log.rate(Counter.ARRIVED, 60.0)), "one is left"
    assert math.isnan(page.log.quantile(Latency.TTFT, 0.9, 60.0))
    page.log.look(91.0)
    assert math.isnan(page.log.mean_over(Gauge.RUNNING, 60.0))
    assert len(page.log.peak_over(Gauge.RUNNING, 60.0)) == 0


def test_before_the_first_scrape_there_is_nothing() -> None:
    log = Page().log
    log.look(0.0)
    assert math.isnan(log.scraped_s())
    assert math.isnan(log.total(Gauge.RUNNING))
    assert math.isnan(log.rate(Counter.ARRIVED, 60.0))
    assert math.isnan(log.mean_over(Gauge.WAITING, 60.0))
