"""Load in steps: llm-d's published ramp, and ramps of other shapes drawn at random."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from controlplane.simulation.fleet.compiled import Ints
from controlplane.simulation.fleet.workload import Workload, check_size, no_requests, workload_of


class Step(NamedTuple):
    rate_rps: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Token counts: normal, what is beyond the two ends put there; `Lengths.of` for all the same."""

    mean: float
    deviation: float
    least: int
    most: int

    @classmethod
    def of(cls, tokens: int) -> "Lengths":
        return cls(mean=tokens, deviation=0.0, least=tokens, most=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    name: str
    steps: tuple[Step, ...]
    prompt: Lengths
    output: Lengths
    exact: bool = False
    """Each step has just rate times duration requests, at random moments; else they are Poisson."""

    @property
    def duration_s(self) -> float:
        return sum(step.duration_s for step in self.steps)

    @property
    def expected_requests(self) -> float:
        return sum(step.rate_rps * step.duration_s for step in self.steps)

    def workload(self, seed: int, *, pause_s: float = 0.0) -> Workload:
        """The same seed, the same requests. With a pause, nothing comes for so long between steps."""
        rng = np.random.default_rng(seed)
        begin_s, arrivals = 0.0, []
        for step in self.steps:
            arrivals.append(begin_s + np.sort(rng.random(self._count(step, rng))) * step.duration_s)
            begin_s += step.duration_s + pause_s
        arrival_s = np.concatenate(arrivals)
        check_size(self.name, len(arrival_s))
        if not len(arrival_s):
            raise no_requests(self.name)
        prompt, output = (_drawn(rng, lengths, len(arrival_s)) for lengths in (self.prompt, self.output))
        return workload_of(self.name, arrival_s, prompt, output, duration_s=begin_s - pause_s)

    def _count(self, step: Step, rng: np.random.Generator) -> int:
        expected = step.rate_rps * step.duration_s
        check_size(self.name, expected)
        return int(expected) if self.exact else int(rng.poisson(expected))


def ramp(steps: Sequence[tuple[float, float]], prompt: int, output: int, seed: int, *, name: str = "ramp") -> Workload:
    """Poisson arrivals at each (rate in rps, duration in s) in turn; all requests of the same lengths in tokens."""
    shape = tuple(Step(*step) for step in steps)
    return Ramp(name=name, steps=shape, prompt=Lengths.of(prompt), output=Lengths.of(output)).workload(seed)


LLM_D: Final = Ramp(
    name="llm-d",
    steps=(
        Step(2.0, 330.0),
        Step(4.0, 360.0),
        Step(6.0, 360.0),
        Step(8.0, 360.0),
        Step(10.0, 360.0),
        Step(4.0, 360.0),
        Step(1.0, 300.0),
    ),
    prompt=Lengths(mean=4000.0, deviation=300.0, least=3500, most=4500),
    output=Lengths(mean=1000.0, deviation=80.0, least=900, most=1100),
    exact=True,
)
"""The load of llm-d's SLO-aware benchmark: Qwen3-32B, tensor parallel 2, on H100s; 3 to 8 replicas.

Source: llm-d/llm-d, guides/workload-autoscaling/slo-aware/benchmark-templates/scored-config.yml (commit d38c9f0). The
steps make 12,480 requests in 40.5 minutes, the published number of requests exactly; "42 minutes" is the publication's
own rounding of the nominal length. Its load generator (inference-perf, `type: constant`) sends rate times duration
requests a step, at moments that are those of a Poisson process with that many: hence `exact`."""

LLM_D_PAUSE_S: Final = 25.0
"""Between two steps inference-perf waits until the last request of the step is through, so the measured load was longer
than the ramp. In the published series (aligned-run-timeseries.csv beside docs/developer-guide/epp-saturation-benchmark
in the workload-variant-autoscaler repository) the first latency is seen after 1.0 minute, and the signal, over a window
of a minute, ends after 44.0: a load of 43 minutes, six pauses of 25 s, give or take 5. It is what one request takes."""


_PROMPT: Final = LLM_D.prompt
_OUTPUT: Final = LLM_D.output
_RATE_MIN_RPS: Final = 1.0
_RATE_MAX_RPS: Final = 10.0
_STEP_MIN_S: Final = 120
_STEP_MAX_S: Final = 480
_STEPS_MIN: Final = 4
_STEPS_MAX: Final = 9
_SPIKE_TIMES: Final = 2.5
"""A spike is at least so many times what surrounds it."""


def random_ramps(count: int, seed: int) -> tuple[Ramp, ...]:
    """Shapes for requests like llm-d's: 4 to 9 steps of 2 to 8 minutes at 1 to 10 rps, Poisson.

    They climb, fall, climb and fall, wander or spike, each kind in its turn. The first ones of a longer tuple are those
    of a shorter one.
    """
    ramps = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        kind = tuple(_KINDS)[number % len(_KINDS)]
        rates = _KINDS[kind](rng, int(rng.integers(_STEPS_MIN, _STEPS_MAX + 1)))
        steps = tuple(Step(rate, float(rng.integers(_STEP_MIN_S, _STEP_MAX_S + 1))) for rate in rates)
        ramps.append(Ramp(name=f"ramp-{seed}-{number}-{kind}", steps=steps, prompt=_PROMPT, output=_OUTPUT))
    return tuple(ramps)


def _anywhere(rng: np.random.Generator, steps: int) -> list[float]:
    """Tenths of a request per second, so that a shape can be told in words."""
    return [float(rate) for rate in np.round(rng.uniform(_RATE_MIN_RPS, _RATE_MAX_RPS, steps), 1)]


def _up(rng: np.random.Generator, steps: int) -> list[float]:
    return sorted(_anywhere(rng, steps))


def _down(rng: np.random.Generator, steps: int) -> list[float]:
    return _up(rng, steps)[::-1]


def _hill(rng: np.random.Generator, steps: int) -> list[float]:
    rates = _up(rng, steps)
    return rates[0::2] + rates[1::2][::-1]


def _spikes(rng: np.random.Generator, steps: int) -> list[float]:
    """Every second step is a spike over a low one."""
    low = np.round(rng.uniform(_RATE_MIN_RPS, _RATE_MAX_RPS / _SPIKE_TIMES, steps), 1)
    high = np.round(rng.uniform(_SPIKE_TIMES * low.max(), _RATE_MAX_RPS, steps), 1)
    return [float(high[step] if step % 2 else low[step]) for step in range(steps)]


_KINDS: Final[Mapping[str, Callable[[np.random.Generator, int], list[float]]]] = {
    "spikes": _spikes,
    "hill": _hill,
    "down": _down,
    "up": _up,
    "walk": _anywhere,
}


def _drawn(rng: np.random.Generator, lengths: Lengths, count: int) -> Ints:
    drawn = rng.normal(lengths.mean, lengths.deviation, count)
    counts: Ints = np.rint(np.clip(drawn, lengths.least, lengths.most)).astype(np.int64)
    return counts
