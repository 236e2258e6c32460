"""The metrics system in virtual time: scrapes at an interval, and the queries that peers' rules are written in.

Queries follow Prometheus: `rate` needs two samples in its window and divides by the time between first and last one;
`histogram_quantile` interpolates linearly inside a bucket and answers the highest finite edge beyond it; an instant
query finds a sample of up to five minutes ago. Replicas share one set of counters, which never restart: what a
restart of one does to a rate is left out.
"""

import math
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import GAUGES, Counter, Gauge, Latency
from controlplane.simulation.fleet.state import COUNTERS, EDGES, HISTOGRAMS, READY, Fleet, Timing

_LOOKBACK_S: Final = 300.0
"""Prometheus's default: how long an instant query believes its last sample."""
_KEPT_S: Final = 900.0
"""Longer than any window in a peer's rule."""


class MetricsLog:
    """Implements `Metrics`. Mutable: scrapes come in, old ones fall out."""

    def __init__(self, *, scrape_s: float, slots: int) -> None:
        self._scrape_s = scrape_s
        size = int(_KEPT_S / scrape_s) + 2
        self._size = size
        self._taken = 0
        """Scrapes so far; the last one is in row `(taken - 1) % size`."""
        self._now_s = 0.0
        self._at_s = np.full(size, -math.inf)
        self._counters = np.zeros((size, COUNTERS))
        width = max(len(edges) for edges in EDGES) + 1
        self._buckets = np.zeros((size, HISTOGRAMS, width))
        self._sums = np.zeros((size, HISTOGRAMS))
        self._held = np.zeros(size)
        self._gauges = np.zeros((size, GAUGES, slots))
        self._ready = np.zeros((size, slots), dtype=bool)

    def scrape(self, fleet: Fleet, timing: Timing, at_s: float) -> None:
        row = self._taken % self._size
        self._taken += 1
        totals, slots = fleet.totals[0], fleet.slots
        self._at_s[row] = at_s
        self._counters[row] = totals.counters
        self._buckets[row] = totals.buckets
        self._sums[row] = totals.sums
        self._held[row] = totals.held
        gauges = self._gauges[row]
        gauges[Gauge.RUNNING] = slots.running
        gauges[Gauge.WAITING] = slots.waiting
        gauges[Gauge.KV_USAGE] = slots.used / timing.kv_tokens
        gauges[Gauge.QUEUED_PROMPT_TOKENS] = slots.queued_prompt
        self._ready[row] = slots.phase == READY

    def look(self, now_s: float) -> None:
        """Queries are asked at this moment."""
        self._now_s = now_s

    # -- instant ------------------------------------------------------------------------------------------------------

    def _last(self) -> int | None:
        row = (self._taken - 1) % self._size
        return row if self._taken and self._now_s - self._at_s[row] <= _LOOKBACK_S else None

    def per_replica(self, gauge: Gauge) -> Floats:
        row = self._last()
        return np.zeros(0) if row is None else self._gauges[row, gauge, self._ready[row]]

    def total(self, gauge: Gauge) -> float:
        values = self.per_replica(gauge)
        return float(values.sum()) if len(values) else math.nan

    def held(self) -> float:
        row = self._last()
        return math.nan if row is None else float(self._held[row])

    def scraped_s(self) -> float:
        return float(self._at_s[(self._taken - 1) % self._size]) if self._taken else math.nan

    def grown(self, counter: Counter) -> float:
        return float(self._counters[(self._taken - 1) % self._size, counter])

    def observed(self, latency: Latency) -> Floats:
        return np.asarray(self._buckets[(self._taken - 1) % self._size, latency])

    def observed_s(self, latency: Latency) -> float:
        return float(self._sums[(self._taken - 1) % self._size, latency])

    # -- over a window ------------------------------------------------------------------------------------------------

    def _rows(self, window_s: float) -> list[int]:
        """Of the scrapes within the window, the oldest first."""
        rows: list[int] = []
        begins_s = self._now_s - window_s
        for number in range(self._taken - 1, max(self._taken - self._size, 0) - 1, -1):
            row = number % self._size
            if self._at_s[row] < begins_s:
                break
            rows.append(row)
        rows.reverse()
        return rows

    def mean_over(self, gauge: Gauge, window_s: float) -> float:
        rows = self._rows(window_s)
        if not rows:
            return math.nan
        totals = [float(self._gauges[row, gauge, self._ready[row]].sum()) for row in rows]
        if gauge is Gauge.RUNNING:
            totals = [total + float(self._held[row]) for total, row in zip(totals, rows, strict=True)]
        return sum(totals) / len(totals)

    def peak_over(self, gauge: Gauge, window_s: float) -> Floats:
        rows, last = self._rows(window_s), self._last()
        if not rows or last is None:
            return np.zeros(0)
        return np.asarray(self._gauges[rows, gauge].max(axis=0)[self._ready[last]])

    def increase(self, counter: Counter, window_s: float) -> float:
        return self.rate(counter, window_s) * window_s

    def rate(self, counter: Counter, window_s: float) -> float:
        rows = self._rows(window_s)
        if len(rows) < 2:  # noqa: PLR2004 - a difference has two ends
            return math.nan
        grown = self._counters[rows[-1], counter] - self._counters[rows[0], counter]
        return float(grown / (self._at_s[rows[-1]] - self._at_s[rows[0]]))

    def quantile(self, latency: Latency, q: float, window_s: float) -> float:
        rows = self._rows(window_s)
        if len(rows) < 2:  # noqa: PLR2004 - a difference has two ends
            return math.nan
        return histogram_quantile(q, self._buckets[rows[-1], latency] - self._buckets[rows[0], latency], EDGES[latency])

    def mean_latency(self, latency: Latency, window_s: float) -> float:
        rows = self._rows(window_s)
        if len(rows) < 2:  # noqa: PLR2004 - a difference has two ends
            return math.nan
        count = float((self._buckets[rows[-1], latency] - self._buckets[rows[0], latency]).sum())
        seconds = float(self._sums[rows[-1], latency] - self._sums[rows[0], latency])
        return seconds / count if count > 0.0 else math.nan


def histogram_quantile(q: float, buckets: Floats, edges: tuple[float, ...]) -> float:
    """PromQL's: linear inside the bucket, the highest finite edge beyond; NaN for no observations.

    `buckets` are counts per bucket, those beyond the edges count as +Inf.
    """
    total = float(buckets.sum())
    if total <= 0.0:
        return math.nan
    rank, below = q * total, 0.0
    for place, edge in enumerate(edges):
        inside = float(buckets[place])
        if below + inside >= rank:
            low = edges[place - 1] if place else 0.0
            return low + (edge - low) * ((rank - below) / inside if inside else 0.0)
        below += inside
    return edges[-1]
