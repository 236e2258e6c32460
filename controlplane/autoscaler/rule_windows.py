"""The value of each rule's signal over its window, from what every tick shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from controlplane.autoscaler.model import Observation, Trust
from controlplane.autoscaler.rules_model import RuleMemory, RulesObservation, Slice
from controlplane.autoscaler.signals import Buckets, histogram_of
from controlplane.domain.scaling import LATENCIES, ScalingRule, Signal, SignalKind, kind_of
from controlplane.domain.series import quantile_bounds

_SLICES: Final = 12
"""Parts of a window: it ends sharp to a twelfth, and the state stays small."""
_FIRST_SECONDS: Final = 1.0
"""Weight of a level that is seen for the first time: a tick's length."""
_SECONDS_MIN: Final = 1e-3
"""Two samples closer than this are one."""
REQUESTS_MIN: Final = 20.0
"""Fewer requests than this within the window say nothing of a percentile or of a share of errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A rule's signal now. None: nothing within the window."""

    value: float | None
    low: float = 0.0
    """Certainly not less; below `value` where a latency lies inside a bucket."""
    high: float = 0.0
    known: bool
    """It was read at this moment, and over everything that was expected."""
    quiet: bool = False
    """Read, but of too few requests to say anything: whatever it is, hardly anybody asks."""


@dataclass(frozen=True, slots=True)
class _Tick:
    """What this moment adds."""

    weight: float
    amount: float
    known: bool
    buckets: Buckets | None = None


def remember(
    rules: Sequence[ScalingRule], memories: Sequence[RuleMemory], observation: RulesObservation, elapsed_s: float
) -> tuple[tuple[RuleMemory, bool], ...]:
    """Each rule's window with this moment in it, and whether this moment could be read in full.

    A rule that the site file changed begins anew.
    """
    before = {memory.rule: memory for memory in memories}
    return tuple(
        _remembered(before.get(rule) or RuleMemory(rule=rule, since_s=observation.at_s), observation, elapsed_s)
        for rule in rules
    )


def measured(memory: RuleMemory, *, known: bool, now_s: float) -> Measured:
    """The value over the window that ends now."""
    window_s = memory.rule.window.total_seconds()
    slices = [part for part in memory.slices if part.end_s > now_s - window_s]
    weight = sum(part.weight for part in slices)
    counted = memory.rule.signal in LATENCIES or memory.rule.signal is Signal.ERROR_RATE
    if counted and weight < REQUESTS_MIN:
        # Quiet only once a whole window was watched: right after the start nothing was seen of anything.
        return Measured(value=None, known=known, quiet=known and now_s - memory.since_s >= window_s)
    if weight <= 0.0:
        return Measured(value=None, known=known)
    if memory.rule.signal in LATENCIES:
        return _percentile(memory, slices, known=known)
    value = sum(part.amount for part in slices) / weight
    return Measured(value=value, low=value, high=value, known=known)


def _remembered(memory: RuleMemory, observation: RulesObservation, elapsed_s: float) -> tuple[RuleMemory, bool]:
    rule, now_s = memory.rule, observation.at_s
    tick = _tick(rule.signal, observation, elapsed_s, rule.window.total_seconds() / _SLICES)
    if tick is None:
        return memory, False
    if tick.buckets is not None and tick.buckets.counts and tick.buckets.edges != memory.edges:
        memory = replace(memory, slices=(), edges=tick.buckets.edges)
    counts = tick.buckets.counts if tick.buckets is not None else ()
    added = Slice(end_s=now_s, seconds=elapsed_s, weight=tick.weight, amount=tick.amount, counts=counts)
    window_s = rule.window.total_seconds()
    kept = tuple(part for part in memory.slices if part.end_s > now_s - window_s)
    if kept and kept[-1].seconds + elapsed_s <= window_s / _SLICES:
        added = _merged(kept[-1], added)
        kept = kept[:-1]
    return replace(memory, slices=(*kept, added)), tick.known


def _merged(last: Slice, added: Slice) -> Slice:
    pairs = zip(last.counts, added.counts, strict=True) if last.counts and added.counts else None
    return Slice(
        end_s=added.end_s,
        seconds=last.seconds + added.seconds,
        weight=last.weight + added.weight,
        amount=last.amount + added.amount,
        counts=tuple(a + b for a, b in pairs) if pairs is not None else last.counts or added.counts,
    )


