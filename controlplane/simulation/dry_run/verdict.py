"""The comparison in numbers: rows with their spread, the simulator's error on what is known, what would be saved."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from controlplane.simulation.dry_run.happened import AtEdge, Bounds, Happened
from controlplane.simulation.dry_run.runs import Total, Who


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, and half of the way from the least to the most."""

    mean: float
    half: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One simulated policy over all seeds."""

    who: Who
    gpu_hours: Spread
    attainment: Spread
    ttft_p99_s: Spread
    itl_p99_s: Spread
    scale_events: Spread
    direction_changes: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorError:
    """Of one simulated row, on what the history knows."""

    who: Who
    gpu_hours: float
    """Simulated over real, less 1."""
    attainment: float
    """The largest difference of a share of requests at an edge of a histogram; NaN where the history tells none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    rows: tuple[Row, ...]
    errors: tuple[SimulatorError, ...]
    saving: float
    """Of the GPU-hours that were really used, 0..1; negative: it would take more."""
    saving_low: float
    saving_high: float
    """With the seeds' spread, and the error on the GPU-hours of their own autoscaler where it was simulated."""
    is_judged: bool
    """Their autoscaler was simulated too, so that the error of its GPU-hours is in the range."""
    attainment: Bounds | None
    """Change of the attainment, ours less what happened: from the worst case to the best. None: the history tells
    none."""


def verdict_of(totals: Sequence[Total], happened: Happened) -> Verdict:
    rows = tuple(row_of(who, [one for one in totals if one.who == who]) for who in dict.fromkeys(t.who for t in totals))
    errors = tuple(
        _error(who, [one for one in totals if one.who == who], happened)
        for who in (Who.REPLAYED, Who.THEIRS)
        if any(one.who == who for one in totals)
    )
    ours = next(row for row in rows if row.who == Who.OURS)
    theirs = next((row for row in rows if row.who == Who.THEIRS), None)
    # Against what was really used, and like with like: both simulated, with what the simulator gets wrong in both.
    against = [happened.gpu_hours, *([theirs.gpu_hours.mean] if theirs is not None else [])]
    ends = [
        1.0 - (ours.gpu_hours.mean + way * ours.gpu_hours.half) / hours
        for hours in against
        for way in (-1.0, 1.0)
        if hours > 0.0
    ]
    return Verdict(
        rows=rows,
        errors=errors,
        saving=1.0 - ours.gpu_hours.mean / happened.gpu_hours if happened.gpu_hours > 0.0 else 0.0,
        saving_low=min(ends, default=0.0),
        saving_high=max(ends, default=0.0),
        is_judged=theirs is not None,
        attainment=_change(ours, happened, errors),
    )


def row_of(who: Who, totals: Sequence[Total]) -> Row:
    return Row(
        who=who,
        gpu_hours=spread(one.gpu_hours for one in totals),
        attainment=spread(one.attainment for one in totals),
        ttft_p99_s=spread(one.ttft_p99_s for one in totals),
        itl_p99_s=spread(one.itl_p99_s for one in totals),
        scale_events=spread(float(one.scale_events) for one in totals),
        direction_changes=spread(float(one.direction_changes) for one in totals),
    )


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    if any(math.isinf(value) for value in found):
        return Spread(math.inf, 0.0)
    return Spread(fmean(found), (max(found) - min(found)) / 2.0)


def _error(who: Who, totals: Sequence[Total], happened: Happened) -> SimulatorError:
    hours = fmean(one.gpu_hours for one in totals)
    return SimulatorError(
        who=who,
        gpu_hours=hours / happened.gpu_hours - 1.0 if happened.gpu_hours > 0.0 else math.nan,
        attainment=_largest(
            [
                *_differences([one.ttft_edges for one in totals], happened.ttft_edges),
                *_differences([one.per_token_edges for one in totals], happened.per_token_edges),
            ]
        ),
    )


def _differences(simulated: Sequence[tuple[AtEdge, ...]], real: tuple[AtEdge, ...]) -> Iterable[float]:
    for place, edge in enumerate(real):
        yield fmean(one[place].share for one in simulated) - edge.share


def _largest(differences: Sequence[float]) -> float:
    return max(differences, key=abs) if differences else math.nan


def _change(ours: Row, happened: Happened, errors: Sequence[SimulatorError]) -> Bounds | None:
    """The simulated attainment may be wrong by as much as that of the replicas as they were is."""
    if happened.attainment is None:
        return None
    known = [abs(one.attainment) for one in errors if one.who == Who.REPLAYED and not math.isnan(one.attainment)]
    doubt = ours.attainment.half + max(known, default=0.0)
    return Bounds(
        low=max(ours.attainment.mean - doubt, 0.0) - happened.attainment.high,
        high=min(ours.attainment.mean + doubt, 1.0) - happened.attainment.low,
    )
