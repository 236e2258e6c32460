"""A day that nobody recorded: two humps, bursts and Poisson arrivals, the same for the same seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from controlplane.simulation.load.model import Arrival, DayShape

_MORNING: Final = (10.5 / 24.0, 2.2 / 24.0, 1.0)
_AFTERNOON: Final = (15.5 / 24.0, 2.6 / 24.0, 0.85)
"""(centre, width, height) of the humps, as shares of a day: office hours, as in Azure's 2024 week of conversations."""
_BEGINS: Final = 6.0 / 24.0
"""A load begins at six in the morning: the first thing to see is a rise."""
_BURSTS_PER_DAY: Final = 6
_BURST_LENGTH: Final = (0.005, 0.02)
"""As shares of a day: 7 to 29 minutes of a real one."""
_BURST_GAIN: Final = (1.3, 1.8)
_SPREAD: Final = 0.8
"""Sigma of the lognormal lengths: a long tail (p99 about five times the mean), as conversation traces have."""
_LONGEST: Final = 8
"""In means: a single request must not fill a context window by chance."""


@dataclass(frozen=True, slots=True)
class _Burst:
    start: float
    end: float
    gain: float


def rate_shape(share_of_day: float) -> float:
    """0..1: how busy the season is at a moment of the day (0 is midnight, 1 the next)."""
    value = 0.0
    for centre, width, height in (_MORNING, _AFTERNOON):
        distance = abs(share_of_day - centre)
        distance = min(distance, 1.0 - distance)
        value = max(value, height * math.exp(-0.5 * (distance / width) ** 2))
    return value


def generate_day(shape: DayShape, *, seed: int) -> Iterator[Arrival]:
    """Arrivals without an end, day after day; `at_s` counts from six in the morning of the first."""
    rng = random.Random(seed)
    bursts: list[_Burst] = []
    day = -1
    ceiling_rps = max(shape.peak_rps, shape.trough_rps) * _BURST_GAIN[1]
    if ceiling_rps <= 0.0:
        return
    now_s = 0.0
    while True:
        now_s += rng.expovariate(ceiling_rps)
        moment = _BEGINS + now_s / shape.length_s
        if int(moment) != day:
            day = int(moment)
            bursts = _bursts(rng)
        share = moment - day
        rate_rps = shape.trough_rps + (shape.peak_rps - shape.trough_rps) * rate_shape(share)
        rate_rps *= max((burst.gain for burst in bursts if burst.start <= share < burst.end), default=1.0)
        if rng.random() * ceiling_rps < rate_rps:
            yield Arrival(now_s, _length(rng, shape.prompt_tokens_mean), _length(rng, shape.output_tokens_mean))


def _bursts(rng: random.Random) -> list[_Burst]:
    bursts = []
    for _ in range(_BURSTS_PER_DAY):
        start = rng.random()
        bursts.append(_Burst(start, start + rng.uniform(*_BURST_LENGTH), rng.uniform(*_BURST_GAIN)))
    return bursts


def _length(rng: random.Random, mean: int) -> int:
    """Lognormal with this mean, before the cut at both ends."""
    value = rng.lognormvariate(math.log(mean) - _SPREAD * _SPREAD / 2.0, _SPREAD)
    return min(max(round(value), 1), _LONGEST * mean)