def _tick(signal: Signal, observation: RulesObservation, elapsed_s: float, longest_s: float) -> _Tick | None:
    """None: not to be read now."""
    seen = observation.seen
    if signal in LATENCIES:
        return _latency_tick(signal, observation)
    if signal is Signal.ERROR_RATE:
        return _error_tick(observation)
    if signal is Signal.REQUESTS_PER_SECOND:
        if seen.arrivals is None:
            return None
        return _Tick(max(seen.arrivals_seconds, _SECONDS_MIN), seen.arrivals, seen.arrivals_complete)
    level = _level(signal, observation)
    if level is None:
        return None
    # After a gap a level is worth no more than a part of the window: what it was meanwhile nobody saw.
    seconds = min(elapsed_s, longest_s) if elapsed_s > 0.0 else _FIRST_SECONDS
    return _Tick(seconds, level * seconds, _read_in_full(seen))


def _level(signal: Signal, observation: RulesObservation) -> float | None:
    """The signal at this moment; sums over what could be read are lower bounds."""
    seen = observation.seen
    match signal:
        case Signal.KV_CACHE | Signal.GPU_MEMORY:
            return seen.kv_usage if seen.engines_fresh > 0 else None
        case Signal.CPU:
            return observation.signals.cpu
        case Signal.QUEUE_DEPTH:
            return float(seen.work_waiting) if _anything_read(seen) else None
        case Signal.RUNNING:
            return float(seen.running) if seen.engines_fresh > 0 or seen.ready == 0 else None
        case _:
            return float(seen.work_open) if _anything_read(seen) else None


def _latency_tick(signal: Signal, observation: RulesObservation) -> _Tick | None:
    for latency in observation.signals.latencies:
        if latency.signal is signal:
            known = latency.complete and observation.seen.engines is Trust.FRESH
            return _Tick(latency.buckets.total, 0.0, known, latency.buckets)
    return None


def _error_tick(observation: RulesObservation) -> _Tick | None:
    """By whichever count sees more of them: the gateway's 5xx, or what engines gave up (which they answer with 200)."""
    seen, signals = observation.seen, observation.signals
    if signals.gateway_requests is None and seen.engine_deltas == 0:
        return None
    requests = max(signals.gateway_requests or 0.0, seen.finished + seen.failed)
    errors = min(max(signals.gateway_errors or 0.0, seen.failed), requests)
    return _Tick(requests, errors, signals.gateway_requests is not None and _read_in_full(seen))


def _anything_read(seen: Observation) -> bool:
    return seen.gateway is Trust.FRESH or seen.engines_fresh > 0


def _read_in_full(seen: Observation) -> bool:
    return seen.gateway is Trust.FRESH and seen.engines is Trust.FRESH and seen.engines_fresh >= seen.ready


def _percentile(memory: RuleMemory, slices: Sequence[Slice], *, known: bool) -> Measured:
    """Between the edges of its bucket; the value interpolated there, as Prometheus's histogram_quantile does."""
    columns = zip(*(part.counts for part in slices if part.counts), strict=True)
    buckets = Buckets(edges=memory.edges, counts=tuple(map(sum, columns)))
    bounds = quantile_bounds(histogram_of(buckets), memory.rule.percentile)
    assert bounds is not None, "there are observations"
    place = next((at for at, edge in enumerate(buckets.edges) if edge == bounds.upper), None)
    if place is None:
        # Beyond the last edge nothing is known but that: the least it can be is what is said.
        return Measured(value=bounds.lower, low=bounds.lower, high=bounds.upper, known=known)
    below = buckets.counts[place - 1] if place else 0.0
    inside = buckets.counts[place] - below
    share = (memory.rule.percentile * buckets.total - below) / inside
    value = bounds.lower + (bounds.upper - bounds.lower) * share
    return Measured(value=value, low=bounds.lower, high=bounds.upper, known=known)


def is_per_replica(rule: ScalingRule) -> bool:
    """Amounts are shared between the replicas where a target is stated."""
    return kind_of(rule.signal) is SignalKind.AMOUNT and rule.target is not None
