"""Our policy on llm-d's ramp and on ramps of other shapes, drawn at random, with nothing learned before.

    python -m benchmarks.ramps [--draw N] [--ramps N] [--seeds N] [--jobs N] [--results FOLDER]

llm-d's settings: Qwen3-32B on pairs of H100s, 3 to 8 replicas, starts of 100 s, and prefill as slow as it was measured.
Our policy is told the catalog's quicker one, as a site would tell it. All begin with the replicas that the busiest ten
seconds of the first minute need. `told` knows each step's rate from its first second on and nothing before: of its
sizes the one that attains most at COST times the clairvoyant's replicas. It shows what surprise alone takes away; it is
no bound, since room that is kept for the unknown helps beyond it.
"""

import argparse
import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Final

from rich.console import Console

from benchmarks.jobs import over_jobs
from benchmarks.llmd_episode import PER_TOKEN_S, TTFT_S, Episode, Setting, play, prefill_as_measured
from benchmarks.machine import this_machine
from benchmarks.report import RESULTS, Cell, Grid, Report, save, show
from controlplane.simulation.fleet.comparison import Entry, run_entry
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.policy import Facts, ScalingPolicy, Seen
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.ramps import LLM_D, Ramp, random_ramps
from controlplane.simulation.fleet.state import Timing
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.fleet.trial import CLAIRVOYANT, Trial, clairvoyant, first_replicas, profiled, run_policy
from controlplane.simulation.peers.llmd import LLMD_SLO, PUBLISHED_RUN
from controlplane.simulation.peers.static import STATIC

NAME: Final = "ramps"
SUMMARY: Final = "our policy on llm-d's ramp and on ramps drawn at random, beside the clairvoyant and llm-d's law"
TARGET: Final = 0.99
REPLICAS: Final = 5.6
"""On average on llm-d's ramp: the goal, where llm-d's own law took 6.55."""
COST: Final = 1.18
"""Times the clairvoyant's replicas: what REPLICAS is of the 4.75 that it takes on llm-d's ramp. The goal on ramps of
other heights."""
TOLD: Final = "told"
DRAW: Final = 20260901
"""No test and no tuning has drawn ramps with it."""
_RAMPS: Final = 5
_SEEDS: Final = 4
_JOBS: Final = 2
_CATALOG: Final = "llm-d, catalog's prefill"
_FROM_3: Final = "llm-d, as published but from 3"
_PUBLISHED: Final = "llm-d, as published"
LLM_D_READINGS: Final = (LLM_D.name, _CATALOG, _FROM_3, _PUBLISHED)
"""Of its settings. The published protocol waits after each stage for its last request, and begins with 8 idle ones; its
replicas are those wanted within 42 minutes, and a request that missed both limits counts twice."""
_REPLICAS_MIN: Final = 3
_REPLICAS_MAX: Final = 8
_COLD_START_S: Final = 100.0
_FIRST_S: Final = 60.0
_SIZES: Final = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""That `told` tries, in multiples of the profiled need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One ramp with one seed; the ramp may be llm-d's in another reading of its settings."""

    ramp: Ramp
    seed: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    ramp: str
    policy: str
    seed: int
    attainment: float
    replicas: float
    over_clairvoyant: float | None
    """None where no clairvoyant ran."""
    scale_events: int
    direction_changes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Implements `ScalingPolicy`: each step's rate is known from its first second on."""

    ends_s: tuple[float, ...]
    wanted: tuple[int, ...]
    name: str = TOLD
    tick_s: float = 1.0
    scrape_s: float = 60.0

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        return self.wanted[min(bisect_right(self.ends_s, seen.at_s), len(self.wanted) - 1)], memory


# -- running ----------------------------------------------------------------------------------------------------------


def jobs_of(drawn: Sequence[Ramp], *, readings: Sequence[str] = LLM_D_READINGS, seeds: int) -> list[Job]:
    chosen = [*((LLM_D, name) for name in readings), *((ramp, ramp.name) for ramp in drawn)]
    return [Job(ramp=ramp, seed=seed, name=name) for ramp, name in chosen for seed in range(seeds)]


