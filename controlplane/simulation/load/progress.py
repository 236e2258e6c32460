"""How a load goes, live: one line that is rewritten on a terminal, one line in ten seconds elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from controlplane.simulation.load.tally import Progress

_PLAIN_S: Final = 10.0
"""Between lines in a log file."""


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows each progress it gets."""
    if not console.is_terminal:
        yield _Plain(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        meter = _Rate()
        yield lambda progress: live.update(Text(_line(progress, meter.rate_rps(progress))))


class _Rate:
    """Requests per second between two looks."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._sent = 0

    def rate_rps(self, progress: Progress) -> float:
        span_s = progress.at_s - self._at_s
        rate = (progress.sent - self._sent) / span_s if span_s > 0.0 else 0.0
        self._at_s, self._sent = progress.at_s, progress.sent
        return rate


class _Plain:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._rate = _Rate()
        self._next_s = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.at_s >= self._next_s:
            self._next_s = progress.at_s + _PLAIN_S
            self._console.print(_line(progress, self._rate.rate_rps(progress)), soft_wrap=True, highlight=False)


def _line(progress: Progress, rate_rps: float) -> str:
    met = "-" if progress.attainment is None else f"{progress.attainment:.1%}"
    return (
        f"{progress.at_s:6.0f}s  {rate_rps:7.1f} req/s  {progress.in_flight:5d} open  {progress.ok:8d} ok  "
        f"{progress.failed:5d} failed  SLO met {met}  late {progress.late_s * 1e3:.0f}ms"
    )
