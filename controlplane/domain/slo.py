"""Service level objectives as the operator states them."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTarget:
    """At least `percentile` (0..1, exclusive) of requests take no longer than `limit`."""

    percentile: float
    limit: timedelta

    def __post_init__(self) -> None:
        assert 0.0 < self.percentile < 1.0, f"percentile {self.percentile} is not inside (0, 1)"
        assert self.limit > timedelta(0), f"limit {self.limit} is not positive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a deployment promises. None means: nothing promised for that latency."""

    ttft: LatencyTarget | None = None
    """Time to first token, from the request's arrival at the gateway."""
    inter_token: LatencyTarget | None = None
    """Mean time per output token after the first, of one request."""
    end_to_end: LatencyTarget | None = None
    """Arrival to last byte."""

    @property
    def is_empty(self) -> bool:
        return self.ttft is None and self.inter_token is None and self.end_to_end is None
