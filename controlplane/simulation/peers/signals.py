"""What several peers read from their metrics in the same way."""

import math

from controlplane.simulation.fleet.policy import Gauge, Metrics, Seen

_FUZZ = 1e-9
"""A quotient this little above a whole number is that number: Kubernetes counts in whole thousandths instead."""


def known(value: float, instead: float = 0.0) -> float:
    return instead if math.isnan(value) else value


def replicas_for(amount: float, each: float) -> int:
    """`ceil(amount / each)`."""
    return math.ceil(amount / each - _FUZZ)


def pods(seen: Seen) -> int:
    """Those that exist, ready or not: a Deployment's status.replicas."""
    return seen.ready + seen.starting


def ongoing(metrics: Metrics, window_s: float) -> float:
    """Open requests over the window: running, waiting in an engine, held in the gateway. NaN without a scrape."""
    return metrics.mean_over(Gauge.RUNNING, window_s) + known(metrics.mean_over(Gauge.WAITING, window_s))
