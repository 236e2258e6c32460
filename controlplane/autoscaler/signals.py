"""What rules look at beyond the observation: latencies in buckets, errors at the gateway, the nodes' CPUs.

Pure, beside `observe`: increases since the last look, with resets and gaps as values; the marks between two looks are a
value of their own. Only what the deployment's rules ask for is read, so that others pay nothing for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.scaling import LATENCIES, AutoscalingSpec, Signal
from controlplane.domain.series import add_histograms, histogram_increase, increase
from controlplane.domain.telemetry import (
    EMPTY_HISTOGRAM,
    EngineSample,
    Fresh,
    GatewaySample,
    Histogram,
    Reading,
    TelemetrySnapshot,
)
from controlplane.kernel.ids import DeploymentName, ReplicaName

_SERVING = frozenset({ReplicaPhase.READY, ReplicaPhase.DRAINING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """A histogram without its last edge, which is infinite and has no JSON: one count more than edges, cumulative."""

    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySeen:
    """The observations of one latency since the last look, over the replicas that were read twice."""

    signal: Signal
    buckets: Buckets
    complete: bool
    """Every ready replica told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """None: not known, or no rule asks."""

    latencies: tuple[LatencySeen, ...] = ()
    gateway_requests: float | None = None
    """Since the last look; None also where the counter began anew."""
    gateway_errors: float | None = None
    """Answered with 5xx."""
    cpu: float | None = None
    """0..1, mean over the nodes of the ready replicas; None unless all of them tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramMark:
    """One replica's histograms as last read, in the order of the signals asked for."""

    replica: ReplicaName
    process_start_s: float
    signals: tuple[Signal, ...]
    buckets: tuple[Buckets, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorMark:
    """The gateway's counters as last read."""

    epoch: str
    requests: float
    errors: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalMemory:
    """What the next look needs of this one."""

    engines: tuple[HistogramMark, ...] = ()
    gateway: ErrorMark | None = None


def look(
    deployment: DeploymentName,
    spec: AutoscalingSpec,
    replicas: Sequence[Replica],
    snapshot: TelemetrySnapshot,
    memory: SignalMemory,
) -> tuple[Signals, SignalMemory]:
    """What the rules of `spec` need of this moment, and what to remember of it. `replicas`: the deployment's own."""
    asked = {rule.signal for rule in spec.rules}
    latencies = tuple(sorted(asked & LATENCIES))
    marks = _marks(replicas, snapshot, latencies) if latencies else {}
    seen = tuple(_latency(signal, replicas, marks, memory) for signal in latencies)
    requests = errors = None
    gateway = memory.gateway
    if Signal.ERROR_RATE in asked:
        requests, errors, gateway = _errors(deployment, snapshot.gateway, memory.gateway)
    return (
        Signals(
            latencies=seen,
            gateway_requests=requests,
            gateway_errors=errors,
            cpu=_cpu(replicas, snapshot) if Signal.CPU in asked else None,
        ),
        SignalMemory(engines=_kept(replicas, marks, memory), gateway=gateway),
    )


def histogram_of(buckets: Buckets) -> Histogram:
    """With its infinite edge again."""
    edges = (*buckets.edges, math.inf) if buckets.counts else ()
    return Histogram(edges=edges, counts=buckets.counts, sum=0.0)


def buckets_of(histogram: Histogram) -> Buckets:
    return Buckets(edges=histogram.edges[:-1], counts=histogram.counts)


# -- latencies --------------------------------------------------------------------------------------------------------


def _marks(
    replicas: Sequence[Replica], snapshot: TelemetrySnapshot, signals: tuple[Signal, ...]
) -> Mapping[ReplicaName, HistogramMark]:
    found = {}
    for replica in replicas:
        reading = snapshot.engines.get(replica.name)
        if replica.phase in _SERVING and isinstance(reading, Fresh):
            sample = reading.value
            found[replica.name] = HistogramMark(
                replica=replica.name,
                process_start_s=sample.process_start_s,
                signals=signals,
                buckets=tuple(buckets_of(_histogram(sample, signal)) for signal in signals),
            )
    return found


def _histogram(sample: EngineSample, signal: Signal) -> Histogram:
    """The inter-token objective speaks of each request's mean; engines that do not tell it tell single gaps."""
    match signal:
        case Signal.TTFT:
            return sample.ttft
        case Signal.INTER_TOKEN:
            mean_gaps = sample.time_per_output_token
            return mean_gaps if mean_gaps.edges else sample.inter_token
        case Signal.END_TO_END:
            return sample.end_to_end
        case _:
            return EMPTY_HISTOGRAM


def _latency(
    signal: Signal,
    replicas: Sequence[Replica],
    marks: Mapping[ReplicaName, HistogramMark],
    memory: SignalMemory,
) -> LatencySeen:
    before = {mark.replica: mark for mark in memory.engines}
    steps = {
        name: histogram_increase(
            histogram_of(_of(before[name], signal)),
            histogram_of(_of(mark, signal)),
            restarted=mark.process_start_s != before[name].process_start_s,
        )
        for name, mark in marks.items()
        if name in before and signal in before[name].signals and _of(mark, signal).counts
    }
    ready = [replica.name for replica in replicas if replica.phase is ReplicaPhase.READY]
    return LatencySeen(
        signal=signal,
        buckets=buckets_of(add_histograms(steps.values())),
        complete=all(name in steps for name in ready),
    )


def _of(mark: HistogramMark, signal: Signal) -> Buckets:
    return mark.buckets[mark.signals.index(signal)]


def _kept(
    replicas: Sequence[Replica], marks: Mapping[ReplicaName, HistogramMark], memory: SignalMemory
) -> tuple[HistogramMark, ...]:
    """Those just read, and of replicas that could not be read the last there were."""
    present = {replica.name for replica in replicas}
    old = [mark for mark in memory.engines if mark.replica in present and mark.replica not in marks] if marks else []
    return tuple(sorted([*marks.values(), *old], key=lambda mark: mark.replica))


# -- gateway and nodes ------------------------------------------------------------------------------------------------


def _errors(
    deployment: DeploymentName, gateway: Reading[GatewaySample], before: ErrorMark | None
) -> tuple[float | None, float | None, ErrorMark | None]:
    if not isinstance(gateway, Fresh):
        return None, None, before
    route = gateway.value.routes.get(deployment)
    if route is None:
        return None, None, None
    mark = ErrorMark(epoch=gateway.value.epoch, requests=route.arrivals_total, errors=route.responses_5xx_total)
    if before is None or before.epoch != mark.epoch or mark.requests < before.requests:
        return None, None, mark
    return increase(before.requests, mark.requests), increase(before.errors, mark.errors), mark


def _cpu(replicas: Sequence[Replica], snapshot: TelemetrySnapshot) -> float | None:
    nodes = sorted({replica.node for replica in replicas if replica.phase is ReplicaPhase.READY})
    told = []
    for node in nodes:
        reading = snapshot.nodes.get(node)
        if not isinstance(reading, Fresh) or reading.value.cpu_utilization is None:
            return None
        told.append(reading.value.cpu_utilization)
    return sum(told) / len(told) if told else None
