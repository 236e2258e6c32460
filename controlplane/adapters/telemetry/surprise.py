"""Whether more requests came than lately: a reason to look sooner, never one to decide on. Pure."""

import math
from dataclasses import dataclass
from typing import Final

_SURE_SD: Final = 3.0
"""Standard deviations, as the policy's change point asks for: of less nothing would follow."""
_RATE_MEMORY_S: Final = 10.0
"""Of what is usual: some rounds. A load that keeps its new rate is no surprise for long."""
_SPREAD_MEMORY_S: Final = 60.0
"""Bursts come seldom; what is known of them is forgotten more slowly."""
_SPREAD_MAX: Final = 20.0
"""Real traces reach 13 over a second (Azure 2023, code); one great step must not make blind for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """One deployment's arrivals as last counted in a round, and what is usual between rounds."""

    at_s: float
    total: float
    rate_rps: float | None = None
    """None: nothing is usual yet."""
    spread: float = 1.0
    """Variance over mean of the counts: 1 is Poisson."""

    def is_exceeded(self, total: float, at_s: float) -> bool:
        """Even the least of what so many arrivals may mean is more than usual."""
        came = total - self.total
        if self.rate_rps is None or came <= 0.0:
            return False
        return came - _SURE_SD * math.sqrt(self.spread * came) > self.rate_rps * (at_s - self.at_s)


def learned(usual: Usual | None, total: float, at_s: float) -> Usual:
    """After one more round. A counter that fell, or a clock that went back, begins anew."""
    if usual is None or total < usual.total or at_s <= usual.at_s:
        return Usual(at_s=at_s, total=total)
    seconds, came = at_s - usual.at_s, total - usual.total
    if usual.rate_rps is None:
        return Usual(at_s=at_s, total=total, rate_rps=came / seconds)
    expected = usual.rate_rps * seconds
    square = min((came - expected) ** 2 / max(expected, 1.0), _SPREAD_MAX)
    spread = usual.spread + _share(seconds, _SPREAD_MEMORY_S) * (square - usual.spread)
    rate_rps = usual.rate_rps + _share(seconds, _RATE_MEMORY_S) * (came / seconds - usual.rate_rps)
    return Usual(at_s=at_s, total=total, rate_rps=rate_rps, spread=max(spread, 1.0))


def _share(seconds: float, memory_s: float) -> float:
    """Weight of the newest, where what is old is forgotten exponentially."""
    return 1.0 - math.exp(-seconds / memory_s)
