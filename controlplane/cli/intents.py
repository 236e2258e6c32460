"""Commands that change what is wanted. Each sends an intent; the loops do the work."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.markup import escape

from controlplane.api.wire import IntentOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, Json, named, parsed
from controlplane.cli.exits import ExitCode, fail, reported
from controlplane.cli.view import make_console, print_json

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
    if replicas != "auto" and not (replicas.isascii() and replicas.isdecimal()):
        fail(f"found replicas {replicas!r}, expected a number or `auto`", ExitCode.USAGE)
    pinned = None if replicas == "auto" else int(replicas)
    body: dict[str, Json] = {"replicas": pinned, "generation": generation}
    back = "" if pinned is None else f"`quarterdeck scale {deployment} auto` gives it back to the autoscaler"
    _send(control_plane, named("/api/v1/deployments/{}/scale", deployment), body, back, as_json=as_json)


class Shadow(StrEnum):
    ON = "on"
    OFF = "off"
    SITE = "site"


_SHADOWS: Final[Mapping[Shadow, bool | None]] = {Shadow.ON: True, Shadow.OFF: False, Shadow.SITE: None}


def shadow(
    deployment: Deployment,
    switch: Annotated[Shadow, typer.Argument(metavar="on|off|site", help="Show only, act, or as the site file says.")],
    generation: Generation = None,
    reason: Why = "",
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Let the autoscaler decide and show without acting, or act again."""
    body: dict[str, Json] = {"shadow": _SHADOWS[switch], "generation": generation, "reason": reason}
    back = f"`quarterdeck shadow {deployment} site` leaves it to the site file" if switch is not Shadow.SITE else ""
    _send(control_plane, named("/api/v1/deployments/{}/shadow", deployment), body, back, as_json=as_json)


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
    back = f"`quarterdeck resume {deployment}` manages it again"
    _send(control_plane, named("/api/v1/deployments/{}/pause", deployment), body, back, as_json=as_json)


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
    _send(control_plane, named("/api/v1/deployments/{}/resume", deployment), body, "", as_json=as_json)


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
    back = "" if verb == "uncordon" else f"`quarterdeck node uncordon {name}` lets them back"
    body: dict[str, Json] = {"generation": generation, "reason": reason}
    _send(url, named("/api/v1/nodes/{}/", name) + verb, body, back, as_json=as_json)


def _send(url: str, path: str, body: dict[str, Json], back: str, *, as_json: bool) -> None:
    """`back` says how to undo it."""
    console = make_console()
    with reported(), ApiClient(url) as client:
        answer = client.post(path, body)
        if as_json:
            return print_json(console, answer)
        intent = parsed(IntentOut, answer)
        console.print(f"{escape(intent.sentence)} [dim](generation {intent.generation})[/dim]")
        if back:
            console.print(f"[dim]{escape(back)}[/dim]")
    return None
