"""The closed loop in virtual time: replicas that queue, batch and start slowly, under the real policy.

Cold starts, request lengths and rates vary; what must hold does not: nobody is lost, nothing flaps, blindness never
takes a replica away, objectives are met for fewer replica-hours than a static peak, and every decision replays.
"""

import math
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from controlplane.autoscaler.replay import replay_all
from controlplane.domain.deployment import CapacityPrior, Deployment
from controlplane.domain.reason import Reason
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.testing.autoscaling import AutoscaledWorld, Sight, WorldReport, poisson_requests
from controlplane.testing.builders import PRIOR_8B_B200, make_deployment

TTFT_S, GAP_S = 1.0, 0.05
PRESSURE = {Reason.QUEUE_GROWING, Reason.KV_PRESSURE, Reason.SLO_AT_RISK, Reason.WAKE}


def deployment(
    *,
    cold_start_s: float,
    replicas_min: int = 1,
    replicas_max: int = 12,
    wanted: int = 1,
    max_num_seqs: int = 32,
    idle_after_s: float | None = None,
) -> Deployment:
    prior = replace(PRIOR_8B_B200, max_num_seqs=max_num_seqs, cold_start=timedelta(seconds=cold_start_s))
    made = make_deployment(wanted=wanted, replicas_min=replicas_min, replicas_max=replicas_max)
    idle_after = None if idle_after_s is None else timedelta(seconds=idle_after_s)
    return replace(made, spec=replace(made.spec, idle_after=idle_after), plan=replace(made.plan, prior=prior))


def day_rate(second: float) -> float:
    """5 to 60 requests/s and back in half an hour."""
    return 5.0 + 55.0 * 0.5 * (1.0 - math.cos(2.0 * math.pi * second / 1800.0))


def turns_within(report: WorldReport, lead_s: float) -> int:
    """Changes of direction that follow another one within a lead although no user felt pressure (or a missed SLO)."""
    changes = report.changes
    found, turned_at = 0, None
    for before, after in pairwise(changes):
        if (before.wanted > before.wanted_before) == (after.wanted > after.wanted_before):
            continue
        soon = turned_at is not None and (after.at - turned_at).total_seconds() < lead_s
        found += soon and after.reason not in PRESSURE and not after.sentence.endswith("of 95%")
        turned_at = after.at
    return found


@pytest.mark.parametrize(("cold_start_s", "slowdown"), [(5.0, 1.0), (60.0, 1.0), (60.0, 1.7), (150.0, 1.0)])
def test_a_day_is_followed(cold_start_s: float, slowdown: float) -> None:
    """Also with replicas slower than the catalog believes: that is learned."""
    world = AutoscaledWorld(deployment(cold_start_s=cold_start_s), cold_start_s=cold_start_s, slowdown=slowdown)
    report = world.run(poisson_requests(day_rate, duration_s=1800.0, seed=11), duration_s=1830.0)
    peak = max(report.wanted)
    static_hours = peak * 1830.0 / 3600.0
    assert report.unfinished == 0
    # A start that takes a twelfth of the whole day cannot be ordered in time for the first rise it ever sees.
    assert report.attainment(ttft_s=TTFT_S, gap_s=GAP_S) >= (0.99 if cold_start_s < 100.0 else 0.98)
    assert report.replica_hours < 0.85 * static_hours
    assert turns_within(report, cold_start_s) == 0
    assert report.wanted[-1] < peak
    replayed = replay_all(report.records)
    assert replayed.is_clean, replayed.differences


def test_steady_load_has_a_steady_answer() -> None:
    made = deployment(cold_start_s=30.0, wanted=3)
    world = AutoscaledWorld(made, cold_start_s=30.0)
    report = world.run(poisson_requests(lambda _: 40.0, duration_s=1800.0, seed=5), duration_s=1800.0)
    assert len(report.changes) <= 8
    assert turns_within(report, 30.0) == 0
    assert report.attainment(ttft_s=TTFT_S, gap_s=GAP_S) >= 0.99


