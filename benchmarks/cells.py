"""The cells of the autoscaling benchmark: loads, models, GPUs, objectives, cold starts."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.traces import FOLDER, traces_folder
from controlplane.kernel.errors import NotFoundError
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.rates import Rates, sampled
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.fleet.trace_files import read_workload
from controlplane.simulation.fleet.trial import Trial, first_replicas, peak_replicas, profiled, work_of
from controlplane.simulation.fleet.workload import Workload, scaled

PEAK_REPLICAS: Final = 12
"""Each load is scaled so that a static fleet would need about so many: one that needs a single replica compares
nothing."""
REPLICAS_MAX: Final = 3 * PEAK_REPLICAS
COLD_STARTS_S: Final = (5.0, 100.0, 240.0)
"""A wake from sleep; a start with warm caches; one without (docs/autoscaling.md)."""
GPUS: Final = ("h100", "h200", "b200")
_MINUTE_S: Final = 60.0
_FIRST_S: Final = 300.0
"""Policies begin with the replicas that the busiest ten seconds of the first five minutes need: a service that ran
before. A trace that begins at its full rate would else be judged by its first cold start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    model: str
    precision: str
    tensor_parallel: int
    context_tokens: int
    limits: Limits


MODELS: Final = (
    Model(
        name="8B",
        model="llama-3.1-8b",
        precision="bf16",
        tensor_parallel=1,
        context_tokens=32768,
        limits=Limits(ttft_s=1.0, itl_s=0.05, percentile=0.99),
    ),
    Model(
        name="32B",
        model="qwen3-32b",
        precision="bf16",
        tensor_parallel=2,
        context_tokens=32768,
        limits=Limits(ttft_s=2.0, itl_s=0.075, percentile=0.99),
    ),
    Model(
        name="70B",
        model="llama-3.1-70b",
        precision="fp8",
        tensor_parallel=2,
        context_tokens=32768,
        limits=Limits(ttft_s=3.0, itl_s=0.1, percentile=0.99),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A public trace, or a part of one, or a synthetic one."""

    name: str
    file: str = ""
    """Empty: synthetic."""
    series: str | None = None
    start_s: float = 0.0
    end_s: float = math.inf
    is_rates: bool = False
    kind: str = ""


_HOUR_S: Final = 3600.0
LOADS: Final = (
    Load(name="azure-conv", file="azure_llm_2023_conv.parquet"),
    Load(name="azure-code", file="azure_llm_2023_code.parquet"),
    Load(name="mooncake", file="mooncake_fast25_synthetic.parquet"),
    Load(
        name="azure-week",
        file="azure_llm_2024_conv_1week_rates.parquet",
        start_s=28 * _HOUR_S,
        end_s=34 * _HOUR_S,
        is_rates=True,
    ),
    Load(
        name="servegen-small",
        file="servegen_rates_10min.parquet",
        series="m-small",
        start_s=28 * _HOUR_S,
        end_s=28.5 * _HOUR_S,
        is_rates=True,
    ),
)
"""Of the week-long rates six hours of the second day, the morning's rise among them: a decision a second over a week
would take longer than it tells. Of ServeGen's small requests, of which a fleet serves up to four thousand a second,
half an hour."""
SYNTHETIC: Final = tuple(Load(name=f"synthetic-{kind}", kind=kind) for kind in ("day", "walk"))
"""What peers are tuned on, and our policy was; never reported beside public traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    load: Load
    model: Model
    gpu: str
    cold_start_s: float

    @property
    def name(self) -> str:
        return f"{self.load.name} {self.model.name} {self.gpu} {self.cold_start_s:g}s"


def loads(environ: "os._Environ[str] | None" = None) -> tuple[Sequence[Load], str]:
    """The public traces where there are any, else synthetic days; and a sentence that says which."""
    try:
        folder = traces_folder(os.environ if environ is None else environ)
    except NotFoundError as error:
        return SYNTHETIC, f"{error}; until then synthetic days stand in, on which nothing may be claimed"
    found = [load for load in LOADS if (folder / load.file).is_file()]
    return found, f"public traces in ${FOLDER}: {', '.join(load.name for load in found)}"


def cells(
    chosen: Sequence[Load],
    *,
    models: Sequence[Model] = MODELS,
    gpus: Sequence[str] = GPUS,
    cold_starts_s: Sequence[float] = COLD_STARTS_S,
) -> Iterator[Cell]:
    for load in chosen:
        for model in models:
            for gpu in gpus:
                for cold_start_s in cold_starts_s:
                    yield Cell(load=load, model=model, gpu=gpu, cold_start_s=cold_start_s)


@cache
def _subject(model: Model, gpu: str) -> Subject:
    return subject_of(
        model.model,
        gpu,
        tensor_parallel=model.tensor_parallel,
        precision=model.precision,
        context_tokens=model.context_tokens,
    )


def scaled_trial(cell: Cell, seed: int) -> Trial | None:
    """The cell with its load scaled; None when not even a lone request meets the objectives often enough.

    InvalidError when so scaled it is more than the simulator takes, or nothing.
    """
    trial = Trial(
        subject=_subject(cell.model, cell.gpu),
        workload=_workload(cell.load, 1.0, seed) if not cell.load.is_rates else _small(cell.load, seed),
        limits=cell.model.limits,
        cold_start_s=cell.cold_start_s,
        replicas_max=REPLICAS_MAX,
        seed=seed,
    )
    trial = profiled(trial)
    if trial.profile.rate_rps <= 0.0:
        return None
    factor = PEAK_REPLICAS / _peak(trial)
    if cell.load.is_rates:
        factor *= _small_factor(cell.load)
    trial = replace(trial, workload=_workload(cell.load, factor, seed))
    return replace(trial, replicas_first=first_replicas(trial, _FIRST_S))


def _peak(trial: Trial) -> float:
    """Static replicas, not rounded up: what the busiest minute needs."""
    per_minute = np.bincount((trial.workload.arrival_s // _MINUTE_S).astype(int), weights=work_of(trial))
    return max(float(per_minute.max()) / _MINUTE_S / trial.profile.rate_rps, peak_replicas(trial) / 1e6)


_SMALL_RPS: Final = 2.0
"""A sample of a load of rates that says what its requests are like, and how high its peak is over its mean."""


@cache
def _small_factor(load: Load) -> float:
    path = _path(load)
    # The mean rate is not known before the file is read; a tiny draw tells it.
    tiny = 1e-4
    drawn = read_workload(path, series=load.series, factor=tiny, start_s=load.start_s, end_s=load.end_s)
    return _SMALL_RPS / max(drawn.mean_rps / tiny, 1e-9)


def _small(load: Load, seed: int) -> Workload:
    return _workload(load, _small_factor(load), seed)


def _path(load: Load) -> Path:
    return traces_folder(os.environ) / load.file


def _workload(load: Load, factor: float, seed: int) -> Workload:
    if not load.file:
        return synthetic(load.kind, 4.0 * factor, seed)
    if load.is_rates:
        return read_workload(
            _path(load), series=load.series, seed=seed, factor=factor, start_s=load.start_s, end_s=load.end_s
        )
    recorded = read_workload(_path(load), series=load.series)
    return recorded if factor == 1.0 else scaled(recorded, factor, seed)


def synthetic(kind: str, mean_rps: float, seed: int, *, hours: float = 1.0) -> Workload:
    """A day's wave in an hour, or the same with a random walk on it; requests like Azure's conversations."""
    rng = np.random.default_rng([seed, 7])
    minutes = int(60 * hours)
    middle_s = (np.arange(minutes, dtype=np.float64) + 0.5) * 60.0
    shape = 1.0 + 0.7 * np.sin(2.0 * math.pi * (middle_s / (hours * _HOUR_S) + rng.random()))
    if kind == "walk":
        shape *= np.exp(np.cumsum(rng.normal(0.0, 0.08, minutes)))
    rates = Rates(
        name=f"synthetic-{kind}",
        middle_s=middle_s,
        rate_rps=mean_rps * shape / shape.mean(),
        client_cv=np.full(minutes, 1.0 if kind == "day" else 2.0),
        prompt_mean=np.full(minutes, 1000.0),
        output_mean=np.full(minutes, 250.0),
        duration_s=hours * _HOUR_S,
    )
    return sampled(rates, seed)
