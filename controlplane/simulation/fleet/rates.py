"""Rates over time, and requests drawn from them."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.workload import (
    Workload,
    check_factor,
    check_size,
    check_window,
    no_requests,
    workload_of,
)

BURST_S: Final = 10.0
"""For how long a burst lasts. On azure_llm_2023_code, the burstiest public trace of requests, the variance of the
rate falls with the window over which it is counted (4.7 of the squared mean at 1 s, 2.8 at 10 s, 1.1 at 60 s) as that
of blocks of 6 s (windows of 5 s) to 14 s (windows of 60 s)."""
BURST_VARIANCE_MAX: Final = 5.0
"""Of the burst multiplier, whose mean is 1: azure_llm_2023_code has 4.7 at 1 s. The files have bins with a coefficient
of variation of several hundred, where a client sent a handful of requests; they would put a bin's load into one
block."""
PROMPT_CV: Final = 0.96
OUTPUT_CV: Final = 0.77
"""Coefficients of variation of the lengths on azure_llm_2023_conv (19,366 requests, 0.960 and 0.771), by
`t = pq.read_table(FILE); t[COLUMN].to_numpy().std() / t[COLUMN].to_numpy().mean()`. Prompt and output are drawn
independently: their correlation there is -0.11."""
LENGTH_MAX: Final = 12.0
"""Times the mean: the longest prompt there is 12.2 times the mean (14,050 of 1,155 tokens), the longest output 4.7.
A lognormal has no end, and one prompt of a hundred thousand tokens in a day would be an artefact of that."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rates:
    """A rate per bin of time, with what is known of the requests in it. Arrays of one length."""

    name: str
    middle_s: Floats
    """Of each bin, rising, from the start of the load at 0."""
    rate_rps: Floats
    client_cv: Floats
    """Coefficient of variation of the time between a client's requests, clients weighted by their rate; 1 where it is
    not known: Poisson."""
    prompt_mean: Floats
    output_mean: Floats
    duration_s: float

    def __post_init__(self) -> None:
        columns = (self.rate_rps, self.client_cv, self.prompt_mean, self.output_mean)
        assert all(len(column) == len(self.middle_s) > 0 for column in columns), "arrays of one length"
        assert bool((self.middle_s[1:] > self.middle_s[:-1]).all()), "bins are in order"
        assert bool((self.rate_rps >= 0.0).all()), "rates are not negative"


def scaled_rates(rates: Rates, factor: float) -> Rates:
    """`factor` times the rate from as many times the clients, each as bursty as before.

    Unlike copies of requests (`workload.scaled`), independent clients even each other out: the more there are, the
    smoother the load. InvalidError when the factor is not above 0.
    """
    check_factor(rates.name, factor)
    name = rates.name if factor == 1.0 else f"{rates.name} x{factor:g}"
    return replace(rates, name=name, rate_rps=rates.rate_rps * factor)


def window_rates(rates: Rates, start_s: float, end_s: float) -> Rates:
    """From start_s to end_s, counted from start_s. InvalidError when that is outside of the load."""
    check_window(rates.name, start_s, end_s, rates.duration_s)
    return replace(rates, middle_s=rates.middle_s - start_s, duration_s=min(end_s, rates.duration_s) - start_s)


def sampled(rates: Rates, seed: int) -> Workload:
    """Requests drawn from the rates: a doubly stochastic Poisson process. The same seed, the same load.

    The rate runs straight from the middle of one bin to the middle of the next (a peak of one bin loses a little), and
    is multiplied every BURST_S by a gamma variate of mean 1 and variance (cv^2 - 1) / (rate BURST_S), bounded by
    BURST_VARIANCE_MAX. Counts over windows of BURST_S and more then have the index of dispersion cv^2: that of the
    superposition of independent renewal processes with that cv over long windows (Cox and Lewis 1966). A cv up to 1 is
    Poisson. Lengths are lognormal with the mean of the bin and PROMPT_CV, OUTPUT_CV, up to LENGTH_MAX means.

    InvalidError when there would be none, or more than a fleet can hold.
    """
    arrivals, lengths = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(2))
    cells = max(ceil(rates.duration_s / _cell_s(rates)), 1)
    cell_s = rates.duration_s / cells
    begin_s: Floats = np.arange(cells, dtype=np.float64) * cell_s
    middle_s: Floats = begin_s + cell_s / 2.0
    rate: Floats = np.interp(middle_s, rates.middle_s, rates.rate_rps).astype(np.float64)
    check_size(rates.name, float(rate.sum()) * cell_s)
    bin_of = np.searchsorted((rates.middle_s[1:] + rates.middle_s[:-1]) / 2.0, middle_s)
    bursts = _bursts(arrivals, rate, rates.client_cv[bin_of], middle_s)
    counts = arrivals.poisson(rate * bursts * cell_s)
    total = int(counts.sum())
    check_size(rates.name, total)
    if total == 0:
        raise no_requests(rates.name)
    # Within its cell each is uniform; sorting moves none out of its cell, so that the bins stay theirs.
    arrival_s = np.sort(np.repeat(begin_s, counts) + arrivals.random(total) * cell_s)
    request_bin = np.repeat(bin_of, counts)
    return workload_of(
        rates.name,
        np.minimum(arrival_s, rates.duration_s),
        lengths_around(lengths, rates.prompt_mean[request_bin], PROMPT_CV),
        lengths_around(lengths, rates.output_mean[request_bin], OUTPUT_CV),
        duration_s=rates.duration_s,
    )


def lengths_around(rng: np.random.Generator, mean: Floats, cv: float) -> Ints:
    """Lognormal token counts with these means and this coefficient of variation, 1 to LENGTH_MAX means."""
    variance = np.log1p(cv * cv)
    drawn = rng.standard_normal(len(mean))
    drawn *= np.sqrt(variance)
    drawn -= variance / 2.0
    counts: Ints = np.rint(np.minimum(np.exp(drawn), LENGTH_MAX) * mean).astype(np.int64)
    return np.maximum(counts, 1)


def _cell_s(rates: Rates) -> float:
    """Short enough that the rate is as good as flat in it."""
    if len(rates.middle_s) == 1:
        return BURST_S
    return min(BURST_S, float(np.median(np.diff(rates.middle_s))))


def _bursts(rng: np.random.Generator, rate: Floats, cv: Floats, middle_s: Floats) -> Floats:
    """What multiplies each cell's rate: one variate for all cells of a block."""
    block = (middle_s // BURST_S).astype(np.int64)
    opening = np.searchsorted(block, np.arange(block[-1] + 1))
    excess = np.square(cv[opening]) - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where((excess > 0.0) & (rate[opening] > 0.0), excess / (rate[opening] * BURST_S), 0.0)
    variance = np.minimum(variance, BURST_VARIANCE_MAX)
    bursty = variance > 0.0
    multiplier = np.ones(len(opening))
    multiplier[bursty] = rng.gamma(1.0 / variance[bursty], variance[bursty])
    return multiplier[block]
