"""A small world in virtual time for the autoscaler: replicas that queue, batch, start slowly and drain.

A replica is a server that shares its time between prefills (first come, first served) and decode steps whose length
grows with the batch: the prior's own formula, optionally slower by a factor that the policy has to find out. It shows
itself as real ones do: cumulative counters and vLLM's histogram buckets, scraped once a second.
"""

import heapq
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.autoscaler.model import ArrivalSource as Source
from controlplane.autoscaler.model import LatencyDelta, Observation, Trust, Tuning
from controlplane.autoscaler.scaling import Memory, scale
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import CapacityPrior, Deployment
from controlplane.domain.replica import Replica, ReplicaPhase
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
from controlplane.testing.builders import make_replica
from controlplane.testing.effects import START

STEP_S: Final = 0.1
"""Virtual time per step: well below any objective that is tested."""
TICK_S: Final = 1.0
"""Scrape and decision."""
TTFT_EDGES: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
_KV_WATERMARK: Final = 0.95
"""New sequences start only below this fill; what runs may grow into the rest. Real engines preempt instead."""
GAP_EDGES: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Bucket edges of vLLM 0.33's TTFT (first ones) and inter-token histograms; +inf follows."""


_NOTHING: Final = LatencyDelta()


def make_observation(**changes: object) -> Observation:
    """A quiet moment of one ready replica, to be varied."""
    quiet = Observation(
        at_s=START.timestamp(),
        gateway=Trust.FRESH,
        engines=Trust.FRESH,
        engines_fresh=1,
        arrivals=0.0,
        arrivals_seconds=1.0,
        arrivals_source=Source.GATEWAY,
        arrivals_complete=True,
        held=0,
        queued=0,
        in_flight=0,
        running=0,
        waiting=0,
        kv_usage=0.0,
        engine_seconds=1.0,
        engine_deltas=1,
        prompt_tokens=0.0,
        generation_tokens=0.0,
        finished=0.0,
        failed=0.0,
        preemptions=0.0,
        ttft=_NOTHING,
        inter_token=_NOTHING,
        per_output_token=_NOTHING,
        end_to_end=_NOTHING,
        wanted=1,
        ready=1,
        starting=0,
        draining=0,
        sleeping=0,
        starting_age_s=0.0,
        cold_starts_s=(),
        replicas_min=1,
        replicas_max=8,
        pinned=None,
        paused=False,
    )
    return replace(quiet, **changes)  # type: ignore[arg-type]  # a builder's keywords are checked when it runs


# -- requests ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class WorldRequest:
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float = math.nan
    finished_s: float = math.nan

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def gap_s(self) -> float:
        return (self.finished_s - self.first_token_s) / max(self.output_tokens - 1, 1)


def poisson_requests(
    rate_rps: Callable[[float], float],
    *,
    duration_s: float,
    seed: int,
    prompt_tokens: int = 1000,
    output_tokens: int = 200,
) -> Iterator[WorldRequest]:
    """Arrivals at a varying rate, by thinning; lengths spread exponentially around their means."""
    rng = random.Random(seed)
    peak_rps = max(rate_rps(second) for second in range(int(duration_s) + 1))
    now_s = 0.0
    while peak_rps > 0.0:
        now_s += rng.expovariate(peak_rps)
        if now_s >= duration_s:
            return
        if rng.random() * peak_rps <= rate_rps(now_s):
            prompt = 1 + int(rng.expovariate(1.0 / prompt_tokens))
            yield WorldRequest(now_s, prompt, 1 + int(rng.expovariate(1.0 / output_tokens)))


# -- replicas ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Counts:
    """A histogram being filled; `sum` and cumulative counts are made when it is read."""

    edges: tuple[float, ...]
    counts: list[float]
    sum_s: float = 0.0

    @classmethod
    def of(cls, edges: tuple[float, ...]) -> "_Counts":
        return cls((*edges, math.inf), [0.0] * (len(edges) + 1))

    def add(self, value_s: float, count: float = 1.0) -> None:
        self.counts[bisect_left(self.edges, value_s)] += count
        self.sum_s += value_s * count

    def read(self) -> Histogram:
        total = 0.0
        cumulative = []
        for count in self.counts:
            total += count
            cumulative.append(total)
        return Histogram(edges=self.edges, counts=tuple(cumulative), sum=self.sum_s)


