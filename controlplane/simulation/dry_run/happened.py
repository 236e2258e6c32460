"""What the history itself says: GPU-hours, objectives met, changes of the number. Measured, nothing simulated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.simulation.dry_run.history import History, Stretch, Within
from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.outcome import turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A share of requests or a time, as exactly as bucket edges tell it."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEdge:
    """Share of observations up to an edge of a histogram: exact."""

    edge_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """Over all stretches together."""

    requests: float
    hours: float
    gpu_hours: float
    gpu_hours_told: bool
    """By Kubernetes, starting pods included; otherwise replicas that answered, and a cold start for each that came."""
    replicas_mean: float
    """Those that answered."""
    replicas_least: int
    replicas_most: int
    scale_events: int
    direction_changes: int
    ttft: Bounds | None
    per_token: Bounds | None
    """Each objective by itself; None where the engine does not tell."""
    attainment: Bounds | None
    """Both together: at least what follows if those that missed one missed nothing else, at most the worse of both."""
    ttft_edges: tuple[AtEdge, ...]
    per_token_edges: tuple[AtEdge, ...]


def happened(
    history: History,
    parts: Sequence[Stretch],
    *,
    gpus_per_replica: int,
    cold_start_s: float,
    ttft_slo_s: float,
    itl_slo_s: float,
) -> Happened:
    chosen = np.concatenate([np.arange(part.first, part.last) for part in parts])
    ready = history.ready[chosen]
    numbers = history.ready if history.wanted is None else history.wanted
    steps = [step for part in parts for step in _steps(numbers[part.first : part.last])]
    ttft, per_token = _bounds(history.ttft, chosen, ttft_slo_s), _bounds(history.per_token, chosen, itl_slo_s)
    return Happened(
        requests=float(history.arrived[chosen].sum()),
        hours=len(chosen) * history.grid.step_s / 3600.0,
        gpu_hours=_replica_seconds(history, parts, cold_start_s) * gpus_per_replica / 3600.0,
        gpu_hours_told=history.held is not None,
        replicas_mean=float(ready.mean()),
        replicas_least=int(ready.min()),
        replicas_most=int(ready.max()),
        scale_events=len(steps),
        direction_changes=turns(steps),
        ttft=ttft,
        per_token=per_token,
        attainment=_both(ttft, per_token),
        ttft_edges=_at_edges(history.ttft, chosen),
        per_token_edges=_at_edges(history.per_token, chosen),
    )


def quantile_bounds(q: float, edges: Sequence[float], counts: Floats) -> Bounds:
    """Between which edges the quantile lies. `counts` are cumulative; the last edge is infinite. NaN without any."""
    if not len(counts) or counts[-1] <= 0.0:
        return Bounds(low=math.nan, high=math.nan)
    place = int(np.searchsorted(counts, q * counts[-1]))
    place = min(place, len(edges) - 1)
    return Bounds(low=edges[place - 1] if place else 0.0, high=edges[place])


def _replica_seconds(history: History, parts: Sequence[Stretch], cold_start_s: float) -> float:
    step_s = history.grid.step_s
    if history.held is not None:
        return float(sum(history.held[part.first : part.last].sum() for part in parts)) * step_s
    total = 0.0
    for part in parts:
        ready = history.ready[part.first : part.last]
        total += float(ready.sum()) * step_s + float(np.maximum(np.diff(ready), 0).sum()) * cold_start_s
    return total


def _steps(numbers: Ints) -> list[int]:
    return [int(step) for step in np.diff(numbers) if step]


def _at_edges(within: Within | None, chosen: Ints) -> tuple[AtEdge, ...]:
    if within is None:
        return ()
    total = float(within.total[chosen].sum())
    if total <= 0.0:
        return ()
    return tuple(
        AtEdge(edge_s=edge, share=min(float(counts[chosen].sum()) / total, 1.0))
        for edge, counts in zip(within.edges_s, within.counts, strict=True)
    )


def _bounds(within: Within | None, chosen: Ints, limit_s: float) -> Bounds | None:
    """The shares at the edges beside the limit; an edge that is the limit gives one number."""
    if within is None or float(within.total[chosen].sum()) <= 0.0:
        return None
    shares = _at_edges(within, chosen)
    low = max((one.share for one in shares if one.edge_s <= limit_s), default=0.0)
    high = min((one.share for one in shares if one.edge_s >= limit_s), default=1.0)
    return Bounds(low=low, high=max(low, high))


def _both(one: Bounds | None, other: Bounds | None) -> Bounds | None:
    if one is None or other is None:
        return None
    return Bounds(low=max(one.low + other.low - 1.0, 0.0), high=min(one.high, other.high))
