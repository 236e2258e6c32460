"""A rebuilt demand played under each row's policy."""

from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from controlplane.simulation.dry_run.demand import Demand
from controlplane.simulation.dry_run.readings import Fold, Now
from controlplane.simulation.dry_run.runs import Job, Ran, Who, run, run_all
from controlplane.simulation.dry_run.theirs import TheirPolicy, Trigger
from controlplane.simulation.fleet.policy import Gauge
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.peers.behavior import DEFAULT_DOWN, DEFAULT_UP, Behavior

STEPS: Final = 40
COLD_START_S: Final = 60.0
READY: Final = np.array([1] * 10 + [3] * 20 + [2] * 10)
DEMAND: Final = Demand(
    name="m",
    start_s=0.0,
    step_s=30.0,
    arrived=np.where(READY == 3, 60.0, 15.0),
    prompt_mean=np.full(STEPS, 1000.0),
    output_mean=np.full(STEPS, 200.0),
    ready=READY,
)
JOB: Final = Job(
    who=Who.REPLAYED,
    demand=DEMAND,
    seed=0,
    subject=subject_of("qwen3-32b", "h100", tensor_parallel=2),
    limits=Limits(ttft_s=2.0, itl_s=0.05, percentile=0.99),
    cold_start_s=COLD_START_S,
    replicas_min=1,
    replicas_max=4,
)
THEIRS: Final = TheirPolicy(
    triggers=(Trigger(reading=Fold("sum", Now(Gauge.RUNNING)), target=10.0, by_ratio=False),),
    behavior=Behavior(up=DEFAULT_UP, down=DEFAULT_DOWN),
    zero=None,
    scrape_s=15.0,
)


def ran(job: Job) -> Ran:
    found = run(job)
    assert found is not None
    return found


def test_replicas_as_they_were_cost_what_they_did() -> None:
    """Each is ordered a cold start before it answered; those that go finish what they have."""
    found = ran(JOB)
    held_s = READY.sum() * 30.0 + 2 * COLD_START_S
    assert found.gpu_hours == pytest.approx(held_s * 2 / 3600, rel=0.02)
    assert found.steps == (2, -1)
    assert len(found.ttft_s) == DEMAND.arrived.sum()
    assert found.met == len(found.ttft_s)


def test_every_row_plays_the_same_requests() -> None:
    rows = {who: ran(replace(JOB, who=who, theirs=THEIRS if who == Who.THEIRS else None)) for who in Who}
    assert len({len(one.ttft_s) for one in rows.values()}) == 1
    assert rows[Who.CLAIRVOYANT].gpu_hours <= rows[Who.REPLAYED].gpu_hours
    assert 20 * 60 / 3600 * 2 <= rows[Who.OURS].gpu_hours <= 4 * 20 * 60 / 3600 * 2
    assert any(step > 0 for step in rows[Who.THEIRS].steps)


def test_no_schedule_meets_what_no_request_alone_meets() -> None:
    hopeless = replace(JOB, who=Who.CLAIRVOYANT, limits=Limits(ttft_s=1e-4, itl_s=1e-5, percentile=0.99))
    assert ran(hopeless).impossible


def test_without_requests_there_is_nothing_to_play() -> None:
    assert run(replace(JOB, demand=replace(DEMAND, arrived=np.zeros(STEPS)))) is None


def test_processes_change_nothing() -> None:
    jobs = [replace(JOB, who=Who.THEIRS, theirs=THEIRS), JOB]
    alone, beside = list(run_all(jobs)), list(run_all(jobs, processes=2))
    for one, other in zip(alone, beside, strict=True):
        assert one is not None
        assert other is not None
        assert (one.who, one.gpu_hours, one.met, one.steps) == (other.who, other.gpu_hours, other.met, other.steps)