@dataclass(slots=True)
class WorldReplica:
    """One engine: `served` counts the tokens that each running sequence got so far, so a step is O(1)."""

    name: ReplicaName
    row: Replica
    prior: CapacityPrior
    slowdown: float
    ready_at_s: float
    queue: deque[WorldRequest] = field(default_factory=deque)
    running: list[tuple[float, int, WorldRequest]] = field(default_factory=list)
    """Heap by the value of `served` at which the request is done."""
    served: float = 0.0
    context_base: float = 0.0
    """Sum over running sequences of prompt minus `served` at their start."""
    prefill_left_s: float = 0.0
    stalled_s: float = 0.0
    """Time that running sequences waited for prefills since their last token."""
    admitted: int = 0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    finished: float = 0.0
    ttft: _Counts = field(default_factory=lambda: _Counts.of(TTFT_EDGES))
    gaps: _Counts = field(default_factory=lambda: _Counts.of(GAP_EDGES))
    per_token: _Counts = field(default_factory=lambda: _Counts.of(GAP_EDGES))
    whole: _Counts = field(default_factory=lambda: _Counts.of(TTFT_EDGES))

    @property
    def open_requests(self) -> int:
        return len(self.queue) + len(self.running)

    @property
    def context_tokens(self) -> float:
        """In the KV cache now."""
        return self.context_base + self.served * len(self.running)

    def step(self, now_s: float) -> list[WorldRequest]:
        """Work for one step that ends at `now_s`; the requests that finished in it."""
        left_s = self._prefill(now_s)
        batch = len(self.running)
        if batch == 0 or left_s <= 0.0:
            self.stalled_s += STEP_S if batch else 0.0
            return []
        prior = self.prior
        per_token_s = self.slowdown * (
            prior.step_base_s + prior.step_per_seq_s * batch + prior.step_per_context_token_s * self.context_tokens
        )
        tokens = left_s / per_token_s
        self.served += tokens
        self.generation_tokens += tokens * batch
        self.gaps.add((STEP_S + self.stalled_s) / tokens, tokens * batch)
        self.stalled_s = 0.0
        return self._finish(now_s, per_token_s)

    def _prefill(self, now_s: float) -> float:
        """Spend the step on prompts first; what is left of it."""
        left_s = STEP_S
        while self.queue and left_s > 0.0:
            request = self.queue[0]
            if self.prefill_left_s <= 0.0:
                if not self._fits(request):
                    break
                n = request.prompt_tokens
                self.prefill_left_s = self.slowdown * (
                    self.prior.prefill_base_s
                    + self.prior.prefill_per_token_s * n
                    + self.prior.prefill_per_token2_s * n * n
                )
            spent_s = min(left_s, self.prefill_left_s)
            left_s -= spent_s
            self.prefill_left_s -= spent_s
            if self.prefill_left_s <= 0.0:
                self._start(self.queue.popleft(), now_s - left_s)
        return left_s

    def _fits(self, request: WorldRequest) -> bool:
        cached = self.context_tokens + request.prompt_tokens
        return len(self.running) < self.prior.max_num_seqs and cached <= _KV_WATERMARK * self.prior.kv_tokens

    def _start(self, request: WorldRequest, now_s: float) -> None:
        request.first_token_s = now_s
        self.admitted += 1
        self.prompt_tokens += request.prompt_tokens
        self.generation_tokens += 1
        self.context_base += request.prompt_tokens - self.served
        self.ttft.add(request.ttft_s)
        heapq.heappush(self.running, (self.served + request.output_tokens - 1, self.admitted, request))

    def _finish(self, now_s: float, per_token_s: float) -> list[WorldRequest]:
        done = []
        while self.running and self.running[0][0] <= self.served:
            done_at, _, request = heapq.heappop(self.running)
            request.finished_s = max(now_s - (self.served - done_at) * per_token_s, request.first_token_s)
            self.context_base -= request.prompt_tokens + request.output_tokens - 1 - done_at
            self.finished += 1
            self.per_token.add(request.gap_s)
            self.whole.add(request.finished_s - request.arrived_s)
            done.append(request)
        return done

    def sample(self, at: datetime) -> EngineSample:
        return EngineSample(
            at=at,
            process_start_s=self.ready_at_s + 1.0,
            running=len(self.running),
            waiting=len(self.queue),
            kv_usage=min(self.context_tokens / max(self.prior.kv_tokens, 1), 1.0),
            sleeping=False,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            requests_succeeded=self.finished,
            requests_failed=0.0,
            preemptions=0.0,
            ttft=self.ttft.read(),
            inter_token=self.gaps.read(),
            end_to_end=self.whole.read(),
            time_per_output_token=self.per_token.read(),
        )


