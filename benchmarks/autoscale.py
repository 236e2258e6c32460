"""Attainment and GPU-hours of our policy and its peers, by load, model, GPU and cold start.

    python -m benchmarks.autoscale [--loads NAMES] [--models 8B,32B,70B] [--gpus h100,h200,b200]
        [--cold-starts 5,100,240] [--seeds N] [--jobs N] [--policies NAMES] [--no-tuned | --tuned-from FILE.json]
        [--results FOLDER]

The loads are the public traces in $QUARTERDECK_TRACES. Peers run with their defaults and, marked with a star, with the
best of their stated search, found per cold start on synthetic days that are not reported. All policies see the same
requests, cold starts and first replicas. `python -m benchmarks autoscale` runs a part in two minutes: the first load on
one GPU, peers with their defaults.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from benchmarks.cells import COLD_STARTS_S, GPUS, LOADS, MODELS, SYNTHETIC, Cell, cells, loads, scaled_trial
from benchmarks.jobs import over_jobs
from benchmarks.machine import this_machine
from benchmarks.report import RESULTS, Grid, Report, save, show
from controlplane.kernel.errors import InvalidError, NotFoundError
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.policy import Peer
from controlplane.simulation.fleet.trial import CLAIRVOYANT, Trial, clairvoyant, peak_replicas, run_policy
from controlplane.simulation.peers.knobs import combinations
from controlplane.simulation.peers.registry import PEERS, make_peer

NAME: Final = "autoscale"
SUMMARY: Final = "our policy and every peer on public traces: attainment and GPU-hours over clairvoyant"
STATIC: Final = "static"
STAR: Final = "*"
"""Marks a peer with its best knobs."""
TARGET: Final = 0.99
COST: Final = 1.15
_TUNING_SEED: Final = 1000
"""Of the synthetic days; no reported cell has it."""

type Knobs = Mapping[str, float]
type Tuned = Mapping[tuple[str, float], Knobs]
"""Best knobs by peer and cold start."""
type Trials = Callable[[Cell, int], Trial | None]
"""As `scaled_trial`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy on one cell and seed."""

    cell: str
    load: str
    model: str
    gpu: str
    cold_start_s: float
    policy: str
    seed: int
    attainment: float
    gpu_hours: float
    over_clairvoyant: float
    ttft_p99_s: float
    itl_p99_s: float
    scale_events: int
    direction_changes: int
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A cell that could not be run with this seed."""

    cell: str
    seed: int
    reason: str


# -- running ----------------------------------------------------------------------------------------------------------


def rows_of(
    job: tuple[Cell, int], *, policies: Sequence[str], tuned: Tuned, trials: Trials = scaled_trial
) -> list[Row] | Failure:
    """All policies on one cell; no rows when no replica meets the objectives there.

    A load that is missing, or is too large for the simulator once it is scaled, ends its cell and not the whole run.
    """
    cell, seed = job
    try:
        trial = trials(cell, seed)
    except (InvalidError, NotFoundError) as error:
        return Failure(cell=cell.name, seed=seed, reason=str(error))
    if trial is None:
        return []
    known, _ = clairvoyant(trial)
    outcomes = [("clairvoyant", known)]
    for name in policies:
        if name == OURS:
            outcomes.append((OURS, run_policy(trial, our_policy(trial.facts))[0]))
            continue
        outcomes.append((name, _peer_outcome(trial, name, {})))
        knobs = tuned.get((name, cell.cold_start_s))
        if knobs:
            outcomes.append((name + STAR, _peer_outcome(trial, name, knobs)))
    return [_row(cell, seed, name, outcome, known) for name, outcome in outcomes]


def _peer_outcome(trial: Trial, name: str, knobs: Knobs) -> Outcome:
    if name == STATIC and not knobs:
        knobs = {"replicas": float(peak_replicas(trial))}
    return run_policy(trial, make_peer(name, trial.facts, knobs))[0]


def _row(cell: Cell, seed: int, policy: str, outcome: Outcome, known: Outcome) -> Row:
    return Row(
        cell=cell.name,
        load=cell.load.name,
        model=cell.model.name,
        gpu=cell.gpu,
        cold_start_s=cell.cold_start_s,
        policy=policy,
        seed=seed,
        attainment=outcome.attainment,
        gpu_hours=outcome.gpu_hours,
        over_clairvoyant=outcome.gpu_hours / known.gpu_hours,
        ttft_p99_s=outcome.ttft_p99_s,
        itl_p99_s=outcome.itl_p99_s,
        scale_events=outcome.scale_events,
        direction_changes=outcome.direction_changes,
        requests=outcome.requests,
    )


# -- tuning -----------------------------------------------------------------------------------------------------------


def tune(job: tuple[str, float]) -> tuple[str, float, dict[str, float]]:
    """The knobs of a peer's search that cost least among those that meet the objective on the synthetic days.

    Where none does, those that miss least. One model and GPU: shares and times carry over, since targets are shares
    of the profiled capacity.
    """
    name, cold_start_s = job
    days = cells(SYNTHETIC, models=MODELS[2:], gpus=("h100",), cold_starts_s=(cold_start_s,))
    trials = [trial for day in days if (trial := scaled_trial(day, _TUNING_SEED))]
    scored = [(_score(trials, name, knobs), knobs) for knobs in combinations(PEERS[name])]
    return name, cold_start_s, min(scored, key=lambda pair: pair[0])[1]


