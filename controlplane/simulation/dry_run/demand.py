"""Requests drawn from a rebuilt history: as many in each interval as came, with the lengths of that hour."""

from dataclasses import dataclass

import numpy as np

from controlplane.simulation.dry_run.history import History, Stretch
from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.rates import OUTPUT_CV, PROMPT_CV, lengths_around
from controlplane.simulation.fleet.workload import Workload, check_size, workload_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """Of one stretch. Arrays have a value for each interval."""

    name: str
    start_s: float
    """Unix seconds."""
    step_s: float
    arrived: Floats
    prompt_mean: Floats
    output_mean: Floats
    prompt_cv: float = PROMPT_CV
    output_cv: float = OUTPUT_CV
    """Coefficients of variation of the lengths; where the history does not tell, those of a public trace."""
    ready: Ints
    """Replicas that there really were."""

    @property
    def duration_s(self) -> float:
        return self.step_s * len(self.arrived)


def demand_of(
    name: str,
    history: History,
    stretch: Stretch,
    lengths: tuple[Floats, Floats],
    *,
    prompt_cv: float = PROMPT_CV,
    output_cv: float = OUTPUT_CV,
) -> Demand:
    part = slice(stretch.first, stretch.last)
    return Demand(
        name=name,
        start_s=history.grid.start_s + stretch.first * history.grid.step_s,
        step_s=history.grid.step_s,
        arrived=history.arrived[part],
        prompt_mean=lengths[0][part],
        output_mean=lengths[1][part],
        prompt_cv=prompt_cv,
        output_cv=output_cv,
        ready=history.ready[part],
    )


def drawn(demand: Demand, seed: int) -> Workload | None:
    """The requests, each anywhere in its interval; None when there is none.

    The number in each interval is what the history says, not drawn: the seed places requests within their interval and
    draws their lengths. Fractions, which bridged gaps leave, carry over to the next interval.
    """
    counts = np.diff(np.concatenate([[0.0], np.floor(np.cumsum(demand.arrived) + 0.5)])).astype(np.int64)
    total = int(counts.sum())
    check_size(demand.name, total)
    if total == 0:
        return None
    places, lengths = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(2))
    interval = np.repeat(np.arange(len(counts)), counts)
    arrival_s = np.sort((interval + places.random(total)) * demand.step_s)
    return workload_of(
        demand.name,
        np.minimum(arrival_s, demand.duration_s),
        lengths_around(lengths, demand.prompt_mean[interval], demand.prompt_cv),
        lengths_around(lengths, demand.output_mean[interval], demand.output_cv),
        duration_s=demand.duration_s,
    )
