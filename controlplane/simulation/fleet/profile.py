"""What one replica carries within its objectives, measured in virtual time as an offline profile does on hardware."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import READY, Fleet, Timing, new_fleet

_REQUESTS: Final = 3000
"""Per probe: at 99 % thirty may miss, which tells 99 from 98 in nearly all samples."""
_WARM_UP: Final = 0.2
"""Share of them that fills the empty replica and is not judged."""
_TOLERANCE: Final = 0.01
"""Of the rate: finer than any forecast."""
_RATE_FIRST_RPS: Final = 0.1
_RATE_LEAST_RPS: Final = 1e-4
_RATE_MAX_RPS: Final = 1e5
_TAIL_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request must meet, and how many of them must."""

    ttft_s: float
    itl_s: float
    """Mean time per output token of a request."""
    percentile: float
    """0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Of one replica, with Poisson arrivals."""

    rate_rps: float
    """The highest at which the share of requests is within both limits; 0 when even single requests are not."""
    concurrency: float
    """Mean open requests at that rate."""


def measure(timing: Timing, prompt: Ints, output: Ints, limits: Limits, *, replicas: int = 1, seed: int = 0) -> Profile:
    """Bisection over rates, with request lengths drawn in pairs from `prompt` and `output` (tokens).

    The answer is per replica; `replicas` of them share the load by least connections.
    """
    rng = np.random.default_rng([seed, 2])
    chosen = rng.integers(0, len(prompt), _REQUESTS * replicas)
    arrivals = np.cumsum(rng.exponential(1.0 / replicas, len(chosen)))
    prompt, output = prompt[chosen], output[chosen]

    def served(rate_rps: float) -> Fleet:
        return _served(timing, arrivals / rate_rps, prompt, output, replicas)

    low, high = 0.0, _RATE_FIRST_RPS
    while high < _RATE_MAX_RPS and _share_within(served(high), limits) >= limits.percentile:
        low, high = high, high * 2.0
    while high - low > _TOLERANCE * high and high > _RATE_LEAST_RPS:
        middle = (low + high) / 2.0
        if _share_within(served(middle), limits) >= limits.percentile:
            low = middle
        else:
            high = middle
    return Profile(rate_rps=low, concurrency=_concurrency(served(low)) / replicas if low > 0.0 else 0.0)


def _served(timing: Timing, arrival_s: Floats, prompt: Ints, output: Ints, replicas: int) -> Fleet:
    fleet = new_fleet(arrival_s, prompt, output, slots=replicas, timing=timing)
    fleet.slots.phase = READY
    serve(fleet, timing, LEAST_CONNECTIONS, 0, float(arrival_s[-1]))
    serve(fleet, timing, LEAST_CONNECTIONS, len(arrival_s), float(arrival_s[-1]) + _TAIL_S)
    return fleet


def _share_within(fleet: Fleet, limits: Limits) -> float:
    judged = fleet.requests[int(len(fleet.requests) * _WARM_UP) :]
    return float(within(judged.arrival_s, judged.first_s, judged.done_s, judged.output, limits).mean())


def per_token_s(first_s: Floats, done_s: Floats, output: Ints) -> Floats:
    """Each request's mean time per output token after its first; 0 for one of a single token."""
    return np.where(output > 1, (done_s - first_s) / np.maximum(output - 1, 1), 0.0)


def within(
    arrival_s: Floats, first_s: Floats, done_s: Floats, output: Ints, limits: Limits
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which requests met both limits; what was never answered did not (a comparison with NaN is False)."""
    itl_s = per_token_s(first_s, done_s, output)
    return ~np.isnan(done_s) & (first_s - arrival_s <= limits.ttft_s) & (itl_s <= limits.itl_s)


def _concurrency(fleet: Fleet) -> float:
    judged = fleet.requests[int(len(fleet.requests) * _WARM_UP) :]
    span_s = float(judged.arrival_s[-1] - judged.arrival_s[0])
    return float(np.nansum(judged.done_s - judged.arrival_s)) / max(span_s, 1e-9)