def rows_of(job: Job) -> list[Row]:
    catalog = subject_of("qwen3-32b", "h100", tensor_parallel=2, precision="bf16", context_tokens=8192)
    if job.name in (_FROM_3, _PUBLISHED):
        return list(_as_published(job, catalog.timing))
    trial = trial_of(job, catalog if job.name == _CATALOG else _as_measured(catalog))
    known, _ = clairvoyant(trial)
    ours = our_policy(replace(trial.facts, timing=catalog.timing))
    outcomes = {
        CLAIRVOYANT: known,
        TOLD: told(trial, job.ramp, COST * known.replicas_mean),
        OURS: run_policy(trial, ours)[0],
        LLMD_SLO.name: run_entry(trial, Entry(policy=LLMD_SLO.name, knobs=tuple(PUBLISHED_RUN.items())))[0],
        STATIC.name: run_entry(trial, Entry(policy=STATIC.name))[0],
    }
    return [
        Row(
            ramp=job.name,
            policy=policy,
            seed=job.seed,
            attainment=outcome.attainment,
            replicas=outcome.replicas_mean,
            over_clairvoyant=outcome.replicas_mean / known.replicas_mean,
            scale_events=outcome.scale_events,
            direction_changes=outcome.direction_changes,
        )
        for policy, outcome in outcomes.items()
    ]


def trial_of(job: Job, subject: Subject) -> Trial:
    trial = profiled(
        Trial(
            subject=subject,
            workload=job.ramp.workload(job.seed),
            limits=Limits(ttft_s=TTFT_S, itl_s=PER_TOKEN_S, percentile=TARGET),
            cold_start_s=_COLD_START_S,
            replicas_min=_REPLICAS_MIN,
            replicas_max=_REPLICAS_MAX,
            seed=job.seed,
        )
    )
    return replace(trial, replicas_first=first_replicas(trial, _FIRST_S))


def told(trial: Trial, ramp: Ramp, replicas: float) -> Outcome:
    """The size that attains most with so many replicas on average; the smallest where all take more."""
    ends_s = tuple(accumulate(step.duration_s for step in ramp.steps))
    found = []
    for size in _SIZES:
        needed = (math.ceil(size * step.rate_rps / trial.profile.rate_rps) for step in ramp.steps)
        found.append(run_policy(trial, Told(ends_s=ends_s, wanted=tuple(map(_bounded, needed))))[0])
    within = [outcome for outcome in found if outcome.replicas_mean <= replicas]
    return max(within or found[:1], key=lambda outcome: outcome.attainment)


def _bounded(replicas: int) -> int:
    return min(max(replicas, _REPLICAS_MIN), _REPLICAS_MAX)


def _as_measured(subject: Subject) -> Subject:
    timing = prefill_as_measured(subject.timing)
    prior = replace(
        subject.prior,
        prefill_base_s=timing.prefill_base_s,
        prefill_per_token_s=timing.prefill_per_token_s,
        prefill_per_token2_s=timing.prefill_per_token2_s,
    )
    return replace(subject, prior=prior)


def _as_published(job: Job, catalog: Timing) -> Iterable[Row]:
    """The whole protocol of the publication: see benchmarks/llmd_episode.py."""

    def ours(facts: Facts) -> ScalingPolicy:
        return our_policy(replace(facts, timing=catalog, percentile=TARGET))

    setting = Setting(
        timing=prefill_as_measured(catalog), peer=LLMD_SLO.name, knobs=PUBLISHED_RUN, warm=job.name == _PUBLISHED
    )
    for policy, played in ((OURS, replace(setting, make=ours)), (LLMD_SLO.name, setting)):
        episode: Episode = play(played, job.seed)
        yield Row(
            ramp=job.name,
            policy=policy,
            seed=job.seed,
            attainment=episode.attainment_twice,
            replicas=episode.replicas_window,
            over_clairvoyant=None,
            scale_events=episode.scale_events,
            direction_changes=episode.direction_changes,
        )


# -- what it says -----------------------------------------------------------------------------------------------------


def report_of(rows: Sequence[Row], drawn: Sequence[Ramp]) -> Report:
    steps = {
        ramp.name: ", ".join(f"{step.rate_rps:g} rps {step.duration_s:g} s" for step in ramp.steps) for ramp in drawn
    }
    return Report(
        name=NAME,
        grids=[_grid(name, steps.get(name), rows) for name in dict.fromkeys(row.ramp for row in rows)],
        verdict="\n".join([_verdict_llmd(rows), _verdict_drawn(rows, [ramp.name for ramp in drawn])]),
        results={"target": TARGET, "replicas": REPLICAS, "cost": COST, "results": [asdict(row) for row in rows]},
    )


