"""Policies side by side on one load: a run for each policy and seed, and what it was worth beside the clairvoyant."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.ours import NAME, our_policy
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.profile import Limits, within
from controlplane.simulation.fleet.replicas import Sleep
from controlplane.simulation.fleet.subject import Subject
from controlplane.simulation.fleet.trace_files import read_workload
from controlplane.simulation.fleet.trial import (
    CLAIRVOYANT,
    Trial,
    clairvoyant,
    first_replicas,
    peak_replicas,
    profiled,
    run_policy,
)
from controlplane.simulation.fleet.world import Run
from controlplane.simulation.peers.registry import PEERS, make_peer
from controlplane.simulation.peers.static import STATIC
from controlplane.simulation.processes import mapped

POLICIES: Final = (NAME, CLAIRVOYANT, *PEERS)
"""All that can be compared, in the order in which they are shown."""
_FIRST_S: Final = 60.0
"""The load begins with the replicas that the busiest ten seconds of its first minute need, as if it had been as high
before; a static fleet is sized in the same way, by the whole."""
_BIN_S: Final = 60.0
_DIGITS: Final = 6
"""Of GPU-hours that count as equal."""
_BINS_MAX: Final = 720
"""Of a course: as fine as a plot can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that the policies have in common, as a value: another process makes the same trials of it."""

    trace: Path
    subject: Subject
    limits: Limits
    cold_start_s: float
    replicas_max: int
    replicas_min: int = 1
    cold_start_cv: float = 0.1
    sleep: Sleep | None = None
    """None: who is given back goes."""
    series: str | None = None
    factor: float = 1.0
    """Of the rate."""
    start_s: float = 0.0
    end_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One policy, and for a tuned peer the knobs that a search has found."""

    policy: str
    knobs: tuple[tuple[str, float], ...] | None = None
    """None: its defaults."""

    @property
    def name(self) -> str:
        return self.policy if self.knobs is None else f"{self.policy}-tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Each value holds from its moment to the next."""

    at_s: Floats
    values: Ints | Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run over time, for a plot."""

    bin_s: float
    arrived: Ints
    """Requests per bin."""
    missed: Ints
    """Those of them that did not meet both objectives."""
    billed: Steps
    """Replicas that hold GPUs, sleepers at their share."""
    duration_s: float
    gpus_per_replica: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    case: Case
    entry: Entry
    seed: int
    course: bool = False
    """Whether to bring its course along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    entry: Entry
    outcome: Outcome
    course: Course | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it, policies in the order asked for, seed by seed."""

    case: Case
    results: tuple[Result, ...]
    clairvoyants: tuple[Result, ...]
    """One per seed, whether asked for or not."""

    def over_clairvoyant(self, result: Result) -> float:
        """GPU-hours over those of the clairvoyant schedule with the same seed; infinite over none."""
        least = next(one.outcome for one in self.clairvoyants if one.outcome.seed == result.outcome.seed).gpu_hours
        return result.outcome.gpu_hours / least if least > 0.0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One policy over all seeds: medians, unless said otherwise."""

    entry: Entry
    seeds: int
    missed: int
    """Seeds with which the objective was missed."""
    attainment: float
    attainment_worst: float
    gpu_hours: float
    over_clairvoyant: float
    ttft_p99_s: float
    """Infinite where more than one in a hundred was never answered."""
    itl_p99_s: float
    scale_events: float
    direction_changes: float
    wakes: float


@lru_cache(maxsize=1)
def trial_of(case: Case, seed: int) -> Trial:
    """The case's load as the seed draws it, with the profile of one replica and the replicas to begin with.

    `profile.rate_rps` may be 0: then no policy can meet the objectives. InvalidError as `read_workload`.
    """
    workload = read_workload(
        case.trace, series=case.series, seed=seed, factor=case.factor, start_s=case.start_s, end_s=case.end_s
    )
    trial = profiled(
        Trial(
            subject=case.subject,
            workload=workload,
            limits=case.limits,
            cold_start_s=case.cold_start_s,
            cold_start_cv=case.cold_start_cv,
            sleep=case.sleep,
            replicas_min=case.replicas_min,
            replicas_max=case.replicas_max,
            seed=seed,
        )
    )
    if trial.profile.rate_rps <= 0.0:
        return trial
    return replace(trial, replicas_first=first_replicas(trial, _FIRST_S))


def static_replicas(trial: Trial) -> int:
    """The peak's, within the bounds."""
    return min(max(peak_replicas(trial), trial.replicas_min), trial.replicas_max)


