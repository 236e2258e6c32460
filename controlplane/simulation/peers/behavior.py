"""The end of every HorizontalPodAutoscaler: stabilisation windows and limits on the rate of change (autoscaling/v2).

From `stabilizeRecommendationWithBehaviors` and `convertDesiredReplicasWithBehaviorRate` in kubernetes
`pkg/controller/podautoscaler/horizontal.go`. Of several policies of one direction the one that allows the largest
change counts (selectPolicy Max, the default).
"""

import math
from dataclasses import dataclass
from typing import Final

from controlplane.simulation.fleet.policy import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    window_s: float
    """stabilizationWindowSeconds: up takes the least, down the most that was recommended within it."""
    period_s: float
    """Of both limits."""
    pods: int | None = None
    percent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    up: Direction
    down: Direction


DEFAULT_UP: Final = Direction(window_s=0, period_s=15, pods=4, percent=100)
DEFAULT_DOWN: Final = Direction(window_s=300, period_s=15, percent=100)
SYNC_S: Final = 15.0
"""--horizontal-pod-autoscaler-sync-period."""
TOLERANCE: Final = 0.1
"""--horizontal-pod-autoscaler-tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the controller remembers: (seconds, replicas) and (seconds, change), oldest first."""

    recommendations: tuple[tuple[float, int], ...] = ()
    changes: tuple[tuple[float, int], ...] = ()


def settle(
    behavior: Behavior, history: History, *, desired: int, seen: Seen, floor: int | None = None
) -> tuple[int, History]:
    """What the controller sets after it computed `desired`, within the bounds, and what it remembers.

    `floor` is the object's minReplicas where it is not the deployment's: an HPA cannot have 0.
    """
    low = seen.replicas_min if floor is None else floor
    if not history.recommendations:
        # The controller begins with the number as it finds it (`recordInitialRecommendation`).
        history = History(recommendations=((seen.at_s, seen.wanted),))
    stable = _stabilized(behavior, history, desired=desired, seen=seen)
    limited = _limited(behavior, history, desired=stable, seen=seen)
    wanted = max(low, min(seen.replicas_max, limited))
    longest = max(behavior.up.window_s, behavior.down.window_s)
    period = max(behavior.up.period_s, behavior.down.period_s)
    change = wanted - seen.wanted
    return wanted, History(
        recommendations=(*_since(history.recommendations, seen.at_s - longest), (seen.at_s, desired)),
        changes=(*_since(history.changes, seen.at_s - period), *(((seen.at_s, change),) if change else ())),
    )


def _stabilized(behavior: Behavior, history: History, *, desired: int, seen: Seen) -> int:
    """As little change as the recommendations of both windows ask for."""
    least = min([desired, *(n for _, n in _since(history.recommendations, seen.at_s - behavior.up.window_s))])
    most = max([desired, *(n for _, n in _since(history.recommendations, seen.at_s - behavior.down.window_s))])
    return min(max(seen.wanted, least), most)


def _limited(behavior: Behavior, history: History, *, desired: int, seen: Seen) -> int:
    if desired > seen.wanted:
        start = _at_period_start(behavior.up, history, seen)
        allowed = [start]
        if behavior.up.pods is not None:
            allowed.append(start + behavior.up.pods)
        if behavior.up.percent is not None:
            allowed.append(math.ceil(start * (1 + behavior.up.percent / 100)))
        return min(desired, max(seen.wanted, *allowed))
    if desired < seen.wanted:
        start = _at_period_start(behavior.down, history, seen)
        allowed = [start]
        if behavior.down.pods is not None:
            allowed.append(start - behavior.down.pods)
        if behavior.down.percent is not None:
            allowed.append(int(start * (1 - behavior.down.percent / 100)))
        return max(desired, min(seen.wanted, *allowed))
    return desired


def _at_period_start(direction: Direction, history: History, seen: Seen) -> int:
    return seen.wanted - sum(change for _, change in _since(history.changes, seen.at_s - direction.period_s))


def _since(entries: tuple[tuple[float, int], ...], cutoff_s: float) -> tuple[tuple[float, int], ...]:
    """Those after the cutoff, not at it, as the controller compares."""
    return tuple(entry for entry in entries if entry[0] > cutoff_s)
