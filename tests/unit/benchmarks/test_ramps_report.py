"""The benchmark of ramps: its reference that knows each step, and what it says of the goals."""

from dataclasses import replace
from itertools import pairwise

from benchmarks.ramps import COST, DRAW, LLM_D_READINGS, REPLICAS, TOLD, Job, Row, jobs_of, report_of, told, trial_of
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.ramps import LLM_D, Ramp, Step, random_ramps
from controlplane.simulation.fleet.subject import subject_of

SHORT = Ramp(name="short", steps=(Step(3.0, 200.0), Step(6.0, 300.0)), prompt=LLM_D.prompt, output=LLM_D.output)
SUBJECT = subject_of("qwen3-32b", "h100", tensor_parallel=2, precision="bf16", context_tokens=8192)


def test_told_attains_no_less_with_more_replicas_and_stays_within_them() -> None:
    trial = trial_of(Job(ramp=SHORT, seed=0, name="short"), SUBJECT)
    outcomes = [told(trial, SHORT, replicas) for replicas in (4.5, 5.0, 8.0)]
    assert all(one.attainment <= other.attainment for one, other in pairwise(outcomes))
    assert outcomes[1].replicas_mean <= 5.0
    assert outcomes[2].attainment > 0.9


def test_every_ramp_has_every_seed_and_the_shapes_are_those_of_the_draw() -> None:
    jobs = jobs_of(random_ramps(2, DRAW), seeds=3)
    assert len(jobs) == (len(LLM_D_READINGS) + 2) * 3
    assert {job.ramp for job in jobs} == {LLM_D, *random_ramps(2, DRAW)}


def row(ramp: str, attainment: float, replicas: float, over: float | None, *, policy: str = OURS, seed: int = 0) -> Row:
    return Row(
        ramp=ramp,
        policy=policy,
        seed=seed,
        attainment=attainment,
        replicas=replicas,
        over_clairvoyant=over,
        scale_events=9,
        direction_changes=1,
    )


def test_the_verdict_says_by_how_much_each_goal_is_missed() -> None:
    rows = [
        row("llm-d", 0.995, REPLICAS - 0.1, 1.1),
        row("llm-d, as published", 0.97, REPLICAS + 0.2, None),
        row("short", 0.999, 5.0, COST),
        row("steep", 0.8, 5.0, COST + 0.1, seed=0),
        row("steep", 0.9, 5.0, COST + 0.1, seed=1),
        row("short", 1.0, 5.0, 1.1, policy=TOLD),
        row("steep", 0.875, 5.0, 1.1, policy=TOLD),
    ]
    report = report_of(rows, [SHORT, replace(SHORT, name="steep")])
    first, second = report.verdict.split("\n")
    assert "llm-d 99.5% at 5.50: met; llm-d, as published 97.0% at 5.80: 2.0 points short and 0.20 replicas" in first
    assert "met on 1 of 2: short 99.9% at 1.18: met (told: 100.0%); steep 85.0% at 1.28: 14.0 points short" in second
    assert [grid.title for grid in report.grids][2] == "short: 3 rps 200 s, 6 rps 300 s"
    assert report.grids[3].rows[0][1:3] == ["85.00%", "80.00%"]
    assert report.grids[1].rows[0][4] == "-", "no clairvoyant ran"
