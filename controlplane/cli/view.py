"""API answers as text: shared by `status` and `watch`."""

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from controlplane.api.wire import DeploymentOut, EventOut, NodeOut, StatusOut

_GOOD_STATES = frozenset({"ready"})


def status_lines(status: StatusOut) -> Iterator[str]:
    held = f"{status.gpus_held} of {status.gpus_total} GPUs held"
    yield f"[bold]{escape(status.site or 'no site')}[/bold]  {held}  gateway {status.gateway_url} ({status.gateway})"
    failing = [loop for loop in status.loops if loop.failures_in_a_row]
    for loop in failing:
        yield f"[yellow]loop {loop.loop}/{loop.resource}: {escape(loop.sentence)}[/yellow]"


def nodes_table(nodes: Sequence[NodeOut]) -> Table:
    table = Table("node", "pool", "state", "gpu", "held", "why", box=None)
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
    table = Table("deployment", "model", "replicas", "wanted", "bounds", "in flight", "held", "why", box=None)
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
            escape(row.sentence or ""),
        )
    return table


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
    at = f"{event.at:%H:%M:%S}"
    return f"[dim]{at}[/dim] [cyan]{event.kind}[/cyan] {escape(event.sentence)} [dim]({event.reason})[/dim]"
