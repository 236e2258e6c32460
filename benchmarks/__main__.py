"""Runs benchmarks: all of them, or those named. See docs/benchmarks.md.

    python -m benchmarks [--list] [--quick] [--json] [NAME...]

Prints tables, and writes benchmarks/results/NAME.json (with --json also to standard output, and no tables). --quick
takes the smallest sizes and few rounds: it shows that a benchmark works, its figures say nothing.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import (
    autoscale,
    calibration,
    catalog,
    deaths,
    faults,
    knee,
    llmd,
    parse,
    ramps,
    recovery,
    sealing,
    simulator,
    sleep,
    store,
    tick,
)  # fmt: skip
from benchmarks.machine import this_machine
from benchmarks.report import RESULTS, Report, as_json, save, show

type Benchmark = Callable[..., Report]

BENCHMARKS: Final[Mapping[str, tuple[Benchmark, str]]] = {
    "tick": (tick.run, tick.SUMMARY),
    "parse": (parse.run, parse.SUMMARY),
    "store": (store.run, store.SUMMARY),
    "catalog": (catalog.run, catalog.SUMMARY),
    "simulator": (simulator.run, simulator.SUMMARY),
    "calibration": (calibration.run, calibration.SUMMARY),
    "knee": (knee.run, knee.SUMMARY),
    "llmd": (llmd.run, llmd.SUMMARY),
    "sleep": (sleep.run, sleep.SUMMARY),
    "autoscale": (autoscale.run, autoscale.SUMMARY),
    "ramps": (ramps.run, ramps.SUMMARY),
    "faults": (faults.run, faults.SUMMARY),
    "sealing": (sealing.run, sealing.SUMMARY),
    "recovery": (recovery.run, recovery.SUMMARY),
    "deaths": (deaths.run, deaths.SUMMARY),
}
"""By name, in the order in which all of them run. Each takes `quick` and returns a Report."""


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none: all")
    options.add_argument("--list", action="store_true", help="only say which there are")
    options.add_argument("--quick", action="store_true", help="the smallest sizes: for tests")
    options.add_argument("--json", action="store_true", help="print the results as JSON, one object a line")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for NAME.json")
    chosen = options.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        options.error(f"found no benchmark {unknown[0]!r}, expected one of {', '.join(BENCHMARKS)}")
    console = Console()
    if chosen.list:
        for name, (_, summary) in BENCHMARKS.items():
            console.print(f"{name:12}{summary}", markup=False, highlight=False, soft_wrap=True)
        return 0
    for name in chosen.names or BENCHMARKS:
        machine = this_machine()
        report = BENCHMARKS[name][0](quick=chosen.quick)
        save(report, machine, chosen.results)
        if chosen.json:
            print(as_json(report, machine))
        else:
            show(report, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
