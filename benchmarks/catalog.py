"""The memory fit over the whole catalog: each model on each GPU, as `quarterdeck models` computes it."""

import time
from typing import Any, Final

from benchmarks.measuring import measure_apart, median_us
from benchmarks.report import Grid, Report
from controlplane.catalog.files import load_catalog
from controlplane.catalog.fit import fit

SUMMARY: Final = "the memory fit of every model on every GPU of the catalog"
_ROUNDS: Final = 5
_ROUNDS_QUICK: Final = 1


def run(*, quick: bool) -> Report:
    result = measure_apart("catalog", rounds=_ROUNDS_QUICK if quick else _ROUNDS)
    return Report(
        name="catalog",
        grids=[
            Grid(
                title=f"{result['models']} models, {result['gpus']} GPUs; {result['fitting']} of {result['pairs']} fit",
                heads=["work", "ms"],
                rows=[
                    ["read every file of the catalog", result["read_ms"]],
                    ["all fits, with their proofs", result["fits_ms"]],
                    ["one fit", result["fits_ms"] / result["pairs"]],
                ],
            )
        ],
        verdict="no aim; a site file with three deployments needs some ten fits",
        results={"results": [result]},
    )


def measure(rounds: int) -> dict[str, Any]:
    """Called in a process of its own."""
    began = time.process_time()
    catalog = load_catalog()
    models, gpus = list(catalog.models.values()), list(catalog.gpus.values())
    read_s = time.process_time() - began
    spent: list[float] = []
    answers = []
    for _ in range(rounds):
        began = time.process_time()
        answers = [fit(model, gpu) for model in models for gpu in gpus]
        spent.append(time.process_time() - began)
    return {
        "models": len(models),
        "gpus": len(gpus),
        "pairs": len(answers),
        "fitting": sum(answer.fits for answer in answers),
        "read_ms": round(read_s * 1e3, 1),
        "fits_ms": round(median_us(spent) / 1e3, 2),
    }
