"""What a run was worth: objectives met, GPU-hours, changes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.profile import per_token_s
from controlplane.simulation.fleet.state import PREEMPTIONS
from controlplane.simulation.fleet.world import Run, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy on one scenario and seed."""

    policy: str
    seed: int
    requests: int
    attainment: float
    """Share of all requests whose TTFT and mean time per output token both met their limits; what was never answered
    did not."""
    ttft_attainment: float
    itl_attainment: float
    gpu_hours: float
    replicas_mean: float
    """Billed, from launch to the end of the drain, over the scenario's duration; asleep at the share of it."""
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    """Of requests' mean times per output token."""
    unanswered: int
    preemptions: int
    scale_events: int
    direction_changes: int
    """Changes of the number that went the other way than the one before."""
    wakes: int = 0
    asleep_mean: float = 0.0
    """Replicas that slept, over the scenario's duration."""


def outcome_of(policy: str, scenario: Scenario, run: Run, *, ttft_slo_s: float, itl_slo_s: float) -> Outcome:
    requests = run.fleet.requests
    ttft_s: Floats = requests.first_s - requests.arrival_s
    itl_s = per_token_s(requests.first_s, requests.done_s, requests.output)
    answered = ~np.isnan(requests.done_s)
    # A comparison with NaN is False: what was never answered met nothing.
    in_time, fluent = ttft_s <= ttft_slo_s, answered & (itl_s <= itl_slo_s)
    count = len(requests)
    steps = [after - before for _, before, after in run.changes]
    return Outcome(
        policy=policy,
        seed=scenario.seed,
        requests=count,
        attainment=_share(in_time & fluent),
        ttft_attainment=_share(in_time),
        itl_attainment=_share(fluent),
        gpu_hours=run.replica_seconds * scenario.gpus_per_replica / 3600.0,
        replicas_mean=run.replica_seconds / max(scenario.duration_s, 1.0),
        ttft_p50_s=_quantile(ttft_s, 0.5),
        ttft_p99_s=_quantile(ttft_s, 0.99),
        itl_p50_s=_quantile(itl_s[answered], 0.5),
        itl_p99_s=_quantile(itl_s[answered], 0.99),
        unanswered=int(count - answered.sum()),
        preemptions=int(run.fleet.totals[0].counters[PREEMPTIONS]),
        scale_events=len(steps),
        direction_changes=turns(steps),
        wakes=run.wakes,
        asleep_mean=float(run.timeline.asleep.sum()) / max(scenario.duration_s, 1.0),
    )


def _share(met: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    return float(met.mean()) if len(met) else 1.0


def turns(steps: Sequence[int]) -> int:
    """Changes that went the other way than the one before."""
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(steps))


def _quantile(values: Floats, q: float) -> float:
    """Of all; infinite where so many were never answered."""
    if not len(values):
        return math.nan
    return float(np.quantile(np.where(np.isnan(values), np.inf, values), q, method="higher"))
