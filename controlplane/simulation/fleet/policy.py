"""What a scaling policy sees and answers in virtual time: the same for ours and for every peer."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from controlplane.simulation.fleet import state
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.state import Timing


class Gauge(IntEnum):
    """Of each ready replica, as its /metrics shows it."""

    RUNNING = 0
    WAITING = 1
    KV_USAGE = 2
    """0..1."""
    QUEUED_PROMPT_TOKENS = 3
    """Prompt tokens that nobody has prefilled yet. Not in vLLM's metrics; Dynamo's event plane has it."""


GAUGES = len(Gauge)


class Counter(IntEnum):
    """Of all replicas together, ever growing."""

    ARRIVED = state.ARRIVED
    """At the gateway, held ones included."""
    FINISHED = state.FINISHED
    PROMPT_TOKENS = state.PROMPT_TOKENS
    """Of requests that got their first token, as vLLM counts them."""
    OUTPUT_TOKENS = state.OUTPUT_TOKENS
    PREEMPTIONS = state.PREEMPTIONS
    STARTED = state.STARTED
    """Requests that got their first token."""


class Latency(IntEnum):
    """Histograms: vLLM's with its bucket edges, and those of a router in front of it."""

    TTFT = state.TTFT
    INTER_TOKEN = state.INTER_TOKEN
    PER_OUTPUT_TOKEN = state.PER_OUTPUT_TOKEN
    """Each request's mean time per output token."""
    END_TO_END = state.END_TO_END
    ROUTER_TTFT = state.ROUTER_TTFT
    """llm-d's router, with its own edges."""
    ROUTER_PER_OUTPUT_TOKEN = state.ROUTER_PER_OUTPUT_TOKEN


class Metrics(Protocol):
    """What the policy's metrics system holds at the moment of the decision: scrapes at its own interval, none newer.

    Replicas are told by the ready ones at the last scrape. NaN where nothing was scraped or observed: whatever the
    peer makes of missing data is its own affair, and part of its rule.
    """

    def per_replica(self, gauge: Gauge) -> Floats:
        """At the last scrape, one value per replica that was ready then; empty when none was."""
        ...

    def total(self, gauge: Gauge) -> float:
        """Sum over replicas at the last scrape; NaN when none was ready."""
        ...

    def held(self) -> float:
        """Requests that wait in the gateway because no replica is up, at the last scrape."""
        ...

    def mean_over(self, gauge: Gauge, window_s: float) -> float:
        """`avg_over_time(sum(gauge)[window])`, with what the gateway holds added for RUNNING; NaN without a scrape."""
        ...

    def peak_over(self, gauge: Gauge, window_s: float) -> Floats:
        """`max_over_time(gauge[window])`, one value per replica that is ready at the last scrape."""
        ...

    def increase(self, counter: Counter, window_s: float) -> float:
        """`sum(increase(counter[window]))`; NaN with fewer than two scrapes in the window."""
        ...

    def rate(self, counter: Counter, window_s: float) -> float:
        """Per second; as `increase`."""
        ...

    def quantile(self, latency: Latency, q: float, window_s: float) -> float:
        """`histogram_quantile(q, sum by (le) (rate(bucket[window])))`, seconds; NaN when nothing was observed."""
        ...

    def mean_latency(self, latency: Latency, window_s: float) -> float:
        """`rate(sum)/rate(count)`, seconds; NaN when nothing was observed."""
        ...

    def scraped_s(self) -> float:
        """When the last scrape was; NaN before the first."""
        ...

    def grown(self, counter: Counter) -> float:
        """The counter as it stands at the last scrape."""
        ...

    def observed(self, latency: Latency) -> Floats:
        """The histogram as it stands at the last scrape: observations per bucket, not cumulative, +Inf last."""
        ...

    def observed_s(self, latency: Latency) -> float:
        """Sum of all observations at the last scrape, seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look."""

    at_s: float
    wanted: int
    """What the policy wanted so far: a Deployment's spec.replicas."""
    ready: int
    starting: int
    """Ordered or woken, not ready yet."""
    draining: int
    starting_age_s: float
    """Of the oldest one that starts or wakes; 0 without."""
    cold_starts_s: tuple[float, ...]
    """Order to ready, of those that became ready since the last look; who was woken is not among them."""
    replicas_min: int
    replicas_max: int
    metrics: Metrics
    sleeping: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an operator knows of the deployment, and may tell a policy that asks for it."""

    ttft_slo_s: float
    itl_slo_s: float
    percentile: float
    """Share of requests that must meet both, 0..1."""
    timing: Timing
    gpus_per_replica: int
    cold_start_s: float
    """Mean; what an operator would write down."""
    replica_rps: float
    """Requests per second that one replica serves within both objectives on the trace's mean request: what an offline
    profile measures. Policies that learn it themselves do not read it."""
    replica_concurrency: float
    """Open requests of one replica at that rate."""
    mean_prompt_tokens: float
    mean_output_tokens: float
    wake_s: float | None = None
    """Mean time from asleep to ready; None: replicas do not sleep."""


class ScalingPolicy(Protocol):
    """Pure: all that it remembers is the state that it returns. The answer is clamped to the bounds by the caller."""

    @property
    def name(self) -> str: ...
    @property
    def tick_s(self) -> float:
        """Time between two decisions."""
        ...

    @property
    def scrape_s(self) -> float:
        """Interval of the metrics system behind it."""
        ...

    def start(self) -> Any:
        """The state before the first decision."""
        ...

    def decide(self, seen: Seen, memory: Any) -> tuple[int, Any]:
        """Replicas to want from now on, and the next state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A policy that can be made for a deployment, with defaults and with what a search may try."""

    name: str
    source: str
    """Where its rule and defaults are documented."""
    make: "PeerFactory"
    defaults: Mapping[str, float]
    search: Mapping[str, tuple[float, ...]]
    """Knobs that a search may turn: their values, the defaults among them."""


class PeerFactory(Protocol):
    def __call__(self, facts: Facts, knobs: Mapping[str, float]) -> ScalingPolicy: ...
