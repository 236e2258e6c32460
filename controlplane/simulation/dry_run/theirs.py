"""An HPA or a ScaledObject as a policy: its triggers, its arithmetic, its behaviour, its step to zero."""

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from controlplane.simulation.dry_run.readings import Node
from controlplane.simulation.fleet.policy import Seen
from controlplane.simulation.peers.behavior import SYNC_S, TOLERANCE, Behavior, History, settle
from controlplane.simulation.peers.hpa import desired_for_pods, desired_for_total
from controlplane.simulation.peers.signals import known, pods, replicas_for

NAME: Final = "theirs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One metric and its target."""

    reading: Node
    target: float
    by_ratio: bool
    """HPA's Value: replicas times value over target; otherwise value over target."""
    of_pods: bool = False
    """HPA's metric of pods: one value from each, and rules for those that have none."""
    empty_is_zero: bool = False
    """KEDA's `ignoreNullValues`."""
    activation: float = 0.0
    """KEDA: above it there is a first replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """KEDA's step between none and one."""

    polling_s: float
    cooldown_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirMemory:
    history: History = field(default_factory=History)
    polled_s: float = -math.inf
    active_s: float = -math.inf
    """When a poll last found a trigger above its activation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirPolicy:
    """Implements `ScalingPolicy`."""

    triggers: tuple[Trigger, ...]
    behavior: Behavior
    zero: Zero | None
    """None: it never goes to zero."""
    scrape_s: float
    name: str = NAME
    tick_s: float = SYNC_S

    def start(self) -> TheirMemory:
        return TheirMemory()

    def decide(self, seen: Seen, memory: TheirMemory) -> tuple[int, TheirMemory]:
        if self.zero is not None and seen.replicas_min == 0:
            memory = self._polled(self.zero, seen, memory)
            if seen.wanted == 0:
                return int(memory.polled_s == memory.active_s == seen.at_s), memory
            if seen.at_s - memory.active_s >= self.zero.cooldown_s:
                return 0, memory
        asked = [_desired(trigger, seen) for trigger in self.triggers]
        found = [one for one in asked if one is not None]
        if not found or (len(found) < len(asked) and max(found) < seen.wanted):
            # Without one of its metrics the controller gives more when another asks for it, but never fewer.
            return seen.wanted, memory
        wanted, history = settle(
            self.behavior, memory.history, desired=max(found), seen=seen, floor=max(1, seen.replicas_min)
        )
        return wanted, replace(memory, history=history)

    def _polled(self, zero: Zero, seen: Seen, memory: TheirMemory) -> TheirMemory:
        if seen.at_s - memory.polled_s < zero.polling_s:
            return memory
        # From none no engine can tell a queue; what waits in front of them counts, which is kind to KEDA.
        waits = known(seen.metrics.held()) > 0
        active = waits or any(known(_number(one.reading, seen)) > one.activation for one in self.triggers)
        first = math.isinf(memory.polled_s)
        return replace(memory, polled_s=seen.at_s, active_s=seen.at_s if active or first else memory.active_s)


def _desired(trigger: Trigger, seen: Seen) -> int | None:
    """Replicas that one metric asks for; None: it cannot be read."""
    if trigger.of_pods:
        values = np.atleast_1d(trigger.reading.of(seen))
        measured = values[~np.isnan(values)]
        if not len(measured):
            return None
        missing = max(0, pods(seen) - len(measured))
        return desired_for_pods(
            measured, missing=missing, current=seen.wanted, target=trigger.target, tolerance=TOLERANCE
        )
    value = _number(trigger.reading, seen)
    if math.isnan(value):
        if not trigger.empty_is_zero:
            return None
        value = 0.0
    if not trigger.by_ratio:
        return desired_for_total(value, current=pods(seen), target=trigger.target)
    ratio = value / trigger.target
    if abs(1.0 - ratio) <= TOLERANCE:
        return seen.wanted
    return replicas_for(ratio * seen.ready, 1.0)


def _number(reading: Node, seen: Seen) -> float:
    """The one number of a query; NaN where it gives none, or several, which KEDA refuses."""
    values = np.atleast_1d(reading.of(seen))
    return float(values[0]) if len(values) == 1 else math.nan
