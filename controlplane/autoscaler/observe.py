"""From raw samples to an observation: increases since the last look, with resets, gaps and partial views as values.

Pure. The memory between two looks (each counter as last read) is a value beside the policy's state, so that a restart
of the control plane, or another instance of it, goes on where this one stopped.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controlplane.autoscaler.model import ArrivalSource, LatencyDelta, Observation, Trust
from controlplane.domain.deployment import Deployment
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.series import increase
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.domain.telemetry import (
    EngineSample,
    Fresh,
    GatewaySample,
    Histogram,
    Missing,
    Reading,
    RouteTraffic,
    Stale,
    TelemetrySnapshot,
)
from controlplane.kernel.ids import ReplicaName

_SNAPSHOT_AGE_MAX = timedelta(seconds=15)
"""Older than this the scraper itself has stopped, whatever its last readings call themselves."""
_STARTING = frozenset({ReplicaPhase.PENDING, ReplicaPhase.STARTING, ReplicaPhase.WAKING})
_SERVING = frozenset({ReplicaPhase.READY, ReplicaPhase.DRAINING})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayMark:
    """The arrival counter as last read."""

    at_s: float
    epoch: str
    arrivals_total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMark:
    """One replica's counters as last read; the latencies with the counts within the SLO's limits."""

    replica: ReplicaName
    at_s: float
    process_start_s: float
    open_requests: int
    prompt_tokens: float
    generation_tokens: float
    finished: float
    failed: float
    preemptions: float
    ttft: LatencyDelta
    inter_token: LatencyDelta
    per_output_token: LatencyDelta
    end_to_end: LatencyDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverMemory:
    """What the next look needs of this one."""

    slo: Slo = field(default_factory=Slo)
    """The limits behind the marks' within-counts; other limits make those counts useless."""
    gateway: GatewayMark | None = None
    engines: tuple[EngineMark, ...] = ()
    started: tuple[ReplicaName, ...] = ()
    """Replicas whose cold start was already reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrivals:
    count: float | None
    seconds: float
    source: ArrivalSource
    complete: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """One replica between two reads. Increases are added up over all replicas, so none is kept for each."""

    before: EngineMark
    """Zeros after a restart: all that the new process counted is new."""
    after: EngineMark
    seconds: float
    complete: bool


def observe(
    deployment: Deployment,
    replicas: Sequence[Replica],
    snapshot: TelemetrySnapshot,
    memory: ObserverMemory,
    now: datetime,
) -> tuple[Observation, ObserverMemory]:
    """What there is to see of one deployment, and what to remember of it. `replicas` are the deployment's own rows."""
    if now - snapshot.at > _SNAPSHOT_AGE_MAX:
        snapshot = TelemetrySnapshot(at=now, gateway=Missing("nothing was scraped lately"))
    slo = deployment.spec.slo
    known = memory if memory.slo == slo else ObserverMemory(slo=slo, gateway=memory.gateway, started=memory.started)
    samples = _fresh_samples(replicas, snapshot)
    marks = {name: _mark(name, sample, slo) for name, sample in samples.items()}
    before = {mark.replica: mark for mark in known.engines}
    steps = [_step(before[name], mark) for name, mark in marks.items() if name in before]
    ready = [replica for replica in replicas if replica.phase is ReplicaPhase.READY]
    arrivals, gateway_mark = _arrivals(deployment, snapshot.gateway, known, steps, len(ready))
    fresh_ready = sum(replica.name in samples for replica in ready)
    started = {replica.name: took_s for replica in replicas if (took_s := _cold_start(replica))}
    observation = _observation(
        deployment,
        replicas,
        snapshot,
        now=now,
        arrivals=arrivals,
        samples=list(samples.values()),
        steps=steps,
        fresh_ready=fresh_ready,
        cold_starts_s=tuple(sorted(took_s for name, took_s in started.items() if name not in known.started)),
    )
    present = {replica.name for replica in replicas}
    kept = [mark for name, mark in before.items() if name in present and name not in marks]
    return observation, ObserverMemory(
        slo=slo,
        gateway=gateway_mark,
        engines=tuple(sorted([*marks.values(), *kept], key=lambda mark: mark.replica)),
        started=tuple(sorted(started)),
    )


