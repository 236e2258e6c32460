"""Replicas that sleep instead of going: who wakes when, what it costs, and that nothing changes where nobody sleeps."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.clairvoyant import Prices, cheapest
from controlplane.simulation.fleet.ours import our_params, our_policy
from controlplane.simulation.fleet.outcome import Outcome, outcome_of
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.ramps import ramp
from controlplane.simulation.fleet.replicas import Sleep
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.fleet.trial import Trial, clairvoyant, profiled, run_policy, schedules
from controlplane.simulation.fleet.world import Run, Span, World
from tests.unit.fleet_simulation.scripted import Script, all_answered, played, scenario, turns
from tests.unit.fleet_simulation.small_fleets import figures, seeded_load

ONE = [(0.5, 10, 10)]
LONG = 3000
"""Tokens of output that take about 77 s alone."""
QUICK = Sleep(wake_s=5.0, wake_cv=0.0, asleep_share=0.25)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_who_is_given_back_sleeps_at_its_share_and_is_ready_a_wake_time_after_it_is_wanted() -> None:
    run, script = played(ONE, {100.0: 1, 200.0: 2}, replicas_first=3, sleep=QUICK, gpus_per_replica=2)
    assert turns(run.timeline.asleep) == {0: 0, 100: 2, 200: 1}
    assert turns(run.timeline.billed) == {0: 3, 100: 1, 200: 2}
    assert turns(run.timeline.ready) == {0: 3, 100: 1, 205: 2}
    assert run.replica_seconds == 3 * 100 + 1 * 100 + 2 * 400 + 0.25 * (2 * 100 + 1 * 400)
    assert run.wakes == 1
    waking = script.at(203.0)
    assert (waking.ready, waking.starting, waking.sleeping, waking.starting_age_s) == (1, 1, 1, 3.0)
    assert all(seen.cold_starts_s == () for seen, _ in script.seen), "a wake-up is no cold start"
    found = outcome_of("by hand", scenario(ONE, gpus_per_replica=2), run, ttft_slo_s=1.0, itl_slo_s=0.1)
    assert found.gpu_hours == pytest.approx(2 * run.replica_seconds / 3600.0)
    assert found.wakes == 1
    assert found.asleep_mean == pytest.approx((2 * 100 + 400) / 600.0)


def test_sleepers_wake_before_any_replica_starts() -> None:
    run, script = played(ONE, {100.0: 1, 200.0: 6}, replicas_first=3, sleep=QUICK)
    assert turns(run.timeline.ready) == {0: 3, 100: 1, 205: 3, 230: 6}
    assert run.wakes == 2
    assert script.at(230.0).cold_starts_s == (30.0, 30.0, 30.0)


def test_no_more_sleep_than_may() -> None:
    run, _ = played(ONE, {100.0: 0, 200.0: 3}, replicas_first=3, sleep=replace(QUICK, most=1))
    assert turns(run.timeline.asleep) == {0: 0, 100: 1, 200: 0}
    assert turns(run.timeline.ready) == {0: 3, 100: 0, 205: 1, 230: 3}


def test_who_drains_to_fall_asleep_comes_back_at_once_when_it_is_wanted() -> None:
    run, _ = played([(10.0, 10, LONG), (10.1, 10, LONG)], {20.0: 1, 30.0: 2}, replicas_first=2, sleep=QUICK)
    assert turns(run.timeline.ready) == {0: 2, 20: 1, 30: 2}
    assert turns(run.timeline.billed) == {0: 2}
    assert run.wakes == 0
    assert all_answered(run)


def test_a_drain_ends_asleep_and_is_paid_in_full_so_long() -> None:
    run, _ = played([(10.0, 10, LONG)], {20.0: 0}, sleep=QUICK)
    done_s = int(run.fleet.requests.done_s[0])
    assert turns(run.timeline.billed) == {0: 1, done_s: 0}
    assert turns(run.timeline.asleep) == {0: 0, done_s: 1}


def test_starts_are_cancelled_first_then_wakes_which_sleep_again() -> None:
    run, _ = played(ONE, {100.0: 1, 200.0: 4, 202.0: 3, 203.0: 2}, replicas_first=3, sleep=QUICK)
    assert turns(run.timeline.billed) == {0: 3, 100: 1, 200: 4, 202: 3, 203: 2}
    assert turns(run.timeline.asleep) == {0: 0, 100: 2, 200: 0, 203: 1}
    assert turns(run.timeline.ready) == {0: 3, 100: 1, 205: 2}


def test_without_gpus_sleepers_wake_and_orders_wait() -> None:
    run, _ = played(ONE, {100.0: 1, 200.0: 3}, replicas_first=2, sleep=QUICK, no_gpus=(Span(150.0, 300.0),))
    assert turns(run.timeline.ready) == {0: 2, 100: 1, 205: 2, 330: 3}
    assert turns(run.timeline.billed) == {0: 2, 100: 1, 200: 2, 300: 3}


def test_wake_times_spread_as_told_and_leave_cold_starts_alone() -> None:
    wanted = {float(at_s): 8 if at_s % 100 else 0 for at_s in range(50, 20_000, 50)}
    run, _ = played(ONE, wanted, duration_s=20_000.0, replicas_first=8, sleep=Sleep(wake_s=20.0, wake_cv=0.3))
    rises = np.diff(run.timeline.ready).clip(min=0)
    took_s = np.repeat(np.arange(1, 20_000) % 50, rises)
    # Some take more than fifty seconds, and are cancelled. Ready in the first whole second after its time.
    assert run.wakes - 10 < len(took_s) <= run.wakes
    assert took_s.mean() == pytest.approx(20.5, rel=0.03)
    assert took_s.std() / 20.0 == pytest.approx(0.3, rel=0.1)
    cold = {50.0: 5, 100.0: 1, 200.0: 8}
    _, one = played(ONE, cold, cold_start_cv=0.3, sleep=QUICK)
    _, other = played(ONE, cold, cold_start_cv=0.3, sleep=replace(QUICK, wake_cv=0.5))
    assert one.at(120.0).cold_starts_s == other.at(120.0).cold_starts_s
    assert starts_of(one) == starts_of(other)


def starts_of(script: Script) -> list[float]:
    return [took_s for seen, _ in script.seen for took_s in seen.cold_starts_s]


# -- a plan of sleepers -----------------------------------------------------------------------------------------------


def planned(wanted: Mapping[float, int], asleep_at: Callable[[float], int], **changed: Any) -> Run:
    return World(scenario(ONE, **changed), Script(wanted=wanted), asleep_at).run()


def test_a_plan_says_how_many_sleep_and_who_sleeps_longer_is_not_woken_for_others() -> None:
    run = planned({100.0: 1, 200.0: 2}, lambda at_s: 1 if at_s >= 100.0 else 0, replicas_first=3, sleep=QUICK)
    assert turns(run.timeline.asleep) == {0: 0, 100: 1}
    assert turns(run.timeline.ready) == {0: 3, 100: 1, 230: 2}, "ordered anew"
    assert run.wakes == 0


def test_a_plan_wakes_as_many_as_it_wants_asleep_fewer() -> None:
    run = planned({100.0: 1, 200.0: 3}, lambda at_s: 2 if 100.0 <= at_s < 200.0 else 0, replicas_first=3, sleep=QUICK)
    assert turns(run.timeline.ready) == {0: 3, 100: 1, 205: 3}
    assert run.wakes == 2


def test_a_plan_of_fewer_sleepers_lets_the_others_go() -> None:
    run = planned({100.0: 1}, lambda at_s: 2 if at_s < 300.0 else 0, replicas_first=2, asleep_first=1, sleep=QUICK)
    assert turns(run.timeline.asleep) == {0: 1, 100: 2, 300: 0}
    assert run.replica_seconds == 2 * 100 + 500 + 0.25 * (100 + 2 * 200)


# -- the same without it ----------------------------------------------------------------------------------------------


def test_a_run_without_sleep_is_as_it_was_before_there_was_any() -> None:
    """The numbers are those of the world before it knew sleep."""
    setting = scenario(seeded_load(300, 4, rate_rps=2.0), cold_start_cv=0.3, no_gpus=(Span(110.0, 140.0),), seed=7)
    run = World(setting, Script(wanted={30.0: 4, 90.0: 2, 120.0: 6, 200.0: 1, 210.0: 3})).run()
    assert (run.replica_seconds, int(run.timeline.ready.sum()), run.seconds) == (1910.0, 1677, 600.0)
    assert float(run.fleet.requests.first_s.sum()) == pytest.approx(25074.851587507037, rel=1e-14)
    assert float(run.fleet.requests.done_s.sum()) == pytest.approx(25350.10681000704, rel=1e-14)
    assert run.wakes == 0
    assert not run.timeline.asleep.any()


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=12), seed=st.integers(0, 3))
def test_where_nobody_is_ever_given_back_sleep_changes_nothing(counts: list[int], seed: int) -> None:
    wanted = {10.0 + 20.0 * place: count for place, count in enumerate(sorted(counts))}
    load = seeded_load(60, seed)
    one, _ = played(load, wanted, cold_start_cv=0.3, seed=seed)
    other, _ = played(load, wanted, cold_start_cv=0.3, seed=seed, sleep=QUICK)
    assert figures(one.fleet) == figures(other.fleet)
    assert one.replica_seconds == other.replica_seconds


# -- always -----------------------------------------------------------------------------------------------------------

scripts = st.lists(st.integers(0, 8), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    counts=scripts,
    period_s=st.sampled_from([1.0, 7.0, 20.0]),
    wake_s=st.sampled_from([0.0, 4.0, 30.0]),
    most=st.sampled_from([None, 0, 1, 3]),
    plan=st.none() | st.integers(0, 4),
    seed=st.integers(0, 3),
)
def test_no_request_is_ever_dropped_and_no_limit_passed(
    counts: list[int], period_s: float, wake_s: float, most: int | None, plan: int | None, seed: int
) -> None:
    """Whatever the policy does, as long as it ends with a replica."""
    wanted = {10.0 + period_s * number: count for number, count in enumerate([*counts, 1])}
    load = seeded_load(60, seed, rate_rps=1.0)
    sleep = Sleep(wake_s=wake_s, wake_cv=0.2, asleep_share=0.5, most=most)
    setting = scenario(load, cold_start_cv=0.2, duration_s=700.0, sleep=sleep, seed=seed)
    script = Script(wanted=wanted)
    run = World(setting, script, None if plan is None else lambda at_s: plan * (int(at_s) // 10 % 2)).run()
    timeline = run.timeline
    assert all_answered(run)
    assert (timeline.asleep >= 0).all()
    assert (timeline.asleep <= (8 if most is None else most)).all()
    assert (timeline.ready + timeline.asleep <= 8).all() or plan is not None
    assert run.replica_seconds == timeline.billed.sum() + 0.5 * timeline.asleep.sum()
    for seen, _ in script.seen:
        assert seen.ready + seen.starting == seen.wanted
        assert seen.sleeping >= 0


@settings(max_examples=40, deadline=None)
@given(counts=scripts)
def test_while_enough_sleep_nothing_starts(counts: list[int]) -> None:
    """Starts that never end: whoever is ready was there from the beginning, and as many are as are wanted."""
    wanted = {10.0 + 20.0 * number: count for number, count in enumerate(counts)}
    run, _ = played(ONE, wanted, replicas_first=4, replicas_max=8, cold_start_s=1e6, sleep=replace(QUICK, wake_s=0.0))
    settled = np.arange(5, 600, 20)
    assert (run.timeline.ready[settled] == np.minimum(run.timeline.wanted[settled], 4)).all()


# -- who knows the future, and who does not ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    needed=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    wake_s=st.sampled_from([0.0, 5.0, 15.0]),
    asleep_share=st.sampled_from([0.0, 0.3, 1.0]),
    most=st.sampled_from([None, 0, 1, 2]),
)
def test_a_schedule_that_may_sleep_is_never_dearer(
    needed: list[int], wake_s: float, asleep_share: float, most: int | None
) -> None:
    awake = Prices(cold_start_s=35.0)
    prices = replace(awake, wake_s=wake_s, asleep_share=asleep_share, asleep_most=most)
    found = cheapest(np.array(needed), 10.0, prices)
    assert found.replica_s <= cheapest(np.array(needed), 10.0, awake).replica_s + 1e-9
    assert most is None or found.asleep.max() <= most


def bursts(**changed: Any) -> Trial:
    steps = [(2.0, 120.0), (8.0, 60.0)] * 4 + [(2.0, 120.0)]
    told = Trial(
        subject=subject_of("qwen3-32b", "h100", tensor_parallel=2),
        workload=ramp(steps, 4000, 200, seed=3),
        limits=Limits(ttft_s=3.0, itl_s=0.1, percentile=0.95),
        cold_start_s=60.0,
        replicas_max=10,
        replicas_first=2,
    )
    return profiled(replace(told, **changed))


LENT = Sleep(wake_s=5.0, asleep_share=0.0)
KEPT = Sleep(wake_s=5.0, asleep_share=1.0)


def test_the_clairvoyant_sleeps_through_gaps_where_that_is_cheaper() -> None:
    told = bursts()
    awake, _ = clairvoyant(told)
    lent, run = clairvoyant(replace(told, sleep=LENT))
    assert lent.attainment >= 0.95
    assert lent.gpu_hours < 0.95 * awake.gpu_hours
    assert lent.wakes > 0
    assert run.timeline.asleep.max() > 0
    few, run = clairvoyant(replace(told, sleep=replace(LENT, most=1)))
    assert lent.gpu_hours <= few.gpu_hours <= awake.gpu_hours
    assert run.timeline.asleep.max() == 1


def test_sleepers_that_cost_as_much_as_ready_ones_are_of_no_use_to_the_clairvoyant() -> None:
    told = bursts()
    found = schedules(replace(told, sleep=KEPT))
    assert [one.replica_s for one in found] == [one.replica_s for one in schedules(told)]
    assert clairvoyant(replace(told, sleep=KEPT))[0] == clairvoyant(told)[0]


def test_a_follower_of_the_schedule_takes_what_it_says() -> None:
    """Up to the seconds that drains take and starts vary."""
    told = bursts(sleep=LENT, cold_start_cv=0.0)
    for schedule in schedules(told)[::8]:
        starting = replace(told, replicas_first=schedule.wanted_at(0.0), asleep_first=schedule.asleep_at(0.0))
        wanted = dict(zip(schedule.at_s.tolist(), schedule.wanted.tolist(), strict=True))
        outcome, run = run_policy(starting, Script(wanted=wanted), asleep_at=schedule.asleep_at)
        assert outcome.replicas_mean == pytest.approx(schedule.mean_replicas, rel=0.25)
        assert run.wakes <= schedule.wakes


def ours_on(trial: Trial) -> Outcome:
    return run_policy(trial, our_policy(trial.facts))[0]


def test_ours_is_told_of_sleepers_and_their_wake_time() -> None:
    told = bursts(sleep=LENT)
    prior = our_params(told.facts).prior
    assert (prior.wake.total_seconds(), prior.cold_start.total_seconds()) == (5.0, 60.0)
    assert our_params(replace(told.facts, wake_s=None)).prior.wake.total_seconds() == 60.0
    awake, lent, kept = (ours_on(replace(told, sleep=sleep)) for sleep in (None, LENT, KEPT))
    assert lent.wakes > 0
    assert lent.attainment > awake.attainment
    assert kept.attainment == lent.attainment, "the price is no part of what happens"
    asleep_hours = lent.asleep_mean * told.workload.duration_s * 2 / 3600.0
    assert kept.gpu_hours == pytest.approx(lent.gpu_hours + asleep_hours)
