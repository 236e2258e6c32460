"""Commands that change what is wanted. Each sends an intent; the loops do the work."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from controlplane.api.wire import IntentOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, Json
from controlplane.cli.exits import ExitCode, fail, reported

_console = Console()

Generation = Annotated[int | None, typer.Option(help="Refuse unless it still has this generation.")]
Why = Annotated[str, typer.Option("--reason", help="Kept in the event.")]
Deployment = Annotated[str, typer.Argument(help="The deployment's name.")]
NodeArgument = Annotated[str, typer.Argument(help="The node's name.")]

node = typer.Typer(no_args_is_help=True, help="Keep replicas away from a node, or let them back.")


def scale(
    deployment: Deployment,
    replicas: Annotated[str, typer.Argument(help="A number, or `auto` for the autoscaler.")],
    generation: Generation = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Pin the number of replicas, or give it back to the autoscaler with `auto`."""
    if replicas != "auto" and not replicas.isdigit():
        fail(f"found replicas {replicas!r}, expected a number or `auto`", ExitCode.USAGE)
    pinned = None if replicas == "auto" else int(replicas)
    body: dict[str, Json] = {"replicas": pinned, "generation": generation}
    _send(control_plane, f"/api/v1/deployments/{deployment}/scale", body, as_json=as_json)


def pause(
    deployment: Deployment,
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Hold a deployment as it is: no launch, no drain, no scaling."""
    body: dict[str, Json] = {"generation": generation, "reason": reason}
    _send(control_plane, f"/api/v1/deployments/{deployment}/pause", body, as_json=as_json)


def resume(
    deployment: Deployment,
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Manage a paused deployment again."""
    body: dict[str, Json] = {"generation": generation, "reason": reason}
    _send(control_plane, f"/api/v1/deployments/{deployment}/resume", body, as_json=as_json)


@node.command()
def cordon(
    name: NodeArgument,
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """No new replicas here; running ones stay."""
    _send_node(control_plane, name, "cordon", generation, reason, as_json=as_json)


@node.command()
def uncordon(
    name: NodeArgument,
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Replicas may come back once the node is seen."""
    _send_node(control_plane, name, "uncordon", generation, reason, as_json=as_json)


@node.command()
def drain(
    name: NodeArgument,
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Replace the node's replicas elsewhere, then drain them."""
    _send_node(control_plane, name, "drain", generation, reason, as_json=as_json)


def _send_node(url: str, name: str, verb: str, generation: int | None, reason: str, *, as_json: bool) -> None:
    _send(url, f"/api/v1/nodes/{name}/{verb}", {"generation": generation, "reason": reason}, as_json=as_json)


def _send(url: str, path: str, body: dict[str, Json], *, as_json: bool) -> None:
    with reported():
        answer = ApiClient(url).post(path, body)
        if as_json:
            _console.print_json(data=answer)
            return
        intent = IntentOut.model_validate(answer)
        _console.print(f"{escape(intent.sentence)} [dim](generation {intent.generation})[/dim]")
