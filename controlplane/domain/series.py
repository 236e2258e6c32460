"""Counters and histograms over time: increases with resets, sliding windows, coverage, bounds instead of guesses.

Everything here is a frozen value or a pure function. A window is persistent: `seen` returns a new one and leaves the
old as it was, so that a decision can be replayed from the windows it was made on. Times are datetimes; a rate is per
second; latencies are in seconds, as histograms have them.

Resets: a counter that fell, or whose epoch (process start, gateway epoch) changed, began anew at zero; what it shows
now is what was added since (Prometheus's rule for `increase`). What was added between the last sample and the restart
is lost, so an increase is a lower bound across a restart.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import assert_never

from controlplane.domain.telemetry import EMPTY_HISTOGRAM, EngineSample, Fresh, Histogram, Missing, Reading, Stale

# -- coverage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole[T]:
    """An aggregate over everything that was expected."""

    value: T


@dataclass(frozen=True, slots=True)
class Partial[T]:
    """An aggregate over `known` of `expected` sources: a lower bound for a sum, a sample for a share."""

    value: T
    known: int
    expected: int

    @property
    def share(self) -> float:
        return self.known / self.expected


type Coverage[T] = Whole[T] | Partial[T] | Missing


def cover[T, R](readings: Iterable[Reading[T]], aggregate: Callable[[Sequence[T]], R]) -> Coverage[R]:
    """Aggregate the fresh values; Missing when there is none though some were expected. Nothing expected is Whole."""
    fresh: list[T] = []
    expected = 0
    why = ""
    for reading in readings:
        expected += 1
        match reading:
            case Fresh(value=value):
                fresh.append(value)
            case Stale(age=age):
                why = why or f"the last value is {age.total_seconds():.1f} s old"
            case Missing(why=reason):
                why = why or reason
            case _:
                assert_never(reading)
    if len(fresh) == expected:
        return Whole(aggregate(fresh))
    if not fresh:
        return Missing(f"none of {expected} is fresh: {why}")
    return Partial(aggregate(fresh), known=len(fresh), expected=expected)


# -- increases --------------------------------------------------------------------------------------------------------


def increase(before: float, after: float, *, restarted: bool = False) -> float:
    """How much a counter grew from one sample to the next; never negative."""
    return after if restarted or after < before else after - before


def histogram_increase(before: Histogram, after: Histogram, *, restarted: bool = False) -> Histogram:
    """The observations made between two samples. Other buckets than before mean another process: all are new."""
    fell = before.edges == after.edges and any(new < old for old, new in zip(before.counts, after.counts, strict=True))
    if restarted or fell or before.edges != after.edges:
        return after
    counts = tuple(new - old for old, new in zip(before.counts, after.counts, strict=True))
    return Histogram(edges=after.edges, counts=counts, sum=after.sum - before.sum)


def add_histograms(parts: Iterable[Histogram]) -> Histogram:
    """The sum, on the edges that all non-empty parts share: cumulative counts stay exact on fewer edges."""
    known = [part for part in parts if part.edges]
    if not known:
        return EMPTY_HISTOGRAM
    first = known[0]
    if all(part.edges == first.edges for part in known):
        columns = zip(*(part.counts for part in known), strict=True)
        return Histogram(edges=first.edges, counts=tuple(map(sum, columns)), sum=sum(part.sum for part in known))
    shared = tuple(sorted(set(first.edges).intersection(*(part.edges for part in known[1:]))))
    tables = [dict(zip(part.edges, part.counts, strict=True)) for part in known]
    counts = tuple(sum(table[edge] for table in tables) for edge in shared)
    return Histogram(edges=shared, counts=counts, sum=sum(part.sum for part in known))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIncrease:
    """What one replica did between two scrapes."""

    span: timedelta
    restarted: bool
    prompt_tokens: float
    generation_tokens: float
    succeeded: float
    failed: float
    preemptions: float
    ttft: Histogram
    inter_token: Histogram
    end_to_end: Histogram
    time_per_output_token: Histogram


def engine_increase(before: EngineSample, after: EngineSample) -> EngineIncrease:
    """What happened from `before` to `after`; one restart in between is seen by process start or a falling counter."""
    restarted = _restarted(before, after)

    def grown(old: float, new: float) -> float:
        return increase(old, new, restarted=restarted)

    def observed(old: Histogram, new: Histogram) -> Histogram:
        return histogram_increase(old, new, restarted=restarted)

    return EngineIncrease(
        span=after.at - before.at,
        restarted=restarted,
        prompt_tokens=grown(before.prompt_tokens, after.prompt_tokens),
        generation_tokens=grown(before.generation_tokens, after.generation_tokens),
        succeeded=grown(before.requests_succeeded, after.requests_succeeded),
        failed=grown(before.requests_failed, after.requests_failed),
        preemptions=grown(before.preemptions, after.preemptions),
        ttft=observed(before.ttft, after.ttft),
        inter_token=observed(before.inter_token, after.inter_token),
        end_to_end=observed(before.end_to_end, after.end_to_end),
        time_per_output_token=observed(before.time_per_output_token, after.time_per_output_token),
    )


def _restarted(before: EngineSample, after: EngineSample) -> bool:
    """One counter that fell means that all of them began anew, also those that have outgrown their old value."""
    return (
        before.process_start_s != after.process_start_s
        or after.prompt_tokens < before.prompt_tokens
        or after.generation_tokens < before.generation_tokens
        or after.requests_succeeded < before.requests_succeeded
        or after.requests_failed < before.requests_failed
        or after.preemptions < before.preemptions
        or after.ttft.count < before.ttft.count
    )


# -- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A growth over the part of a window that was really observed; nothing is extrapolated."""

    increase: float
    span: timedelta
    """Between the two samples used; about the window asked for, less while history is short."""

    @property
    def per_s(self) -> float:
        return self.increase / self.span.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterWindow:
    """The recent past of one counter. `points` are (moment, growth since the first sample), ascending in both."""

    span: timedelta
    """How far back it can be asked."""
    points: tuple[tuple[datetime, float], ...] = ()
    raw: float = 0.0
    """The counter as last read."""
    epoch: str | float = ""
    resets: int = 0

    def seen(self, at: datetime, raw: float, *, epoch: str | float = "") -> "CounterWindow":
        """With one more sample. A sample that is not newer than the last one is a repeat and changes nothing."""
        if not self.points:
            return replace(self, points=((at, 0.0),), raw=raw, epoch=epoch)
        last_at, total = self.points[-1]
        if at <= last_at:
            return self
        reset = epoch != self.epoch or raw < self.raw
        grown = total + increase(self.raw, raw, restarted=reset)
        kept = _since(self.points, at - self.span)
        return replace(self, points=(*kept, (at, grown)), raw=raw, epoch=epoch, resets=self.resets + reset)

    def rate(self, now: datetime, *, over: timedelta, stale_after: timedelta) -> Reading[Rate]:
        """The growth over the last `over` (at most `span`), ending at the last sample.

        Missing before there are two samples; Stale when the last one is older than `stale_after`.
        """
        assert over <= self.span, f"asked for {over}, the window keeps {self.span}"
        if not self.points:
            return Missing("never sampled")
        last_at, total = self.points[-1]
        first_at, base = _since(self.points, last_at - over)[0]
        age = now - last_at
        if first_at == last_at:
            return Missing("sampled once: a rate needs two samples")
        rate = Rate(increase=total - base, span=last_at - first_at)
        return Fresh(rate) if age <= stale_after else Stale(rate, age)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramWindow:
    """Recent observations of one or many processes, as increments. `parts` are (moment, observations), ascending."""

    span: timedelta
    parts: tuple[tuple[datetime, Histogram], ...] = ()

    def seen(self, at: datetime, increment: Histogram) -> "HistogramWindow":
        """With one more increment; increments of the same moment are kept beside each other. Older ones fall out."""
        assert not self.parts or at >= self.parts[-1][0], "increments come in order"
        start = at - self.span
        kept = tuple(part for part in self.parts if part[0] > start)
        return replace(self, parts=(*kept, (at, increment)))

    def over(self, now: datetime, *, over: timedelta) -> Histogram:
        """All observations after `now - over`; empty when there was none."""
        assert over <= self.span, f"asked for {over}, the window keeps {self.span}"
        return add_histograms(increment for at, increment in self.parts if now - over < at <= now)


