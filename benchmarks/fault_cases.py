"""What goes wrong in the benchmark of faults, and what is counted of each policy then.

Llama 70B on pairs of H100s, chat-like requests, starts of 100 s, 1 to 16 replicas. Every run begins with what its first
rate needs. All policies see the same requests and cold starts; peers have their defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import product
from math import inf
from typing import Final

import numpy as np

from controlplane.simulation.fleet.clairvoyant import Bools
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.policy import Facts, ScalingPolicy
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.ramps import Lengths, Ramp, Step
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.fleet.trial import Trial, profiled, run_policy
from controlplane.simulation.fleet.world import Run, Span
from controlplane.simulation.peers.registry import make_peer
from controlplane.simulation.peers.static import STATIC

COLD_START_S: Final = 100.0
STUCK_S: Final = 3 * COLD_START_S + 120.0
"""Within it a policy should have what it needs once GPUs are back, and have withdrawn its orders once the load has
gone: two cold starts in turn, a third of margin, and two minutes to measure and to decide."""
STALE_S: Final = 3.0
"""A decision on a reading that is younger, or younger than the policy's usual interval, is none under metric loss."""
NEVER: Final = "none"
FOR_EVER: Final = "for ever"
LOSSES_S: Final[dict[str, float]] = {NEVER: 0.0, "30 s": 30.0, "2 min": 120.0, "10 min": 600.0}
SHORTAGES_S: Final[dict[str, float]] = {NEVER: 0.0, "20 min": 1200.0, FOR_EVER: inf}
_LIMITS: Final = Limits(ttft_s=3.0, itl_s=0.1, percentile=0.99)
_REPLICAS_MAX: Final = 16
_LOW_RPS: Final = 16.0
_MIDDLE_RPS: Final = 30.0
_HIGH_RPS: Final = 44.0
_IDLE_RPS: Final = 8.0
_HELD_S: Final = 900.0
"""Of a load, to tell how many replicas hold it."""
_CHANGE_S: Final = 400.0
"""When loads under metric loss change."""
_LOSS_FROM_S: Final = (-60.0, 60.0, 240.0)
"""Of the change: before it, while replicas start, and when a policy with a window of some minutes gives back."""
_RISE_S: Final = 300.0
_SHORTAGE_FROM_S: Final = (-100.0, 30.0)
"""Of the rise: before any order, and after the first."""


