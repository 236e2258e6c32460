"""Requests for a fleet in virtual time, as arrays; more, fewer, or a part of them."""

from dataclasses import dataclass
from math import floor
from typing import Final

import numpy as np

from controlplane.kernel.errors import InvalidError, Problem
from controlplane.simulation.fleet.compiled import Floats, Ints

REQUESTS_MAX: Final = 20_000_000
"""The fleet's state takes 100 bytes a request: 2 GB. A day of 1.4 M requests is far below it."""
JITTER_S: Final = 3.0
"""A copied request comes at most this much earlier or later. Long enough that copies do not come in packs, short
against what a burst lasts that a fleet could answer: bursts of ten seconds and more keep their shape."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    name: str
    arrival_s: Floats
    """Ascending, from the start of the load at 0."""
    prompt: Ints
    """Tokens, at least 1."""
    output: Ints
    """Tokens, at least 1."""
    duration_s: float
    """The load's end; no arrival is later."""

    def __post_init__(self) -> None:
        assert len(self.arrival_s) == len(self.prompt) == len(self.output) > 0, "a workload has requests, each whole"
        assert self.arrival_s[0] >= 0.0, "arrivals count from the start of the load"
        assert self.arrival_s[-1] <= self.duration_s, "arrivals come before the end of the load"
        assert bool((self.arrival_s[1:] >= self.arrival_s[:-1]).all()), "arrivals are in order"

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    @property
    def mean_rps(self) -> float:
        return self.requests / self.duration_s


def workload_of(name: str, arrival_s: Floats, prompt: Ints, output: Ints, *, duration_s: float) -> Workload:
    """In order of arrival; token counts below 1 become 1."""
    order = np.argsort(arrival_s, kind="stable")
    return Workload(
        name=name,
        arrival_s=np.ascontiguousarray(arrival_s[order], dtype=np.float64),
        prompt=np.maximum(prompt[order].astype(np.int64), 1),
        output=np.maximum(output[order].astype(np.int64), 1),
        duration_s=float(duration_s),
    )


def scaled(workload: Workload, factor: float, seed: int) -> Workload:
    """`factor` times the rate, with the same ups and downs; 1 is the same workload. The same seed, the same load.

    Above 1: the requests themselves, and copies of them, each at most JITTER_S earlier or later on its own (turned
    back at the load's two ends). Counts over windows well above JITTER_S are the factor times what they were, so their
    coefficient of variation stays and their index of dispersion grows by the factor: bursts grow with the rest.
    Bursts of a second are spread over 2 JITTER_S.

    Below 1: each request stays with that probability. The rate's coefficient of variation stays; what sampling adds
    is that of a Poisson process: index of dispersion I becomes 1 + factor (I - 1).

    A request keeps its pair of lengths. InvalidError when the factor is not above 0 or the load grows too large.
    """
    check_size(workload.name, workload.requests * check_factor(workload.name, factor))
    rng = np.random.default_rng(seed)
    copies = floor(factor)
    stays = rng.random(workload.requests) < factor - copies
    if copies == 0:
        return _taken(workload, np.flatnonzero(stays), f"{workload.name} x{factor:g}")
    again = np.concatenate([np.tile(np.arange(workload.requests), copies - 1), np.flatnonzero(stays)])
    moved = workload.arrival_s[again] + rng.uniform(-JITTER_S, JITTER_S, len(again))
    moved = np.abs(moved)
    moved = np.maximum(np.where(moved > workload.duration_s, 2.0 * workload.duration_s - moved, moved), 0.0)
    chosen = np.concatenate([np.arange(workload.requests), again])
    return workload_of(
        workload.name if factor == 1.0 else f"{workload.name} x{factor:g}",
        np.concatenate([workload.arrival_s, moved]),
        workload.prompt[chosen],
        workload.output[chosen],
        duration_s=workload.duration_s,
    )


def window(workload: Workload, start_s: float, end_s: float) -> Workload:
    """What arrives from start_s up to, not at, end_s, counted from start_s. InvalidError when that is nothing.

    A request at the load's very end belongs to the window that ends there.
    """
    check_window(workload.name, start_s, end_s, workload.duration_s)
    first, last = np.searchsorted(workload.arrival_s, [start_s, end_s])
    if end_s >= workload.duration_s:
        last = workload.requests
    cut = _taken(workload, np.arange(first, last), workload.name)
    return Workload(
        name=cut.name,
        arrival_s=cut.arrival_s - start_s,
        prompt=cut.prompt,
        output=cut.output,
        duration_s=min(end_s, workload.duration_s) - start_s,
    )


def check_factor(name: str, factor: float) -> float:
    """The factor, if it is one."""
    if not 0.0 < factor < float("inf"):
        raise _invalid(name, "scale", f"{factor:g}", "a factor above 0", "1 keeps the rate as recorded")
    return factor


def check_size(name: str, requests: float) -> None:
    """InvalidError when a fleet could not hold them."""
    if requests > REQUESTS_MAX:
        found, expected = f"{requests:.3g} requests", f"at most {REQUESTS_MAX:,}"
        raise _invalid(name, "size", found, expected, "Scale the rate down, or take a shorter window")


def check_window(name: str, start_s: float, end_s: float, duration_s: float) -> None:
    """InvalidError unless the window has a part of the load in it."""
    if not 0.0 <= start_s < min(end_s, duration_s):
        found, expected = f"{start_s:g} s to {end_s:g} s", f"a part of 0 s to {duration_s:g} s"
        raise _invalid(name, "window", found, expected)


def no_requests(name: str) -> InvalidError:
    return _invalid(name, "requests", "none", "at least one", "Take a longer window, or a larger scale")


def _taken(workload: Workload, chosen: Ints, name: str) -> Workload:
    if not len(chosen):
        raise no_requests(workload.name)
    return Workload(
        name=name,
        arrival_s=workload.arrival_s[chosen],
        prompt=workload.prompt[chosen],
        output=workload.output[chosen],
        duration_s=workload.duration_s,
    )


def _invalid(name: str, field: str, found: str, expected: str, hint: str = "") -> InvalidError:
    return InvalidError([Problem(field=f"{name} {field}", found=found, expected=expected, hint=hint)])
