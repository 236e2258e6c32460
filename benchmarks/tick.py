"""How long deciding for a whole fleet takes, how much memory, and how both grow with the fleet.

Two tables. The decision tick: everything read in one transaction of a real SQLite file, every decision computed by the
functions that the loops call, everything written. The loops' round: the loops themselves tick each of their resources
once, a transaction for each, as they do every second in the product. What runs and what is measured is played.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.decision_tick import decision_ticks
from benchmarks.fleet import standing_fleet
from benchmarks.loops_round import loops_rounds
from benchmarks.measuring import Stopwatch, exponent, measure_apart
from benchmarks.report import Cell, Grid, Report

SUMMARY: Final = "a decision over a whole fleet: 1,000 nodes, 8,000 GPUs, 2,000 replicas, and around it"
AIM_MS: Final = 250.0
"""Of one core, for AIM_NODES."""
AIM_NODES: Final = 1000
AIM_EXPONENT: Final = 1.15
"""Of growth: linear, with room for caches that a larger fleet outgrows."""
_NODES: Final = (125, 250, 500, 1000, 2000)
_NODES_QUICK: Final = (10, 20)
_ROUNDS: Final = 11
_ROUNDS_QUICK: Final = 2


def run(*, quick: bool) -> Report:
    nodes, rounds = (_NODES_QUICK, _ROUNDS_QUICK) if quick else (_NODES, _ROUNDS)
    results = [measure_apart("tick", nodes=count, rounds=rounds) for count in nodes]
    return Report(
        name="tick",
        grids=[
            _grid("Decision tick: read all, decide all, write all (ms of one core)", "tick", results),
            _grid("The loops' round: each resource ticks once (ms of one core)", "loops", results),
        ],
        verdict=_verdict(results),
        results={"aim_ms": AIM_MS, "aim_nodes": AIM_NODES, "results": results},
    )


def measure(nodes: int, rounds: int) -> dict[str, Any]:
    """One size; called in a process of its own."""
    return asyncio.run(_measure(nodes, rounds))


def _grid(title: str, part: str, results: Sequence[dict[str, Any]]) -> Grid:
    sizes = [result["nodes"] for result in results]

    def row(name: str, values: Sequence[float]) -> list[Cell]:
        return [name, *(round(value, 1) for value in values), f"{exponent(sizes, values):.2f}"]

    stages = results[0][part]["stages"]
    rows = [row(stage, [result[part]["stages"][stage] for result in results]) for stage in stages]
    rows.append(row("whole", [result[part]["median_ms"] for result in results]))
    rows.append(row("whole, p90", [result[part]["p90_ms"] for result in results]))
    if part == "tick":
        rows.append(row("memory added, MiB", [result["added_mib"] for result in results]))
    counts: list[list[Cell]] = [
        [noun, *(result[noun] for result in results), ""] for noun in ("GPUs", "replicas", "deployments")
    ]
    heads = [f"{result['nodes']:,}" for result in results]
    return Grid(title=title, heads=["nodes", *heads, "grows^"], rows=[*counts, *rows])


def _verdict(results: Sequence[dict[str, Any]]) -> str:
    at = min(results, key=lambda result: abs(result["nodes"] - AIM_NODES))
    grown = exponent([result["nodes"] for result in results], [result["tick"]["median_ms"] for result in results])
    took = at["tick"]["median_ms"]
    return (
        f"{at['nodes']:,} nodes: {took:.0f} ms, {'within' if took <= AIM_MS else 'ABOVE'} the aim of {AIM_MS:.0f} ms "
        f"of one core for {AIM_NODES:,}; grows with exponent {grown:.2f}, "
        f"{'linear' if grown <= AIM_EXPONENT else 'NOT linear'} (at most {AIM_EXPONENT}). "
        f"The loops' round there: {at['loops']['median_ms']:.0f} ms"
    )


async def _measure(nodes: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with standing_fleet(nodes, Path(folder)) as fleet:
            loops = await loops_rounds(fleet, rounds)
            tick, size = await decision_ticks(fleet, rounds)
    return {"nodes": nodes, **size, "tick": _summary(tick), "loops": _summary(loops)}


def _summary(watch: Stopwatch) -> dict[str, Any]:
    median, p90 = watch.totals()
    stages = {name: round(ms, 3) for name, ms in watch.stages().items()}
    return {"stages": stages, "median_ms": round(median, 2), "p90_ms": round(p90, 2)}
