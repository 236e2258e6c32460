"""The rebuilt demand under one policy: stretch by stretch, seed by seed, added up."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from controlplane.simulation.dry_run.demand import Demand, drawn
from controlplane.simulation.dry_run.happened import AtEdge
from controlplane.simulation.dry_run.theirs import TheirPolicy
from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.outcome import turns
from controlplane.simulation.fleet.policy import Seen
from controlplane.simulation.fleet.profile import Limits, within
from controlplane.simulation.fleet.subject import Subject
from controlplane.simulation.fleet.trial import Trial, clairvoyant, profiled
from controlplane.simulation.fleet.world import Run, World
from controlplane.simulation.processes import mapped


class Who(StrEnum):
    """Rows of the comparison that are simulated."""

    REPLAYED = "their replicas, simulated"
    """The numbers of replicas that there really were: what is wrong then is the simulated engine."""
    THEIRS = "their autoscaler, simulated"
    OURS = "quarterdeck"
    CLAIRVOYANT = "clairvoyant"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One policy on one stretch with one seed: what a process of its own can do."""

    who: Who
    demand: Demand
    seed: int
    subject: Subject
    limits: Limits
    cold_start_s: float
    replicas_min: int
    replicas_max: int
    theirs: TheirPolicy | None = None
    """Of Who.THEIRS."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """What came of it."""

    who: Who
    seed: int
    met: int
    """Requests within both objectives."""
    gpu_hours: float
    ttft_s: Floats
    itl_s: Floats
    """Of each request; infinite where it was never answered."""
    steps: tuple[int, ...]
    """Each change of the number."""

    @property
    def impossible(self) -> bool:
        """Not even a single request at a time meets the objectives, so that no schedule was looked for."""
        return not len(self.ttft_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One policy with one seed, over all stretches."""

    who: Who
    seed: int
    requests: int
    attainment: float
    gpu_hours: float
    ttft_p99_s: float
    itl_p99_s: float
    scale_events: int
    direction_changes: int
    ttft_edges: tuple[AtEdge, ...]
    per_token_edges: tuple[AtEdge, ...]
    """Shares at the edges that the history is told at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AsItWas:
    """Implements `ScalingPolicy`: a number for each step of time."""

    wanted: Ints
    step_s: float
    name: str = Who.REPLAYED
    tick_s: float = 1.0
    scrape_s: float = 3600.0
    """It reads nothing."""

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        return int(self.wanted[min(int(seen.at_s / self.step_s), len(self.wanted) - 1)]), memory


def run(job: Job) -> Ran | None:
    """None where the stretch has no request."""
    trial = _trial(job)
    if trial is None:
        return None
    if job.who == Who.REPLAYED:
        return _ran(job, trial, _replayed(job, trial))
    if job.who == Who.THEIRS:
        assert job.theirs is not None, "their policy comes with the job"
        return _ran(job, trial, World(trial.scenario, job.theirs).run())
    if job.who == Who.OURS:
        return _ran(job, trial, World(trial.scenario, our_policy(trial.facts)).run())
    measured = profiled(trial)
    # Where not even single requests meet the objectives, there is no schedule to look for.
    return _ran(job, trial, clairvoyant(measured)[1] if measured.profile.rate_rps > 0.0 else None)


def run_all(jobs: Sequence[Job], *, processes: int = 1) -> Iterator[Ran | None]:
    """In the order of the jobs, whatever the number of processes. TerminalError when one of them dies."""
    killed = "a process of the dry run was killed, perhaps for its memory: fewer --jobs"
    return mapped(run, jobs, processes=processes, killed=killed)


def totals(ran: Sequence[Ran], *, ttft_edges_s: Sequence[float], per_token_edges_s: Sequence[float]) -> list[Total]:
    """By policy and seed, in the order of first appearance. A policy that was impossible somewhere has none."""
    impossible = {one.who for one in ran if one.impossible}
    keys = dict.fromkeys((one.who, one.seed) for one in ran if one.who not in impossible)
    found = []
    for who, seed in keys:
        parts = [one for one in ran if (one.who, one.seed) == (who, seed)]
        ttft_s = np.concatenate([one.ttft_s for one in parts])
        itl_s = np.concatenate([one.itl_s for one in parts])
        found.append(
            Total(
                who=who,
                seed=seed,
                requests=len(ttft_s),
                attainment=sum(one.met for one in parts) / len(ttft_s),
                gpu_hours=sum(one.gpu_hours for one in parts),
                ttft_p99_s=float(np.quantile(ttft_s, 0.99, method="higher")),
                itl_p99_s=float(np.quantile(itl_s, 0.99, method="higher")),
                scale_events=sum(len(one.steps) for one in parts),
                direction_changes=sum(turns(one.steps) for one in parts),
                ttft_edges=_shares(ttft_s, ttft_edges_s),
                per_token_edges=_shares(itl_s, per_token_edges_s),
            )
        )
    return found


def _trial(job: Job) -> Trial | None:
    workload = drawn(job.demand, job.seed)
    if workload is None:
        return None
    first = int(job.demand.ready[0])
    return Trial(
        subject=job.subject,
        workload=workload,
        limits=job.limits,
        cold_start_s=job.cold_start_s,
        replicas_min=job.replicas_min,
        replicas_max=job.replicas_max,
        replicas_first=min(max(first, job.replicas_min), job.replicas_max),
        seed=job.seed,
    )


def _replayed(job: Job, trial: Trial) -> Run:
    """Each replica is ordered one cold start before it answered, so that it answers when it did."""
    ready, lead = job.demand.ready, math.ceil(job.cold_start_s / job.demand.step_s)
    wanted = np.array([ready[place : place + lead + 1].max() for place in range(len(ready))], dtype=np.int64)
    scenario = replace(
        trial.scenario,
        replicas_min=0,
        replicas_max=max(int(ready.max()), 1),
        replicas_first=int(ready[0]),
        cold_start_cv=0.0,
    )
    return World(scenario, _AsItWas(wanted=wanted, step_s=job.demand.step_s)).run()


def _ran(job: Job, trial: Trial, played: Run | None) -> Ran:
    if played is None:
        nothing = np.zeros(0)
        return Ran(who=job.who, seed=job.seed, met=0, gpu_hours=0.0, ttft_s=nothing, itl_s=nothing, steps=())
    requests = played.fleet.requests
    met = within(requests.arrival_s, requests.first_s, requests.done_s, requests.output, job.limits)
    gaps = np.maximum(requests.output - 1, 1)
    itl_s = np.where((requests.output > 1) | np.isnan(requests.done_s), requests.done_s - requests.first_s, 0.0) / gaps
    return Ran(
        who=job.who,
        seed=job.seed,
        met=int(met.sum()),
        gpu_hours=played.replica_seconds * trial.subject.tensor_parallel / 3600.0,
        ttft_s=_finite(requests.first_s - requests.arrival_s),
        itl_s=_finite(itl_s),
        steps=tuple(after - before for _, before, after in played.changes),
    )


def _finite(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)


def _shares(values: Floats, edges_s: Sequence[float]) -> tuple[AtEdge, ...]:
    return tuple(AtEdge(edge_s=edge, share=float((values <= edge).mean())) for edge in edges_s)
