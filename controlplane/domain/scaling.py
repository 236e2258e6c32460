"""How a deployment's number of replicas is decided: by its SLO, or by classic rules that the operator states."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final


class ScalingPolicy(StrEnum):
    SLO = "slo"
    """Replicas for the SLO, from demand and a capacity that is learned."""
    RULES = "rules"
    """Targets and thresholds on signals, as autoscalers elsewhere have them."""


class Signal(StrEnum):
    """What a rule may look at."""

    CPU = "cpu"
    """Of the nodes that the replicas run on, 0..1."""
    GPU_MEMORY = "gpu_memory"
    """Read as KV_CACHE: vLLM takes its share of the GPU's memory when it starts, whatever the load."""
    KV_CACHE = "kv_cache"
    """Fill of the KV cache, 0..1, mean over the replicas."""
    QUEUE_DEPTH = "queue_depth"
    """Requests that wait: held or queued in the gateway, or queued in an engine."""
    RUNNING = "running"
    """Requests that engines work on."""
    IN_FLIGHT = "in_flight"
    """Requests that somebody waits for an answer to, queued ones included."""
    REQUESTS_PER_SECOND = "requests_per_second"
    TTFT = "ttft"
    INTER_TOKEN = "inter_token"  # noqa: S105 - the name of a latency
    END_TO_END = "end_to_end"
    ERROR_RATE = "error_rate"
    """Requests that failed, of all, 0..1."""


class SignalKind(StrEnum):
    """In what a signal is stated."""

    SHARE = "share"
    """0..1, written as a percentage."""
    AMOUNT = "amount"
    """A number of the whole deployment; with a target, per replica."""
    LATENCY = "latency"
    """Seconds, written with their unit; of one percentile."""


_SHARES: Final = frozenset({Signal.CPU, Signal.GPU_MEMORY, Signal.KV_CACHE, Signal.ERROR_RATE})
LATENCIES: Final = frozenset({Signal.TTFT, Signal.INTER_TOKEN, Signal.END_TO_END})
LOADS: Final = frozenset(
    {Signal.CPU, Signal.GPU_MEMORY, Signal.KV_CACHE, Signal.RUNNING, Signal.IN_FLIGHT, Signal.REQUESTS_PER_SECOND}
)
"""In proportion to the arrivals, so that what is forecast of those holds for them. A queue, a latency and a share of
errors are not."""


def kind_of(signal: Signal) -> SignalKind:
    if signal in LATENCIES:
        return SignalKind.LATENCY
    return SignalKind.SHARE if signal in _SHARES else SignalKind.AMOUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRule:
    """One signal and what to make of it.

    With a target the number is in proportion, ceil(replicas * value / target), once the value leaves the band from
    `below` to `above` (left out: a tenth of the target on either side, the HPA's tolerance). Without one, `step_up`
    more above `above`, `step_down` fewer below `below`. Shares are 0..1, latencies seconds.
    """

    signal: Signal
    target: float | None = None
    above: float | None = None
    below: float | None = None
    step_up: int = 1
    step_down: int = 1
    percentile: float = 0.99
    """Of a latency, 0..1."""
    window: timedelta = timedelta(seconds=30)
    """Over which the value is taken."""

    def __post_init__(self) -> None:
        assert (self.target, self.above, self.below) != (None, None, None), "a rule has a target or a threshold"
        assert self.step_up > 0, "a step has a size"
        assert self.step_down > 0, "a step has a size"
        assert self.window > timedelta(0), "a window has a length"

    def __str__(self) -> str:
        """`kv_cache target 75% above 85%`."""
        parts: list[str] = [self.name]
        for word, value in (("target", self.target), ("above", self.above), ("below", self.below)):
            if value is not None:
                parts.append(f"{word} {written_value(self.signal, value)}")
        if self.target is None:
            parts += [f"up {self.step_up}"] if self.above is not None else []
            parts += [f"down {self.step_down}"] if self.below is not None else []
        return " ".join([*parts, f"over {self.window.total_seconds():g}s"])

    @property
    def name(self) -> str:
        """`ttft p99`, `kv_cache`."""
        return f"{self.signal} p{self.percentile * 100:g}" if self.signal in LATENCIES else str(self.signal)


def written_value(signal: Signal, value: float) -> str:
    """A value of the signal for people: `85%`, `0.50s`, `12`."""
    match kind_of(signal):
        case SignalKind.SHARE:
            return f"{value * 100:.3g}%"
        case SignalKind.LATENCY:
            return f"{value:.2f}s" if value >= 1.0 else f"{value * 1000:.3g}ms"
        case SignalKind.AMOUNT:
            return f"{value:.0f}" if value >= 100.0 or value == round(value) else f"{value:.3g}"  # noqa: PLR2004 - digits


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingSpec:
    """The section `autoscaling` of a deployment."""

    policy: ScalingPolicy = ScalingPolicy.SLO
    shadow: bool = False
    """Decide, record and show, but leave the number as it is."""
    rules: tuple[ScalingRule, ...] = ()
    """The largest answer wins."""
    up_per_minute_max: int | None = None
    """Replicas added within any minute; None: no limit."""
    down_per_minute_max: int | None = None
    cooldown_up: timedelta = timedelta(0)
    """After a change, no further rise for so long."""
    cooldown_down: timedelta = timedelta(minutes=5)
    """Fewer only when nothing changed, and nothing asked for more, for so long. The HPA's stabilisation window."""
    lookahead: timedelta | None = None
    """Rules on load look at the demand that is forecast for then; None: at what is measured."""
    confidence: float = 0.95
    """Of the forecast, 0..1: the demand stays below it with this probability."""

    def __post_init__(self) -> None:
        assert (self.policy is ScalingPolicy.RULES) == bool(self.rules), "rules, and only they, need the policy `rules`"
        assert 0.0 < self.confidence < 1.0, "a confidence lies inside (0, 1)"