def _observation(
    deployment: Deployment,
    replicas: Sequence[Replica],
    snapshot: TelemetrySnapshot,
    *,
    now: datetime,
    arrivals: _Arrivals,
    samples: Sequence[EngineSample],
    steps: Sequence[_Step],
    fresh_ready: int,
    cold_starts_s: tuple[float, ...],
) -> Observation:
    route = _route(deployment, snapshot.gateway)
    ready = [replica.name for replica in replicas if replica.phase is ReplicaPhase.READY]
    starting = [replica for replica in replicas if replica.phase in _STARTING]

    return Observation(
        at_s=now.timestamp(),
        gateway=_trust(snapshot.gateway),
        engines=_worst([_trust(snapshot.engines.get(name, Missing("not scraped"))) for name in ready]),
        engines_fresh=fresh_ready,
        arrivals=arrivals.count,
        arrivals_seconds=arrivals.seconds,
        arrivals_source=arrivals.source,
        arrivals_complete=arrivals.complete,
        held=route.held if route else 0,
        queued=route.queued if route else 0,
        in_flight=route.in_flight if route else 0,
        running=sum(sample.running for sample in samples),
        waiting=sum(sample.waiting for sample in samples),
        kv_usage=sum(sample.kv_usage for sample in samples) / len(samples) if samples else 0.0,
        engine_seconds=sum(step.seconds for step in steps) / len(steps) if steps else 0.0,
        engine_deltas=len(steps),
        prompt_tokens=sum([step.after.prompt_tokens - step.before.prompt_tokens for step in steps]),
        generation_tokens=sum([step.after.generation_tokens - step.before.generation_tokens for step in steps]),
        finished=sum([step.after.finished - step.before.finished for step in steps]),
        failed=sum([step.after.failed - step.before.failed for step in steps]),
        preemptions=sum([step.after.preemptions - step.before.preemptions for step in steps]),
        ttft=_latencies([(step.before.ttft, step.after.ttft) for step in steps]),
        inter_token=_latencies([(step.before.inter_token, step.after.inter_token) for step in steps]),
        per_output_token=_latencies([(step.before.per_output_token, step.after.per_output_token) for step in steps]),
        end_to_end=_latencies([(step.before.end_to_end, step.after.end_to_end) for step in steps]),
        wanted=deployment.replicas_wanted,
        ready=len(ready),
        starting=len(starting),
        draining=sum(replica.phase is ReplicaPhase.DRAINING for replica in replicas),
        sleeping=sum(replica.phase is ReplicaPhase.SLEEPING for replica in replicas),
        starting_age_s=max((_age_s(replica, now) for replica in starting), default=0.0),
        cold_starts_s=cold_starts_s,
        replicas_min=deployment.spec.replicas_min,
        replicas_max=deployment.spec.replicas_max,
        pinned=deployment.intent.replicas_pinned,
        paused=deployment.intent.paused,
    )


def _arrivals(
    deployment: Deployment,
    gateway: Reading[GatewaySample],
    memory: ObserverMemory,
    steps: Sequence[_Step],
    ready: int,
) -> tuple[_Arrivals, GatewayMark | None]:
    """The gateway's counter, else what the engines tell. The gateway's mark is kept while it cannot be read."""
    if not isinstance(gateway, Fresh):
        return _engine_arrivals(steps, ready), memory.gateway
    route = gateway.value.routes.get(deployment.name)
    if route is None:
        return _Arrivals(count=None, seconds=0.0, source=ArrivalSource.NONE, complete=False), None
    mark = GatewayMark(
        at_s=gateway.value.at.timestamp(), epoch=gateway.value.epoch, arrivals_total=route.arrivals_total
    )
    before = memory.gateway
    if before is None or mark.at_s < before.at_s:
        return _Arrivals(count=None, seconds=0.0, source=ArrivalSource.GATEWAY, complete=False), mark
    anew = mark.epoch != before.epoch or mark.arrivals_total < before.arrivals_total
    grown = increase(before.arrivals_total, mark.arrivals_total, restarted=anew)
    seconds = mark.at_s - before.at_s
    return _Arrivals(count=grown, seconds=seconds, source=ArrivalSource.GATEWAY, complete=not anew), mark


def _engine_arrivals(steps: Sequence[_Step], ready: int) -> _Arrivals:
    """Finished requests plus the change of open ones; complete only when every ready replica told."""
    if not steps:
        return _Arrivals(count=None, seconds=0.0, source=ArrivalSource.NONE, complete=False)
    grown = sum(_requests(step.after) - _requests(step.before) for step in steps)
    seconds = sum(step.seconds for step in steps) / len(steps)
    complete = len(steps) >= ready and all(step.complete for step in steps)
    return _Arrivals(count=max(grown, 0.0), seconds=seconds, source=ArrivalSource.ENGINES, complete=complete)


def _fresh_samples(replicas: Sequence[Replica], snapshot: TelemetrySnapshot) -> Mapping[ReplicaName, EngineSample]:
    """Of replicas that serve; one that starts or sleeps has nothing to tell."""
    found = {}
    for replica in replicas:
        reading = snapshot.engines.get(replica.name)
        if replica.phase in _SERVING and isinstance(reading, Fresh):
            found[replica.name] = reading.value
    return found


