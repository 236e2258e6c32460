"""`quarterdeck watch`: load, replicas, SLO and decisions as they move."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from controlplane.api.wire import DecisionOut, DeploymentOut, StatusOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, ControlPlane, parsed, parsed_rows
from controlplane.cli.exits import UnreachableError, reported
from controlplane.cli.view import grounds, held_bar, moved, slo_met, status_lines, wanted
from controlplane.kernel.errors import RetryableError

_HISTORY: Final = 60
"""Points of each sparkline: a minute at the default interval."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_DECISIONS_SHOWN: Final = 8
_SILENT_TRIES: Final = 30
"""Refreshes without an answer before giving up: a restart of the control plane takes some seconds."""
_DECISIONS_READ: Final = 200
"""Most of them changed nothing and are not shown."""
_SPARKLINE_MIN: Final = 6
_SPARKLINE_MAX: Final = 30
_RATE_POINTS: Final = 5
"""Arrival rates are smoothed over so many refreshes."""

_PHASE_COLOURS: Final = {
    "ready": "green",
    "starting": "yellow",
    "pending": "yellow",
    "waking": "yellow",
    "draining": "magenta",
    "stopping": "magenta",
    "sleeping": "blue",
}


@dataclass
class Arrivals:
    """The arrival counter of one deployment, looked at now and then."""

    points: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RATE_POINTS))
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def add(self, at_s: float, total: float | None) -> None:
        """A smaller counter than before is a restart: begin anew. None (no fresh figure) leaves a gap."""
        if total is None:
            return
        if self.points and total < self.points[-1][1]:
            self.points.clear()
        self.points.append((at_s, total))
        first_at, first_total = self.points[0]
        if at_s > first_at:
            self.rates.append((total - first_total) / (at_s - first_at))

    @property
    def rate_rps(self) -> float | None:
        return self.rates[-1] if self.rates else None


@dataclass(frozen=True)
class Sparkline:
    """Eight heights, scaled from zero to the largest value shown; as wide as there is room for."""

    values: Sequence[float]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_SPARKLINE_MIN, _SPARKLINE_MAX).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.drawn(options.max_width), no_wrap=True)

    def drawn(self, width: int) -> str:
        """The last `width` values."""
        shown = self.values[-width:]
        peak = max(shown, default=0.0)
        if peak <= 0.0:
            return _BARS[0] * len(shown)
        return "".join(_BARS[min(len(_BARS) - 1, int(value / peak * len(_BARS)))] for value in shown)


def watch(
    control_plane: ControlPlane = DEFAULT_URL,
    interval_s: Annotated[float, typer.Option("--interval", min=0.2, max=60.0, help="Seconds between looks.")] = 1.0,
    *,
    once: Annotated[bool, typer.Option("--once", help="Two looks, one picture, then end: for scripts.")] = False,
) -> None:
    """A live view of load, replicas, SLO and decisions. Ctrl-C ends it; nothing else is touched."""
    console = Console()
    history: dict[str, Arrivals] = {}
    with reported(), suppress(KeyboardInterrupt), ApiClient(control_plane) as client:
        picture = _look(client, history)
        if once or not console.is_terminal:
            time.sleep(interval_s)
            console.print(_look(client, history))
            return
        _live(console, client, history, picture, interval_s)


def _live(
    console: Console, client: ApiClient, history: dict[str, Arrivals], picture: RenderableType, interval_s: float
) -> None:
    """Until Ctrl-C, or until nobody answered for long."""
    silent = 0
    with Live(picture, console=console, screen=True, auto_refresh=False) as live:
        while silent < _SILENT_TRIES:
            time.sleep(interval_s)
            try:
                live.update(_look(client, history), refresh=True)
                silent = 0
            except RetryableError as error:
                silent += 1
                live.update(Panel(escape(str(error)), title="waiting for the control plane"), refresh=True)
    raise UnreachableError(f"no control plane answered for {silent} looks")


def _look(client: ApiClient, history: dict[str, Arrivals]) -> RenderableType:
    status = parsed(StatusOut, client.get("/api/v1/status"))
    decisions = parsed_rows(DecisionOut, client.get("/api/v1/decisions", {"limit": _DECISIONS_READ}))
    at_s = time.monotonic()
    for row in status.deployments:
        total = row.traffic.arrivals_total if row.traffic else None
        history.setdefault(row.name, Arrivals()).add(at_s, total)
    return picture_of(status, decisions, history)


def picture_of(status: StatusOut, decisions: list[DecisionOut], history: Mapping[str, Arrivals]) -> RenderableType:
    """The whole picture, from answers alone."""
    moves = [decision for decision in decisions if decision.wanted != decision.wanted_before]
    return Group(
        Text.from_markup("\n".join(status_lines(status))),
        Panel(_nodes(status), title="GPUs", title_align="left"),
        Panel(_load(status, history), title="Load and replicas", title_align="left"),
        Panel(_decisions(moves[:_DECISIONS_SHOWN]), title="Why", title_align="left"),
    )


def _nodes(status: StatusOut) -> RenderableType:
    if not status.nodes:
        return Text("no nodes", style="dim")
    table = Table.grid(padding=(0, 2))
    for node in status.nodes:
        colour = "green" if node.state == "ready" else "yellow"
        table.add_row(node.name, Text(node.state, colour), held_bar(node.gpus_held, node.gpus), node.gpu_model)
    return table


def _load(status: StatusOut, history: Mapping[str, Arrivals]) -> RenderableType:
    if not status.deployments:
        return Text("no deployments", style="dim")
    table = Table(box=None, pad_edge=False)
    for column in ("deployment", "req/s", "lately", "in flight", "held", "replicas", "SLO met"):
        right = column in ("req/s", "in flight", "held")
        table.add_column(column, no_wrap=column != "lately", justify="right" if right else "left")
    for row in status.deployments:
        arrivals = history.get(row.name, Arrivals())
        rate = arrivals.rate_rps
        table.add_row(
            row.name,
            "?" if rate is None else f"{rate:.1f}",
            Sparkline(list(arrivals.rates)),
            "?" if row.traffic is None else str(row.traffic.in_flight + row.traffic.queued),
            "?" if row.traffic is None else str(row.traffic.held),
            _replicas(row),
            slo_met(row.slo_now),
        )
    return table


def _replicas(row: DeploymentOut) -> Text:
    """`●●◌ 2 of 3, 1 starting`: ready ones, of those wanted."""
    text = Text()
    for phase, count in row.replicas_by_phase.items():
        text.append("●" * count if phase == "ready" else "◌" * count, style=_PHASE_COLOURS.get(phase, "white"))
    text.append(f"{' ' if text else ''}{row.replicas_by_phase.get('ready', 0)} of ")
    text.append_text(Text.from_markup(wanted(row)))
    for phase, count in row.replicas_by_phase.items():
        if phase != "ready":
            text.append(f", {count} {phase}")
    return text


def _decisions(moves: list[DecisionOut]) -> RenderableType:
    if not moves:
        return Text("no scaling decision yet", style="dim")
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column()
    for row in moves:
        table.add_row(f"{row.at:%H:%M:%S}", row.deployment, moved(row), escape(grounds(row)))
    return table
