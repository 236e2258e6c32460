"""Knative's pod autoscaler (KPA) on concurrency.

Rule: ceil(mean concurrency over 60 s / target), and the same over 6 s; both kept within half and 1000 times the ready
pods. While ceil(6 s mean / target) is at least twice the ready pods, and for 60 s after, it panics: the larger of the
two counts and the number never falls.

Assumed: concurrency is every open request, those in an engine's queue and in the gateway included (the activator and
the queue proxies count both). Concurrency is sampled every 2 s, at each decision, where Knative averages each second.
The default target is 70 % of 100. Without data a decision is not valid and the number stays.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from controlplane.simulation.fleet.policy import Facts, Peer, Seen
from controlplane.simulation.peers.knobs import Knobs, settled, share_or
from controlplane.simulation.peers.signals import ongoing, replicas_for

TICK_S: Final = 2.0
DEFAULT_TARGET: Final = 0.7 * 100
PANIC_SHARE: Final = 0.1
"""panic-window-percentage: of the stable window."""
PANIC_THRESHOLD: Final = 2.0
UP_RATE_MAX: Final = 1000.0
DOWN_RATE_MAX: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaMemory:
    panic_s: float | None = None
    """When the panic threshold was last exceeded; None in stable mode."""
    panic_most: int = 0
    delayed: tuple[tuple[float, int], ...] = ()
    """(seconds, replicas) within the scale-down delay."""
    begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KnativePolicy:
    name: str
    target: float
    """Open requests per replica."""
    stable_window_s: float
    down_delay_s: float
    tick_s: float = TICK_S
    scrape_s: float = TICK_S

    def start(self) -> KpaMemory:
        return KpaMemory()

    def decide(self, seen: Seen, memory: KpaMemory) -> tuple[int, KpaMemory]:
        stable = ongoing(seen.metrics, self.stable_window_s)
        panic = ongoing(seen.metrics, self.stable_window_s * PANIC_SHARE)
        if math.isnan(stable) or math.isnan(panic):
            return seen.wanted, memory
        ready = max(1, seen.ready)
        for_stable = _bounded(replicas_for(stable, self.target), ready)
        for_panic = replicas_for(panic, self.target)
        memory = self._mood(seen, memory, over=for_panic / ready >= PANIC_THRESHOLD)
        wanted = for_stable
        if memory.panic_s is not None:
            wanted = max(for_stable, _bounded(for_panic, ready), memory.panic_most)
            memory = replace(memory, panic_most=wanted)
        return self._delayed(seen, memory, wanted)

    def _mood(self, seen: Seen, memory: KpaMemory, *, over: bool) -> KpaMemory:
        """It begins in panic where more than one pod runs, so that a restart of the autoscaler takes none away."""
        if not memory.begun:
            panics = seen.ready > 1
            memory = KpaMemory(begun=True, panic_s=seen.at_s if panics else None, panic_most=seen.ready)
        if over:
            return replace(memory, panic_s=seen.at_s)
        if memory.panic_s is not None and seen.at_s - memory.panic_s > self.stable_window_s:
            return replace(memory, panic_s=None, panic_most=0)
        return memory

    def _delayed(self, seen: Seen, memory: KpaMemory, wanted: int) -> tuple[int, KpaMemory]:
        if not self.down_delay_s:
            return wanted, memory
        recent = tuple(entry for entry in memory.delayed if entry[0] > seen.at_s - self.down_delay_s)
        # Only what an earlier, higher answer could still overrule is kept: the window's maximum needs no more.
        kept = (*(entry for entry in recent if entry[1] > wanted), (seen.at_s, wanted))
        return max(count for _, count in kept), replace(memory, delayed=kept)


def _bounded(count: int, ready: int) -> int:
    return int(min(max(count, ready // DOWN_RATE_MAX), math.ceil(UP_RATE_MAX * ready)))


def _make(facts: Facts, knobs: Knobs) -> KnativePolicy:
    at = settled("knative", KNATIVE.defaults, knobs, positive=("stable_window_s",))
    return KnativePolicy(
        name="knative",
        target=share_or(at["target_share"], of=facts.replica_concurrency, default=DEFAULT_TARGET),
        stable_window_s=at["stable_window_s"],
        down_delay_s=at["down_delay_s"],
    )


KNATIVE: Final = Peer(
    name="knative",
    source="knative/serving pkg/autoscaler/scaling/autoscaler.go; config-autoscaler",
    make=_make,
    defaults={"target_share": 0.0, "stable_window_s": 60.0, "down_delay_s": 0.0},
    search={
        "target_share": (0.0, 0.5, 0.6, 0.7, 0.8, 0.9),
        "stable_window_s": (60.0, 120.0),
        "down_delay_s": (0.0, 120.0),
    },
)
