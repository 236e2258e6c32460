"""Commands that look at what there is now."""

import shlex
from typing import Annotated

import typer
from rich.markup import escape

from controlplane.api.wire import (
    DeploymentDetail,
    DeploymentOut,
    GpuOut,
    LogOut,
    NodeOut,
    ReplicaOut,
    StatusOut,
)
from controlplane.cli.client import (
    DEFAULT_URL,
    ApiClient,
    AsJson,
    ControlPlane,
    Json,
    named,
    parsed,
    parsed_rows,
)
from controlplane.cli.exits import reported
from controlplane.cli.view import (
    deployments_table,
    make_console,
    nodes_table,
    print_json,
    print_table,
    status_lines,
    table_of,
    why_lines,
)
from controlplane.kernel.errors import NotFoundError
from controlplane.kernel.units import format_bytes


def status(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Nodes, deployments, replicas and loops at a glance."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = client.get("/api/v1/status")
        if as_json:
            return print_json(console, answer)
        now = parsed(StatusOut, answer)
        for line in status_lines(now):
            console.print(line)
        if now.nodes:
            console.print()
            print_table(console, nodes_table(now.nodes))
        if now.deployments:
            console.print()
            print_table(console, deployments_table(now.deployments))
        why = list(why_lines(now.deployments))
        for line in ["", *why] if why else []:
            console.print(line)
        if now.site is None:
            console.print("apply a site with `quarterdeck site apply FILE`")
    return None


def nodes(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """The nodes, their state and how many of their GPUs are held."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = client.get("/api/v1/nodes")
        if as_json:
            return print_json(console, answer)
        rows = parsed_rows(NodeOut, answer)
        if not rows:
            console.print("no nodes: the site file declares none, or no site is applied")
            return None
        print_table(console, nodes_table(rows))
    return None


def gpus(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Every GPU: what holds it and what was last measured."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = client.get("/api/v1/gpus")
        if as_json:
            return print_json(console, answer)
        rows = parsed_rows(GpuOut, answer)
        if not rows:
            console.print("no GPUs: the site file declares none, or no site is applied")
            return None
        table = table_of("node", "gpu", "model", "replica", "busy", "memory", "power", "temperature")
        for gpu in rows:
            used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
            table.add_row(
                gpu.node,
                str(gpu.index),
                gpu.model,
                gpu.replica or "-",
                "?" if gpu.utilization is None else f"{gpu.utilization:.0%}",
                "?" if used is None or total is None else f"{format_bytes(used)} / {format_bytes(total)}",
                "?" if gpu.power_w is None else f"{gpu.power_w:.0f} W",
                "?" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C",
            )
        print_table(console, table)
    return None


def deployments(
    name: Annotated[str | None, typer.Argument(help="One deployment, with the memory fit's proof.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The deployments, or one of them in detail."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        path = "/api/v1/deployments" if name is None else named("/api/v1/deployments/{}", name)
        answer = client.get(path)
        if as_json:
            return print_json(console, answer)
        if name is not None:
            return _show_deployment(parsed(DeploymentDetail, answer))
        rows = parsed_rows(DeploymentOut, answer)
        if not rows:
            console.print("no deployments: the site file declares none, or no site is applied")
            return None
        print_table(console, deployments_table(rows))
    return None


def replicas(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The replicas: phase, place, and why."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = client.get("/api/v1/replicas", {"deployment": deployment})
        if not answer and deployment is not None:
            client.get(
                named("/api/v1/deployments/{}", deployment)
            )  # a name that is none is an error, not an empty list
        if as_json:
            return print_json(console, answer)
        rows = parsed_rows(ReplicaOut, answer)
        if not rows:
            console.print("no replicas" + (f" of {deployment}" if deployment is not None else ""))
            return None
        table = table_of("replica", "phase", "node", "gpus", "running", "waiting", "KV", "cold start", "why")
        for row in rows:
            engine = row.engine
            table.add_row(
                row.name,
                row.phase,
                row.node,
                ",".join(map(str, row.gpus)),
                str(engine.running) if engine else row.engine_data,
                str(engine.waiting) if engine else "",
                f"{engine.kv_usage:.0%}" if engine else "",
                "" if row.cold_start_s is None else f"{row.cold_start_s:.1f}s",
                escape(row.sentence),
            )
        print_table(console, table)
    return None


def logs(
    replica: Annotated[
        str, typer.Argument(help="A replica's name, as `quarterdeck replicas` prints it, or a deployment with one.")
    ],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=5000, help="How many.")] = 100,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The last lines that a replica's engine printed."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = _log_of(client, replica, lines)
        if as_json:
            return print_json(console, answer)
        printed = parsed(LogOut, answer).lines
        for line in printed:
            console.print(line, markup=False)
        if not printed:
            make_console().print(f"{replica} has printed nothing yet")
    return None


def _log_of(client: ApiClient, name: str, lines: int) -> Json:
    try:
        return client.get(named("/api/v1/replicas/{}/log", name), {"lines": lines})
    except NotFoundError as error:
        rows = parsed_rows(ReplicaOut, client.get("/api/v1/replicas", {"deployment": name}))
        match rows:
            case []:
                raise
            case [only]:
                return client.get(named("/api/v1/replicas/{}/log", only.name), {"lines": lines})
            case _:
                listed = ", ".join(row.name for row in rows)
                raise NotFoundError(f"{name} is a deployment with {len(rows)} replicas; name one: {listed}") from error


def _show_deployment(detail: DeploymentDetail) -> None:
    console = make_console()
    print_table(console, deployments_table([detail]))
    if detail.sentence:
        console.print(f"\n[bold]Why so many[/bold]\n  {escape(detail.sentence)}")
    console.print("\n[bold]Asked for as[/bold]\n  " + escape(", ".join(detail.served_names)))
    console.print("\n[bold]Memory fit[/bold]")
    for line in detail.proof:
        console.print(f"  {escape(line)}")
    console.print("\n[bold]Started as[/bold]")
    console.print(f"  {escape(' '.join(_quoted(word) for word in detail.argv))}")


def _quoted(word: str) -> str:
    """For a shell; placeholders such as `{port}` stay as they read best."""
    return shlex.quote(word) if any(sign in word for sign in " \"'") else word
