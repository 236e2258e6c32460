"""Answers of Prometheus, as a history: replicas, gaps, lengths, latencies, and demand drawn from it."""

import numpy as np
import pytest

from controlplane.simulation.dry_run.demand import demand_of, drawn
from controlplane.simulation.dry_run.grid import POINTS_MAX, Grid, grid_over, step_for
from controlplane.simulation.dry_run.happened import Happened, happened, quantile_bounds
from controlplane.simulation.dry_run.history import (
    History,
    Stretch,
    coefficient_of_variation,
    history_of,
    mean_lengths,
    stretches,
)
from controlplane.simulation.dry_run.questions import Ask
from tests.unit.dry_run.hand_made import MINUTE, NAN, Line, constant, line, merged, one_replica

MOMENTS = MINUTE.moments


def steady(per_minute: float = 6.0) -> list[float]:
    return [100.0 + per_minute * moment for moment in range(MOMENTS)]


def account(history: History, *, ttft_slo_s: float = 2.0, itl_slo_s: float = 0.05) -> Happened:
    return happened(
        history,
        stretches(history),
        gpus_per_replica=2,
        cold_start_s=120.0,
        ttft_slo_s=ttft_slo_s,
        itl_slo_s=itl_slo_s,
    )


@pytest.mark.parametrize(
    ("range_s", "scrape_s", "step_s"),
    [(7 * 86400, 15, 60), (3600, 15, 15), (3600, 7, 10), (90 * 86400, 15, 900), (500 * 86400, 15, 3928)],
)
def test_the_step_is_the_finest_that_one_answer_can_have(range_s: float, scrape_s: float, step_s: float) -> None:
    assert step_for(range_s, scrape_s) == step_s
    assert grid_over(0.0, range_s, step_s).moments <= POINTS_MAX


def test_samples_lie_on_the_grid() -> None:
    grid = Grid(start_s=600.0, step_s=60.0, intervals=3)
    assert grid.column(line(grid, [1, NAN, 3, 4])).tolist() == pytest.approx([1, NAN, 3, 4], nan_ok=True)


def test_steady_traffic_of_one_replica() -> None:
    history = history_of(MINUTE, one_replica(steady(), constant(MINUTE, 2.0)))
    assert history.arrived.tolist() == [6.0] * 60
    assert history.ready.tolist() == [1] * 60
    assert stretches(history) == (Stretch(0, 60),)
    found = account(history)
    assert (found.requests, found.hours, found.gpu_hours, found.scale_events) == (360.0, 1.0, 2.0, 0)
    assert (found.ttft, found.attainment, found.gpu_hours_told) == (None, None, False)


def test_replicas_come_and_go() -> None:
    """The second one is there for the middle half hour; its start is estimated where Kubernetes does not tell."""
    second = [NAN] * 15 + [6.0 * step for step in range(31)] + [NAN] * 15
    other = one_replica(second, [NAN if np.isnan(value) else 1.0 for value in second], pod="b")
    history = history_of(MINUTE, merged(one_replica(steady(), constant(MINUTE, 2.0)), other))
    assert history.ready.tolist() == [1] * 14 + [2] * 31 + [1] * 15
    assert history.arrived.sum() == 360 + 180 + 1
    found = account(history)
    assert (found.scale_events, found.direction_changes) == (2, 1)
    assert found.gpu_hours == pytest.approx(2 * (60 + 31 + 2) / 60)


def test_kubernetes_tells_what_starts_too() -> None:
    answers = one_replica(steady(), constant(MINUTE, 2.0))
    answers[Ask.HELD] = [line(MINUTE, [1.0] * 30 + [3.0] * 31)]
    answers[Ask.WANTED] = [line(MINUTE, [1.0] * 30 + [2.0] * 10 + [3.0] * 21)]
    found = account(history_of(MINUTE, answers))
    assert found.gpu_hours_told
    assert found.gpu_hours == pytest.approx(2 * (29 + 3 * 31) / 60)
    assert found.scale_events == 2


def with_hole(first: int, last: int) -> tuple[list[float], list[float]]:
    finished, opened = steady(), constant(MINUTE, 2.0)
    finished[first:last] = opened[first:last] = [NAN] * (last - first)
    return finished, opened


def test_a_short_gap_is_bridged() -> None:
    history = history_of(MINUTE, one_replica(*with_hole(20, 25)))
    assert history.known.all()
    assert history.arrived.tolist() == pytest.approx([6.0] * 60)
    assert history.ready.tolist() == [1] * 60


def test_a_long_gap_is_left_out() -> None:
    history = history_of(MINUTE, one_replica(*with_hole(20, 40)))
    assert stretches(history) == (Stretch(0, 19), Stretch(40, 60))
    found = account(history)
    assert found.hours == pytest.approx(39 / 60)
    assert found.requests == pytest.approx(6 * 39)
    assert found.gpu_hours == pytest.approx(2 * 39 / 60)


def test_a_stretch_of_minutes_between_gaps_tells_nothing() -> None:
    finished, opened = with_hole(5, 25)
    history = history_of(MINUTE, one_replica(finished, opened))
    assert stretches(history) == (Stretch(25, 60),)


