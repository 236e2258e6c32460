"""How much counted arrivals scatter beyond Poisson, at the scale that no start can follow.

Requests that come in bursts of seconds fill batches before any replica could be ready for them, so capacity has to
keep room for them all the time. How much is measured, not assumed: neighbouring spans of some seconds are compared,
which a trend hardly shows in. The square of their difference, over what Poisson counts of the same mean would have,
is on average the index of dispersion: 1 for independent requests, 15 and more for clients that send in bursts.
"""

import math
from dataclasses import replace

from controlplane.autoscaler.model import Scatter, Tuning

_GAP_SPANS = 3.0
"""A span that took this much longer than it should holds a time that was not seen: nothing to compare with."""


def scattered(scatter: Scatter, *, arrivals: float, seconds: float, served_s: float, tuning: Tuning) -> Scatter:
    """After so many more arrivals. `served_s`: how long a request is served; shorter ups and downs even out."""
    if seconds <= 0.0:
        return scatter
    span_s = min(max(served_s, tuning.scatter_least_s), tuning.scatter_most_s)
    seconds, arrivals = scatter.seconds + seconds, scatter.arrivals + arrivals
    if seconds < span_s:
        return replace(scatter, seconds=seconds, arrivals=arrivals)
    square, poisson = _compared(scatter, arrivals, seconds) if seconds <= _GAP_SPANS * span_s else (0.0, 0.0)
    keep = math.exp(-seconds / tuning.scatter_memory_s)
    # The newest comparison waits for the next one: a decision must not come out lower because a request just arrived.
    return Scatter(
        before_s=seconds,
        before=arrivals,
        newest_square=square,
        newest_poisson=poisson,
        squares=scatter.squares * keep + scatter.newest_square,
        poisson=scatter.poisson * keep + scatter.newest_poisson,
        compared=scatter.compared * keep + float(scatter.newest_poisson > 0.0),
    )


def _compared(scatter: Scatter, arrivals: float, seconds: float) -> tuple[float, float]:
    """The squared difference of two neighbouring rates and its Poisson mean, by time; zeros when there is no pair."""
    total = arrivals + scatter.before
    if scatter.before_s <= 0.0 or total <= 0.0:
        return 0.0, 0.0
    mean_rps = total / (seconds + scatter.before_s)
    difference = arrivals / seconds - scatter.before / scatter.before_s
    return difference**2 * seconds, (mean_rps / seconds + mean_rps / scatter.before_s) * seconds


def overdispersion(scatter: Scatter, tuning: Tuning) -> float:
    """The index of dispersion beyond doubt, at least 1.

    Over n comparisons of Poisson counts it has a standard error of about sqrt(2 / n).
    """
    if scatter.compared <= 0.0 or scatter.poisson <= 0.0:
        return 1.0
    doubt = tuning.scatter_proof_z * math.sqrt(2.0 / scatter.compared)
    proven = scatter.squares / scatter.poisson * max(1.0 - doubt, 0.0)
    return min(max(proven, 1.0), tuning.scatter_max)


def beyond_poisson(rate_rps: float, dispersion: float, tuning: Tuning) -> float:
    """Requests per second to be ready for on top of a rate, because it scatters more than Poisson counts do."""
    return tuning.scatter_z * math.sqrt((dispersion - 1.0) * rate_rps / tuning.scatter_least_s)
