"""Ramps: llm-d's as it was published, and others drawn at random."""

import numpy as np
import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.fleet.ramps import LLM_D, LLM_D_PAUSE_S, Lengths, Ramp, Step, ramp, random_ramps


def test_llm_ds_ramp_makes_the_published_number_of_requests() -> None:
    """515 misses of 12,480 requests: docs/developer-guide/epp-saturation-benchmark.md of the autoscaler of llm-d."""
    load = LLM_D.workload(1)
    assert LLM_D.expected_requests == load.requests == 12_480
    assert LLM_D.duration_s == load.duration_s == 2430.0
    assert [step.rate_rps for step in LLM_D.steps] == [2, 4, 6, 8, 10, 4, 1]


def test_llm_ds_requests_have_the_published_lengths() -> None:
    load = LLM_D.workload(1)
    assert load.prompt.mean() == pytest.approx(4000, rel=0.005)
    assert load.output.mean() == pytest.approx(1000, rel=0.005)
    assert [int(end) for end in (load.prompt.min(), load.prompt.max())] == [3500, 4500]
    assert [int(end) for end in (load.output.min(), load.output.max())] == [900, 1100]


def test_each_step_has_its_requests_and_each_pause_none() -> None:
    load = LLM_D.workload(3, pause_s=LLM_D_PAUSE_S)
    begin_s = 0.0
    for step in LLM_D.steps:
        end_s = begin_s + step.duration_s
        within = (load.arrival_s >= begin_s) & (load.arrival_s < end_s)
        assert within.sum() == step.rate_rps * step.duration_s
        begin_s = end_s + LLM_D_PAUSE_S
    assert load.duration_s == 2430.0 + 6 * LLM_D_PAUSE_S


def test_a_ramp_is_poisson_at_each_rate() -> None:
    load = ramp([(50.0, 4000.0), (5.0, 4000.0)], 100, 10, seed=4)
    counts = np.histogram(load.arrival_s, np.arange(0.0, 8001.0, 10.0))[0]
    for part, rate_rps in ((counts[:400], 50.0), (counts[400:], 5.0)):
        assert part.mean() == pytest.approx(10.0 * rate_rps, rel=0.03)
        assert part.var() / part.mean() == pytest.approx(1.0, abs=0.2)
    assert set(load.prompt.tolist()) == {100}
    assert set(load.output.tolist()) == {10}


def test_the_same_seed_is_the_same_load() -> None:
    steps = [(3.0, 60.0), (9.0, 60.0)]
    assert ramp(steps, 10, 10, 1).arrival_s.tolist() == ramp(steps, 10, 10, 1).arrival_s.tolist()
    assert ramp(steps, 10, 10, 1).arrival_s.tolist() != ramp(steps, 10, 10, 2).arrival_s.tolist()


def test_a_ramp_of_nothing_says_so() -> None:
    with pytest.raises(InvalidError, match="expected at least one"):
        ramp([(0.0, 60.0)], 10, 10, 1)
    with pytest.raises(InvalidError, match="expected at most"):
        ramp([(1e9, 60.0)], 10, 10, 1)


def test_random_ramps_keep_to_their_bounds() -> None:
    for drawn in random_ramps(50, seed=5):
        assert 4 <= len(drawn.steps) <= 9
        assert all(1.0 <= step.rate_rps <= 10.0 for step in drawn.steps)
        assert all(120.0 <= step.duration_s <= 480.0 for step in drawn.steps)
        assert (drawn.prompt, drawn.output) == (LLM_D.prompt, LLM_D.output)


def test_random_ramps_are_of_every_kind() -> None:
    spikes, hill, down, up, _ = ([step.rate_rps for step in drawn.steps] for drawn in random_ramps(5, seed=6))
    assert all(spikes[number] >= 2.5 * low for number in range(1, len(spikes), 2) for low in spikes[0::2])
    top = hill.index(max(hill))
    assert hill[: top + 1] == sorted(hill[: top + 1])
    assert hill[top:] == sorted(hill[top:], reverse=True)
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)


def test_random_ramps_are_told_by_their_seed() -> None:
    assert random_ramps(3, seed=1) == random_ramps(5, seed=1)[:3]
    assert random_ramps(3, seed=1) != random_ramps(3, seed=2)
    names = [drawn.name for drawn in (*random_ramps(10, seed=1), *random_ramps(10, seed=2))]
    assert len(set(names)) == 20


def test_a_ramp_is_a_value() -> None:
    lengths = Lengths.of(5)
    one = Ramp(name="x", steps=(Step(1.0, 60.0),), prompt=lengths, output=lengths)
    assert one == Ramp(name="x", steps=(Step(1.0, 60.0),), prompt=Lengths.of(5), output=lengths)
    assert hash(one)
