"""The arithmetic of the benchmark of reactions; tests/e2e/test_reaction.py runs it."""

import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reaction import (
    AIM_S,
    ANSWER_S,
    CALM_RPS,
    CALM_S,
    SCENE_STEPS,
    STEP_RPS,
    STEP_S,
    TURN_S,
    Changed,
    Reaction,
    Sent,
    Step,
    arrivals,
    percentile,
    reactions,
    report,
    scenes,
    site,
)
from controlplane.adapters.sitefile.parse import parse_site

BEGAN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
STEP = Step(deployment="one", at_s=40.0, end_s=43.0)
SENT = [Sent(first_at={}, late_s=[0.001] * 98 + [0.002, 0.5], failed=1)]


def changed(after_s: float, wanted: int, *, deployment: str = "one") -> Changed:
    return Changed(deployment=deployment, at=BEGAN + timedelta(seconds=after_s), wanted=wanted)


def reaction_to(*found: Changed) -> Reaction:
    (only,) = reactions([STEP], {"one": BEGAN}, found)
    return only


@given(st.integers(1, 40), st.integers())
def test_each_deployment_is_stepped_once_in_a_turn_of_its_own(steps: int, seed: int) -> None:
    found = scenes(steps, random.Random(seed))
    assert all(len(scene) <= SCENE_STEPS for scene in found)
    assert len({step.deployment for scene in found for step in scene}) == steps
    for scene in found:
        for turn, step in enumerate(scene):
            assert 0.0 <= step.at_s - CALM_S - turn * TURN_S <= TURN_S
            assert step.end_s - step.at_s == pytest.approx(STEP_S)


def test_the_same_seed_is_the_same_load_and_the_phase_is_random() -> None:
    first, again, other = (scenes(SCENE_STEPS, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({round(step.at_s % 1.0, 1) for step in first[0]}) > 3


@pytest.mark.parametrize("interval_s", [0.25, 1.0])
def test_the_site_has_room_for_all_and_is_measured_as_asked(interval_s: float) -> None:
    (scene,) = scenes(SCENE_STEPS, random.Random(1))
    found = parse_site(site(scene, interval_s), file="site.yaml")
    assert [str(each.name) for each in found.deployments] == [step.deployment for step in scene]
    assert sum(node.gpus for node in found.nodes) >= sum(each.replicas_max for each in found.deployments)
    assert found.telemetry.interval == timedelta(seconds=interval_s)


def test_arrivals_are_calm_and_then_stepped() -> None:
    due = list(arrivals(STEP, random.Random(3)))
    moments = [each.at_s for each in due]
    assert moments == sorted(moments)
    calm = [at_s for at_s in moments if at_s < STEP.at_s]
    stepped = [at_s for at_s in moments if at_s >= STEP.at_s]
    assert len(calm) == pytest.approx(CALM_RPS * STEP.at_s, rel=0.15)
    assert len(stepped) == pytest.approx(STEP_RPS * STEP_S, rel=0.25)
    assert moments[-1] < STEP.end_s
    assert [each.at_s for each in due if each.first] == stepped[:1]


def test_the_first_decision_for_more_is_the_answer() -> None:
    found = reaction_to(changed(-30.0, 2), changed(-9.0, 1), changed(0.8, 3), changed(1.8, 4))
    assert found == Reaction(deployment="one", seconds=0.8, before=1, wanted=3)
    assert found.tells


def test_another_deployments_decision_one_for_fewer_and_a_late_one_are_no_answer() -> None:
    found = reaction_to(changed(0.5, 2, deployment="two"), changed(0.6, 0), changed(ANSWER_S + 0.1, 2))
    assert found == Reaction(deployment="one", seconds=None, before=1, wanted=1)


def test_a_step_of_a_deployment_that_has_more_already_tells_nothing() -> None:
    found = reaction_to(changed(-30.0, 2), changed(0.5, 3))
    assert found == Reaction(deployment="one", seconds=0.5, before=2, wanted=3)
    assert not found.tells


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_percentile_is_one_of_the_measured(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def answered(*seconds: float | None, before: int = 1) -> list[Reaction]:
    return [Reaction(deployment="one", seconds=each, before=before, wanted=3) for each in seconds]


def test_the_aim_is_met_by_the_slowest_percent() -> None:
    found = report([*answered(0.2, 0.9, AIM_S), *answered(4.0, before=2)], SENT, 1.0)
    assert found.results["met"]
    assert (found.results["steps"], found.results["had_more"]) == (3, 1)
    assert (found.results["median_s"], found.results["worst_s"]) == (0.9, AIM_S)
    assert (found.results["requests"], found.results["failed"]) == (100, 1)
    assert "reached" in found.verdict
    assert not report(answered(0.2, AIM_S + 0.01), SENT, 1.0).results["met"]


def test_a_step_without_an_answer_is_the_slowest_and_nothing_measured_is_no_success() -> None:
    found = report(answered(0.2, 0.9, None), SENT, 1.0)
    assert not found.results["met"]
    assert (found.results["without_decision"], found.results["worst_s"]) == (1, None)
    assert list(found.grids[0].rows[0]) == ["step to decision", 3, "900", "over 5,000", "over 5,000", "over 5,000"]
    assert not report(answered(0.2, before=2), SENT, 1.0).results["met"]
    assert math.isclose(found.results["sent_late_p99_s"], 0.002)