def _mark(name: ReplicaName, sample: EngineSample, slo: Slo) -> EngineMark:
    return EngineMark(
        replica=name,
        at_s=sample.at.timestamp(),
        process_start_s=sample.process_start_s,
        open_requests=sample.running + sample.waiting,
        prompt_tokens=sample.prompt_tokens,
        generation_tokens=sample.generation_tokens,
        finished=sample.requests_succeeded,
        failed=sample.requests_failed,
        preemptions=sample.preemptions,
        ttft=_within(sample.ttft, slo.ttft),
        inter_token=_within(sample.inter_token, slo.inter_token),
        per_output_token=_within(sample.time_per_output_token, slo.inter_token),
        end_to_end=_within(sample.end_to_end, slo.end_to_end),
    )


def _within(histogram: Histogram, target: LatencyTarget | None) -> LatencyDelta:
    """Cumulative counts: certainly within (edges up to the limit) and possibly within (the first edge from it on)."""
    total = histogram.count
    if target is None or not histogram.edges:
        return LatencyDelta(count=total, sum_s=histogram.sum, within_low=total, within_high=total)
    limit_s = target.limit.total_seconds()
    place = bisect_left(histogram.edges, limit_s)
    high = histogram.counts[place]
    exact = histogram.edges[place] == limit_s
    low = high if exact else histogram.counts[place - 1] if place else 0.0
    return LatencyDelta(count=total, sum_s=histogram.sum, within_low=low, within_high=high)


def _requests(mark: EngineMark) -> float:
    """All that the engine was ever given."""
    return mark.finished + mark.failed + mark.open_requests


def _step(before: EngineMark, after: EngineMark) -> _Step:
    """The increase between two reads of one replica; after a restart, all that the new process counted."""
    anew = after.process_start_s != before.process_start_s or _fell(before, after)
    return _Step(_ZERO if anew else before, after, max(after.at_s - before.at_s, 0.0), not anew)


def _fell(before: EngineMark, after: EngineMark) -> bool:
    """One counter that fell means that all began anew, also those that have outgrown their old value."""
    return (
        after.prompt_tokens < before.prompt_tokens
        or after.generation_tokens < before.generation_tokens
        or after.finished < before.finished
        or after.failed < before.failed
        or after.preemptions < before.preemptions
        or after.ttft.count < before.ttft.count
        or after.inter_token.count < before.inter_token.count
        or after.per_output_token.count < before.per_output_token.count
        or after.end_to_end.count < before.end_to_end.count
    )


_ZERO = EngineMark(
    replica=ReplicaName(""),
    at_s=0.0,
    process_start_s=0.0,
    open_requests=0,
    prompt_tokens=0.0,
    generation_tokens=0.0,
    finished=0.0,
    failed=0.0,
    preemptions=0.0,
    ttft=LatencyDelta(),
    inter_token=LatencyDelta(),
    per_output_token=LatencyDelta(),
    end_to_end=LatencyDelta(),
)


def _latencies(pairs: Sequence[tuple[LatencyDelta, LatencyDelta]]) -> LatencyDelta:
    """The increases of all replicas together."""
    return LatencyDelta(
        count=sum([after.count - before.count for before, after in pairs]),
        sum_s=sum([max(after.sum_s - before.sum_s, 0.0) for before, after in pairs]),
        within_low=sum([after.within_low - before.within_low for before, after in pairs]),
        within_high=sum([after.within_high - before.within_high for before, after in pairs]),
    )


def _route(deployment: Deployment, gateway: Reading[GatewaySample]) -> RouteTraffic | None:
    return gateway.value.routes.get(deployment.name) if isinstance(gateway, Fresh) else None


def _trust(reading: Reading[EngineSample] | Reading[GatewaySample]) -> Trust:
    if isinstance(reading, Fresh):
        return Trust.FRESH
    return Trust.STALE if isinstance(reading, Stale) else Trust.MISSING


def _worst(parts: Sequence[Trust]) -> Trust:
    for trust in (Trust.MISSING, Trust.STALE):
        if trust in parts:
            return trust
    return Trust.FRESH


def _cold_start(replica: Replica) -> float:
    """Seconds from launch to ready; 0 when not known (never ready, or adopted without a launch of ours)."""
    if replica.ready_at is None or replica.launched_at is None:
        return 0.0
    return max((replica.ready_at - replica.launched_at) / timedelta(seconds=1), 0.0)


def _age_s(replica: Replica, now: datetime) -> float:
    """Since launch; a replica that waits for its launch, or wakes, since its phase began."""
    since = replica.phase_since
    if replica.phase is ReplicaPhase.STARTING and replica.launched_at is not None:
        since = replica.launched_at
    return max((now - since) / timedelta(seconds=1), 0.0)
