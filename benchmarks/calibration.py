"""What the catalog's coefficients say of measured hardware: each measured row played as a closed loop.

The rows are vllm_silicon_calibration.csv as NVIDIA's aiconfigurator ships it (Apache-2.0), from public benchmark runs:
so many clients, each sending its next request when the last is through, ten requests per client. The folder with it is
named by QUARTERDECK_CALIBRATION.

How much lengths vary decides the time to first token: clients whose requests are all of one length stay in step and
come back together, and each waits for the prefill of all. InferenceX, where most rows are from, draws lengths from 0.8
to 1 of those named (its random_range_ratio); the rows of aiconfigurator's own gap analysis are taken as exact. What the
other assumption would give is printed beside.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measuring import measure_apart
from benchmarks.report import Cell, Grid, Report
from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.kernel.errors import InvalidError
from controlplane.simulation.fleet.closed_loop import closed_loop
from controlplane.simulation.fleet.subject import Subject, subject_of

SUMMARY: Final = "time to first token and per token beside 1,345 measured rows (QUARTERDECK_CALIBRATION)"
VARIABLE: Final = "QUARTERDECK_CALIBRATION"
FILE: Final = "vllm_silicon_calibration.csv"
_ROUNDS: Final = 10
"""Requests per client, as in those runs."""
_SPREAD: Final = 0.8
_EXACT_SOURCE: Final = "aic-auto-gap-analysis"
_QUICK: Final = 12
_CONCURRENCY: Final = re.compile(r"silicon_concurrency=(\d+)")
_MODELS: Final = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
_UNNAMED_PRECISION: Final = "bf16"
"""Of rows without one: the repository that they name holds those weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    model: str
    gpu: str
    precision: str
    tensor_parallel: int
    prompt: int
    output: int
    concurrency: int
    spread: bool
    """Lengths are drawn from _SPREAD to 1 of those named."""
    ttft_s: float
    per_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    row: Row
    calibrated: bool
    """The catalog has coefficients for just this; else they are a roofline's."""
    saturated: bool
    """The clients' requests need more than the KV cache: some always wait, and time to first token is that wait."""
    ttft_error: float
    """Simulated over measured, less 1."""
    ttft_error_otherwise: float
    """Had lengths been exact where they are drawn, and drawn where they are exact."""
    per_token_error: float


def run(*, quick: bool) -> Report:
    folder = os.environ.get(VARIABLE)
    path = Path(folder) / FILE if folder else None
    if path is None or not path.is_file():
        found = f"found no {FILE} in {folder}" if folder else f"{VARIABLE} is not set"
        return Report(name="calibration", grids=[], verdict=f"{found}: name its folder there", results={"results": []})
    result = measure_apart("calibration", path=str(path), rows_max=_QUICK if quick else 0)
    return Report(
        name="calibration",
        grids=[
            Grid(
                title="Simulated over measured time less 1, in %: size at the median and at p90, and the median (bias)",
                heads=["", "rows", "TPOT", "p90", "bias", "TTFT", "p90", "bias", "other", "full", "TTFT", "bias"],
                rows=result["errors"],
            ),
            Grid(title="Rows that are not compared", heads=["what", "rows"], rows=result["left_out"]),
        ],
        verdict=result["verdict"],
        results={"results": [result]},
    )