def run_entry(trial: Trial, entry: Entry) -> tuple[Outcome, Run]:
    """One run. The clairvoyant and a static fleet of the peak's size begin with what they want."""
    if entry.policy == CLAIRVOYANT:
        return clairvoyant(trial)
    if entry.policy == NAME:
        return run_policy(trial, our_policy(trial.facts))
    if entry.policy == STATIC.name and entry.knobs is None:
        replicas = static_replicas(trial)
        policy = make_peer(STATIC.name, trial.facts, {"replicas": float(replicas)})
        return run_policy(replace(trial, replicas_first=replicas), policy)
    return run_policy(trial, make_peer(entry.policy, trial.facts, dict(entry.knobs or ())))


def run_task(task: Task) -> Result:
    trial = trial_of(task.case, task.seed)
    outcome, run = run_entry(trial, task.entry)
    return Result(entry=task.entry, outcome=outcome, course=_course(trial, run) if task.course else None)


def tasks_of(
    case: Case, entries: Sequence[Entry], seeds: Sequence[int], *, courses_of: int | None = None
) -> list[Task]:
    """Runs of all entries and of the clairvoyant, seed by seed; those of the seed `courses_of` bring their courses."""
    asked = [entry for entry in entries if entry.policy != CLAIRVOYANT]
    return [
        Task(case=case, entry=entry, seed=seed, course=seed == courses_of)
        for seed in seeds
        for entry in (Entry(policy=CLAIRVOYANT), *asked)
    ]


def compared(case: Case, entries: Sequence[Entry], results: Sequence[Result]) -> Comparison:
    return Comparison(
        case=case,
        results=tuple(result for entry in entries for result in results if result.entry == entry),
        clairvoyants=tuple(result for result in results if result.entry.policy == CLAIRVOYANT),
    )


def standings(comparison: Comparison) -> list[Standing]:
    """Those that met the objective with every seed first, then by GPU-hours; among equals who met it better."""
    entries = dict.fromkeys(result.entry for result in comparison.results)
    rows = [_standing(comparison, entry) for entry in entries]
    return sorted(rows, key=lambda row: (row.missed > 0, round(row.gpu_hours, _DIGITS), -row.attainment))


def _standing(comparison: Comparison, entry: Entry) -> Standing:
    results = [result for result in comparison.results if result.entry == entry]
    outcomes = [result.outcome for result in results]
    percentile = comparison.case.limits.percentile
    return Standing(
        entry=entry,
        seeds=len(outcomes),
        missed=sum(outcome.attainment < percentile for outcome in outcomes),
        attainment=median(outcome.attainment for outcome in outcomes),
        attainment_worst=min(outcome.attainment for outcome in outcomes),
        gpu_hours=median(outcome.gpu_hours for outcome in outcomes),
        over_clairvoyant=median(comparison.over_clairvoyant(result) for result in results),
        ttft_p99_s=median(outcome.ttft_p99_s for outcome in outcomes),
        itl_p99_s=median(outcome.itl_p99_s for outcome in outcomes),
        scale_events=median(outcome.scale_events for outcome in outcomes),
        direction_changes=median(outcome.direction_changes for outcome in outcomes),
        wakes=median(outcome.wakes for outcome in outcomes),
    )


def run_tasks(tasks: Sequence[Task], *, jobs: int = 1) -> Iterator[Result]:
    """In the order of the tasks, whatever the number of processes. TerminalError when one of them dies."""
    killed = (
        "a process of the comparison was killed, perhaps for its memory: take fewer at once, "
        "a shorter part of the trace, or a smaller scale"
    )
    return mapped(run_task, tasks, processes=jobs, killed=killed)


def _course(trial: Trial, run: Run) -> Course:
    workload, requests = trial.workload, run.fleet.requests
    bins = max(math.ceil(workload.duration_s / _BIN_S), 1)
    bin_s = _BIN_S * math.ceil(bins / _BINS_MAX)
    bins = max(math.ceil(workload.duration_s / bin_s), 1)
    bin_of = np.minimum((requests.arrival_s / bin_s).astype(np.int64), bins - 1)
    met = within(requests.arrival_s, requests.first_s, requests.done_s, requests.output, trial.limits)
    timeline, sleep = run.timeline, trial.sleep
    billed = timeline.billed if sleep is None else timeline.billed + sleep.asleep_share * timeline.asleep
    changes = np.flatnonzero(np.diff(billed, prepend=-1))
    return Course(
        bin_s=bin_s,
        arrived=np.bincount(bin_of, minlength=bins),
        missed=np.bincount(bin_of[~met], minlength=bins),
        billed=Steps(at_s=timeline.at_s[changes], values=billed[changes]),
        duration_s=workload.duration_s,
        gpus_per_replica=trial.subject.tensor_parallel,
    )