def _score(trials: Sequence[Trial], name: str, knobs: Knobs) -> tuple[float, float]:
    outcomes = [_peer_outcome(trial, name, knobs) for trial in trials]
    short = sum(max(TARGET - outcome.attainment, 0.0) for outcome in outcomes)
    return round(short, 4), sum(outcome.gpu_hours for outcome in outcomes)


def tunable(peers: Mapping[str, Peer]) -> list[str]:
    return [name for name, peer in peers.items() if peer.search and name != STATIC]


# -- what it says -----------------------------------------------------------------------------------------------------


def report_of(
    rows: Sequence[Row], skipped: Sequence[str], tuned: Tuned, source: str, *, failures: Sequence[Failure] = ()
) -> Report:
    policies = list(dict.fromkeys(row.policy for row in rows))
    cold_starts_s = sorted({row.cold_start_s for row in rows})
    grids = [_summary("All cells", rows, policies)]
    grids += [
        _summary(f"Cold start {cold_s:g} s", [row for row in rows if row.cold_start_s == cold_s], policies)
        for cold_s in cold_starts_s
    ]
    grids.append(_by_cell(rows))
    if failures:
        grids.append(_failed(failures))
    ours = [row for row in rows if row.policy == OURS]
    met = [row for row in ours if row.attainment >= TARGET]
    cheap = [row for row in met if row.over_clairvoyant <= COST]
    saving = _saving(rows)
    short = sorted({row.cell for row in ours if row.attainment < TARGET})
    not_run = dict.fromkeys(failure.cell for failure in failures)
    verdict = (
        f"Aim: {TARGET:.0%} at {COST:g} times clairvoyant. Of {len(ours)} runs ours met {TARGET:.0%} in {len(met)}, "
        f"{len(cheap)} of them within {COST:g}. Against the cheapest peer (tuned or not) that attains as much: median "
        f"{saving:+.0%} GPU-hours. Below {TARGET:.0%}: {', '.join(short) or 'none'}. No replica meets the objectives "
        f"in: {', '.join(skipped) or 'none'}. Failed to run: {', '.join(not_run) or 'none'}. {source}."
    )
    return Report(
        name=NAME,
        grids=grids,
        verdict=verdict,
        results={
            "results": [asdict(row) for row in rows],
            "skipped": list(skipped),
            "failed": [asdict(failure) for failure in failures],
            "tuned": {f"{name} {cold_s:g}": dict(knobs) for (name, cold_s), knobs in tuned.items()},
        },
    )


def _summary(title: str, rows: Sequence[Row], policies: Iterable[str]) -> Grid:
    lines = []
    for policy in policies:
        mine = [row for row in rows if row.policy == policy]
        if not mine:
            continue
        lines.append(
            (
                policy,
                f"{sum(row.attainment >= TARGET for row in mine)}/{len(mine)}",
                f"{statistics.median(row.attainment for row in mine):.2%}",
                f"{min(row.attainment for row in mine):.1%}",
                f"{statistics.median(row.over_clairvoyant for row in mine):.2f}",
                f"{statistics.median(row.ttft_p99_s for row in mine):.2f}",
                f"{statistics.median(row.scale_events for row in mine):.0f}",
                f"{statistics.median(row.direction_changes for row in mine):.0f}",
            )
        )
    lines.sort(key=lambda line: (line[0] != CLAIRVOYANT, line[0] != OURS, -int(line[1].split("/")[0]), line[4]))
    heads = ("policy", "met", "median", "worst", "cost", "TTFT p99 s", "events", "turns")
    return Grid(title=f"{title}: attainment, GPU-hours over clairvoyant", heads=heads, rows=lines)


def _by_cell(rows: Sequence[Row]) -> Grid:
    lines = []
    for cell in dict.fromkeys(row.cell for row in rows):
        here = [row for row in rows if row.cell == cell]
        ours = [row for row in here if row.policy == OURS]
        if not ours:
            continue
        best = _cheapest_equal(here, statistics.median(row.attainment for row in ours))
        lines.append(
            (
                cell,
                f"{statistics.median(row.attainment for row in ours):.2%}",
                f"{min(row.attainment for row in ours):.2%}",
                f"{statistics.median(row.over_clairvoyant for row in ours):.2f}",
                f"{best[0]} {best[1]:.2f}" if best else "none",
            )
        )
    heads = ("cell", "attainment", "worst", "cost", "cheapest peer with as much")
    return Grid(title="Ours by cell", heads=heads, rows=lines)


def _failed(failures: Sequence[Failure]) -> Grid:
    seeds: dict[tuple[str, str], list[int]] = {}
    for failure in failures:
        seeds.setdefault((failure.cell, failure.reason), []).append(failure.seed)
    lines = [(f"{cell}: {reason}", ", ".join(map(str, found))) for (cell, reason), found in seeds.items()]
    return Grid(title="Cells that failed to run", heads=("cell and why", "seeds"), rows=lines)


