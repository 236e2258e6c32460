"""A deployment in virtual time: starts and their price, drains that lose nobody, and what happens when things fail."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.outcome import outcome_of
from controlplane.simulation.fleet.routing import SHORTEST_QUEUE
from controlplane.simulation.fleet.world import Span, World
from tests.unit.fleet_simulation.scripted import Script, all_answered, played, scenario, turns
from tests.unit.fleet_simulation.small_fleets import SMALL, figures, seeded_load

ONE = [(0.5, 10, 10)]
LONG = 3000
"""Tokens of output that take about 77 s alone (a step grows from 10.5 to 41 ms)."""


# -- starting ---------------------------------------------------------------------------------------------------------


def test_an_order_is_ready_after_the_cold_start_and_paid_from_the_launch() -> None:
    run, script = played(ONE, {100.0: 3})
    assert turns(run.timeline.wanted) == {0: 1, 100: 3}
    assert turns(run.timeline.billed) == {0: 1, 100: 3}
    assert turns(run.timeline.ready) == {0: 1, 130: 3}
    assert run.replica_seconds == 100 * 1 + 500 * 3
    assert run.changes == ((100.0, 1, 3),)
    starting = script.at(115.0)
    assert (starting.ready, starting.starting, starting.starting_age_s) == (1, 2, 15.0)
    assert script.at(130.0).cold_starts_s == (30.0, 30.0)
    assert script.at(131.0).cold_starts_s == (), "told once"


def test_those_that_are_there_at_the_beginning_have_no_cold_start() -> None:
    run, script = played(ONE, {}, replicas_first=2)
    assert turns(run.timeline.ready) == {0: 2}
    assert all(seen.cold_starts_s == () for seen, _ in script.seen)


def test_a_cancelled_start_is_paid_until_it_is_cancelled() -> None:
    run, _ = played(ONE, {100.0: 4, 110.0: 3, 120.0: 2})
    assert turns(run.timeline.billed) == {0: 1, 100: 4, 110: 3, 120: 2}
    assert turns(run.timeline.ready) == {0: 1, 130: 2}


def test_starts_are_cancelled_the_newest_first_and_before_any_replica_drains() -> None:
    run, script = played(ONE, {100.0: 2, 110.0: 3, 115.0: 2, 118.0: 1})
    assert script.at(116.0).starting_age_s == 16.0, "the older one is left"
    assert turns(run.timeline.ready) == {0: 1}
    assert all(seen.draining == 0 for seen, _ in script.seen)


def test_cold_starts_spread_as_told() -> None:
    load = [(0.5, 10, 10)]
    wanted = {float(at_s): 8 if at_s % 100 else 0 for at_s in range(50, 20_000, 50)}
    _, script = played(load, wanted, duration_s=20_000.0, cold_start_s=10.0, cold_start_cv=0.3, replicas_first=0)
    found = np.array([start for seen, _ in script.seen for start in seen.cold_starts_s])
    assert len(found) > 1000
    assert found.mean() == pytest.approx(10.0, rel=0.03)
    assert found.std() / found.mean() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("wanted", [-3, 99])
def test_the_bounds_hold_whatever_a_policy_wants(wanted: int) -> None:
    run, _ = played(ONE, {100.0: wanted}, replicas_min=1)
    assert run.timeline.wanted[-1] == (1 if wanted < 0 else 8)


def test_while_nobody_is_ready_requests_are_held_and_then_served() -> None:
    run, script = played(ONE, {60.0: 1}, replicas_first=0)
    assert script.at(65.0).metrics is script.at(66.0).metrics
    assert run.fleet.requests[0].first_s == pytest.approx(90.0, abs=0.1)
    assert all_answered(run)


# -- draining ---------------------------------------------------------------------------------------------------------


def test_a_drain_lasts_until_its_last_request_is_through_and_is_paid_so_long() -> None:
    load = [(10.0, 10, LONG), (10.5, 10, 20)]
    run, script = played(load, {20.0: 0}, replicas_first=2, duration_s=1200.0)
    done_s = float(run.fleet.requests[0].done_s)
    assert done_s == pytest.approx(10.0 + 3000 * 0.0255, abs=1.0)
    assert turns(run.timeline.billed) == {0: 2, 20: 1, math.floor(done_s): 0}
    assert turns(run.timeline.ready) == {0: 2, 20: 0}
    assert script.at(60.0).draining == 1
    assert run.replica_seconds == 2 * 20 + math.floor(done_s) - 20
    assert all_answered(run)


def test_the_one_with_the_fewest_requests_drains() -> None:
    load = [(10.0, 10, LONG), (10.1, 10, 20), (11.0, 10, LONG), (11.1, 10, LONG)]
    run, _ = played(load, {20.0: 1}, replicas_first=2, duration_s=1200.0)
    assert run.fleet.slots.open.sum() == 0
    ends = sorted(run.fleet.requests.done_s[[0, 2, 3]])
    assert turns(run.timeline.billed)[math.floor(ends[0])] == 1, "the second had one of the three long ones"


def test_a_drainer_gets_no_more_requests() -> None:
    load = [(10.0, 10, LONG), *((30.0 + second, 10, 20) for second in range(20))]
    run, _ = played(load, {20.0: 1}, replicas_first=2, duration_s=1200.0)
    assert all_answered(run)
    assert turns(run.timeline.ready) == {0: 2, 20: 1}


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 8), min_size=1, max_size=30),
    period_s=st.sampled_from([1.0, 7.0, 20.0]),
    cold_start_s=st.sampled_from([0.0, 3.0, 30.0]),
    seed=st.integers(0, 3),
)
def test_no_request_is_ever_dropped(counts: list[int], period_s: float, cold_start_s: float, seed: int) -> None:
    """Whatever the policy does, as long as it ends with a replica."""
    wanted = {10.0 + period_s * number: count for number, count in enumerate([*counts, 1])}
    load = seeded_load(60, seed, rate_rps=1.0)
    run, _ = played(load, wanted, cold_start_s=cold_start_s, cold_start_cv=0.2, duration_s=700.0, replicas_max=8)
    assert all_answered(run)
    assert (run.timeline.billed >= run.timeline.ready).all()
    assert (run.timeline.ready <= 8).all()
    assert run.timeline.arrived.sum() == len(load)


def test_a_policy_that_turns_faster_than_requests_end_is_not_stuck() -> None:
    """It orders and drains eight replicas every four seconds, each with requests of half a minute and more."""
    timing = SMALL._replace(step_per_context_token_s=0.0, max_num_seqs=64, max_num_batched_tokens=256)
    load = [(1.0 + number / 4.0, 10, LONG) for number in range(160)]
    wanted = {4.0 * turn: 8 if turn % 2 else 1 for turn in range(1, 25)} | {100.0: 4}
    run, script = played(load, wanted, cold_start_s=1.0, timing=timing)
    assert max(seen.draining for seen, _ in script.seen) > 9
    assert all_answered(run)
    assert run.timeline.ready[-1] == run.timeline.billed[-1] == 4


# -- what fails -------------------------------------------------------------------------------------------------------


def test_without_gpus_orders_wait_unpaid_and_are_fulfilled_later() -> None:
    run, script = played(ONE, {100.0: 3}, no_gpus=(Span(90.0, 200.0),))
    assert turns(run.timeline.billed) == {0: 1, 200: 3}
    assert turns(run.timeline.ready) == {0: 1, 230: 3}
    assert script.at(150.0).starting == 2
    assert script.at(230.0).cold_starts_s == (130.0, 130.0), "order to ready: what a policy can measure"


def test_an_order_that_waits_for_gpus_can_be_taken_back_for_nothing() -> None:
    run, _ = played(ONE, {100.0: 3, 150.0: 1}, no_gpus=(Span(90.0, 200.0),))
    assert turns(run.timeline.billed) == {0: 1}
    assert turns(run.timeline.ready) == {0: 1}


def test_what_had_its_gpus_starts_whatever_is_left() -> None:
    run, _ = played(ONE, {80.0: 2, 100.0: 3}, no_gpus=(Span(90.0, 200.0),))
    assert turns(run.timeline.ready) == {0: 1, 110: 2, 230: 3}


def test_no_state_is_stuck_after_gpus_come_back_again_and_again() -> None:
    spans = tuple(Span(start, start + 60.0) for start in np.arange(50.0, 1000.0, 100.0))
    wanted = {float(at_s): 1 + at_s // 10 % 8 for at_s in range(20, 1000, 10)}
    run, _ = played(seeded_load(200, 2, rate_rps=0.2), wanted, no_gpus=spans, duration_s=1200.0)
    assert all_answered(run)
    assert run.timeline.wanted[-1] == run.timeline.ready[-1] == run.timeline.billed[-1]


def test_without_metrics_nothing_is_scraped_and_the_counters_go_on_later() -> None:
    load = [(float(second), 10, 10) for second in range(1, 300)]
    run, script = played(load, {}, no_metrics=(Span(100.0, 200.0),))
    ages = {seen.at_s: age_s for seen, age_s in script.seen}
    assert (ages[99.0], ages[150.0], ages[199.0], ages[200.0]) == (4.0, 55.0, 104.0, 0.0)
    assert all_answered(run)
    assert outcome_of("script", scenario(load), run, ttft_slo_s=1.0, itl_slo_s=0.1).attainment == 1.0


def test_what_is_never_answered_is_missed_and_the_run_ends() -> None:
    run, _ = played(seeded_load(20, 1), {60.0: 0}, replicas_first=0)
    outcome = outcome_of("script", scenario(seeded_load(20, 1)), run, ttft_slo_s=1e6, itl_slo_s=1e6)
    assert (outcome.unanswered, outcome.attainment, outcome.ttft_p99_s) == (20, 0.0, math.inf)
    assert run.seconds == 600.0 + 1800.0


# -- the same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [0, SHORTEST_QUEUE])
def test_the_same_seed_is_the_same_run_to_the_last_bit(routing: int) -> None:
    setting = scenario(seeded_load(300, 4, rate_rps=2.0), cold_start_cv=0.3, routing=routing, seed=7)
    policy = Script(wanted={30.0: 4, 90.0: 2, 120.0: 6, 200.0: 1})
    one, again = World(setting, policy).run(), World(setting, policy).run()
    assert figures(one.fleet) == figures(again.fleet)
    assert (one.timeline.ready == again.timeline.ready).all()
    other = World(replace(setting, seed=8), policy).run()
    assert (other.timeline.ready != one.timeline.ready).any(), "another seed: other cold starts"


def test_decisions_and_scrapes_come_at_the_policys_own_intervals() -> None:
    script = Script(tick_s=15.0, scrape_s=30.0)
    World(scenario(ONE), script).run()
    assert [seen.at_s for seen, _ in script.seen] == [15.0 * tick for tick in range(40)]
    assert {age_s for _, age_s in script.seen} == {0.0, 15.0}
