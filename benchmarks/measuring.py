"""Times, memory and growth, each in a way that a busy machine does not spoil more than it must.

Times are seconds of CPU that this process used, of all its threads: what a core must give, whoever else is on the
machine. A size is measured in a process of its own, bound to one core, so that its peak memory is nobody else's.
"""

import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[1]
_CHILD_DEADLINE_S: Final = 600.0
"""Of one size; the largest takes about a minute, most of it to fill the store."""
_KIB_PER_MIB: Final = 1024
_P90: Final = 0.9


class Stopwatch:
    """Milliseconds of CPU by stage, one figure a round. A stage that comes several times a round is added up."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, float]] = []

    @contextmanager
    def round(self) -> Iterator[None]:
        """Without the collector's work for what stood before."""
        gc.collect()
        self._rounds.append({})
        yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent_ms = (time.process_time() - began) * 1e3
        now = self._rounds[-1]
        now[name] = now.get(name, 0.0) + spent_ms

    def stages(self) -> dict[str, float]:
        """Medians, in order of the first round's stages."""
        return {name: statistics.median(each.get(name, 0.0) for each in self._rounds) for name in self._rounds[0]}

    def totals(self) -> tuple[float, float]:
        """Median and 90th percentile of whole rounds."""
        sums = sorted(sum(each.values()) for each in self._rounds)
        return statistics.median(sums), sums[math.ceil(_P90 * len(sums)) - 1]


def median_us(work: Sequence[float]) -> float:
    return statistics.median(work) * 1e6


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of growth: the slope of a line through the logarithms. 1 is linear, 2 is quadratic; NaN for a single size."""
    if len(set(sizes)) < 2 or min(values) <= 0.0:
        return math.nan
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(one) for one in values]).slope


def measure_apart(benchmark: str, **case: float | str) -> dict[str, Any]:
    """`benchmarks.<benchmark>.measure(**case)` in a process of its own, with that process's memory beside it.

    RuntimeError with the child's last words when it fails.
    """
    command = [sys.executable, "-m", "benchmarks.measuring", benchmark, json.dumps(case)]
    child = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_CHILD_DEADLINE_S, check=False)
    if child.returncode:
        raise RuntimeError(f"measuring {benchmark} {case} failed:\n{child.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def _peak_mib() -> float:
    """Of this program. On Linux a child inherits `ru_maxrss`, through exec too: there the kernel's own mark is read."""
    status = Path("/proc/self/status")
    if status.exists():
        marks = (line.split() for line in status.read_text(encoding="ascii").splitlines())
        return next(float(words[1]) for words in marks if words and words[0] == "VmHWM:") / _KIB_PER_MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB


def _measure_here(benchmark: str, case: Mapping[str, Any]) -> dict[str, Any]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measure = import_module(f"benchmarks.{benchmark}").measure
    before = _peak_mib()
    result: dict[str, Any] = measure(**case)
    return {**result, "program_mib": round(before, 1), "added_mib": round(_peak_mib() - before, 1)}


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], json.loads(sys.argv[2]))))
