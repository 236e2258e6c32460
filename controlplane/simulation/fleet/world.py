"""A deployment in virtual time: requests, replicas that start and drain, metrics, and a policy that decides.

One second at a time: arrivals and steps of that second, replicas that became ready or empty, the scrape if it is due,
the decision if it is due. Deterministic for a scenario and its seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.metrics import MetricsLog
from controlplane.simulation.fleet.policy import ScalingPolicy, Seen
from controlplane.simulation.fleet.replicas import Replicas, Sleep, slots_for
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, release_held, serve
from controlplane.simulation.fleet.state import Fleet, Timing, new_fleet

_TICK_S: Final = 1.0
_TAIL_S: Final = 1800.0
"""After the last arrival, for requests that are open: those not answered by then count as missed."""


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
    sleep: Sleep | None = None
    """None: who is given back goes."""
    asleep_first: int = 0
    """Asleep at the beginning."""
    routing: int = LEAST_CONNECTIONS
    no_gpus: tuple[Span, ...] = ()
    """No replica can be started: an order waits, unbilled. Sleepers have their GPUs, and wake."""
    no_metrics: tuple[Span, ...] = ()
    """Nothing is scraped."""
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Timeline:
    """One value per second."""

    at_s: Floats
    wanted: Ints
    ready: Ints
    billed: Ints
    """Replicas that start, wake, serve or drain."""
    asleep: Ints
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
    """Billed within the scenario's duration: from launch to the end of the drain, asleep at the share of it."""
    wakes: int
    seconds: float
    """Virtual time in all, with the tail."""


@dataclass(slots=True)
class World:
    """One run: `run()` is called once."""

    scenario: Scenario
    policy: ScalingPolicy
    asleep_at: Callable[[float], int] | None = None
    """How many are to sleep at a moment, for a policy that plans it: those given back fall asleep up to this number,
    none is woken below it, and what sleeps beyond goes. None: all sleep that may, and all wake before any starts."""
    _fleet: Fleet = field(init=False)
    _replicas: Replicas = field(init=False)
    _wanted: int = field(default=0, init=False)
    _metrics: MetricsLog = field(init=False)

    def __post_init__(self) -> None:
        scenario = self.scenario
        assert scenario.sleep is not None or not scenario.asleep_first, "who sleeps may sleep"
        slots = slots_for(scenario.replicas_max)
        self._fleet = new_fleet(
            scenario.arrival_s, scenario.prompt, scenario.output, slots=slots, timing=scenario.timing
        )
        self._replicas = Replicas(
            self._fleet,
            ready=scenario.replicas_first,
            asleep=scenario.asleep_first,
            cold_start_s=scenario.cold_start_s,
            cold_start_cv=scenario.cold_start_cv,
            sleep=scenario.sleep,
            seed=scenario.seed,
        )
        self._metrics = MetricsLog(scrape_s=self.policy.scrape_s, slots=slots)
        self._wanted = scenario.replicas_first

    def run(self) -> Run:
        scenario, fleet = self.scenario, self._fleet
        seconds = math.ceil(scenario.duration_s)
        timeline = Timeline(
            at_s=np.arange(seconds, dtype=np.float64),
            wanted=np.zeros(seconds, dtype=np.int64),
            ready=np.zeros(seconds, dtype=np.int64),
            billed=np.zeros(seconds, dtype=np.int64),
            asleep=np.zeros(seconds, dtype=np.int64),
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
            self._replicas.remove_drained()
            if second < seconds:
                self._note(timeline, second, upcoming - before)
            second += 1
        return Run(
            fleet=fleet,
            timeline=timeline,
            changes=tuple(changes),
            replica_seconds=float(timeline.billed.sum() + self._asleep_share * timeline.asleep.sum()) * _TICK_S,
            wakes=self._replicas.wakes,
            seconds=second * _TICK_S,
        )

    def _is_open(self, upcoming: int) -> bool:
        return bool(upcoming < len(self._fleet.requests) or self._fleet.totals[0].held or self._fleet.slots.open.any())

    @property
    def _asleep_share(self) -> float:
        return 0.0 if self.scenario.sleep is None else self.scenario.sleep.asleep_share

    def _launch(self, now_s: float) -> None:
        if not _within(self.scenario.no_gpus, now_s):
            self._replicas.launch(now_s)

    def _become_ready(self, now_s: float) -> None:
        scenario = self.scenario
        self._launch(now_s)
        self._replicas.become_ready(now_s)
        if self._fleet.totals[0].held:
            release_held(self._fleet, scenario.timing, scenario.routing, now_s)

    def _seen(self, now_s: float) -> Seen:
        self._metrics.look(now_s)
        replicas = self._replicas
        return Seen(
            at_s=now_s,
            wanted=self._wanted,
            ready=replicas.ready,
            starting=replicas.starting,
            draining=replicas.draining,
            sleeping=replicas.asleep,
            starting_age_s=replicas.starting_age_s(now_s),
            cold_starts_s=replicas.take_cold_starts(),
            replicas_min=self.scenario.replicas_min,
            replicas_max=self.scenario.replicas_max,
            metrics=self._metrics,
        )

    def _want(self, wanted: int, now_s: float, changes: list[tuple[float, int, int]]) -> None:
        wanted = min(max(wanted, self.scenario.replicas_min), self.scenario.replicas_max)
        least, most = self._sleepers(now_s)
        if wanted != self._wanted:
            changes.append((now_s, self._wanted, wanted))
            self._replicas.order(max(wanted - self._wanted, 0), now_s, asleep_least=least)
            self._launch(now_s)
            for _ in range(self._wanted - wanted):
                self._replicas.give_back(asleep_most=most)
            self._wanted = wanted
        self._replicas.stop_sleepers(asleep_most=most)

    def _sleepers(self, now_s: float) -> tuple[int, int]:
        """Least and most that may sleep from now on."""
        sleep = self.scenario.sleep
        if sleep is None:
            return 0, 0
        most = self.scenario.replicas_max if sleep.most is None else sleep.most
        if self.asleep_at is None:
            return 0, most
        planned = min(self.asleep_at(now_s), most)
        return planned, planned

    def _note(self, timeline: Timeline, second: int, arrived: int) -> None:
        timeline.wanted[second] = self._wanted
        timeline.ready[second] = self._replicas.ready
        timeline.billed[second] = self._replicas.billed
        timeline.asleep[second] = self._replicas.asleep
        timeline.arrived[second] = arrived


def _every(interval_s: float) -> int:
    """In ticks of the world, one at least."""
    return max(round(interval_s / _TICK_S), 1)


def _within(spans: tuple[Span, ...], at_s: float) -> bool:
    return any(span.holds(at_s) for span in spans)
