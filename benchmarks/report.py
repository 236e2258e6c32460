"""What a benchmark found: tables for people, plain results for JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine

RESULTS: Final = Path(__file__).parent / "results"

type Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One table: the first column is words, all others are numbers (floats with one decimal)."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    name: str
    grids: Sequence[Grid]
    verdict: str
    """What was aimed at and whether it was met, in a sentence."""
    results: Mapping[str, Any]
    """For JSON."""


def show(report: Report, console: Console) -> None:
    for grid in report.grids:
        table = Table(title=grid.title, title_justify="left")
        for number, head in enumerate(grid.heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
        for row in grid.rows:
            table.add_row(*map(_text, row))
        console.print(table)
    console.print(report.verdict + "\n", markup=False, soft_wrap=True)


def as_json(report: Report, machine: Machine) -> str:
    """One line."""
    whole = {"benchmark": report.name, "machine": asdict(machine), "verdict": report.verdict, **report.results}
    return json.dumps(whole)


def save(report: Report, machine: Machine, folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.name}.json"
    path.write_text(as_json(report, machine) + "\n", encoding="utf-8")
    return path


def _text(cell: Cell) -> str:
    return f"{cell:,.1f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell
