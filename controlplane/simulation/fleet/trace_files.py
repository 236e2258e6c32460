"""Workloads from files: parquet with a row per request, or with a rate per bin of time. docs/traces.md has both."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.rates import Rates, sampled, scaled_rates, window_rates
from controlplane.simulation.fleet.workload import Workload, scaled, window, workload_of
from controlplane.simulation.trace_columns import Shape, read_rates, read_requests, shape_of

_INSTANT_S: Final = 1.0
"""The length of a trace whose requests all come at once: a load has a length."""


def read_workload(
    path: Path,
    *,
    series: str | None = None,
    seed: int = 0,
    factor: float = 1.0,
    start_s: float = 0.0,
    end_s: float = float("inf"),
) -> Workload:
    """The requests of a trace file, from start_s to end_s of it, at `factor` times the rate.

    Of rates, requests are drawn: see `rates.sampled`. The seed draws them, and what the factor adds or leaves away.
    Requests of several models are one workload unless a series chooses; of several rates, one must be chosen.
    InvalidError names the file, the column, what was found, what was expected.
    """
    if shape_of(path) is Shape.RATES:
        return sampled(scaled_rates(window_rates(rates_of(path, series), start_s, end_s), factor), seed)
    return scaled(window(requests_of(path, series), start_s, end_s), factor, seed)


def requests_of(path: Path, series: str | None = None) -> Workload:
    """A file of requests as it is, counted from its first arrival to its last."""
    table = read_requests(path, series)
    arrival_s, prompt, output = (table.column(name).to_numpy() for name in table.column_names)
    arrival_s = arrival_s - arrival_s[0]
    return workload_of(_name(path, series), arrival_s, prompt, output, duration_s=max(float(arrival_s[-1]), _INSTANT_S))


def rates_of(path: Path, series: str | None = None) -> Rates:
    """A file of rates as it is, counted from the start of its first bin to the end of its last.

    With `bin_s`, timestamps are the middles of bins; without, their starts, and bins are as long as most of the steps
    between them. Where bins are missing, the rate runs straight across.
    """
    table = read_rates(path, series)
    at_s = _column(table, "timestamp_s")
    bins_s = _column(table, "bin_s")
    rate_rps = _column(table, "rate_rps")
    bin_s = _bin_s(path, at_s, bins_s)
    start_s = at_s[0] - (bin_s / 2.0 if len(bins_s) else 0.0)
    middle_s = at_s - start_s + (0.0 if len(bins_s) else bin_s / 2.0)
    client_cv = _column(table, "rate_weighted_client_cv")
    return Rates(
        name=_name(path, series),
        middle_s=middle_s,
        rate_rps=rate_rps,
        client_cv=np.nan_to_num(client_cv, nan=1.0) if len(client_cv) else np.ones(len(at_s)),
        prompt_mean=_lengths(path, table, "mean_prompt_tokens", rate_rps),
        output_mean=_lengths(path, table, "mean_output_tokens", rate_rps),
        duration_s=float(middle_s[-1] + bin_s / 2.0),
    )


def _column(table: Any, name: str) -> Floats:
    """Empty where the file has none; NaN where a row has none."""
    if name not in table.column_names:
        return np.empty(0)
    return np.array(table.column(name).to_numpy(), dtype=np.float64)


def _bin_s(path: Path, at_s: Floats, bins_s: Floats) -> float:
    bin_s = float(np.median(bins_s if len(bins_s) else np.diff(at_s))) if len(bins_s) or len(at_s) > 1 else 0.0
    if bin_s > 0.0:
        return bin_s
    found = f"{bin_s:g} s" if len(bins_s) else "one row and no column bin_s"
    raise _invalid(path, "bin_s", found, "bins that last", "Two rows tell the length of a bin, or bin_s does")


def _lengths(path: Path, table: Any, name: str, rate_rps: Floats) -> Floats:
    """Where nothing came there is no mean length: the latest known one (or the first of all) stands in.

    The straight line from a neighbour may put requests there.
    """
    mean = _column(table, name)
    known = ~np.isnan(mean)
    lacking = np.flatnonzero(~known & (rate_rps > 0.0))
    if len(lacking) or not known.any():
        row = int(lacking[0]) if len(lacking) else 0
        found = f"nothing in row {row} with {rate_rps[row]:g} rps"
        raise _invalid(path, name, found, "a mean length wherever the rate is above 0", "Fill it, or set the rate to 0")
    latest = np.maximum.accumulate(np.where(known, np.arange(len(mean)), -1))
    latest[latest < 0] = np.argmax(known)
    return mean[latest]


def _name(path: Path, series: str | None) -> str:
    return path.stem if series is None else f"{path.stem}/{series}"


def _invalid(path: Path, field: str, found: str, expected: str, hint: str = "") -> InvalidError:
    return InvalidError([Problem(field=f"{path.name} {field}", found=found, expected=expected, hint=hint)])
