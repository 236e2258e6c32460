"""API answers as text: shared by `status` and `watch`."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from controlplane.api.wire import DeploymentOut, EventOut, NodeOut, SloNow, StatusOut

_WIDTH_MAX: Final = 1000
_GOOD_STATES: Final = frozenset({"ready"})


def status_lines(status: StatusOut) -> Iterator[str]:
    held = f"{status.gpus_held} of {status.gpus_total} GPUs held"
    yield f"[bold]{escape(status.site or 'no site')}[/bold]  {held}  gateway {status.gateway_url} ({status.gateway})"
    failing = [loop for loop in status.loops if loop.failures_in_a_row]
    for loop in failing:
        yield f"[yellow]loop {loop.loop}/{loop.resource}: {escape(loop.sentence)}[/yellow]"


def nodes_table(nodes: Sequence[NodeOut]) -> Table:
    table = table_of("node", "pool", "state", "gpu", "held", "why")
    for node in nodes:
        colour = "green" if node.state in _GOOD_STATES else "yellow"
        table.add_row(
            node.name,
            node.pool,
            f"[{colour}]{node.state}[/{colour}]",
            f"{node.gpus} x {node.gpu_model}",
            held_bar(node.gpus_held, node.gpus),
            escape(node.state_reason),
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
            yield f"  [bold]{row.name}[/bold]  {escape(row.sentence)}"


def slo_met(now: SloNow | None) -> str:
    """`99.1 %`, or `95.0%..99.0%` where the objective lies between two bucket edges of the engine's histogram."""
    if now is None:
        return "-"
    low, high = now.met_at_least, now.met_at_most
    colour = "green" if low >= now.objective else "yellow" if high >= now.objective else "red"
    shown = f"{low:.1%}" if high - low < 0.001 else f"{low:.1%}..{high:.1%}"  # noqa: PLR2004 - a tenth of a percent
    return f"[{colour}]{shown}[/{colour}]"


def wanted(row: DeploymentOut) -> str:
    if row.paused:
        return f"{row.replicas_target} [yellow]paused[/yellow]"
    if row.replicas_pinned is not None:
        return f"{row.replicas_pinned} [yellow]pinned[/yellow]"
    return str(row.replicas_target)


def phases(row: DeploymentOut) -> str:
    """`3 ready 1 starting`, or `none`."""
    return " ".join(f"{count} {phase}" for phase, count in row.replicas_by_phase.items()) or "none"


def event_line(event: EventOut) -> str:
    """`08:00:00 replica qd-chat-0a1b2c3d-0  ready after 6.1s (probe_passed)`; the subject only where it is not said."""
    at = f"{event.at:%H:%M:%S}"
    who = event.deployment if event.kind == "decision" else event.subject
    subject = "" if who is None or who in event.sentence else f"[bold]{escape(who)}[/bold]  "
    return (
        f"[dim]{at}[/dim] [cyan]{event.kind:<10}[/cyan] {subject}{escape(event.sentence)} [dim]({event.reason})[/dim]"
    )


def print_table(console: Console, table: Table) -> None:
    """As wide as it needs: a narrow terminal wraps lines, which beats names that are cut; pipes get whole lines."""
    needed = Measurement.get(console, console.options.update(width=_WIDTH_MAX), table).maximum
    before = console.width
    console.width = max(before, needed)
    try:
        console.print(table)
    finally:
        console.width = before


def table_of(*columns: str) -> Table:
    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