# -- the world --------------------------------------------------------------------------------------------------------


class Sight:
    """What telemetry shows at a moment of the world."""

    CLEAR: Final = "clear"
    STALE: Final = "stale"
    """Everything too old."""
    MISSING: Final = "missing"
    """Nothing at all."""
    NO_GATEWAY: Final = "no_gateway"
    PARTIAL: Final = "partial"
    """One replica is not seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldReport:
    """What users and the bill saw."""

    requests: Sequence[WorldRequest]
    unfinished: int
    replica_hours: float
    records: Sequence[DecisionRecord]
    """Every change of the number, and the first decision of each minute."""
    wanted: Sequence[int]
    """Per tick."""
    ready: Sequence[int]

    @property
    def changes(self) -> Sequence[DecisionRecord]:
        return [kept for kept in self.records if kept.wanted != kept.wanted_before]

    def attainment(self, *, ttft_s: float, gap_s: float, since_s: float = 0.0) -> float:
        """Share of requests that met both objectives; an unfinished one met none."""
        counted = [request for request in self.requests if request.arrived_s >= since_s]
        met = sum(request.ttft_s <= ttft_s and request.gap_s <= gap_s for request in counted)
        return met / len(counted) if counted else 1.0


class AutoscaledWorld:
    """One deployment under the policy; `run` plays it to the end."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        cold_start_s: float,
        slowdown: float = 1.0,
        sight: Callable[[float], str] = lambda _: Sight.CLEAR,
        tuning: Tuning | None = None,
        fixed: int | None = None,
    ) -> None:
        self._deployment = deployment
        self._cold_start_s = cold_start_s
        self._slowdown = slowdown
        self._sight = sight
        self._tuning = tuning
        self._fixed = fixed
        self._replicas: list[WorldReplica] = []
        self._held: deque[WorldRequest] = deque()
        self._arrivals = 0.0
        self._ordinal = 0
        self._memory = Memory()
        self._records: list[DecisionRecord] = []

    def run(self, requests: Iterator[WorldRequest], *, duration_s: float) -> WorldReport:
        """Play the requests; the world goes on for `duration_s` of virtual time."""
        seen: list[WorldRequest] = []
        wanted: list[int] = []
        ready: list[int] = []
        upcoming = next(requests, None)
        replica_s = 0.0
        steps_per_tick = round(TICK_S / STEP_S)
        self._scale(0.0, instantly=True)
        for step in range(round(duration_s / STEP_S)):
            now_s = (step + 1) * STEP_S
            while upcoming is not None and upcoming.arrived_s <= now_s:
                seen.append(upcoming)
                self._arrive(upcoming)
                upcoming = next(requests, None)
            self._advance(now_s)
            replica_s += len(self._replicas) * STEP_S
            if (step + 1) % steps_per_tick == 0:
                self._tick(now_s)
                wanted.append(self._deployment.replicas_wanted)
                ready.append(sum(replica.row.phase is ReplicaPhase.READY for replica in self._replicas))
        return WorldReport(
            requests=seen,
            unfinished=sum(math.isnan(request.finished_s) for request in seen),
            replica_hours=replica_s / 3600.0,
            records=self._records,
            wanted=wanted,
            ready=ready,
        )

    def _arrive(self, request: WorldRequest) -> None:
        self._arrivals += 1
        routed = [replica for replica in self._replicas if replica.row.phase is ReplicaPhase.READY]
        if routed:
            min(routed, key=lambda replica: replica.open_requests).queue.append(request)
        else:
            self._held.append(request)

    def _advance(self, now_s: float) -> None:
        for replica in self._replicas:
            phase = replica.row.phase
            if phase is ReplicaPhase.STARTING and now_s >= replica.ready_at_s:
                replica.row = replace(
                    replica.row, phase=ReplicaPhase.READY, ready_at=_at(now_s), phase_since=_at(now_s)
                )
                while self._held:
                    replica.queue.append(self._held.popleft())
            elif phase is not ReplicaPhase.STARTING:
                replica.step(now_s)
        self._replicas = [
            replica
            for replica in self._replicas
            if replica.row.phase is not ReplicaPhase.DRAINING or replica.open_requests
        ]

    def _tick(self, now_s: float) -> None:
        if self._fixed is not None:
            return
        rows = [replica.row for replica in self._replicas]
        scaled = scale(self._deployment, rows, self._snapshot(now_s), self._memory, _at(now_s), self._tuning)
        if scaled.decision.wanted != scaled.observation.wanted or round(now_s) % 60 == 0:
            self._records.append(scaled.record)
        self._memory = scaled.memory
        self._deployment = replace(self._deployment, replicas_wanted=scaled.wanted)
        self._scale(now_s)

    def _scale(self, now_s: float, *, instantly: bool = False) -> None:
        """Follow the wanted number: starting ones are given up first, then the one with the least to finish."""
        target = self._deployment.replicas_target if self._fixed is None else self._fixed
        live = [replica for replica in self._replicas if replica.row.phase is not ReplicaPhase.DRAINING]
        for _ in range(target - len(live)):
            self._launch(now_s, 0.0 if instantly else self._cold_start_s)
        spare = sorted(live, key=lambda replica: (replica.row.phase is ReplicaPhase.READY, replica.open_requests))
        for replica in spare[: max(len(live) - target, 0)]:
            replica.row = replace(replica.row, phase=ReplicaPhase.DRAINING, phase_since=_at(now_s))

    def _launch(self, now_s: float, takes_s: float) -> None:
        row = make_replica(self._deployment.name, self._ordinal, phase=ReplicaPhase.STARTING, gpus=(self._ordinal,))
        expected_s = self._deployment.plan.prior.cold_start.total_seconds()
        launched = _at(now_s if takes_s > 0.0 else now_s - expected_s)
        row = replace(row, launched_at=launched, phase_since=launched, created_at=launched)
        self._replicas.append(WorldReplica(row.name, row, self._deployment.plan.prior, self._slowdown, now_s + takes_s))
        self._ordinal += 1

    def _snapshot(self, now_s: float) -> TelemetrySnapshot:
        at, sight = _at(now_s), self._sight(now_s)
        sample = GatewaySample(
            at=at,
            epoch="1",
            routes={
                self._deployment.name: RouteTraffic(
                    arrivals_total=self._arrivals,
                    in_flight=sum(replica.open_requests for replica in self._replicas),
                    queued=0,
                    held=len(self._held),
                    responses_5xx_total=0.0,
                    servers_up=sum(replica.row.phase is ReplicaPhase.READY for replica in self._replicas),
                )
            },
            servers={},
        )
        gateway: Reading[GatewaySample] = Fresh(sample)
        engines: dict[ReplicaName, Reading[EngineSample]] = {
            replica.name: Fresh(replica.sample(at)) for replica in self._replicas
        }
        if sight == Sight.STALE:
            gateway = Stale(sample, timedelta(seconds=30))
            engines = {replica.name: Stale(replica.sample(at), timedelta(seconds=30)) for replica in self._replicas}
        elif sight == Sight.MISSING:
            gateway, engines = Missing("lost"), {}
        elif sight == Sight.NO_GATEWAY:
            gateway = Missing("lost")
        elif sight == Sight.PARTIAL and engines:
            engines.pop(next(iter(engines)))
        return TelemetrySnapshot(at=at, gateway=gateway, engines=engines)


def _at(now_s: float) -> datetime:
    return START + timedelta(seconds=now_s)
