"""Series and answers made by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.simulation.dry_run.grid import Grid
from controlplane.simulation.dry_run.questions import Ask
from controlplane.simulation.fleet.compiled import Floats

NAN = float("nan")
MINUTE = Grid(start_s=1_000_020.0, step_s=60.0, intervals=60)
"""An hour."""


@dataclass(frozen=True)
class Line:
    """Implements `Ranged`."""

    labels: Mapping[str, str]
    at_s: Floats
    values: Floats


def line(grid: Grid, values: Sequence[float], **labels: str) -> Line:
    """NaN: no sample at that moment."""
    column: Floats = np.array(values, dtype=np.float64)
    there = ~np.isnan(column)
    at_s: Floats = grid.start_s + np.arange(len(column), dtype=np.float64) * grid.step_s
    return Line({"model_name": "m", **labels}, np.asarray(at_s[there]), np.asarray(column[there]))


def constant(grid: Grid, value: float) -> list[float]:
    return [value] * grid.moments


def one_replica(
    finished: Sequence[float], opened: Sequence[float], grid: Grid = MINUTE, pod: str = "a"
) -> dict[Ask, list[Line]]:
    return {
        Ask.SUCCESS: [line(grid, finished, pod=pod)],
        Ask.RUNNING: [line(grid, opened, pod=pod)],
    }


def merged(*parts: Mapping[Ask, Sequence[Line]]) -> dict[Ask, list[Line]]:
    return {ask: [one for part in parts for one in part.get(ask, ())] for ask in Ask}