@pytest.mark.parametrize("sight", [Sight.MISSING, Sight.STALE, Sight.NO_GATEWAY, Sight.PARTIAL])
def test_blindness_never_takes_a_replica_away(sight: str) -> None:
    """Ten minutes without sight while demand falls from its peak; the fall is followed only when it can be seen."""
    world = AutoscaledWorld(
        deployment(cold_start_s=30.0),
        cold_start_s=30.0,
        sight=lambda second: sight if 900.0 <= second < 1500.0 else Sight.CLEAR,
    )
    report = world.run(poisson_requests(day_rate, duration_s=1800.0, seed=7), duration_s=1900.0)
    blind = report.wanted[900:1499]
    assert all(after >= before for before, after in pairwise(blind))
    assert report.wanted[-1] < blind[-1]
    assert report.attainment(ttft_s=TTFT_S, gap_s=GAP_S) >= 0.99


def test_a_rise_is_followed_by_the_engines_when_the_gateway_is_gone() -> None:
    world = AutoscaledWorld(deployment(cold_start_s=10.0), cold_start_s=10.0, sight=lambda _: Sight.NO_GATEWAY)
    report = world.run(poisson_requests(day_rate, duration_s=900.0, seed=3), duration_s=900.0)
    assert max(report.wanted) >= 3
    assert not [record for record in report.changes if record.wanted < record.wanted_before]


def test_to_zero_and_back_without_losing_a_request() -> None:
    made = deployment(cold_start_s=20.0, replicas_min=0, wanted=0, idle_after_s=60.0)
    world = AutoscaledWorld(made, cold_start_s=20.0)

    def visits(second: float) -> float:
        return 4.0 if 100.0 < second < 200.0 or 500.0 < second < 600.0 else 0.0

    report = world.run(poisson_requests(visits, duration_s=900.0, seed=2), duration_s=900.0)
    assert report.unfinished == 0
    assert [record.reason for record in report.changes].count(Reason.WAKE) == 2
    assert [record.reason for record in report.changes].count(Reason.IDLE) == 2
    assert report.wanted[:99] == [0] * 99
    assert report.wanted[-1] == 0


def test_a_start_that_never_ends_leaves_no_stuck_state() -> None:
    """No replica ever becomes ready beyond the first: wanted follows demand all the same, up and down."""
    made = deployment(cold_start_s=30.0)
    world = AutoscaledWorld(made, cold_start_s=1e9)
    report = world.run(
        poisson_requests(lambda second: 30.0 if second < 300.0 else 2.0, duration_s=1500.0, seed=4), duration_s=2000.0
    )
    assert max(report.wanted) >= 2
    assert report.wanted[-1] == 1


QWEN3_32B_TP2_H100 = CapacityPrior(
    step_base_s=0.0136,
    step_per_seq_s=0.000175,
    step_per_context_token_s=0.0,
    prefill_base_s=0.0,
    prefill_per_token_s=1 / 15_928,
    prefill_per_token2_s=0.0,
    kv_tokens=316_000,
    max_num_seqs=256,
    cold_start=timedelta(seconds=100),
    wake=timedelta(seconds=5),
    calibrated=True,
)


def test_a_ramp_of_steps_with_slow_starts() -> None:
    """llm-d's ramp (2 to 10 and down to 1 request/s in six-minute steps, 4000 in, 1000 out, 100 s to start).

    Not a comparison with llm-d's published points: this small world has not been shown to reproduce them.
    """
    steps = (2.0, 4.0, 6.0, 8.0, 10.0, 4.0, 1.0)
    slo = Slo(
        ttft=LatencyTarget(percentile=0.95, limit=timedelta(seconds=3)),
        inter_token=LatencyTarget(percentile=0.95, limit=timedelta(milliseconds=100)),
    )
    made = make_deployment(wanted=3, replicas_min=3, replicas_max=8)
    made = replace(made, spec=replace(made.spec, slo=slo), plan=replace(made.plan, prior=QWEN3_32B_TP2_H100))
    world = AutoscaledWorld(made, cold_start_s=100.0)
    requests = poisson_requests(
        lambda second: steps[min(int(second // 360.0), 6)],
        duration_s=2520.0,
        seed=1,
        prompt_tokens=4000,
        output_tokens=1000,
    )
    report = world.run(requests, duration_s=2580.0)
    assert report.unfinished == 0
    assert report.attainment(ttft_s=3.0, gap_s=0.1) >= 0.97
    assert report.replica_hours / (2580.0 / 3600.0) < 6.2
    assert turns_within(report, 100.0) == 0
