"""The closed loop under classic rules, and in shadow, in virtual time: replicas queue, batch and start slowly."""

import math
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from controlplane.autoscaler.replay import replay_all
from controlplane.domain.deployment import Deployment
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.testing.autoscaling import AutoscaledWorld, Sight, WorldReport, poisson_requests
from controlplane.testing.builders import PRIOR_8B_B200, make_deployment

RULES = AutoscalingSpec(
    policy=ScalingPolicy.RULES,
    rules=(
        ScalingRule(signal=Signal.IN_FLIGHT, target=16.0),
        ScalingRule(signal=Signal.GPU_MEMORY, target=0.75, above=0.85, below=0.5),
        ScalingRule(signal=Signal.QUEUE_DEPTH, above=50.0, step_up=2),
        ScalingRule(signal=Signal.TTFT, above=1.0),
    ),
    up_per_minute_max=4,
    down_per_minute_max=2,
    cooldown_down=timedelta(seconds=120),
    lookahead=timedelta(seconds=60),
    confidence=0.95,
)


def deployment(spec: AutoscalingSpec, *, wanted: int = 2, replicas_max: int = 12) -> Deployment:
    prior = replace(PRIOR_8B_B200, max_num_seqs=32, cold_start=timedelta(seconds=30))
    made = make_deployment(wanted=wanted, replicas_max=replicas_max)
    return replace(made, spec=replace(made.spec, autoscaling=spec), plan=replace(made.plan, prior=prior))


def day_rate(second: float) -> float:
    """5 to 60 requests/s and back in half an hour."""
    return 5.0 + 55.0 * 0.5 * (1.0 - math.cos(2.0 * math.pi * second / 1800.0))


def day(world: AutoscaledWorld) -> WorldReport:
    return world.run(poisson_requests(day_rate, duration_s=1800.0, seed=7), duration_s=1860.0)


def test_rules_follow_a_day_within_their_limits_and_replay() -> None:
    report = day(AutoscaledWorld(deployment(RULES), cold_start_s=30.0))
    assert report.unfinished == 0
    assert report.attainment(ttft_s=1.0, gap_s=0.05) > 0.97
    assert max(report.wanted) >= 4
    assert report.wanted[-1] < max(report.wanted)
    for before, after in pairwise(report.wanted):
        assert -2 <= after - before <= 4
    for start in range(len(report.wanted) - 59):
        minute = report.wanted[start : start + 60]
        assert sum(max(after - before, 0) for before, after in pairwise(minute)) <= 4
        assert sum(max(before - after, 0) for before, after in pairwise(minute)) <= 2
    replayed = replay_all(report.records)
    assert replayed.is_clean, replayed.differences


def test_blindness_never_takes_a_replica_away() -> None:
    def sight(second: float) -> str:
        return Sight.CLEAR if second < 900 or second > 1500 else Sight.MISSING

    report = day(AutoscaledWorld(deployment(RULES), cold_start_s=30.0, sight=sight))
    blind = report.wanted[901:1499]
    assert all(after >= before for before, after in pairwise(blind))
    assert replay_all(report.records).is_clean


def test_a_shadow_never_changes_the_number_and_shows_what_it_would_be() -> None:
    for spec in (replace(RULES, shadow=True), AutoscalingSpec(shadow=True)):
        report = day(AutoscaledWorld(deployment(spec, wanted=6), cold_start_s=30.0))
        assert set(report.wanted) == {6}
        assert {one.wanted for one in report.changes} - {6}
        assert all(one.in_shadow for one in report.records)
        replayed = replay_all(report.records)
        assert replayed.is_clean, replayed.differences
