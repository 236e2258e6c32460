"""Scale-downs under load, metrics that stay away, GPUs that are not to be had: ours, and peers with their defaults.

    python -m benchmarks.faults [--policies NAME...] [--seeds N] [--jobs N] [--results FOLDER]

What is played and counted: benchmarks/fault_cases.py.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from math import inf, isfinite
from pathlib import Path
from statistics import mean, median
from typing import Final

from rich.console import Console

from benchmarks.fault_cases import FOR_EVER, NEVER, STUCK_S, Case, Fault, Row, cases, rows_of
from benchmarks.jobs import over_jobs
from benchmarks.machine import this_machine
from benchmarks.report import RESULTS, Cell, Grid, Report, save, show
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.peers.registry import PEERS

NAME: Final = "faults"
SUMMARY: Final = "scale-downs under load, no metrics, no GPUs: ours and peers"
POLICIES: Final = (OURS, "hpa", "keda-queue", "knative", "aibrix-apa", "wva-v2", "llmd-slo", "dynamo-load")
"""One of each kind of rule."""
_SEEDS: Final = 2
_JOBS: Final = 2
_QUICK: Final = (
    (Fault.SCALE_DOWN, "cliff", NEVER),
    (Fault.NO_METRICS, "fall", "2 min"),
    (Fault.NO_GPUS, "hill", FOR_EVER),
)


# -- what it says -----------------------------------------------------------------------------------------------------


def report_of(rows: Sequence[Row]) -> Report:
    downs, blind, starved = ([row for row in rows if row.fault is fault] for fault in Fault)
    return Report(
        name=NAME,
        grids=[
            _grid("Scale-downs under load", _DOWN_HEADS, downs, _down),
            _grid("No metrics: decisions to give back, in so many runs", _blind_heads(blind), blind, _blind),
            *(
                _grid(f"No GPU: {lasts}", _STARVED_HEADS, [row for row in starved if row.lasts == lasts], _starved)
                for lasts in dict.fromkeys(row.lasts for row in starved)
            ),
        ],
        verdict="\n".join(verdicts([row for row in rows if row.policy == OURS])),
        results={"stuck_s": STUCK_S, "results": [{**asdict(row), "stuck": row.stuck} for row in rows]},
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each goal, of one policy's rows."""
    downs, blind, starved = ([row for row in rows if row.fault is fault and _is_hit(row)] for fault in Fault)
    lost, while_blind = sum(row.unanswered for row in downs), sum(row.downs for row in blind)
    stuck = sum(row.stuck for row in starved)
    given_back = f"{sum(row.given_back for row in downs)} replicas given back in {len(downs)} runs"
    return [
        f"Scale-downs: {given_back}, {lost} requests never answered, aim 0: {_met(lost)}",
        f"No metrics: {while_blind} decisions to give back in {len(blind)} runs, aim 0: {_met(while_blind)}",
        f"No GPU: {stuck} of {len(starved)} runs stuck, aim 0: {_met(stuck)}",
    ]


def _is_hit(row: Row) -> bool:
    """Whether there was a fault in it, or it is one by itself."""
    return row.fault is Fault.SCALE_DOWN or row.lasts != NEVER


def _met(count: int) -> str:
    return "not met" if count else "met"


def _grid(title: str, heads: Sequence[str], rows: Sequence[Row], line: Callable[[Sequence[Row]], list[Cell]]) -> Grid:
    policies = dict.fromkeys(row.policy for row in rows)
    lines = [[policy, *line([row for row in rows if row.policy == policy])] for policy in policies]
    return Grid(title=title, heads=heads, rows=lines)


_DOWN_HEADS: Final = ("policy", "met %", "downs", "given back", "open then", "drain s", "lost")


def _down(rows: Sequence[Row]) -> list[Cell]:
    downs, given_back = sum(row.downs for row in rows), sum(row.given_back for row in rows)
    return [
        _met_share(rows),
        downs,
        given_back,
        sum(row.open_then * row.downs for row in rows) / max(downs, 1),
        sum(row.drained_s * row.given_back for row in rows) / max(given_back, 1),
        sum(row.unanswered for row in rows),
    ]


def _blind_heads(rows: Sequence[Row]) -> list[str]:
    lasts = dict.fromkeys(row.lasts for row in rows)
    return ["policy", *(head for each in lasts for head in (("met %",) if each == NEVER else (each, "met %")))]


def _blind(rows: Sequence[Row]) -> list[Cell]:
    cells: list[Cell] = []
    for lasts in dict.fromkeys(row.lasts for row in rows):
        here = [row for row in rows if row.lasts == lasts]
        if lasts != NEVER:
            hit = sum(row.downs > 0 for row in here)
            cells.append(f"{sum(row.downs for row in here)} in {hit}")
        cells.append(_met_share(here))
    return cells


_STARVED_HEADS: Final = ("policy", "met %", "asked %", "kept %", "stuck", "settled s", "lost")


def _starved(rows: Sequence[Row]) -> list[Cell]:
    settled = median(row.settled_s if row.settled_s is not None else inf for row in rows)
    hit = all(map(_is_hit, rows))
    return [
        _met_share(rows),
        f"{100.0 * mean(row.asked for row in rows):.0f}" if hit else "-",
        f"{100.0 * mean(row.kept for row in rows):.0f}" if hit else "-",
        f"{sum(row.stuck for row in rows)}/{len(rows)}",
        f"{settled:.0f}" if isfinite(settled) else "never",
        sum(row.unanswered for row in rows),
    ]


def _met_share(rows: Sequence[Row]) -> str:
    return f"{100.0 * mean(row.attainment for row in rows):.1f}"


# -- the command ------------------------------------------------------------------------------------------------------


def measure(chosen: Sequence[Case], policies: Sequence[str], *, jobs: int) -> Report:
    found = over_jobs(partial(rows_of, policies=policies), chosen, jobs)
    return report_of([row for rows in found for row in rows])


def run(*, quick: bool = False) -> Report:
    if quick:
        few = {(case.fault, case.load.name, case.lasts): case for case in cases(1)}
        return measure([few[key] for key in _QUICK], POLICIES[:3], jobs=1)
    return measure(cases(_SEEDS), POLICIES, jobs=_JOBS)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--policies", nargs="+", choices=[OURS, *PEERS], default=POLICIES, metavar="NAME")
    options.add_argument("--seeds", type=int, default=_SEEDS)
    options.add_argument("--jobs", type=int, default=_JOBS, help="processes")
    options.add_argument("--results", type=Path, default=RESULTS)
    chosen = options.parse_args(arguments)
    report = measure(cases(chosen.seeds), chosen.policies, jobs=chosen.jobs)
    save(report, this_machine(), chosen.results)
    show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