class Fault(StrEnum):
    SCALE_DOWN = "scale-down"
    NO_METRICS = "no metrics"
    NO_GPUS = "no GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    fault: Fault
    load: Ramp
    seed: int
    lasts: str = NEVER
    from_s: float = 0.0

    @property
    def span(self) -> Span:
        lasts_s = (LOSSES_S if self.fault is Fault.NO_METRICS else SHORTAGES_S)[self.lasts]
        return Span(self.from_s, self.from_s + lasts_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy in one case."""

    fault: Fault
    load: str
    seed: int
    lasts: str
    from_s: float
    policy: str
    attainment: float
    unanswered: int
    downs: int
    """Decisions that gave replicas back; of no metrics, only those within the loss."""
    given_back: int
    """Replicas, by these."""
    open_then: float = 0.0
    """Requests of the fleet under way at such a decision, on average."""
    drained_s: float = 0.0
    """How long a replica given back went on serving, on average."""
    asked: float = 0.0
    """Share of the shortage, from STUCK_S after the rise on, in which at least what is needed was asked for."""
    kept: float = 0.0
    """Fewest ready replicas in the shortage, over those at its beginning."""
    settled_s: float | None = None
    """From the shortage's end until what is needed was ready; where it has no end, from the load's end and the last
    late answer until nothing waited for a GPU any more. None: never, or requests were never answered."""

    @property
    def stuck(self) -> bool:
        return self.settled_s is None or self.settled_s > STUCK_S


def loads(fault: Fault) -> tuple[Ramp, ...]:
    match fault:
        case Fault.SCALE_DOWN:
            return (
                _load("stairs", (_HIGH_RPS, 240.0), (_MIDDLE_RPS, 300.0), (_LOW_RPS, 300.0), (_IDLE_RPS, 360.0)),
                _load("saw", *((_HIGH_RPS, 240.0), (_LOW_RPS, 240.0)) * 3),
                _load("cliff", (_HIGH_RPS, 300.0), (_IDLE_RPS / 4.0, 900.0)),
            )
        case Fault.NO_METRICS:
            return (
                _load("steady", (_MIDDLE_RPS, _CHANGE_S), (_MIDDLE_RPS, 1000.0)),
                _load("rise", (_LOW_RPS, _CHANGE_S), (_HIGH_RPS, 1000.0)),
                _load("fall", (_HIGH_RPS, _CHANGE_S), (_LOW_RPS, 1000.0)),
            )
        case Fault.NO_GPUS:
            return (
                _load("rise", (_LOW_RPS, _RISE_S), (_HIGH_RPS, 1800.0), (_IDLE_RPS, 600.0)),
                _load("hill", (_LOW_RPS, _RISE_S), (_HIGH_RPS, 900.0), (_IDLE_RPS, 1800.0)),
            )


def cases(seeds: int) -> list[Case]:
    """All of them, with each seed."""
    rise, hill = loads(Fault.NO_GPUS)
    found: list[Case] = []
    for seed in range(seeds):
        found += [Case(fault=Fault.SCALE_DOWN, load=load, seed=seed) for load in loads(Fault.SCALE_DOWN)]
        for load, (lasts, loss_s) in product(loads(Fault.NO_METRICS), LOSSES_S.items()):
            begins = [_CHANGE_S + from_s for from_s in _LOSS_FROM_S] if loss_s else [0.0]
            found += [
                Case(fault=Fault.NO_METRICS, load=load, seed=seed, lasts=lasts, from_s=from_s) for from_s in begins
            ]
        found.append(Case(fault=Fault.NO_GPUS, load=rise, seed=seed))
        found += [
            Case(fault=Fault.NO_GPUS, load=load, seed=seed, lasts=lasts, from_s=_RISE_S + from_s)
            for (load, lasts), from_s in product(((rise, "20 min"), (hill, FOR_EVER)), _SHORTAGE_FROM_S)
        ]
    return found


def rows_of(case: Case, *, policies: Sequence[str]) -> list[Row]:
    trial = trial_of(case)
    return [row_of(case, trial, policy_of(name, trial.facts)) for name in policies]


def trial_of(case: Case) -> Trial:
    plain = replace(
        _plain(case.load, case.seed),
        replicas_first=held_by(case.load.steps[0].rate_rps),
        profile=_profiled().profile,
    )
    if case.lasts == NEVER:
        return plain
    if case.fault is Fault.NO_METRICS:
        return replace(plain, no_metrics=(case.span,))
    return replace(plain, no_gpus=(case.span,))


def row_of(case: Case, trial: Trial, policy: ScalingPolicy) -> Row:
    outcome, run = run_policy(trial, policy)
    within = Span(0.0, inf)
    if case.fault is Fault.NO_METRICS:
        within = Span(case.span.start_s + max(policy.scrape_s, STALE_S), case.span.end_s)
    downs = [change for change in run.changes if change[2] < change[1] and within.holds(change[0])]
    given_back = sum(before - after for _, before, after in downs)
    row = Row(
        fault=case.fault,
        load=case.load.name,
        seed=case.seed,
        lasts=case.lasts,
        from_s=case.from_s,
        policy=policy.name,
        attainment=outcome.attainment,
        unanswered=outcome.unanswered,
        downs=len(downs),
        given_back=given_back,
    )
    match case.fault:
        case Fault.SCALE_DOWN:
            return replace(
                row,
                open_then=_open_at(run, [at_s for at_s, _, _ in downs]),
                drained_s=_drained_s(run) / max(given_back, 1),
            )
        case Fault.NO_METRICS:
            return row
        case Fault.NO_GPUS:
            return _starved(row, case, trial, run)


def policy_of(name: str, facts: Facts) -> ScalingPolicy:
    return our_policy(facts) if name == OURS else make_peer(name, facts)


@cache
def held_by(rate_rps: float) -> int:
    """The fewest replicas that hold this rate within the objectives, tried one after the other."""
    for replicas in range(1, _REPLICAS_MAX):
        trial = replace(_plain(_load("held", (rate_rps, _HELD_S)), 0), replicas_first=replicas)
        static = make_peer(STATIC.name, trial.facts, {"replicas": float(replicas)})
        if run_policy(trial, static)[0].attainment >= _LIMITS.percentile:
            return replicas
    return _REPLICAS_MAX


# -- one run ----------------------------------------------------------------------------------------------------------


def _load(name: str, *steps: tuple[float, float]) -> Ramp:
    return Ramp(
        name=name,
        steps=tuple(Step(*step) for step in steps),
        prompt=Lengths(mean=1000.0, deviation=500.0, least=50, most=4000),
        output=Lengths(mean=250.0, deviation=150.0, least=5, most=1500),
    )


@cache
def _subject() -> Subject:
    return subject_of("llama-3.1-70b", "h100", tensor_parallel=2, precision="fp8", context_tokens=8192)


def _plain(load: Ramp, seed: int) -> Trial:
    return Trial(
        subject=_subject(),
        workload=load.workload(seed),
        limits=_LIMITS,
        cold_start_s=COLD_START_S,
        replicas_max=_REPLICAS_MAX,
        seed=seed,
    )


@cache
def _profiled() -> Trial:
    """For its profile: all loads have the same requests, and a measurement takes longer than a run."""
    return profiled(_plain(_load("profiled", (_MIDDLE_RPS, _HELD_S)), 0))


def _open_at(run: Run, moments_s: Sequence[float]) -> float:
    requests = run.fleet.requests
    open_then = [int(((requests.arrival_s <= at_s) & ~(requests.done_s <= at_s)).sum()) for at_s in moments_s]
    return sum(open_then) / max(len(open_then), 1)


def _drained_s(run: Run) -> float:
    """Replica seconds beyond those wanted: with GPUs enough nothing else holds one."""
    return float(np.maximum(run.timeline.billed - run.timeline.wanted, 0).sum())


def _starved(row: Row, case: Case, trial: Trial, run: Run) -> Row:
    timeline, gone_s = run.timeline, _RISE_S + case.load.steps[1].duration_s
    needed = held_by(case.load.steps[1].rate_rps)
    ends_s = max(case.span.end_s, _RISE_S)
    if case.lasts == FOR_EVER:
        settled_s = None if row.unanswered else _withdrawn_s(trial, run, gone_s)
    else:
        settled_s = _first_s(timeline.ready[round(ends_s) : round(gone_s)] >= needed)
    if case.lasts == NEVER:
        return replace(row, settled_s=settled_s)
    begins, ends = round(case.span.start_s), round(min(ends_s, gone_s))
    asking = timeline.wanted[round(_RISE_S + STUCK_S) : ends] >= needed
    kept = float(timeline.ready[begins:ends].min() / max(timeline.ready[begins], 1))
    return replace(row, settled_s=settled_s, asked=float(asking.mean()), kept=kept)


def _withdrawn_s(trial: Trial, run: Run, gone_s: float) -> float | None:
    """Nothing waits for a GPU, counted from when the load has gone and the last late request has its first token."""
    requests, timeline = run.fleet.requests, run.timeline
    late = requests.first_s - requests.arrival_s > trial.limits.ttft_s
    calm_s = max(gone_s, float(requests.first_s[late].max(initial=0.0)))
    return _first_s((timeline.wanted <= timeline.billed)[round(calm_s) :])


def _first_s(reached: Bools) -> float | None:
    """Index of the first true one: a value a second."""
    return float(np.argmax(reached)) if reached.any() else None
