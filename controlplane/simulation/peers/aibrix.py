"""AIBrix' own strategies on KV-cache use: APA (per-pod mean against the target) and KPA (stable and panic windows).

APA: r = mean / target; above 1.1 ceil(n r), at most twice; below 0.9 ceil(n r), at least half; else n.
KPA: ceil(stable / target) and ceil(panic / target), both within half and twice of n; while the panic mean is more than
twice the stable mean the larger counts and the number does not fall.
Both: replicas that start count as idle before more are asked for and as at the target before fewer are
(`applyPendingReplicaGuard`); then a cooldown of 0 s up and 300 s down.

Assumed: the metric and its target of 0.5 are those of the project's samples, read as vLLM's present name (the sample's
`gpu_cache_usage_perc` is gone). The cooldown keeps the highest recommendation of its window, as documented and as an
HPA does; the code of 2026-08 takes the lowest, by which the first low recommendation is followed at once
(`cooldown_s` = 0 is that). KPA adds its pods up, as Knative does and as AIBrix did; the code of 2026-08 divides a mean
of the pods by the target and so can never ask for more than two. Pods are read at every resync; without any the number
stays.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controlplane.simulation.fleet.policy import Facts, Gauge, Peer, Seen
from controlplane.simulation.peers.hpa import profiled_kv_use
from controlplane.simulation.peers.knobs import Knobs, settled, share_or
from controlplane.simulation.peers.signals import replicas_for

RESYNC_S: Final = 10.0
TOLERANCE: Final = 0.1
RATE: Final = 2.0
"""MaxScaleUpRate and MaxScaleDownRate."""
PANIC_THRESHOLD: Final = 2.0
SAMPLE_TARGET: Final = 0.5

type Samples = tuple[tuple[float, float], ...]
"""(seconds, mean over the pods), oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixMemory:
    samples: Samples = ()
    recommendations: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    stable: float
    """Mean KV use of a pod over the stable window, 0..1."""
    panic: float
    replicas: int
    ready: int
    target: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixPolicy:
    name: str
    strategy: Callable[[Reading], int]
    target: float
    stable_window_s: float
    panic_window_s: float
    cooldown_s: float
    """Down."""
    tick_s: float = RESYNC_S
    scrape_s: float = RESYNC_S

    def start(self) -> AibrixMemory:
        return AibrixMemory()

    def decide(self, seen: Seen, memory: AibrixMemory) -> tuple[int, AibrixMemory]:
        values = seen.metrics.per_replica(Gauge.KV_USAGE)
        values = values[~np.isnan(values)]
        if len(values) == 0:
            return seen.wanted, memory
        longest = max(self.stable_window_s, self.panic_window_s)
        memory = replace(
            memory, samples=(*_after(memory.samples, seen.at_s - longest), (seen.at_s, float(values.mean())))
        )
        reading = Reading(
            stable=_mean(_after(memory.samples, seen.at_s - self.stable_window_s)),
            panic=_mean(_after(memory.samples, seen.at_s - self.panic_window_s)),
            replicas=max(1, seen.wanted),
            ready=min(seen.ready, seen.wanted),
            target=self.target,
        )
        desired = max(seen.replicas_min, min(seen.replicas_max, self.strategy(reading)))
        return self._cooled(seen, memory, desired)

    def _cooled(self, seen: Seen, memory: AibrixMemory, desired: int) -> tuple[int, AibrixMemory]:
        recent = tuple(entry for entry in memory.recommendations if entry[0] > seen.at_s - self.cooldown_s)
        memory = replace(memory, recommendations=(*recent, (seen.at_s, desired)))
        if desired >= seen.wanted:
            return desired, memory
        return min(seen.wanted, max(count for _, count in memory.recommendations)), memory


def apa(reading: Reading) -> int:
    now, ratio = reading.replicas, reading.stable / reading.target
    if ratio > 1 + TOLERANCE:
        return _guarded(reading, min(replicas_for(now * ratio, 1), math.ceil(now * RATE)), _apa_with_starting)
    if ratio < 1 - TOLERANCE:
        return _guarded(reading, max(replicas_for(now * ratio, 1), math.floor(now / RATE)), _apa_with_starting)
    return now


