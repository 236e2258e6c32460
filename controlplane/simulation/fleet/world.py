"""A deployment in virtual time: requests, replicas that start and drain, metrics, and a policy that decides.

One second at a time: arrivals and steps of that second, replicas that became ready or empty, the scrape if it is due,
the decision if it is due. Deterministic for a scenario and its seed.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.metrics import MetricsLog
from controlplane.simulation.fleet.policy import ScalingPolicy, Seen
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, release_held, serve
from controlplane.simulation.fleet.state import DRAINING, EMPTY, READY, Fleet, Timing, new_fleet

_TICK_S: Final = 1.0
_TAIL_S: Final = 1800.0
"""After the last arrival, for requests that are open: those not answered by then count as missed."""
_SLOTS_PER_REPLICA: Final = 2
"""One that serves and one that drains. A policy that turns faster than requests end finds no slot for its new replicas
until an old one is through: a cluster has no endless GPUs either."""


@dataclass(frozen=True, slots=True)
class Span:
    """From, until: seconds."""

    start_s: float
    end_s: float

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that is not the policy."""

    arrival_s: Floats
    prompt: Ints
    output: Ints
    duration_s: float
    """Over which replicas are billed."""
    timing: Timing
    gpus_per_replica: int
    replicas_min: int
    replicas_max: int
    replicas_first: int
    """Ready at the beginning."""
    cold_start_s: float
    """Mean time from order to ready."""
    cold_start_cv: float = 0.1
    """Its spread: standard deviation over mean, lognormal."""
    routing: int = LEAST_CONNECTIONS
    no_gpus: tuple[Span, ...] = ()
    """No replica can be started: an order waits, unbilled."""
    no_metrics: tuple[Span, ...] = ()
    """Nothing is scraped."""
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class _Replica:
    ordered_s: float
    launched_s: float | None = None
    """Billed from here on; None: no GPU yet."""
    ready_s: float = math.inf
    slot: int | None = None
    draining: bool = False


@dataclass(slots=True, kw_only=True)
class Timeline:
    """One value per second."""

    at_s: Floats
    wanted: Ints
    ready: Ints
    billed: Ints
    """Replicas that hold GPUs: starting, ready and draining."""
    arrived: Ints
    """Requests within the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What happened."""

    fleet: Fleet
    timeline: Timeline
    changes: tuple[tuple[float, int, int], ...]
    """(at_s, before, after): every decision that changed the number."""
    replica_seconds: float
    """Billed within the scenario's duration: from launch to the end of the drain."""
    seconds: float
    """Virtual time in all, with the tail."""


