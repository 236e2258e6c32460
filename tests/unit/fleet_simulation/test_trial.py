"""One cell of a comparison: what it tells a policy, what it makes of a run, and who knows the future."""

import math
from dataclasses import replace

import numpy as np
import pytest

from controlplane.simulation.fleet.outcome import outcome_of
from controlplane.simulation.fleet.profile import Limits, Profile
from controlplane.simulation.fleet.ramps import ramp
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.fleet.trial import (
    Trial,
    clairvoyant,
    peak_replicas,
    profiled,
    run_policy,
    schedules,
    work_of,
)
from controlplane.simulation.fleet.workload import workload_of
from tests.unit.fleet_simulation.scripted import Script, played, scenario

QWEN_32B: Subject = subject_of("qwen3-32b", "h100", tensor_parallel=2)
STEPS = [(2.0, 120.0), (6.0, 180.0), (1.0, 120.0)]


def trial(**changed: object) -> Trial:
    told = Trial(
        subject=QWEN_32B,
        workload=ramp(STEPS, 4000, 500, seed=3),
        limits=Limits(ttft_s=3.0, itl_s=0.1, percentile=0.95),
        cold_start_s=30.0,
        replicas_max=10,
    )
    return replace(told, **changed)  # type: ignore[arg-type]


def test_a_policy_is_told_what_an_operator_knows() -> None:
    told = profiled(trial())
    facts = told.facts
    assert (facts.ttft_slo_s, facts.itl_slo_s, facts.percentile) == (3.0, 0.1, 0.95)
    assert (facts.mean_prompt_tokens, facts.mean_output_tokens, facts.cold_start_s) == (4000.0, 500.0, 30.0)
    assert (facts.replica_rps, facts.replica_concurrency) == (told.profile.rate_rps, told.profile.concurrency)
    assert 1.5 < facts.replica_rps < 3.0
    assert told.scenario.gpus_per_replica == facts.gpus_per_replica == 2


def test_the_clairvoyant_meets_the_objectives_for_less_than_any_static_fleet_that_does() -> None:
    told = profiled(trial())
    best, _ = clairvoyant(told)
    assert best.attainment >= 0.95
    static = []
    for count in range(1, 11):
        outcome, _ = run_policy(replace(told, replicas_first=count), Script())
        static.append((count, outcome))
    enough = next((count, outcome) for count, outcome in static if outcome.attainment >= 0.95)
    assert best.gpu_hours < enough[1].gpu_hours
    assert enough[0] <= peak_replicas(told) + 1
    assert best.replicas_mean == pytest.approx(best.gpu_hours / 2 * 3600 / 420.0)


def test_schedules_come_with_the_cheapest_first_and_hold_the_least_number() -> None:
    told = profiled(trial(replicas_min=2))
    found = schedules(told)
    spent = [schedule.replica_s for schedule in found]
    assert spent == sorted(spent)
    assert all(schedule.wanted.min() >= 2 for schedule in found)


def test_work_is_in_mean_requests() -> None:
    load = workload_of("two", np.array([0.0, 1.0]), np.array([100, 4000]), np.array([10, 1000]), duration_s=2.0)
    work = work_of(trial(workload=load))
    assert work.mean() == pytest.approx(1.0)
    assert work[1] > 50 * work[0]


def test_a_trial_without_a_profile_has_no_clairvoyant() -> None:
    with pytest.raises(AssertionError, match="a profiled trial"):
        clairvoyant(trial(profile=Profile(rate_rps=0.0, concurrency=0.0)))


# -- outcomes ---------------------------------------------------------------------------------------------------------


def test_an_outcome_counts_by_hand() -> None:
    """Four requests, one of them late, one slow, one never answered."""
    load = [(1.0, 10, 11), (2.0, 10, 11), (3.0, 10, 11), (4.0, 10, 11)]
    run, _ = played(load, {50.0: 3, 100.0: 1, 150.0: 2}, gpus_per_replica=4)
    requests = run.fleet.requests
    requests.first_s = [1.5, 4.5, 3.5, np.nan]
    requests.done_s = [2.5, 5.5, 5.0, np.nan]
    found = outcome_of("by hand", scenario(load, gpus_per_replica=4), run, ttft_slo_s=1.0, itl_slo_s=0.1)
    assert found.attainment == 0.25
    assert (found.ttft_attainment, found.itl_attainment, found.unanswered) == (0.5, 0.5, 1)
    assert (found.ttft_p50_s, found.ttft_p99_s) == (2.5, math.inf)
    assert (found.itl_p50_s, found.itl_p99_s) == pytest.approx((0.1, 0.15))
    assert (found.scale_events, found.direction_changes) == (3, 2)
    assert found.gpu_hours == pytest.approx(4 * run.replica_seconds / 3600.0)
    assert found.replicas_mean == pytest.approx(run.replica_seconds / 600.0)
