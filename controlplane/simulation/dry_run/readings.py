"""What a query of a recipe reads off the simulated fleet: a tree of values, frozen so that it goes to another process.

A value is one number for all replicas, or one for each. Of counters and of means over time the simulated metrics keep
the total alone, so that each replica's is taken as an even share: sums and means are right, a maximum is the mean.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import Counter, Gauge, Latency, Seen

type Value = float | Floats
"""Of all replicas, or of each; NaN and empty: nothing."""

OBSERVED: Final[Mapping[Latency, Counter]] = {
    Latency.TTFT: Counter.STARTED,
    Latency.INTER_TOKEN: Counter.OUTPUT_TOKENS,
    Latency.PER_OUTPUT_TOKEN: Counter.FINISHED,
    Latency.END_TO_END: Counter.FINISHED,
}
"""How often each is observed."""
FOLDS: Final[Mapping[str, Callable[[Floats], float]]] = {
    "sum": lambda values: float(values.sum()),
    "avg": lambda values: float(values.mean()),
    "max": lambda values: float(values.max()),
    "min": lambda values: float(values.min()),
    "count": lambda values: float(len(values)),
}
ROUNDINGS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "ceil": np.ceil, "floor": np.floor, "abs": np.abs, "round": np.round, "scalar": lambda value: value,
    "vector": lambda value: value, "sort": lambda value: value, "sort_desc": lambda value: value,
}  # fmt: skip
OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}


class Node(Protocol):
    def of(self, seen: Seen) -> Value: ...


@dataclass(frozen=True, slots=True)
class Number:
    value: float

    def of(self, seen: Seen) -> Value:  # noqa: ARG002  # one shape for all nodes
        return self.value


@dataclass(frozen=True, slots=True)
class Nothing:
    """A metric that does not exist."""

    def of(self, seen: Seen) -> Value:  # noqa: ARG002  # one shape for all nodes
        return np.zeros(0)


@dataclass(frozen=True, slots=True)
class Now:
    gauge: Gauge

    def of(self, seen: Seen) -> Value:
        return seen.metrics.per_replica(self.gauge)


@dataclass(frozen=True, slots=True)
class Mean:
    gauge: Gauge
    window_s: float

    def of(self, seen: Seen) -> Value:
        return _shared(seen, seen.metrics.mean_over(self.gauge, self.window_s))


@dataclass(frozen=True, slots=True)
class Peak:
    gauge: Gauge
    window_s: float

    def of(self, seen: Seen) -> Value:
        return seen.metrics.peak_over(self.gauge, self.window_s)


@dataclass(frozen=True, slots=True)
class Growth:
    counter: Counter
    window_s: float
    per_second: bool

    def of(self, seen: Seen) -> Value:
        metrics = seen.metrics
        measure = metrics.rate if self.per_second else metrics.increase
        return _shared(seen, measure(self.counter, self.window_s))


@dataclass(frozen=True, slots=True)
class Quantile:
    latency: Latency
    q: float
    window_s: float

    def of(self, seen: Seen) -> Value:
        return seen.metrics.quantile(self.latency, self.q, self.window_s)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a histogram's `_sum` grows by: seconds, all observations together."""

    latency: Latency
    observed: Growth

    def of(self, seen: Seen) -> Value:
        counts = np.asarray(self.observed.of(seen))
        mean_s = seen.metrics.mean_latency(self.latency, self.observed.window_s)
        return np.where(counts == 0.0, counts, counts * mean_s)


@dataclass(frozen=True, slots=True)
class Fold:
    op: str
    below: Node

    def of(self, seen: Seen) -> Value:
        values = np.atleast_1d(self.below.of(seen))
        values = values[~np.isnan(values)]
        return FOLDS[self.op](values) if len(values) else math.nan


@dataclass(frozen=True, slots=True)
class Arithmetic:
    op: str
    left: Node
    right: Node

    def of(self, seen: Seen) -> Value:
        left, right = self.left.of(seen), self.right.of(seen)
        if np.size(left) == 0 or np.size(right) == 0:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Value = OPERATORS[self.op](left, right)
        return found


@dataclass(frozen=True, slots=True)
class Or:
    first: Node
    other: Node

    def of(self, seen: Seen) -> Value:
        first = self.first.of(seen)
        return self.other.of(seen) if np.size(first) == 0 or bool(np.all(np.isnan(first))) else first


@dataclass(frozen=True, slots=True)
class Rounded:
    function: str
    below: Node

    def of(self, seen: Seen) -> Value:
        found: Value = ROUNDINGS[self.function](self.below.of(seen))
        return found


@dataclass(frozen=True, slots=True)
class Clamped:
    below: Node
    low: float
    high: float

    def of(self, seen: Seen) -> Value:
        found: Value = np.clip(self.below.of(seen), self.low, self.high)
        return found


def _shared(seen: Seen, total: float) -> Floats:
    """A total as even shares of the replicas that are ready."""
    ready = max(seen.ready, 1)
    return np.full(ready, total / ready)
