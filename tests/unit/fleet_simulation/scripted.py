"""A policy that does as it is told, and writes down what it saw."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.simulation.fleet.compiled import Ints
from controlplane.simulation.fleet.policy import Seen
from controlplane.simulation.fleet.state import ARRIVED, FINISHED, REJECTED
from controlplane.simulation.fleet.world import Run, Scenario, World
from tests.unit.fleet_simulation.small_fleets import SMALL, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Replicas from each moment on; those at the beginning as the scenario has them."""

    wanted: Mapping[float, int] = field(default_factory=dict)
    name: str = "script"
    tick_s: float = 1.0
    scrape_s: float = 5.0
    seen: list[tuple[Seen, float]] = field(default_factory=list)
    """Each look, and the age of its metrics in seconds."""

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        self.seen.append((seen, seen.at_s - seen.metrics.scraped_s()))
        due = [count for at_s, count in self.wanted.items() if at_s <= seen.at_s]
        return (due[-1] if due else seen.wanted), memory

    def at(self, at_s: float) -> Seen:
        return next(seen for seen, _ in self.seen if seen.at_s == at_s)


def scenario(load: list[Request], **changed: Any) -> Scenario:
    """Ten minutes of up to eight replicas that start in just thirty seconds; one is there."""
    arrival_s, prompt, output = (np.array(column) for column in zip(*load, strict=True))
    told = {
        "duration_s": 600.0,
        "timing": SMALL,
        "gpus_per_replica": 1,
        "replicas_min": 0,
        "replicas_max": 8,
        "replicas_first": 1,
        "cold_start_s": 30.0,
        "cold_start_cv": 0.0,
    }
    return Scenario(arrival_s=arrival_s, prompt=prompt, output=output, **{**told, **changed})


def played(load: list[Request], wanted: Mapping[float, int], **changed: Any) -> tuple[Run, Script]:
    script = Script(wanted=wanted)
    return World(scenario(load, **changed), script).run(), script


def turns(values: Ints) -> dict[int, int]:
    """Second by second, only where the value changed."""
    changed = np.flatnonzero(np.diff(values)) + 1
    return {0: int(values[0]), **{int(second): int(values[second]) for second in changed}}


def all_answered(run: Run) -> bool:
    counters = run.fleet.totals[0].counters
    return bool(counters[FINISHED] + counters[REJECTED] == counters[ARRIVED] == len(run.fleet.requests))