def _cheapest_equal(here: Sequence[Row], attainment: float) -> tuple[str, float] | None:
    """The peer with the least cost among those that attain as much, or the aim."""
    found = []
    for policy in {row.policy for row in here} - {OURS, CLAIRVOYANT}:
        mine = [row for row in here if row.policy == policy]
        if statistics.median(row.attainment for row in mine) >= min(attainment, TARGET):
            found.append((policy, statistics.median(row.over_clairvoyant for row in mine)))
    return min(found, key=lambda pair: pair[1], default=None)


def _saving(rows: Sequence[Row]) -> float:
    """Median over cells of our GPU-hours over those of the cheapest peer that attains as much, less 1."""
    ratios = []
    for cell in dict.fromkeys(row.cell for row in rows):
        here = [row for row in rows if row.cell == cell]
        ours = [row for row in here if row.policy == OURS]
        best = _cheapest_equal(here, statistics.median(row.attainment for row in ours)) if ours else None
        if best:
            ratios.append(statistics.median(row.over_clairvoyant for row in ours) / best[1] - 1.0)
    return statistics.median(ratios) if ratios else 0.0


# -- the command ------------------------------------------------------------------------------------------------------


def measure(
    chosen: Sequence[Cell],
    policies: Sequence[str],
    *,
    seeds: int,
    jobs: int,
    with_tuned: bool,
    known: Tuned | None = None,
    trials: Trials = scaled_trial,
) -> Report:
    """`known`: knobs of an earlier search, which takes longer than all the rest."""
    tuned: dict[tuple[str, float], Knobs] = dict(known or {})
    todo = [(cell, seed) for cell in chosen for seed in range(seeds)]
    source = loads()[1]
    if with_tuned and not tuned:
        colds = sorted({cell.cold_start_s for cell in chosen})
        searches = [(name, cold_s) for name in policies if name in tunable(PEERS) for cold_s in colds]
        searched = over_jobs(tune, searches, jobs)
        for name, cold_s, knobs in track(searched, "tuning peers", total=len(searches), console=_progress()):
            tuned[name, cold_s] = knobs
    rows: list[Row] = []
    skipped: list[str] = []
    failures: list[Failure] = []
    runs = over_jobs(partial(rows_of, policies=policies, tuned=tuned, trials=trials), todo, jobs)
    for (cell, _), found in zip(todo, track(runs, "running cells", total=len(todo), console=_progress()), strict=True):
        if isinstance(found, Failure):
            failures.append(found)
            continue
        rows += found
        if not found:
            skipped.append(cell.name)
    return report_of(rows, list(dict.fromkeys(skipped)), tuned, source, failures=failures)


def _progress() -> Console:
    return Console(stderr=True)


def run(*, quick: bool = False) -> Report:
    chosen, _ = loads()
    if quick:
        few = list(cells(SYNTHETIC[:1], models=MODELS[2:], gpus=("h100",), cold_starts_s=(100.0,)))
        return measure(few, [OURS, "hpa", "llmd-slo"], seeds=1, jobs=1, with_tuned=False)
    return measure(list(cells(chosen[:1], gpus=GPUS[:1])), [OURS, *PEERS], seeds=1, jobs=2, with_tuned=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    available = {load.name: load for load in (*LOADS, *SYNTHETIC)}
    options.add_argument("--loads", type=_names, help=f"of {', '.join(available)}; none: all that are there")
    options.add_argument("--models", type=_names, default=[model.name for model in MODELS])
    options.add_argument("--gpus", type=_names, default=list(GPUS))
    options.add_argument("--cold-starts", type=_names, default=[f"{cold_s:g}" for cold_s in COLD_STARTS_S])
    options.add_argument("--policies", type=_names, default=[OURS, *PEERS])
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--no-tuned", action="store_true")
    options.add_argument("--tuned-from", type=Path, help="results of an earlier run, for the knobs that it found")
    options.add_argument("--results", type=Path, default=RESULTS)
    chosen = options.parse_args(arguments)
    unknown = [name for name in chosen.loads or [] if name not in available]
    if unknown:
        options.error(f"found no load {unknown[0]!r}, expected some of {', '.join(available)}")
    picked = [available[name] for name in chosen.loads] if chosen.loads else loads()[0]
    grid = cells(
        picked,
        models=[model for model in MODELS if model.name in chosen.models],
        gpus=chosen.gpus,
        cold_starts_s=[float(text) for text in chosen.cold_starts],
    )
    report = measure(
        list(grid),
        chosen.policies,
        seeds=chosen.seeds,
        jobs=chosen.jobs,
        with_tuned=not chosen.no_tuned,
        known=_known(chosen.tuned_from) if chosen.tuned_from else None,
    )
    save(report, this_machine(), chosen.results)
    show(report, Console())
    return 0


def _known(path: Path) -> Tuned:
    found = json.loads(path.read_text(encoding="utf-8"))["tuned"]
    return {(key.split()[0], float(key.split()[1])): knobs for key, knobs in found.items()}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
