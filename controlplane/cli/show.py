"""Commands that only look."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from controlplane.api.wire import (
    DecisionDetail,
    DecisionOut,
    DeploymentDetail,
    EventOut,
    GpuOut,
    LogOut,
    NodeOut,
    ReplayOut,
    ReplicaOut,
    StatusOut,
    UsageOut,
)
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, Json
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.view import (
    deployments_table,
    event_line,
    nodes_table,
    print_table,
    status_lines,
    table_of,
    why_lines,
)
from controlplane.kernel.units import format_bytes

_console = Console(soft_wrap=True)
"""Lines longer than the terminal are left to it: what is copied or piped stays whole."""


def status(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Nodes, deployments, replicas and loops at a glance."""
    with reported():
        answer = ApiClient(control_plane).get("/api/v1/status")
        if as_json:
            return _print_json(answer)
        parsed = StatusOut.model_validate(answer)
        for line in status_lines(parsed):
            _console.print(line, soft_wrap=True)
        print_table(_console, nodes_table(parsed.nodes))
        print_table(_console, deployments_table(parsed.deployments))
        for line in why_lines(parsed.deployments):
            _console.print(line)
    return None


def nodes(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """The nodes, their state and how many of their GPUs are held."""
    with reported():
        answer = ApiClient(control_plane).get("/api/v1/nodes")
        if as_json:
            return _print_json(answer)
        print_table(_console, nodes_table([NodeOut.model_validate(row) for row in _rows(answer)]))
    return None


def gpus(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Every GPU: what holds it and what was last measured."""
    with reported():
        answer = ApiClient(control_plane).get("/api/v1/gpus")
        if as_json:
            return _print_json(answer)
        table = table_of("node", "gpu", "model", "replica", "busy", "memory", "power", "temperature")
        for gpu in (GpuOut.model_validate(row) for row in _rows(answer)):
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
        print_table(_console, table)
    return None


def deployments(
    name: Annotated[str | None, typer.Argument(help="One deployment, with the memory fit's proof.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The deployments, or one of them in detail."""
    with reported():
        client = ApiClient(control_plane)
        if name is None:
            answer = client.get("/api/v1/status")
            parsed = StatusOut.model_validate(answer)
            if as_json:
                return _print_json([row.model_dump(mode="json") for row in parsed.deployments])
            print_table(_console, deployments_table(parsed.deployments))
            return None
        answer = client.get(f"/api/v1/deployments/{name}")
        if as_json:
            return _print_json(answer)
        detail = DeploymentDetail.model_validate(answer)
        print_table(_console, deployments_table([detail]))
        _console.print("\n[bold]Memory fit[/bold]")
        for line in detail.proof:
            _console.print(f"  {escape(line)}", soft_wrap=True)
        _console.print("\n[bold]Started as[/bold]")
        _console.print(f"  {escape(' '.join(detail.argv))}", soft_wrap=True)
    return None


def replicas(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The replicas: phase, place, and why."""
    with reported():
        answer = ApiClient(control_plane).get("/api/v1/replicas", {"deployment": deployment})
        if as_json:
            return _print_json(answer)
        table = table_of("replica", "phase", "node", "gpus", "running", "waiting", "KV", "cold start", "why")
        for row in (ReplicaOut.model_validate(item) for item in _rows(answer)):
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
        print_table(_console, table)
    return None


def logs(
    replica: Annotated[str, typer.Argument(help="A replica's name, as `quarterdeck replicas` prints it.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=5000)] = 100,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """The last lines that a replica's engine printed."""
    with reported():
        answer = ApiClient(control_plane).get(f"/api/v1/replicas/{replica}/log", {"lines": lines})
        if as_json:
            return _print_json(answer)
        for line in LogOut.model_validate(answer).lines:
            _console.print(line, markup=False, highlight=False, soft_wrap=True)
    return None


def events(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    kind: Annotated[str | None, typer.Option(help="site, node, deployment, replica, gateway, decision...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """What happened, oldest first."""
    with reported():
        client = ApiClient(control_plane)
        query = {"deployment": deployment, "kind": kind, "limit": limit, "newest_first": True}
        rows = [EventOut.model_validate(row) for row in reversed(_rows(client.get("/api/v1/events", query)))]
        if as_json and not follow:
            return _print_json([row.model_dump(mode="json") for row in rows])
        for row in rows:
            _print_event(row, as_json=as_json)
        if follow:
            _follow(client, rows[-1].sequence if rows else None, deployment, kind, as_json=as_json)
    return None


def decisions(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    sequence: Annotated[int | None, typer.Option("--show", help="One decision with all that it was made from.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    replay: Annotated[bool, typer.Option("--replay", help="Decide them again and compare byte for byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """Why the number of replicas is what it is, newest first."""
    with reported():
        client = ApiClient(control_plane)
        if replay:
            return _replay(client, deployment, limit, as_json=as_json)
        if sequence is not None:
            detail = DecisionDetail.model_validate(client.get(f"/api/v1/decisions/{sequence}"))
            return _print_json(detail.model_dump(mode="json"))
        answer = client.get("/api/v1/decisions", {"deployment": deployment, "limit": limit})
        if as_json:
            return _print_json(answer)
        table = table_of("#", "at (UTC)", "deployment", "wanted", "reason", "sentence")
        for row in (DecisionOut.model_validate(item) for item in _rows(answer)):
            moved = str(row.wanted) if row.wanted == row.wanted_before else f"{row.wanted_before} -> {row.wanted}"
            at = f"{row.at:%H:%M:%S}"
            table.add_row(str(row.sequence), at, row.deployment, moved, row.reason, escape(row.sentence))
        print_table(_console, table)
    return None


def usage(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """GPU-hours of the last hour, beside a static fleet of the same peak."""
    with reported():
        answer = ApiClient(control_plane).get("/api/v1/usage")
        if as_json:
            return _print_json(answer)
        row = UsageOut.model_validate(answer)
        saved = 1.0 - row.gpu_hours / row.gpu_hours_static_peak if row.gpu_hours_static_peak else 0.0
        _console.print(
            f"since {row.since:%Y-%m-%d %H:%M} UTC: {row.gpu_hours:.2f} GPU-hours; static at the peak of "
            f"{row.gpus_peak} GPUs would be {row.gpu_hours_static_peak:.2f} ({saved:.0%} less); "
            f"{row.scale_events} scale events"
        )
        for name, hours in row.by_deployment.items():
            _console.print(f"  {name}: {hours:.2f} GPU-hours")
    return None


def _replay(client: ApiClient, deployment: str | None, limit: int, *, as_json: bool) -> None:
    answer = client.get("/api/v1/decisions/replay", {"deployment": deployment, "limit": limit})
    row = ReplayOut.model_validate(answer)
    if as_json:
        _print_json(answer)
    else:
        _console.print(f"{row.replayed} decisions decided again, {row.same} came out the same, byte for byte.")
        for line in row.differing:
            _console.print(f"  [red]{escape(line)}[/red]")
    if row.differing:
        raise typer.Exit(int(ExitCode.FAILED))


def _follow(client: ApiClient, after: int | None, deployment: str | None, kind: str | None, *, as_json: bool) -> None:
    try:
        for answer in client.stream_events(after):
            row = EventOut.model_validate(answer)
            if deployment in (None, row.deployment) and kind in (None, row.kind):
                _print_event(row, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print_event(row: EventOut, *, as_json: bool) -> None:
    if as_json:
        _console.print(row.model_dump_json(), markup=False, highlight=False, soft_wrap=True)
    else:
        _console.print(event_line(row), soft_wrap=True)


def _print_json(answer: object) -> None:
    _console.print_json(json.dumps(answer))


def _rows(answer: Json) -> list[Json]:
    assert isinstance(answer, list), "this endpoint answers with a list"
    return answer
