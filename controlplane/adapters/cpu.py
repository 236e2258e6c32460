"""How busy this machine's CPUs are."""

from collections.abc import Callable
from typing import Final

import psutil

_SPAN_MIN_S: Final = 0.5
"""Of all cores' time together: readers that ask at the same moment get the same answer, not one over no time."""

type CpuTimes = Callable[[], tuple[float, float]]
"""Busy and total seconds of all cores since the machine started."""


def machine_cpu_times() -> tuple[float, float]:
    """Waiting for a disk counts as idle, as top and node_exporter's usual formula have it."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time in user as well.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - idle, total


class CpuMeter:
    """The share of all cores' time that was used since the last look."""

    def __init__(self, times: CpuTimes = machine_cpu_times) -> None:
        self._times = times
        self._busy, self._total = times()
        self._share: float | None = None

    def utilization(self) -> float | None:
        """0..1; None until some time has passed since the meter was made."""
        busy, total = self._times()
        if total - self._total >= _SPAN_MIN_S:
            self._share = min(max((busy - self._busy) / (total - self._total), 0.0), 1.0)
            self._busy, self._total = busy, total
        return self._share
