"""A step in load is answered within moments: the benchmark `reaction` at its smallest, with a generous bound."""

import pytest

from benchmarks.reaction import ANSWER_S, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(240)
def test_a_step_in_load_is_decided_at_once() -> None:
    """The aim of 1.5 s is for `python -m benchmarks.reaction`, on a machine that does nothing else."""
    found = run(quick=True)
    assert found.results["steps"] >= 1, found.results["results"]
    assert found.results["without_decision"] == 0, f"not within {ANSWER_S:g} s: {found.results['results']}"
    assert found.results["failed"] == 0