def test_no_replica_is_known_where_prometheus_scraped_others() -> None:
    finished, opened = with_hole(20, 61)
    answers = one_replica(finished, opened)
    answers[Ask.WATCHED] = [line(MINUTE, constant(MINUTE, 3.0))]
    history = history_of(MINUTE, answers)
    assert stretches(history) == (Stretch(0, 60),)
    assert history.ready.tolist() == [1] * 19 + [0] * 41
    answers[Ask.FAILING] = [line(MINUTE, [NAN] * 20 + [1.0] * 41)]
    assert stretches(history_of(MINUTE, answers)) == (Stretch(0, 19),)


def test_kubernetes_says_that_there_is_none() -> None:
    finished, opened = with_hole(20, 61)
    answers = one_replica(finished, opened)
    answers[Ask.HELD] = [line(MINUTE, [1.0] * 20 + [0.0] * 41)]
    assert stretches(history_of(MINUTE, answers)) == (Stretch(0, 60),)


def test_a_replica_that_is_scraped_twice_counts_once() -> None:
    jobs = ("vllm", "vllm-again")
    finished = [line(MINUTE, steady(), pod="a", job=job) for job in jobs]
    opened = [line(MINUTE, constant(MINUTE, 2.0), pod="a", job=job) for job in jobs]
    twice = {Ask.SUCCESS: finished, Ask.RUNNING: opened}
    history = history_of(MINUTE, twice)
    assert history.doubled == ("model_name=m,pod=a",)
    assert history.arrived.sum() == 360
    assert history.ready.max() == 1


def test_counts_from_before_are_left_out() -> None:
    late = [NAN] * 30 + [50_000.0 + 6.0 * step for step in range(31)]
    other = one_replica(late, [NAN if np.isnan(value) else 1.0 for value in late], pod="b")
    history = history_of(MINUTE, merged(one_replica(steady(), constant(MINUTE, 2.0)), other))
    assert history.late == ("model_name=m,pod=b",)
    assert history.arrived.sum() == 360 + 180


def histogram(ask: Ask, shares: dict[str, float]) -> dict[Ask, list[Line]]:
    return {ask: [line(MINUTE, [share * value for value in steady()], pod="a", le=le) for le, share in shares.items()]}


def test_an_objective_between_two_edges_gives_bounds() -> None:
    answers = {
        **one_replica(steady(), constant(MINUTE, 2.0)),
        **histogram(Ask.TTFT, {"1.0": 0.9, "2.5": 0.98, "+Inf": 1.0}),
        **histogram(Ask.PER_TOKEN, {"0.05": 0.95, "+Inf": 1.0}),
    }
    found = account(history_of(MINUTE, answers))
    assert found.ttft is not None
    assert found.per_token is not None
    assert found.attainment is not None
    assert (found.ttft.low, found.ttft.high) == pytest.approx((0.9, 0.98))
    assert (found.per_token.low, found.per_token.high) == pytest.approx((0.95, 0.95))
    # At worst other requests missed each of the two, at best those that missed one missed both.
    assert (found.attainment.low, found.attainment.high) == pytest.approx((0.85, 0.95))


def test_lengths_are_those_of_the_hour_around() -> None:
    """Prompts double after half of six hours."""
    grid = Grid(start_s=0.0, step_s=60.0, intervals=360)
    finished = [6.0 * moment for moment in range(361)]
    prompts = np.cumsum([0.0] + [6.0 * (1000 if step < 180 else 2000) for step in range(360)])
    answers = one_replica(finished, constant(grid, 1.0), grid)
    answers[Ask.PROMPT_TOKENS] = [line(grid, list(prompts), pod="a")]
    answers[Ask.OUTPUT_TOKENS] = [line(grid, [300.0 * value for value in finished], pod="a")]
    prompt, output = mean_lengths(history_of(grid, answers))
    assert (prompt[100], prompt[300]) == pytest.approx((1000.0, 2000.0))
    assert 1000.0 < prompt[180] < 2000.0
    assert output.tolist() == pytest.approx([300.0] * 360)


def test_as_many_requests_are_drawn_in_each_interval_as_came() -> None:
    per_minute = np.tile([0.0, 3.0, 7.0, 0.5], 15)
    finished = np.concatenate([[0.0], np.cumsum(per_minute)])
    history = history_of(MINUTE, one_replica(list(finished), constant(MINUTE, 0.0)))
    demand = demand_of("m", history, Stretch(0, 60), (np.full(60, 500.0), np.full(60, 100.0)))
    for seed in (0, 1):
        workload = drawn(demand, seed)
        assert workload is not None
        found = np.bincount((workload.arrival_s / 60.0).astype(int), minlength=60)
        assert abs(found - per_minute).max() <= 0.5
        assert workload.requests == round(per_minute.sum())
    assert drawn(demand_of("m", history, Stretch(0, 1), (np.ones(60), np.ones(60))), 0) is None


def test_quantiles_lie_between_edges() -> None:
    edges, counts = (0.5, 1.0, 2.5, float("inf")), np.array([50.0, 90.0, 99.5, 100.0])
    found = quantile_bounds(0.99, edges, counts)
    assert (found.low, found.high) == (1.0, 2.5)
    assert quantile_bounds(0.999, edges, counts).high == float("inf")
    assert np.isnan(quantile_bounds(0.99, (), np.zeros(0)).high)


def test_how_far_lengths_spread() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(6.0, 0.8, 100_000)
    edges = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, float("inf"))
    counts = np.array([(lengths <= edge).sum() for edge in edges], dtype=np.float64)
    assert coefficient_of_variation(edges, counts) == pytest.approx(lengths.std() / lengths.mean(), rel=0.1)
    assert np.isnan(coefficient_of_variation((), np.zeros(0)))