def _grid(ramp: str, steps: str | None, rows: Sequence[Row]) -> Grid:
    policies = dict.fromkeys(row.policy for row in rows if row.ramp == ramp)
    lines = [_line([row for row in rows if _is(row, ramp, policy)]) for policy in policies]
    heads = ("policy", "attainment", "worst", "replicas", "cost", "events", "turns")
    return Grid(title=f"{ramp}: {steps}" if steps else ramp, heads=heads, rows=lines)


def _is(row: Row, ramp: str, policy: str) -> bool:
    return row.ramp == ramp and row.policy == policy


def _line(here: Sequence[Row]) -> list[Cell]:
    over = [row.over_clairvoyant for row in here if row.over_clairvoyant is not None]
    return [
        here[0].policy,
        f"{mean(row.attainment for row in here):.2%}",
        f"{min(row.attainment for row in here):.2%}",
        f"{mean(row.replicas for row in here):.2f}",
        f"{mean(over):.2f}" if over else "-",
        f"{mean(row.scale_events for row in here):.1f}",
        f"{mean(row.direction_changes for row in here):.1f}",
    ]


def _verdict_llmd(rows: Sequence[Row]) -> str:
    said = []
    for name in dict.fromkeys(row.ramp for row in rows if row.ramp in LLM_D_READINGS):
        here = [row for row in rows if _is(row, name, OURS)]
        met, replicas = mean(row.attainment for row in here), mean(row.replicas for row in here)
        said.append(f"{name} {_judged(met, replicas, REPLICAS, 'replicas')}")
    return f"llm-d's ramp, aim {TARGET:.0%} at {REPLICAS:g} replicas: {'; '.join(said)}"


def _verdict_drawn(rows: Sequence[Row], names: Sequence[str]) -> str:
    said, reached = [], 0
    for name in names:
        here = [row for row in rows if _is(row, name, OURS)]
        met, over = mean(row.attainment for row in here), mean(row.over_clairvoyant or 0.0 for row in here)
        reached += met >= TARGET and over <= COST
        best = mean(row.attainment for row in rows if _is(row, name, TOLD))
        said.append(f"{name} {_judged(met, over, COST, 'times')} (told: {best:.1%})")
    aim = f"aim {TARGET:.0%} at {COST:g} times the clairvoyant's replicas"
    return f"Drawn ramps, {aim}, met on {reached} of {len(names)}: {'; '.join(said)}"


def _judged(attainment: float, cost: float, most: float, unit: str) -> str:
    misses = [
        *([f"{100.0 * (TARGET - attainment):.1f} points short"] if attainment < TARGET else []),
        *([f"{cost - most:.2f} {unit} too many"] if cost > most else []),
    ]
    return f"{attainment:.1%} at {cost:.2f}: {' and '.join(misses) or 'met'}"


# -- the command ------------------------------------------------------------------------------------------------------


def measure(drawn: Sequence[Ramp], *, readings: Sequence[str] = LLM_D_READINGS, seeds: int, jobs: int) -> Report:
    todo = jobs_of(drawn, readings=readings, seeds=seeds)
    rows = [row for found in over_jobs(rows_of, todo, jobs) for row in found]
    return report_of(rows, drawn)


def run(*, quick: bool = False) -> Report:
    if quick:
        return measure(random_ramps(1, DRAW), readings=[LLM_D.name], seeds=1, jobs=1)
    return measure(random_ramps(_RAMPS, DRAW), seeds=_SEEDS, jobs=_JOBS)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.ramps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--draw", type=int, default=DRAW, help="seed of the shapes")
    options.add_argument("--ramps", type=int, default=_RAMPS, help="how many are drawn")
    options.add_argument("--seeds", type=int, default=_SEEDS, help="of each ramp's requests and cold starts")
    options.add_argument("--jobs", type=int, default=_JOBS, help="processes")
    options.add_argument("--results", type=Path, default=RESULTS)
    chosen = options.parse_args(arguments)
    report = measure(random_ramps(chosen.ramps, chosen.draw), seeds=chosen.seeds, jobs=chosen.jobs)
    save(report, this_machine(), chosen.results)
    show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
