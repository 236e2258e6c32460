"""`quarterdeck watch`: load, replicas, SLO and decisions as they move."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from controlplane.api.wire import DecisionOut, DeploymentOut, StatusOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, ControlPlane, Json
from controlplane.cli.exits import ExitCode, UnreachableError, fail, reported
from controlplane.cli.view import held_bar, phases, slo_met, status_lines, wanted

_HISTORY: Final = 60
"""Points of each sparkline: a minute at the default interval."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_DECISIONS_SHOWN: Final = 8
_SILENT_TRIES: Final = 30
"""Refreshes without an answer before giving up: a restart of the control plane takes some seconds."""
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


def sparkline(values: Mapping[int, float] | deque[float] | list[float], *, width: int = _HISTORY) -> str:
    """Eight heights, scaled from zero to the largest value shown."""
    shown = list(values.values() if isinstance(values, Mapping) else values)[-width:]
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
    client = ApiClient(control_plane)
    history: dict[str, Arrivals] = {}
    with reported():
        picture = _look(client, history)
    if once:
        time.sleep(interval_s)
        with reported():
            Console().print(_look(client, history))
        return
    silent = 0
    try:
        with Live(picture, screen=True, auto_refresh=False) as live:
            while silent < _SILENT_TRIES:
                time.sleep(interval_s)
                try:
                    live.update(_look(client, history), refresh=True)
                    silent = 0
                except UnreachableError as error:
                    silent += 1
                    live.update(Panel(escape(str(error)), title="waiting for the control plane"), refresh=True)
    except KeyboardInterrupt:
        return
    fail(f"no control plane answered for {silent} looks", ExitCode.UNREACHABLE)


def _look(client: ApiClient, history: dict[str, Arrivals]) -> RenderableType:
    status = StatusOut.model_validate(client.get("/api/v1/status"))
    answer: Json = client.get("/api/v1/decisions", {"limit": 200})
    assert isinstance(answer, list), "this endpoint answers with a list"
    at_s = time.monotonic()
    for row in status.deployments:
        total = row.traffic.arrivals_total if row.traffic else None
        history.setdefault(row.name, Arrivals()).add(at_s, total)
    return picture_of(status, [DecisionOut.model_validate(item) for item in answer], history)


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
    table = Table.grid(padding=(0, 2))
    for node in status.nodes:
        table.add_row(node.name, node.state, held_bar(node.gpus_held, node.gpus), node.gpu_model)
    return table


def _load(status: StatusOut, history: Mapping[str, Arrivals]) -> RenderableType:
    table = Table("deployment", "req/s", "the last minute", "in flight", "held", "replicas", "SLO met", box=None)
    for row in status.deployments:
        arrivals = history.get(row.name, Arrivals())
        rate = arrivals.rate_rps
        table.add_row(
            row.name,
            "?" if rate is None else f"{rate:.1f}",
            sparkline(arrivals.rates, width=30),
            "?" if row.traffic is None else str(row.traffic.in_flight + row.traffic.queued),
            "?" if row.traffic is None else str(row.traffic.held),
            _replicas(row),
            slo_met(row.slo_now),
        )
    return table


def _replicas(row: DeploymentOut) -> Text:
    text = Text()
    for phase, count in row.replicas_by_phase.items():
        text.append("●" * count if phase == "ready" else "◌" * count, style=_PHASE_COLOURS.get(phase, "white"))
    text.append(f" {phases(row)}, wanted ")
    text.append_text(Text.from_markup(wanted(row)))
    return text


def _decisions(moves: list[DecisionOut]) -> RenderableType:
    if not moves:
        return Text("no scaling decision yet", style="dim")
    table = Table.grid(padding=(0, 2))
    for row in moves:
        table.add_row(
            f"{row.at:%H:%M:%S}", row.deployment, f"{row.wanted_before} -> {row.wanted}", escape(row.sentence)
        )
    return table
