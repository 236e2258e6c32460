"""How much of a trace to play at which rate, so that scaling has something to do and the runs come to an end."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controlplane.simulation.fleet.comparison import Case
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.profile import Limits, Profile, within
from controlplane.simulation.fleet.rates import window_rates
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import READY, Timing, new_fleet
from controlplane.simulation.fleet.trace_files import rates_of, read_workload, requests_of
from controlplane.simulation.fleet.trial import Trial, profiled, work_of
from controlplane.simulation.fleet.workload import REQUESTS_MAX as HELD_MAX
from controlplane.simulation.fleet.workload import Workload, window
from controlplane.simulation.trace_columns import Shape, shape_of

REQUESTS_MAX: Final = 3_000_000
"""That a scale chosen here leads to; twice as many where a day has more. A run takes about 400 bytes a request."""
_REQUESTS_LEAST: Final = 1_000
"""Fewer say nothing about 99 %: the scale stays above, though the peak be beyond the maximum."""
_PROBE_REQUESTS: Final = 1_000_000
"""What is looked at of a long trace: all of it thinned out, to find its busiest time, and then that time as it is."""
_PEAK_LEAST: Final = 2.0
"""Replicas in the busiest ten seconds: with fewer there is nothing to decide."""
_PEAK_WORTH: Final = 3.0
"""To save requests the peak is lowered to this, and then the end of the trace left away."""
_PEAK_SHARE: Final = 0.6
"""Of the maximum, when the scale is chosen: room for policies that overshoot."""
_PEAK_REPLICAS_MAX: Final = 16
"""A larger fleet behaves like this one, and costs time."""
_FACTOR_MAX: Final = 100.0
"""More copies of a request are no load that anybody had."""
_TOLERANCE: Final = 0.15
"""Of the peak: bursts do not grow evenly with the scale, so it is approached."""
_ROUNDS: Final = 5
_DIGITS: Final = 3
"""Of a chosen scale, so that it can be typed."""
_BIN_S: Final = 10.0
_DAY_S: Final = 86_400.0
"""No trace is shortened to less: load comes in days."""
_HOUR_S: Final = 3600.0
_STEPS: Final = 20_000
"""Of the sum over rates."""
_ALONE: Final = 200
_ALONE_GAP_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What was found and what was chosen."""

    case: Case
    """With the chosen factor, and the end when some was left away."""
    profile: Profile
    recorded_requests: float
    """In the window that was asked for."""
    recorded_peak: float
    """Replicas that the busiest ten seconds need at the recorded rate."""
    shortened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Requests that find an empty replica, each."""

    ttft_s: float
    itl_s: float
    """What the asked share of them stays within."""
    within: float
    """Share that meets both objectives."""
    too_long: float
    """Share that no KV cache of such a replica holds."""


def sized(case: Case, *, seed: int = 0, may_shorten: bool = True) -> Sizing:
    """The recorded rate where its peak needs 2 to `replicas_max` replicas and its requests are not too many.

    Else the scale at which the busiest ten seconds need 0.6 of the maximum (of 16 at most), lowered down to three
    replicas where that would be more than REQUESTS_MAX; where that is not enough, the trace's first days. Nothing is
    chosen where single requests miss (`profile.rate_rps` is 0).
    """
    recorded = recorded_requests(case)
    trial = profiled(_trial(case, min(1.0, _PROBE_REQUESTS / recorded), seed))
    profile = trial.profile
    if profile.rate_rps <= 0.0:
        return Sizing(case=case, profile=profile, recorded_requests=recorded, recorded_peak=0.0, shortened=False)
    busy = _Busy(case=case, recorded=recorded, thinned=trial, seed=seed)
    recorded_peak = busy.peak(1.0)
    factor = _approached(busy, _factor(recorded_peak, case.replicas_max, recorded), recorded_peak)
    factor = max(factor, min(1.0, _REQUESTS_LEAST / recorded))
    duration_s = trial.workload.duration_s
    length_s = duration_s
    if may_shorten and recorded * factor > REQUESTS_MAX:
        length_s = min(max(duration_s * REQUESTS_MAX / (recorded * factor), _DAY_S), duration_s)
    held = (2 * REQUESTS_MAX if may_shorten else HELD_MAX) * duration_s / length_s
    factor = float(f"{min(factor, held / recorded):.{_DIGITS}g}")
    shortened = length_s < duration_s
    end_s = case.start_s + length_s // _HOUR_S * _HOUR_S if shortened else case.end_s
    return Sizing(
        case=replace(case, factor=factor, end_s=end_s),
        profile=profile,
        recorded_requests=recorded,
        recorded_peak=recorded_peak,
        shortened=shortened,
    )


def recorded_requests(case: Case) -> float:
    """In the case's window, at the recorded rate."""
    if shape_of(case.trace) is Shape.REQUESTS:
        return window(requests_of(case.trace, case.series), case.start_s, case.end_s).requests
    rates = window_rates(rates_of(case.trace, case.series), case.start_s, case.end_s)
    at_s = (np.arange(_STEPS) + 0.5) * rates.duration_s / _STEPS
    return max(float(np.interp(at_s, rates.middle_s, rates.rate_rps).mean()) * rates.duration_s, 1.0)