def measure(path: str, rows_max: int) -> dict[str, Any]:
    """Called in a process of its own."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    catalog = load_catalog()
    left_out: Counter[str] = Counter()
    compared: list[Compared] = []
    subjects: dict[tuple[str, str, str, int], Subject | None] = {}
    for line in lines:
        reason = _left_out(line, catalog)
        if reason:
            left_out[reason] += 1
            continue
        row = _row(line)
        key = (row.model, row.gpu, row.precision, row.tensor_parallel)
        if key not in subjects:
            subjects[key] = _subject(row, catalog)
        subject = subjects[key]
        if subject is None:
            left_out[f"does not fit, says the catalog: {row.model} {row.precision} TP{row.tensor_parallel}"] += 1
        elif not rows_max or len(compared) < rows_max:
            compared.append(_compared(row, subject))
    return {
        "rows": len(lines),
        "compared": len(compared),
        "errors": [*_by_kind(compared), *_in_all(compared)],
        "left_out": sorted(([reason, count] for reason, count in left_out.items()), key=lambda pair: -int(pair[1])),
        "verdict": f"{len(compared)} of {len(lines)} rows compared; {sum(left_out.values())} are of models, GPUs or "
        "layouts that the catalog does not have",
    }


def _left_out(line: Mapping[str, str], catalog: Catalog) -> str:
    """Why a row says nothing about the catalog; empty when it does."""
    model, gpu = line["model_path"], _gpu(line)
    if model not in _MODELS:
        return f"no such model: {model}"
    if gpu not in catalog.gpus:
        return f"no such GPU: {gpu}"
    if line["mode"] != "agg":
        return f"prefill and decode apart: {model}"
    if _number(line["pp_size"]) > 1 or _number(line["attention_dp_size"]) > 1:
        return f"pipeline or data parallel: {model}"
    if not (line["silicon_ttft_ms"] and line["silicon_tpot_ms"]):
        return f"no times: {model}"
    return ""


def _row(line: Mapping[str, str]) -> Row:
    clients = _CONCURRENCY.search(line["silicon_data_source"])
    return Row(
        model=_MODELS[line["model_path"]],
        gpu=_gpu(line),
        precision=line["precision"] or _UNNAMED_PRECISION,
        tensor_parallel=int(_number(line["tp_size"])),
        prompt=int(_number(line["isl"])),
        output=int(_number(line["osl"])),
        concurrency=int(clients.group(1)) if clients else int(_number(line["batch_size"])),
        spread=_EXACT_SOURCE not in line["silicon_data_source"],
        ttft_s=float(line["silicon_ttft_ms"]) / 1e3,
        per_token_s=float(line["silicon_tpot_ms"]) / 1e3,
    )


def _gpu(line: Mapping[str, str]) -> str:
    return line["system"].removesuffix("_sxm")


def _number(text: str) -> float:
    return float(text) if text else 1.0


def _subject(row: Row, catalog: Catalog) -> Subject | None:
    try:
        return subject_of(
            row.model, row.gpu, tensor_parallel=row.tensor_parallel, precision=row.precision, catalog=catalog
        )
    except InvalidError:
        return None


def _compared(row: Row, subject: Subject) -> Compared:
    ttft_s, per_token_s = _played(row, subject, spread=row.spread)
    otherwise_s, _ = _played(row, subject, spread=not row.spread)
    return Compared(
        row=row,
        calibrated=subject.prior.calibrated,
        saturated=row.concurrency * (row.prompt + row.output) > subject.timing.kv_tokens,
        ttft_error=ttft_s / row.ttft_s - 1.0,
        ttft_error_otherwise=otherwise_s / row.ttft_s - 1.0,
        per_token_error=per_token_s / row.per_token_s - 1.0,
    )


def _played(row: Row, subject: Subject, *, spread: bool) -> tuple[float, float]:
    """Mean time to first token and per output token, seconds."""
    rng, count, least = np.random.default_rng(0), _ROUNDS * row.concurrency, _SPREAD if spread else 1.0
    prompt, output = (
        rng.integers(max(int(least * tokens), 1), tokens + 1, count) for tokens in (row.prompt, row.output)
    )
    requests = closed_loop(subject.timing, prompt, output, concurrency=row.concurrency).requests
    per_token_s = (requests.done_s - requests.first_s) / np.maximum(requests.output - 1, 1)
    return float((requests.first_s - requests.arrival_s).mean()), float(per_token_s.mean())


def _by_kind(compared: Sequence[Compared]) -> list[list[Cell]]:
    kinds = sorted({_kind(one) for one in compared})
    return [_errors(kind, [one for one in compared if _kind(one) == kind]) for kind in kinds]


def _kind(one: Compared) -> str:
    """A star where the catalog has measured coefficients."""
    row = one.row
    return f"{row.model} {row.precision} TP{row.tensor_parallel}, {row.gpu}{' *' if one.calibrated else ''}"


def _in_all(compared: Sequence[Compared]) -> Iterable[list[Cell]]:
    for name, chosen in (
        ("all with fitted coefficients (*)", [one for one in compared if one.calibrated]),
        ("all with a roofline", [one for one in compared if not one.calibrated]),
    ):
        if chosen:
            yield _errors(name, chosen)


def _errors(name: str, compared: Sequence[Compared]) -> list[Cell]:
    free = [one.ttft_error for one in compared if not one.saturated]
    full = [one.ttft_error for one in compared if one.saturated]
    otherwise = [one.ttft_error_otherwise for one in compared if not one.saturated]
    per_token = [one.per_token_error for one in compared]
    beside = _spread(otherwise)[2]
    return [name, len(compared), *_spread(per_token), *_spread(free), beside, len(full), *_spread(full)[::2]]


def _spread(errors: Sequence[float]) -> list[Cell]:
    """Median and 90th percentile of the size, median with its sign; percent."""
    if not errors:
        return ["-", "-", "-"]
    size = np.abs(errors)
    found = (float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(errors)))
    return [f"{100 * found[0]:.0f}", f"{100 * found[1]:.0f}", f"{100 * found[2]:+.0f}"]