def _since[P](points: tuple[tuple[datetime, P], ...], start: datetime) -> tuple[tuple[datetime, P], ...]:
    """The points from the last one at or before `start` on: a growth needs the value at the window's beginning."""
    first = 0
    while first + 1 < len(points) and points[first + 1][0] <= start:
        first += 1
    return points[first:]


# -- bounds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The true value lies in [lower, upper]; the two are equal where the histogram tells it exactly."""

    lower: float
    upper: float

    @property
    def exact(self) -> bool:
        return self.lower == self.upper


def attainment_bounds(histogram: Histogram, limit_s: float) -> Bounds | None:
    """The share of observations that took at most `limit_s`, 0..1. None when there was no observation.

    A limit inside a bucket splits it in an unknown way (vLLM's TTFT has edges at 1 and 2.5 s, so an SLO of 2 s is
    inside one): the lower bound counts none of that bucket, the upper one all of it.
    """
    total = histogram.count
    if total <= 0.0:
        return None
    lower = 0.0
    for edge, count in zip(histogram.edges, histogram.counts, strict=True):
        if edge == limit_s:
            return Bounds(lower=count / total, upper=count / total)
        if edge > limit_s:
            return Bounds(lower=lower / total, upper=count / total)
        lower = count
    return Bounds(lower=lower / total, upper=1.0)


def quantile_bounds(histogram: Histogram, quantile: float) -> Bounds | None:
    """Between which edges the quantile (0..1, exclusive) lies; upper is inf in the last bucket. None when empty.

    The quantile is the smallest observation that at least `quantile` of all observations do not exceed.
    """
    assert 0.0 < quantile < 1.0, f"quantile {quantile} is not inside (0, 1)"
    total = histogram.count
    if total <= 0.0:
        return None
    rank = quantile * total
    below = 0.0
    for edge, count in zip(histogram.edges, histogram.counts, strict=True):
        if count >= rank:
            return Bounds(lower=below, upper=edge)
        below = edge
    return Bounds(lower=below, upper=math.inf)


def mean(histogram: Histogram) -> float | None:
    """The exact mean of the observations; None when there was none."""
    return histogram.sum / histogram.count if histogram.count > 0.0 else None


def is_cumulative(histogram: Histogram) -> bool:
    """Edges strictly ascend to +inf and counts never fall: what a scrape in one piece always shows."""
    if not histogram.edges:
        return not histogram.counts
    return (
        len(histogram.edges) == len(histogram.counts)
        and histogram.edges[-1] == math.inf
        and all(low < high for low, high in pairwise(histogram.edges))
        and all(low <= high for low, high in pairwise(histogram.counts))
    )