def alone(workload: Workload, timing: Timing, limits: Limits) -> Alone:
    """What a request gets that shares its replica with no other: the best that any number of replicas can do."""
    chosen = np.linspace(0, workload.requests - 1, min(_ALONE, workload.requests)).astype(np.int64)
    arrival_s: Floats = np.arange(len(chosen), dtype=np.float64) * _ALONE_GAP_S
    fleet = new_fleet(arrival_s, workload.prompt[chosen], workload.output[chosen], slots=1, timing=timing)
    fleet.slots.phase = READY
    serve(fleet, timing, LEAST_CONNECTIONS, 0, float(arrival_s[-1]) + _ALONE_GAP_S)
    requests = fleet.requests
    answered = requests[~np.isnan(requests.done_s)]
    ttft_s = answered.first_s - answered.arrival_s
    itl_s = (answered.done_s - answered.first_s) / np.maximum(answered.output - 1, 1)
    met = within(requests.arrival_s, requests.first_s, requests.done_s, requests.output, limits)
    return Alone(
        ttft_s=float(np.quantile(ttft_s, limits.percentile)) if len(answered) else np.inf,
        itl_s=float(np.quantile(itl_s, limits.percentile)) if len(answered) else np.inf,
        within=float(met.mean()),
        too_long=1.0 - len(answered) / len(chosen),
    )


def _factor(recorded_peak: float, replicas_max: int, recorded: float) -> float:
    goal = _PEAK_SHARE * min(replicas_max, _PEAK_REPLICAS_MAX)
    factor = 1.0 if _PEAK_LEAST <= recorded_peak <= replicas_max else min(goal / recorded_peak, _FACTOR_MAX)
    worth = min(factor, _PEAK_WORTH / recorded_peak)
    return max(worth, min(factor, REQUESTS_MAX / recorded))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Busy:
    """The busiest time of a trace, at any scale."""

    case: Case
    recorded: float
    thinned: Trial
    """All of it, with a profile."""
    seed: int

    def peak(self, factor: float) -> float:
        """Replicas that the busiest ten seconds need, with fractions."""
        trial = self.thinned
        if self.recorded * factor <= _PROBE_REQUESTS:
            return _peak(replace(_trial(self.case, factor, self.seed), profile=trial.profile))
        duration_s = trial.workload.duration_s
        length_s = duration_s * _PROBE_REQUESTS / (self.recorded * factor)
        bin_s = max(length_s, _BIN_S)
        bin_of = (trial.workload.arrival_s / bin_s).astype(np.int64)
        begin_s = self.case.start_s + float(np.argmax(np.bincount(bin_of, weights=work_of(trial)))) * bin_s
        end_s = min(begin_s + bin_s, self.case.start_s + duration_s)
        part = replace(self.case, start_s=begin_s, end_s=end_s)
        return _peak(replace(_trial(part, factor, self.seed), profile=trial.profile))


def _approached(busy: _Busy, factor: float, recorded_peak: float) -> float:
    """The factor with which the peak is `factor` times the recorded one; the recorded rate is left alone."""
    goal = factor * recorded_peak
    for _ in range(0 if factor == 1.0 else _ROUNDS):
        peak = busy.peak(factor)
        if abs(peak / goal - 1.0) <= _TOLERANCE:
            break
        factor = min(factor * goal / peak, _FACTOR_MAX)
    return factor


def _trial(case: Case, factor: float, seed: int) -> Trial:
    workload = read_workload(
        case.trace, series=case.series, seed=seed, factor=factor, start_s=case.start_s, end_s=case.end_s
    )
    return Trial(subject=case.subject, workload=workload, limits=case.limits, cold_start_s=case.cold_start_s)


def _peak(trial: Trial) -> float:
    bin_of = (trial.workload.arrival_s / _BIN_S).astype(np.int64)
    load = np.bincount(bin_of, weights=work_of(trial))
    return float(load.max()) / (_BIN_S * trial.profile.rate_rps)
