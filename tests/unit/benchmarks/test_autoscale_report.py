"""The benchmark of policies: a cell that cannot be run is named with its reason, and takes no other one with it."""

from dataclasses import replace

import pytest

from benchmarks.autoscale import Failure, measure, report_of, rows_of
from benchmarks.cells import MODELS, SYNTHETIC, Cell, scaled_trial
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.trial import Trial
from controlplane.simulation.fleet.workload import REQUESTS_MAX, check_size

FITS = Cell(load=SYNTHETIC[0], model=MODELS[2], gpu="h100", cold_start_s=100.0)
TOO_LARGE = replace(FITS, load=replace(SYNTHETIC[0], name="a-year"))


def trials(cell: Cell, seed: int) -> Trial | None:
    """A year's load is refused as the simulator refuses it."""
    if cell == TOO_LARGE:
        check_size(cell.load.name, 2.0 * REQUESTS_MAX)
    return scaled_trial(cell, seed)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_load_too_large_for_the_simulator_ends_its_cell_and_no_other(jobs: int) -> None:
    report = measure([TOO_LARGE, FITS], [OURS], seeds=1, jobs=jobs, with_tuned=False, trials=trials)
    (failed,) = report.results["failed"]
    assert (failed["cell"], failed["seed"]) == (TOO_LARGE.name, 0)
    assert "found 4e+07 requests, expected at most 20,000,000" in failed["reason"]
    assert {row["cell"] for row in report.results["results"]} == {FITS.name}
    assert report.results["skipped"] == []
    grid = report.grids[-1]
    assert (grid.title, list(grid.rows)) == (
        "Cells that failed to run",
        [(f"{TOO_LARGE.name}: {failed['reason']}", "0")],
    )
    assert f"Failed to run: {TOO_LARGE.name}." in report.verdict


def test_a_trace_that_is_not_there_ends_its_cell() -> None:
    gone = replace(FITS, load=replace(SYNTHETIC[0], name="gone", file="gone.parquet"))
    assert isinstance(rows_of((gone, 0), policies=[], tuned={}), Failure)


def test_seeds_that_fail_alike_stand_in_one_line_and_without_failures_there_is_no_table() -> None:
    failures = [Failure(cell="a", seed=seed, reason="too large" if seed < 2 else "empty") for seed in range(3)]
    report = report_of([], [], {}, "synthetic", failures=failures)
    assert list(report.grids[-1].rows) == [("a: too large", "0, 1"), ("a: empty", "2")]
    without = report_of([], [], {}, "synthetic")
    assert "Failed to run: none." in without.verdict
    assert [grid.title for grid in without.grids if "failed" in grid.title] == []
