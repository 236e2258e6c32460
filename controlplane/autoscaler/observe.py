"""From raw samples to an observation: increases since the last look, with resets, gaps and partial views as values.

Pure. The memory between two looks (each counter as last read) is a value beside the policy's state, so that a restart
of the control plane, or another instance of it, goes on where this one stopped.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One replica's increase between two reads."""

    seconds: float
    change: EngineMark
    """Differences, except for names and times."""
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
    cold_starts = [replica for replica in replicas if replica.name not in known.started and _cold_start(replica)]
    observation = _observation(
        deployment,
        replicas,
        snapshot,
        now=now,
        arrivals=arrivals,
        samples=list(samples.values()),
        steps=steps,
        fresh_ready=fresh_ready,
        cold_starts_s=tuple(sorted(_cold_start(replica) for replica in cold_starts)),
    )
    present = {replica.name for replica in replicas}
    kept = [mark for name, mark in before.items() if name in present and name not in marks]
    return observation, ObserverMemory(
        slo=slo,
        gateway=gateway_mark,
        engines=tuple(sorted([*marks.values(), *kept], key=lambda mark: mark.replica)),
        started=tuple(sorted(replica.name for replica in replicas if _cold_start(replica))),
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

    def total(field_of: Callable[[EngineMark], float]) -> float:
        return sum(field_of(step.change) for step in steps)

    def latencies(field_of: Callable[[EngineMark], LatencyDelta]) -> LatencyDelta:
        return _sum_latencies([field_of(step.change) for step in steps])

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
        prompt_tokens=total(lambda mark: mark.prompt_tokens),
        generation_tokens=total(lambda mark: mark.generation_tokens),
        finished=total(lambda mark: mark.finished),
        failed=total(lambda mark: mark.failed),
        preemptions=total(lambda mark: mark.preemptions),
        ttft=latencies(lambda mark: mark.ttft),
        inter_token=latencies(lambda mark: mark.inter_token),
        per_output_token=latencies(lambda mark: mark.per_output_token),
        end_to_end=latencies(lambda mark: mark.end_to_end),
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
    grown = sum(step.change.finished + step.change.failed + step.change.open_requests for step in steps)
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


def _step(before: EngineMark, after: EngineMark) -> _Step:
    """The increase between two reads of one replica; after a restart, all that the new process counted."""
    anew = after.process_start_s != before.process_start_s or _fell(before, after)
    base = _ZERO if anew else before

    def latency(old: LatencyDelta, new: LatencyDelta) -> LatencyDelta:
        return LatencyDelta(
            count=new.count - old.count,
            sum_s=max(new.sum_s - old.sum_s, 0.0),
            within_low=new.within_low - old.within_low,
            within_high=new.within_high - old.within_high,
        )

    change = EngineMark(
        replica=after.replica,
        at_s=after.at_s,
        process_start_s=after.process_start_s,
        open_requests=after.open_requests - base.open_requests,
        prompt_tokens=after.prompt_tokens - base.prompt_tokens,
        generation_tokens=after.generation_tokens - base.generation_tokens,
        finished=after.finished - base.finished,
        failed=after.failed - base.failed,
        preemptions=after.preemptions - base.preemptions,
        ttft=latency(base.ttft, after.ttft),
        inter_token=latency(base.inter_token, after.inter_token),
        per_output_token=latency(base.per_output_token, after.per_output_token),
        end_to_end=latency(base.end_to_end, after.end_to_end),
    )
    return _Step(seconds=max(after.at_s - before.at_s, 0.0), change=change, complete=not anew)


def _fell(before: EngineMark, after: EngineMark) -> bool:
    """One counter that fell means that all began anew, also those that have outgrown their old value."""
    pairs = (
        (before.prompt_tokens, after.prompt_tokens),
        (before.generation_tokens, after.generation_tokens),
        (before.finished, after.finished),
        (before.failed, after.failed),
        (before.preemptions, after.preemptions),
        *(
            (getattr(before, name).count, getattr(after, name).count)
            for name in ("ttft", "inter_token", "per_output_token", "end_to_end")
        ),
    )
    return any(new < old for old, new in pairs)


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


def _sum_latencies(parts: Sequence[LatencyDelta]) -> LatencyDelta:
    return LatencyDelta(
        count=sum(part.count for part in parts),
        sum_s=sum(part.sum_s for part in parts),
        within_low=sum(part.within_low for part in parts),
        within_high=sum(part.within_high for part in parts),
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
