"""API answers as text: shared by the commands that look, `watch` and `up`."""

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from controlplane.api.wire import DecisionOut, DeploymentOut, EventOut, NodeOut, SloNow, StatusOut
from controlplane.domain.reason import Reason

_WIDTH_MAX: Final = 1000
_GOOD_STATES: Final = frozenset({"ready"})
_NUMBERS: Final = frozenset(
    {"#", "gpu", "busy", "memory", "power", "temperature", "in flight", "held", "running", "waiting", "KV", "GPU-hours",
     "cold start"}
)  # fmt: skip
"""Columns that are read by magnitude, so that they stand right-aligned."""
_STUCK_REASONS: Final = frozenset({Reason.NO_CAPACITY, Reason.BREAKER_OPEN, Reason.LAUNCH_REFUSED})
"""Of a deployment's newest event: nothing goes on by itself until something else changes."""
_SITE_SUBJECT: Final = "site"
"""Subject of events about the whole site: no name that a person gave."""


def make_console() -> Console:
    """Made per command, so that it sees the terminal it writes to.

    Lines longer than the terminal are left to it: what is copied or piped stays whole.
    """
    return Console(soft_wrap=True, highlight=False)


def status_lines(status: StatusOut) -> Iterator[str]:
    held = f"{status.gpus_held} of {status.gpus_total} GPUs held"
    figures = "" if status.gateway == "fresh" else f" (its figures are {status.gateway})"
    yield f"[bold]{escape(status.site or 'no site')}[/bold]  {held}  gateway {status.gateway_url}{figures}"
    failing = [loop for loop in status.loops if loop.failures_in_a_row]
    for loop in failing:
        yield (
            f"[yellow]loop {loop.loop}/{loop.resource} failed {loop.failures_in_a_row} times: "
            f"{escape(loop.sentence)}[/yellow]"
        )
    for row in status.deployments:
        if row.held_up is not None and row.held_up.reason in _STUCK_REASONS:
            yield f"[yellow]{row.name} waits: {escape(row.held_up.sentence)}[/yellow]"


def nodes_table(nodes: Sequence[NodeOut]) -> Table:
    table = table_of("node", "pool", "state", "gpus", "held by replicas", "why")
    for node in nodes:
        colour = "green" if node.state in _GOOD_STATES else "yellow"
        table.add_row(
            node.name,
            node.pool,
            f"[{colour}]{node.state}[/{colour}]",
            f"{node.gpus} x {node.gpu_model}",
            held_bar(node.gpus_held, node.gpus),
            escape(node.state_reason.removeprefix(f"{node.name} is ")),
        )
    return table


def held_bar(held: int, total: int) -> Text:
    """`■■■□□□□□ 3/8`."""
    return Text("■" * held + "□" * max(0, total - held) + f" {held}/{total}")


def deployments_table(deployments: Sequence[DeploymentOut]) -> Table:
    table = table_of("deployment", "model", "replicas", "wanted", "bounds", "in flight", "held", "SLO met lately")
    for row in deployments:
        traffic = row.traffic
        table.add_row(
            row.name,
            row.model,
            phases(row),
            wanted(row),
            f"{row.replicas_min}..{row.replicas_max}",
            "?" if traffic is None else str(traffic.in_flight + traffic.queued),
            "?" if traffic is None else str(traffic.held),
            slo_met(row.slo_now),
        )
    return table


def why_lines(deployments: Sequence[DeploymentOut]) -> Iterator[str]:
    """The last decision's sentence of each deployment."""
    for row in deployments:
        if row.sentence:
            yield f"[bold]{row.name}[/bold]  {escape(row.sentence)}"


def slo_met(now: SloNow | None) -> str:
    """`99.1%`, or `95%..99%` where the objective lies between two bucket edges of the engine's histogram."""
    if now is None:
        return "-"
    low, high = now.met_at_least, now.met_at_most
    colour = "green" if low >= now.objective else "yellow" if high >= now.objective else "red"
    shown = f"{low:.1%}" if high - low < 0.001 else f"{low:.0%}..{high:.0%}"  # noqa: PLR2004 - a tenth of a percent
    return f"[{colour}]{shown}[/{colour}]"


def wanted(row: DeploymentOut) -> str:
    if row.paused:
        return f"{row.replicas_target} [yellow]paused[/yellow]"
    pinned = " [yellow]pinned[/yellow]" if row.replicas_pinned is not None else ""
    if row.shadow:
        would = "?" if row.replicas_shadow is None else str(row.replicas_shadow)
        return f"{row.replicas_target}{pinned} [yellow]in shadow: {would}[/yellow]"
    return f"{row.replicas_target}{pinned}"


def phases(row: DeploymentOut) -> str:
    """`3 ready 1 starting`, or `none`."""
    return " ".join(f"{count} {phase}" for phase, count in row.replicas_by_phase.items()) or "none"


def moved(row: DecisionOut) -> str:
    """`2 -> 3`, or `3` where nothing changed; in brackets what was only shown, in shadow."""
    said = str(row.wanted) if row.wanted == row.wanted_before else f"{row.wanted_before} -> {row.wanted}"
    return f"({said})" if row.shadow else said


def grounds(row: DecisionOut) -> str:
    """The sentence without the number that it begins with, for beside `moved`."""
    if row.shadow and row.sentence.startswith("would "):
        return row.sentence.partition(": ")[2]
    for start in (f"{row.wanted_before} -> {row.wanted}: ", f"stays at {row.wanted}: "):
        if row.sentence.startswith(start):
            return row.sentence.removeprefix(start)
    return row.sentence


def event_line(event: EventOut, *, dated: bool = False) -> str:
    """`08:00:00 replica    qd-chat-0a1b2c3d-0  ready after 6.1s (probe_passed)`, times in UTC.

    The subject only where the sentence does not say it; `dated`: with month and day.
    """
    at = f"{event.at:%m-%d %H:%M:%S}" if dated else f"{event.at:%H:%M:%S}"
    who = event.deployment if event.kind == "decision" else event.subject
    subject = "" if who in (None, _SITE_SUBJECT) or who in event.sentence else f"[bold]{escape(who)}[/bold]  "
    return (
        f"[dim]{at}[/dim] [cyan]{event.kind:<10}[/cyan] {subject}{escape(event.sentence)} [dim]({event.reason})[/dim]"
    )


def print_table(console: Console, table: Table) -> None:
    """As wide as it needs: a narrow terminal wraps lines, which beats names that are cut; pipes get whole lines."""
    needed = Measurement.get(console, console.options.update(width=_WIDTH_MAX), table).maximum
    options = console.options.update(width=max(console.width, needed))
    for segments in console.render_lines(table, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        console.print(line)


def table_of(*columns: str, right: Collection[str] = _NUMBERS) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in right else "left")
    return table


def print_json(console: Console, value: object) -> None:
    console.print_json(json.dumps(value))
