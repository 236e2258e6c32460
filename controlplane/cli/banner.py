"""What `up` tells a person: where to look, what to type next, and what happens meanwhile."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from controlplane.api.wire import DeploymentOut, EventOut, NodeOut, StatusOut
from controlplane.bootstrap.options import not_ready
from controlplane.cli.client import DEFAULT_URL
from controlplane.cli.view import event_line
from controlplane.settings import STATE_DIR_DEFAULT

_EVENTS_SHOWN = frozenset({"decision", "deployment", "node", "gateway", "site", "control_plane", "recovery"})
"""While running, replicas' own steps stay in `quarterdeck events`; decisions and holds are what people want."""


def own_command() -> str:
    """How this user can call `quarterdeck`: bare where it is on PATH, else by its path."""
    if shutil.which("quarterdeck"):
        return "quarterdeck"
    script = Path(sys.executable).with_name("quarterdeck")
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)


def banner_lines(status: StatusOut, *, control_url: str, state_dir: Path, detached: bool, load: str) -> Iterator[str]:
    command = own_command()
    chat = example_model(status.deployments)
    suffix = "" if control_url == DEFAULT_URL else f" --control-plane {control_url}"
    folder = "" if state_dir == STATE_DIR_DEFAULT else f" --state-dir {shlex.quote(str(state_dir))}"
    yield f"[bold green]Quarterdeck {status.version}[/bold green] runs [bold]{escape(status.site or '')}[/bold]: " + (
        describe_fleet(status.nodes)
        + f", {len(status.deployments)} deployment{'' if len(status.deployments) == 1 else 's'}"
    )
    yield ""
    yield f"  gateway (OpenAI API)  {status.gateway_url}/v1{_gateway_trouble(status)}"
    yield f"  control plane         {control_url}    API docs: {control_url}/docs"
    yield f"  state                 {escape(str(state_dir))}"
    yield f"  load                  {escape(load)}"
    yield from not_ready_lines(status)
    yield ""
    yield "Type next, in another terminal:" if not detached else "Type next:"
    if chat is not None:
        body = f'{{"model": "{chat}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 20}}'
        yield f"  curl {status.gateway_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{escape(body)}'"
    rows = [
        (f"{command} status{suffix}", "nodes, deployments and replicas at a glance"),
        (f"{command} watch{suffix}", "load, replicas, SLO and decisions, live"),
    ]
    if chat is not None:
        rows.append((f"{command} decisions --deployment {chat}{suffix}", "why there are so many replicas"))
    if detached:
        rows.append((f"{command} down{folder}", "stops everything; the next start picks up here"))
    width = max(len(typed) for typed, _ in rows)
    for typed, meaning in rows:
        yield f"  {escape(typed):<{width}}  [dim]# {meaning}[/dim]"
    if not detached:
        yield "Ctrl-C stops everything; the next start picks up here."


def not_ready_lines(status: StatusOut) -> Iterator[str]:
    """Which deployments are not served yet, and why as far as it is known."""
    for row in not_ready(status.deployments):
        why = row.held_up.sentence if row.held_up is not None else "nothing has been done for it yet"
        ready = row.replicas_by_phase.get("ready", 0)
        yield f"  [yellow]not ready yet[/yellow]: {row.name} {ready} of {row.replicas_min}: {escape(why)}"


def _gateway_trouble(status: StatusOut) -> str:
    """Why the address does not answer; empty where it does."""
    failing = [loop.sentence for loop in status.loops if loop.loop == "gateway" and loop.failures_in_a_row]
    if status.gateway != "missing" and not failing:
        return ""
    why = failing[0] if failing else "nothing has been seen of it yet"
    said = "not up" if status.gateway == "missing" else "its routes are not up to date"
    return f"  [red]({said}: {escape(why)})[/red]"


def describe_fleet(nodes: Sequence[NodeOut]) -> str:
    """`2 nodes, 16 x b200 (simulated)`."""
    gpus: dict[str, int] = {}
    for node in nodes:
        gpus[node.gpu_model] = gpus.get(node.gpu_model, 0) + node.gpus
    kinds = ", ".join(f"{count} x {model}" for model, count in sorted(gpus.items()))
    simulated = " (simulated)" if nodes and all(node.simulated for node in nodes) else ""
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {kinds}{simulated}"


def example_model(deployments: Sequence[DeploymentOut]) -> str | None:
    """A deployment that answers at once: one that keeps a replica; of those the smallest."""
    awake = [row for row in deployments if row.replicas_min > 0] or list(deployments)
    smallest = min(awake, key=lambda row: (row.gpus_per_replica, row.name), default=None)
    return None if smallest is None else smallest.served_names[0]


def print_event(console: Console, event: EventOut) -> None:
    if event.kind in _EVENTS_SHOWN:
        console.print(event_line(event))
