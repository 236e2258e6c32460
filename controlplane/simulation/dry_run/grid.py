"""The moments at which a history is looked at, and what Prometheus answered, laid out on them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints

POINTS_MAX: Final = 11_000
"""Prometheus refuses a range query that would give more points for one series."""
STEPS_S: Final = (5, 10, 15, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600)
"""Steps that a person would choose."""


class Ranged(Protocol):
    """One series of a range query's answer."""

    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def at_s(self) -> Floats:
        """Unix seconds, rising."""
        ...

    @property
    def values(self) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Grid:
    """Moments `step_s` apart; interval k lies between moments k and k + 1."""

    start_s: float
    """Unix seconds."""
    step_s: float
    intervals: int

    @property
    def end_s(self) -> float:
        return self.start_s + self.step_s * self.intervals

    @property
    def moments(self) -> int:
        return self.intervals + 1

    def column(self, series: Ranged) -> Floats:
        """Its value at each moment, NaN where it has none."""
        values = np.full(self.moments, np.nan)
        places: Ints = np.rint((series.at_s - self.start_s) / self.step_s).astype(np.int64)
        inside = (places >= 0) & (places < self.moments)
        values[places[inside]] = series.values[inside]
        return values


def grid_over(start_s: float, end_s: float, step_s: float) -> Grid:
    """From start_s, in whole steps, to end_s or a little before it."""
    return Grid(start_s=start_s, step_s=step_s, intervals=max(math.floor((end_s - start_s) / step_s), 1))


def step_for(range_s: float, scrape_s: float) -> float:
    """The shortest that Prometheus gives in one answer, and not below the interval of the scrapes, seconds."""
    least = max(range_s / (POINTS_MAX - 1), scrape_s)
    return float(next((step for step in STEPS_S if step >= least), math.ceil(least)))