def kpa(reading: Reading) -> int:
    pods = max(1, reading.ready)
    stable = _within_rate(replicas_for(reading.stable * pods, reading.target), reading.replicas)
    if reading.panic <= PANIC_THRESHOLD * reading.stable:
        return _guarded(reading, stable, _kpa_with_starting)
    panic = _within_rate(replicas_for(reading.panic * pods, reading.target), reading.replicas)
    return _guarded(reading, max(stable, panic, reading.replicas), _kpa_with_starting)


def _within_rate(count: int, now: int) -> int:
    return min(max(count, math.floor(now / RATE)), math.ceil(now * RATE))


def _guarded(reading: Reading, desired: int, with_starting: Callable[[Reading, float], int]) -> int:
    """The answer when replicas that start are counted in: never past the number as it is, never past `desired`."""
    starting, now = reading.replicas - reading.ready, reading.replicas
    if starting <= 0 or desired == now:
        return desired
    if desired > now:
        return min(desired, max(now, with_starting(reading, 0.0)))
    return max(desired, min(now, with_starting(reading, reading.target)))


def _apa_with_starting(reading: Reading, each: float) -> int:
    return replicas_for(_sum_with_starting(reading, reading.stable, each), reading.target)


def _kpa_with_starting(reading: Reading, each: float) -> int:
    value = max(reading.stable, reading.panic) if each == 0 else reading.stable
    return replicas_for(_sum_with_starting(reading, value, each), reading.target)


def _sum_with_starting(reading: Reading, value: float, each: float) -> float:
    return value * reading.ready + each * (reading.replicas - reading.ready)


def _after(samples: Samples, cutoff_s: float) -> Samples:
    return tuple(sample for sample in samples if sample[0] > cutoff_s)


def _mean(samples: Samples) -> float:
    return sum(value for _, value in samples) / len(samples)


def _policy(peer: Peer, strategy: Callable[[Reading], int], facts: Facts, knobs: Knobs) -> AibrixPolicy:
    at = settled(peer.name, peer.defaults, knobs, positive=("stable_window_s", "panic_window_s"))
    return AibrixPolicy(
        name=peer.name,
        strategy=strategy,
        target=share_or(at["target_share"], of=profiled_kv_use(facts), default=SAMPLE_TARGET),
        stable_window_s=at["stable_window_s"],
        panic_window_s=at["panic_window_s"],
        cooldown_s=at["cooldown_s"],
    )


def _make_apa(facts: Facts, knobs: Knobs) -> AibrixPolicy:
    return _policy(AIBRIX_APA, apa, facts, knobs)


def _make_kpa(facts: Facts, knobs: Knobs) -> AibrixPolicy:
    return _policy(AIBRIX_KPA, kpa, facts, knobs)


_SOURCE: Final = "vllm-project/aibrix pkg/controller/podautoscaler: algorithm/, context/, autoscaler.go (2026-08)"
_DEFAULTS: Final = {"target_share": 0.0, "stable_window_s": 180.0, "panic_window_s": 60.0, "cooldown_s": 300.0}
_SEARCH: Final = {
    "target_share": (0.0, 0.5, 0.65, 0.8),
    "stable_window_s": (30.0, 60.0, 180.0),
    "cooldown_s": (60.0, 300.0),
}
AIBRIX_APA: Final = Peer(name="aibrix-apa", source=_SOURCE, make=_make_apa, defaults=_DEFAULTS, search=_SEARCH)
AIBRIX_KPA: Final = Peer(
    name="aibrix-kpa",
    source=_SOURCE,
    make=_make_kpa,
    defaults=_DEFAULTS,
    search={"target_share": _SEARCH["target_share"], "panic_window_s": (20.0, 60.0), "cooldown_s": (60.0, 300.0)},
)