@dataclass(slots=True)
class World:
    """One run: `run()` is called once."""

    scenario: Scenario
    policy: ScalingPolicy
    _fleet: Fleet = field(init=False)
    _replicas: list[_Replica] = field(default_factory=list, init=False)
    _free_slots: list[int] = field(default_factory=list, init=False)
    _wanted: int = field(default=0, init=False)
    _rng: np.random.Generator = field(init=False)
    _metrics: MetricsLog = field(init=False)
    _cold_starts_s: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        scenario = self.scenario
        slots = _SLOTS_PER_REPLICA * scenario.replicas_max + 2
        self._fleet = new_fleet(
            scenario.arrival_s, scenario.prompt, scenario.output, slots=slots, timing=scenario.timing
        )
        self._free_slots = list(range(slots))[::-1]
        self._rng = np.random.default_rng([scenario.seed, 1])
        self._metrics = MetricsLog(scrape_s=self.policy.scrape_s, slots=slots)
        self._wanted = scenario.replicas_first
        for _ in range(scenario.replicas_first):
            self._replicas.append(_Replica(ordered_s=0.0, launched_s=0.0, ready_s=0.0))

    def run(self) -> Run:
        scenario, fleet = self.scenario, self._fleet
        seconds = math.ceil(scenario.duration_s)
        timeline = Timeline(
            at_s=np.arange(seconds, dtype=np.float64),
            wanted=np.zeros(seconds, dtype=np.int64),
            ready=np.zeros(seconds, dtype=np.int64),
            billed=np.zeros(seconds, dtype=np.int64),
            arrived=np.zeros(seconds, dtype=np.int64),
        )
        memory: Any = self.policy.start()
        changes: list[tuple[float, int, int]] = []
        upcoming, second = 0, 0
        while second < seconds or (self._is_open(upcoming) and second < scenario.duration_s + _TAIL_S):
            now_s = second * _TICK_S
            before = upcoming
            self._become_ready(now_s)
            if second % _every(self.policy.scrape_s) == 0 and not _within(scenario.no_metrics, now_s):
                self._metrics.scrape(fleet, scenario.timing, now_s)
            if second % _every(self.policy.tick_s) == 0 and second < seconds:
                wanted, memory = self.policy.decide(self._seen(now_s), memory)
                self._want(wanted, now_s, changes)
            upcoming = serve(fleet, scenario.timing, scenario.routing, upcoming, now_s + _TICK_S)
            self._remove_drained()
            if second < seconds:
                self._note(timeline, second, upcoming - before)
            second += 1
        return Run(
            fleet=fleet,
            timeline=timeline,
            changes=tuple(changes),
            replica_seconds=float(timeline.billed.sum()) * _TICK_S,
            seconds=second * _TICK_S,
        )

    def _is_open(self, upcoming: int) -> bool:
        return bool(upcoming < len(self._fleet.requests) or self._fleet.totals[0].held or self._fleet.slots.open.any())

    def _launch(self, now_s: float) -> None:
        """Whatever waits for a GPU gets one, if there are any."""
        if _within(self.scenario.no_gpus, now_s):
            return
        for replica in self._replicas:
            if replica.launched_s is None:
                replica.launched_s = now_s
                replica.ready_s = now_s + self._cold_start_s()

    def _become_ready(self, now_s: float) -> None:
        scenario = self.scenario
        self._launch(now_s)
        for replica in self._replicas:
            if replica.slot is None and replica.ready_s <= now_s and self._free_slots:
                replica.slot = self._free_slots.pop()
                self._fleet.slots[replica.slot].phase = READY
                self._fleet.slots[replica.slot].clock_s = now_s
                if replica.ready_s > 0.0:
                    self._cold_starts_s.append(replica.ready_s - replica.ordered_s)
        if self._fleet.totals[0].held:
            release_held(self._fleet, scenario.timing, scenario.routing, now_s)

    def _cold_start_s(self) -> float:
        spread = math.sqrt(math.log1p(self.scenario.cold_start_cv**2))
        factor = self._rng.lognormal(-spread * spread / 2.0, spread) if spread else 1.0
        return self.scenario.cold_start_s * float(factor)

    def _seen(self, now_s: float) -> Seen:
        self._metrics.look(now_s)
        starting = [replica for replica in self._replicas if replica.slot is None]
        cold_starts_s = tuple(self._cold_starts_s)
        self._cold_starts_s.clear()
        draining = sum(replica.draining for replica in self._replicas)
        return Seen(
            at_s=now_s,
            wanted=self._wanted,
            ready=len(self._replicas) - len(starting) - draining,
            starting=len(starting),
            draining=draining,
            starting_age_s=max((now_s - replica.ordered_s for replica in starting), default=0.0),
            cold_starts_s=cold_starts_s,
            replicas_min=self.scenario.replicas_min,
            replicas_max=self.scenario.replicas_max,
            metrics=self._metrics,
        )

    def _want(self, wanted: int, now_s: float, changes: list[tuple[float, int, int]]) -> None:
        wanted = min(max(wanted, self.scenario.replicas_min), self.scenario.replicas_max)
        if wanted == self._wanted:
            return
        changes.append((now_s, self._wanted, wanted))
        for _ in range(wanted - self._wanted):
            self._replicas.append(_Replica(ordered_s=now_s))
        self._launch(now_s)
        for _ in range(self._wanted - wanted):
            self._give_back()
        self._wanted = wanted

    def _give_back(self) -> None:
        """One that starts, the newest first; else the one with the fewest open requests, which finish."""
        starting = [replica for replica in self._replicas if replica.slot is None]
        if starting:
            self._replicas.remove(max(starting, key=lambda replica: replica.ordered_s))
            return
        slots = self._fleet.slots
        serving = [replica for replica in self._replicas if not replica.draining]
        victim = min(serving, key=lambda replica: (slots[replica.slot].open, -replica.ready_s))
        victim.draining = True
        slots[victim.slot].phase = DRAINING

    def _remove_drained(self) -> None:
        slots = self._fleet.slots
        for replica in [replica for replica in self._replicas if replica.draining]:
            assert replica.slot is not None, "only ready replicas drain"
            if slots[replica.slot].open == 0:
                slots[replica.slot].phase = EMPTY
                self._free_slots.append(replica.slot)
                self._replicas.remove(replica)

    def _note(self, timeline: Timeline, second: int, arrived: int) -> None:
        timeline.wanted[second] = self._wanted
        timeline.ready[second] = sum(replica.slot is not None and not replica.draining for replica in self._replicas)
        timeline.billed[second] = sum(replica.launched_s is not None for replica in self._replicas)
        timeline.arrived[second] = arrived


def _every(interval_s: float) -> int:
    """In ticks of the world, one at least."""
    return max(round(interval_s / _TICK_S), 1)


def _within(spans: tuple[Span, ...], at_s: float) -> bool:
    return any(span.holds(at_s) for span in spans)
