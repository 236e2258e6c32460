"""What was measured, and how far it may be trusted: missing, stale and partial are values, never zero."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, assert_never

from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative Prometheus histogram: `counts[i]` observations were <= `edges[i]`; the last edge is +inf."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        return self.counts[-1] if self.counts else 0.0


EMPTY_HISTOGRAM: Final = Histogram(edges=(), counts=(), sum=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """One replica's /metrics, reduced to what decisions need. Counters are raw, since the process started."""

    at: datetime
    process_start_s: float
    """Unix seconds; a change means the engine restarted and every counter began anew. 0: the engine does not tell
    (vLLM with several API servers exports no process_* families): then only a falling counter shows a restart."""
    running: int
    waiting: int
    kv_usage: float
    """0..1 of the KV cache."""
    sleeping: bool
    prompt_tokens: float
    generation_tokens: float
    requests_succeeded: float
    requests_failed: float
    """finished_reason abort or error: vLLM answers 200 with `abort` when it is shut down under load."""
    preemptions: float
    ttft: Histogram
    inter_token: Histogram
    end_to_end: Histogram
    time_per_output_token: Histogram = EMPTY_HISTOGRAM
    """Each request's mean time per token after the first: what `Slo.inter_token` promises. Empty where not exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTraffic:
    """One replica as the gateway sees it."""

    state: str
    """HAProxy's word for it: UP, DOWN, DRAIN, MAINT, NOLB..."""
    in_flight: int
    queued: int
    requests_total: float
    failures_total: float
    """Responses 5xx, connection and response errors."""
    abandoned_total: float = 0.0
    """Requests whose caller left before the whole answer was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTraffic:
    """One deployment as the gateway sees it. Counters are raw, since the gateway's worker started."""

    arrivals_total: float
    """Requests that asked for this deployment, held ones included, each once: the counter that vLLM lacks."""
    in_flight: int
    queued: int
    held: int
    """Waiting in the activator because no replica is up."""
    responses_5xx_total: float
    servers_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySample:
    at: datetime
    epoch: str
    """Changes when counters began anew (a reload or restart)."""
    routes: Mapping[DeploymentName, RouteTraffic]
    servers: Mapping[str, ServerTraffic]
    """By `address:port` of the replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU. None: the source does not tell."""

    index: int
    uuid: str
    model: str
    utilization: float | None
    """0..1."""
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    temperature_c: float | None
    xid_last: int | None
    """The last Xid seen, 0: none. A last value: it hides a repeated code and never clears by itself."""
    sm_clock_mhz: float | None = None
    pci_bus_id: str = ""
    memory_temperature_c: float | None = None
    energy_j: float | None = None
    """Since the driver was loaded."""
    pcie_replays: int | None = None
    ecc_corrected: int | None = None
    """Single-bit errors since the driver was loaded."""
    ecc_uncorrected: int | None = None
    """Double-bit errors since the driver was loaded."""
    rows_remapped_corrected: int | None = None
    rows_remapped_uncorrected: int | None = None
    row_remap_failed: bool | None = None
    row_remap_pending: bool | None = None
    """A reset of the GPU is needed to finish a remap."""
    nvlink_crc_errors: int | None = None
    nvlink_replay_errors: int | None = None
    nvlink_recovery_errors: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSample:
    at: datetime
    gpus: tuple[GpuSample, ...]
    cpu_utilization: float | None = None
    """0..1 of all cores, over the time since the source was last asked. None: the source does not tell."""


@dataclass(frozen=True, slots=True)
class Fresh[T]:
    """Measured within the last scrape interval or two."""

    value: T


@dataclass(frozen=True, slots=True)
class Stale[T]:
    """The last value there was, too old to act on."""

    value: T
    age: timedelta


@dataclass(frozen=True, slots=True)
class Missing:
    """Never measured, or gone for long."""

    why: str


type Reading[T] = Fresh[T] | Stale[T] | Missing


def value_if_fresh[T](reading: Reading[T]) -> T | None:
    match reading:
        case Fresh(value=value):
            return value
        case Stale() | Missing():
            return None
        case _:
            assert_never(reading)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySnapshot:
    """All that was measured, at one moment. What is absent from a mapping was not asked for."""

    at: datetime
    engines: Mapping[ReplicaName, Reading[EngineSample]] = field(default_factory=dict)
    gateway: Reading[GatewaySample] = field(default_factory=lambda: Missing("not scraped yet"))
    nodes: Mapping[NodeName, Reading[NodeSample]] = field(default_factory=dict)
