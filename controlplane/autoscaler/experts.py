"""Demand one lead ahead, from several simple forecasts that are trusted by how well they did on this very load.

Each expert reads the counted arrivals of one span: its mean (what comes is what came) or its line carried on. None is
right for every load: a short mean follows a turn and shivers, a long one is calm and late, a line is right on a slope
and overshoots at its end. So each is judged, again and again: what it would have said one lead ago for now, against
what came. The blend weighs them by the inverse square of their mean squared error, and its own error on this load, not
an assumption about it, is the width of the band. What an expert cannot know, a step, the change point of
`forecast` tells; and a peak that was just there is not forgotten before it has stayed away for a while.

Errors are differences of logarithms: 10 % at night count like 10 % at noon. The scatter that arrivals have in
themselves is taken off: what it asks of capacity is in the capacity model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controlplane.autoscaler.forecast import Demand, change_point, dispersion, window_s
from controlplane.autoscaler.model import Bucket, ForecastErrors, Peak, Tuning

_MEANS = (0.1, 0.33, 1.0)
_LINES = (0.33, 0.67, 1.0)
"""Spans of the experts, in windows."""
EXPERTS = len(_MEANS) + len(_LINES)
_POINTS_MIN = 4
"""A line through fewer buckets says more about the buckets than about the trend."""
_FALL_MAX = 0.25
"""A line never says less than this share of the mean: loads stop falling."""


@dataclass(slots=True)
class _Sums:
    """Over buckets, times counted back from the moment of the forecast; grows bucket by bucket."""

    buckets: int = 0
    seconds: float = 0.0
    arrivals: float = 0.0
    seconds_t: float = 0.0
    seconds_t2: float = 0.0
    arrivals_t: float = 0.0

    def add(self, bucket: Bucket, end_s: float) -> None:
        t = bucket.end_s - bucket.seconds / 2.0 - end_s
        self.buckets += 1
        self.seconds += bucket.seconds
        self.arrivals += bucket.arrivals
        self.seconds_t += bucket.seconds * t
        self.seconds_t2 += bucket.seconds * t * t
        self.arrivals_t += bucket.arrivals * t

    @property
    def mean(self) -> float:
        return self.arrivals / self.seconds

    def line_at(self, ahead_s: float, gain_max: float) -> float:
        """The least-squares line at so many seconds ahead, at most 1 + gain_max times the mean."""
        mean, centre = self.mean, self.seconds_t / self.seconds
        spread = self.seconds_t2 - self.seconds * centre * centre
        if self.buckets < _POINTS_MIN or spread <= 0.0:
            return mean
        slope = (self.arrivals_t - self.arrivals * centre) / spread
        return min(max(mean + slope * (ahead_s - centre), _FALL_MAX * mean), (1.0 + gain_max) * mean)


def first_errors(at_s: float) -> ForecastErrors:
    """Nobody has been judged."""
    return ForecastErrors(judged_s=at_s, weight_s=0.0, squares=(0.0,) * (EXPERTS + 1))


def judged(
    errors: ForecastErrors, buckets: Sequence[Bucket], lead_s: float, tuning: Tuning, *, dispersion: float = 1.0
) -> ForecastErrors:
    """After one more look at how each expert, and the blend, would have done one lead ago; at most once a bucket.

    `dispersion`: of arrivals, over that of Poisson counts. What scatter explains is no error of an expert.
    """
    if len(buckets) < _POINTS_MIN:
        return errors
    # The newest bucket may still grow.
    end_s = buckets[-2].end_s
    span_s = min(max(lead_s * tuning.judged_share, tuning.bucket_min_s), tuning.judged_max_s)
    seen = [bucket for bucket in buckets[:-1] if bucket.end_s > end_s - span_s]
    seconds, arrivals = sum(bucket.seconds for bucket in seen), sum(bucket.arrivals for bucket in seen)
    origin_s = end_s - max(lead_s, span_s)
    before = [bucket for bucket in buckets if bucket.end_s <= origin_s]
    if end_s <= errors.judged_s or sum(bucket.seconds for bucket in before) < tuning.first_window_s:
        return errors
    said = list(_said(before, origin_s, lead_s, tuning))
    said.append(_blended(said, errors, tuning))
    passed_s = min(end_s - errors.judged_s, lead_s)
    keep = math.exp(-passed_s / max(tuning.judged_memory_leads * lead_s, tuning.judged_memory_min_s))
    noise, most = dispersion / (arrivals + 1.0), tuning.error_most**2
    squares = tuple(
        square * keep + passed_s * min(max(_log_ratio(arrivals, rate * seconds) ** 2 - noise, 0.0), most)
        for square, rate in zip(errors.squares, said, strict=True)
    )
    return ForecastErrors(
        judged_s=end_s,
        weight_s=errors.weight_s * keep + passed_s,
        squares=squares,
        peaks=_peaks(errors.peaks, Peak(at_s=end_s, rate_rps=arrivals / seconds), end_s - tuning.recall_leads * lead_s),
    )


def _peaks(peaks: Sequence[Peak], newest: Peak, since_s: float) -> tuple[Peak, ...]:
    higher = (peak for peak in peaks if peak.at_s > since_s and peak.rate_rps > newest.rate_rps)
    return (*higher, newest)


def expect(buckets: Sequence[Bucket], errors: ForecastErrors, lead_s: float, tuning: Tuning) -> Demand | None:
    """Demand now and one lead after the last measured moment; None when nothing was measured yet.

    Counted from the last measurement and not from now: while blind,
    the expectation stays as it was.
    """
    if not buckets:
        return None
    end_s, length_s = buckets[-1].end_s, window_s(lead_s, tuning)
    window = [bucket for bucket in buckets if bucket.end_s > end_s - length_s]
    taken_s = max(sum(bucket.seconds for bucket in window), tuning.first_window_s)
    level = sum(bucket.arrivals for bucket in window) / taken_s
    spread = dispersion(window, tuning)
    sd = math.sqrt(spread * level / taken_s)
    young = taken_s <= tuning.first_window_s
    ahead = level if young else _blended(list(_said(window, end_s, lead_s, tuning)), errors, tuning)
    now = level if young else next(_said(window, end_s, lead_s, tuning))
    burst, burst_s = change_point(window, level + tuning.burst_z * sd, spread, length_s, tuning)
    error = _error(errors, lead_s, tuning)
    since_s = end_s - tuning.recall_leads * lead_s
    seen_rps = max(burst, *(peak.rate_rps for peak in errors.peaks if peak.at_s > since_s), 0.0)
    return Demand(
        level_rps=level,
        window_s=taken_s,
        burst_rps=burst,
        burst_s=burst_s,
        rise_rps=ahead - level,
        error=error,
        peak_rps=seen_rps,
        up_rps=max(ahead * math.exp(tuning.up_z * error) + tuning.up_z * sd, seen_rps),
        keep_rps=max(max(ahead, now) * math.exp(tuning.keep_z * error) + tuning.keep_z * sd, seen_rps),
    )


def _said(buckets: Sequence[Bucket], end_s: float, lead_s: float, tuning: Tuning) -> Iterator[float]:
    """Each expert's rate one lead after `end_s`, from the buckets up to it, in one pass over them."""
    length_s = window_s(lead_s, tuning)
    spans = sorted({*_MEANS, *_LINES})
    at: dict[float, _Sums] = {}
    sums, place = _Sums(), len(buckets) - 1
    for span in spans:
        limit_s = end_s - max(span * length_s, tuning.span_min_s)
        while place >= 0 and buckets[place].end_s > limit_s:
            sums.add(buckets[place], end_s)
            place -= 1
        at[span] = _Sums(sums.buckets, sums.seconds, sums.arrivals, sums.seconds_t, sums.seconds_t2, sums.arrivals_t)
    known = sums.mean if sums.seconds > 0.0 else 0.0
    for span in _MEANS:
        yield at[span].mean if at[span].seconds > 0.0 else known
    for span in _LINES:
        yield at[span].line_at(lead_s, tuning.trend_gain_max) if at[span].seconds > 0.0 else known


def _blended(said: Sequence[float], errors: ForecastErrors, tuning: Tuning) -> float:
    prior_s, floor = tuning.error_prior_s, tuning.error_floor**2
    weights = [1.0 / (_square(errors, place, prior_s, tuning) + floor) ** 2 for place in range(len(said))]
    return sum(weight * rate for weight, rate in zip(weights, said, strict=True)) / sum(weights)


def _square(errors: ForecastErrors, place: int, prior_s: float, tuning: Tuning) -> float:
    """Mean squared error, with a prior that counts like so many seconds of judging."""
    return (errors.squares[place] + prior_s * tuning.error_prior**2) / (errors.weight_s + prior_s)


def _error(errors: ForecastErrors, lead_s: float, tuning: Tuning) -> float:
    """The blend's standard deviation; before anybody was judged a lead's worth of the prior counts."""
    return math.sqrt(_square(errors, EXPERTS, max(tuning.error_prior_s, lead_s), tuning))


def _log_ratio(arrivals: float, said: float) -> float:
    """Half a request is added to both: none against none is no error."""
    return math.log((arrivals + 0.5) / (said + 0.5))
