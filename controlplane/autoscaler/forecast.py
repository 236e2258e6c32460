"""How much will be asked for when a replica ordered now is ready: level, trend and band from counted arrivals.

Arrivals lead latency, so the forecast reads arrivals only. The level is the rate over a long window, or, after a
change point, over the longest short one that no longer fits the long one. A rising trend is extrapolated to the
horizon by the part of it that exceeds its own error. The band is Poisson, widened by the measured dispersion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from controlplane.autoscaler.model import Bucket, Tuning

_TREND_BUCKETS_MIN = 5
"""A line through fewer points than this says more about the points than about the trend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests per second, now and at the horizon."""

    level_rps: float
    window_s: float
    """Over which the level was taken."""
    burst_rps: float
    """The rate since a change point; 0 when there was none."""
    burst_s: float
    rise_rps: float
    """What is expected to come on top of the level until the horizon; below 0 when it falls."""
    peak_rps: float = 0.0
    """The highest rate of late, `burst_rps` among them; 0 where nobody recalls."""
    error: float = 0.0
    """Of the expectation: standard deviation of its logarithm, as judged on this load; 0 where nobody judged."""
    up_rps: float
    """To order for."""
    keep_rps: float
    """Below which replicas may be given back; >= up_rps."""


def window_s(lead_s: float, tuning: Tuning) -> float:
    """Length of the long window."""
    return min(max(tuning.window_leads * lead_s, tuning.window_min_s), tuning.window_max_s)


def hold_s(lead_s: float, tuning: Tuning) -> float:
    """How long demand must have stayed below before replicas are given back."""
    floor_s = min(max(tuning.hold_min_leads * lead_s, tuning.hold_least_s), tuning.hold_floor_s)
    return max(tuning.hold_leads * lead_s, floor_s)


def with_arrivals(
    buckets: tuple[Bucket, ...], *, end_s: float, seconds: float, arrivals: float, lead_s: float, tuning: Tuning
) -> tuple[Bucket, ...]:
    """The history with one more measured span, old ones forgotten; short spans are merged into buckets."""
    if seconds <= 0.0:
        return buckets
    keep_s = max(window_s(lead_s, tuning) + lead_s, hold_s(lead_s, tuning))
    kept = tuple(bucket for bucket in buckets if bucket.end_s > end_s - keep_s)
    width_s = min(max(lead_s / tuning.bucket_per_lead, tuning.bucket_min_s), tuning.bucket_max_s)
    added = Bucket(end_s=end_s, seconds=seconds, arrivals=arrivals, need=0)
    if not kept or kept[-1].seconds + seconds > width_s:
        return (*kept, added)
    last = kept[-1]
    if end_s - seconds - last.end_s > width_s:
        return (*kept, added)
    merged = replace(last, end_s=end_s, seconds=last.seconds + seconds, arrivals=last.arrivals + arrivals)
    return (*kept[:-1], merged)


def estimate(buckets: Sequence[Bucket], *, lead_s: float, tuning: Tuning) -> Demand | None:
    """Demand one lead after the last measured moment; None when nothing was measured yet.

    Counted from the last measurement and not from now: while blind, the estimate stays as it was.
    """
    if not buckets:
        return None
    end_s, length_s = buckets[-1].end_s, window_s(lead_s, tuning)
    window = [bucket for bucket in buckets if bucket.end_s > end_s - length_s]
    seconds = sum(bucket.seconds for bucket in window)
    taken_s = max(seconds, tuning.first_window_s)
    level = sum(bucket.arrivals for bucket in window) / taken_s
    spread = dispersion(window, tuning)
    sd = math.sqrt(spread * level / taken_s)
    burst, burst_s = change_point(window, level + tuning.burst_z * sd, spread, length_s, tuning)
    rise = _rise(window, level, spread, lead_s, tuning)
    return Demand(
        level_rps=level,
        window_s=taken_s,
        burst_rps=burst,
        burst_s=burst_s,
        rise_rps=rise,
        up_rps=max(level + rise + tuning.up_z * sd, burst),
        keep_rps=max(level + rise + tuning.keep_z * sd, burst),
    )


def dispersion(window: Sequence[Bucket], tuning: Tuning) -> float:
    """Variance over mean of the counts, 1 for Poisson, from successive differences so that a trend does not count.

    The newest bucket is left out: a decision must not come out lower because one more request just arrived.
    """
    settled = window[:-1]
    if len(settled) <= _TREND_BUCKETS_MIN:
        return 1.0
    expected = squares = 0.0
    for before, after in pairwise(settled):
        rate = (before.arrivals + after.arrivals) / (before.seconds + after.seconds)
        squares += (after.rate_rps - before.rate_rps) ** 2
        expected += rate / before.seconds + rate / after.seconds
    if expected <= 0.0:
        return 1.0
    return min(max(squares / expected, 1.0), tuning.dispersion_max)


def change_point(
    window: Sequence[Bucket], long_upper: float, spread: float, length_s: float, tuning: Tuning
) -> tuple[float, float]:
    """What a short window proves beyond the long window's upper band, and its length; zeros when none does.

    The window that says most is picked among many, so it is believed only up to a lower band of its own.
    """
    best = (0.0, 0.0)
    arrivals = seconds = 0.0
    for bucket in reversed(window):
        arrivals += bucket.arrivals
        seconds += bucket.seconds
        if seconds > tuning.burst_window_share * length_s:
            break
        rate = arrivals / seconds
        sd = math.sqrt(spread * rate / seconds)
        proven = rate - tuning.burst_credit_z * sd
        if rate - tuning.burst_z * sd > long_upper and proven > best[0]:
            best = (proven, seconds)
    return best


def _rise(window: Sequence[Bucket], level: float, spread: float, lead_s: float, tuning: Tuning) -> float:
    """Requests per second that a rising trend adds from the window's centre, where the level is, to the horizon."""
    if len(window) < _TREND_BUCKETS_MIN or level <= 0.0:
        return 0.0
    seconds = sum(bucket.seconds for bucket in window)
    centre = sum(bucket.seconds * _middle_s(bucket) for bucket in window) / seconds
    spread_t = sum(bucket.seconds * (_middle_s(bucket) - centre) ** 2 for bucket in window)
    if spread_t <= 0.0:
        return 0.0
    slope = sum(bucket.arrivals * (_middle_s(bucket) - centre) for bucket in window) / spread_t
    sure = max(0.0, slope - tuning.trend_z * math.sqrt(spread * level / spread_t))
    so_far = sure * (window[-1].end_s - centre)
    return so_far + min(sure * lead_s, tuning.trend_gain_max * (level + so_far))


def _middle_s(bucket: Bucket) -> float:
    return bucket.end_s - bucket.seconds / 2.0
