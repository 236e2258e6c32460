"""Commands that look back: what happened, what was decided and why, what was used."""

from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from controlplane.api.wire import REPLAYED_MAX, DecisionDetail, DecisionOut, EventOut, ReplayOut, UsageOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, named, parsed, parsed_rows
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.view import event_line, grounds, make_console, moved, print_json, print_table, table_of
from controlplane.domain.event import EventKind

_DECISIONS_SHOWN: Final = 20
_REPLAY_TIMEOUT_S: Final = 60.0
"""For the most decisions that are replayed at once."""


def events(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    kind: Annotated[EventKind | None, typer.Option(help="Only those about one kind of thing.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The last so many.")] = 50,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """What happened, oldest first."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        query = {"deployment": deployment, "kind": kind, "limit": limit, "newest_first": True}
        rows = list(reversed(parsed_rows(EventOut, client.get("/api/v1/events", query))))
        if not rows:
            _check_deployment(client, deployment)
        if as_json and not follow:
            return print_json(console, [row.model_dump(mode="json") for row in rows])
        for row in rows:
            _print_event(console, row, as_json=as_json)
        if follow:
            _follow(client, rows[-1].sequence if rows else None, deployment, kind, as_json=as_json)
        elif not rows:
            console.print("no such event yet")
    return None


def decisions(
    deployment: Annotated[str | None, typer.Option(help="Only those of one deployment.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=REPLAYED_MAX,
            help=f"The last so many (default: {_DECISIONS_SHOWN}; all that are kept for --replay).",
        ),
    ] = None,
    sequence: Annotated[
        int | None, typer.Option("--show", metavar="#", min=1, help="One decision with all that it was made from.")
    ] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    replay: Annotated[bool, typer.Option("--replay", help="Decide them again and compare byte for byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """Why the number of replicas is what it is, newest first."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        if replay:
            return _replay(client, deployment, limit or REPLAYED_MAX, as_json=as_json)
        if sequence is not None:
            detail = parsed(DecisionDetail, client.get(f"/api/v1/decisions/{sequence}"))
            return print_json(console, detail.model_dump(mode="json"))
        answer = client.get("/api/v1/decisions", {"deployment": deployment, "limit": limit or _DECISIONS_SHOWN})
        if as_json:
            return print_json(console, answer)
        rows = parsed_rows(DecisionOut, answer)
        if not rows:
            console.print("no decision yet")
            return None
        table = table_of("#", "at (UTC)", "deployment", "wanted", "reason", "because")
        for row in rows:
            at = f"{row.at:%m-%d %H:%M:%S}"
            table.add_row(str(row.sequence), at, row.deployment, moved(row), row.reason, escape(grounds(row)))
        print_table(console, table)
    return None


def usage(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """GPU-hours of the last hour, beside a static fleet of the same peak."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        answer = client.get("/api/v1/usage")
        if as_json:
            return print_json(console, answer)
        row = parsed(UsageOut, answer)
        since = f"since {row.since:%Y-%m-%d %H:%M} UTC"
        if not row.gpus_peak:
            console.print(f"{since}: no replica held a GPU")
            return None
        saved = 1.0 - row.gpu_hours / row.gpu_hours_static_peak if row.gpu_hours_static_peak else 0.0
        changes = "1 change" if row.scale_events == 1 else f"{row.scale_events} changes"
        console.print(
            f"{since}: {row.gpu_hours:.2f} GPU-hours, {saved:.0%} less than the {row.gpu_hours_static_peak:.2f} of a "
            f"static fleet of the same peak ({row.gpus_peak} GPUs); {changes} of the number of replicas"
        )
        table = table_of("deployment", "GPU-hours")
        for name, hours in row.by_deployment.items():
            table.add_row(name, f"{hours:.2f}")
        print_table(console, table)
    return None


def _replay(client: ApiClient, deployment: str | None, limit: int, *, as_json: bool) -> None:
    _check_deployment(client, deployment)
    console = make_console()
    answer = client.get(
        "/api/v1/decisions/replay", {"deployment": deployment, "limit": limit}, timeout_s=_REPLAY_TIMEOUT_S
    )
    row = parsed(ReplayOut, answer)
    if as_json:
        print_json(console, answer)
    else:
        which = f"the last {row.replayed}" if row.replayed == limit else str(row.replayed)
        console.print(f"{which} decisions decided again, {row.same} came out the same, byte for byte")
        for line in row.differing:
            console.print(f"  [red]{escape(line)}[/red]")
    if row.differing:
        raise typer.Exit(int(ExitCode.FAILED))


def _check_deployment(client: ApiClient, name: str | None) -> None:
    """NotFoundError for a name that is none: an empty answer would hide the slip."""
    if name is not None:
        client.get(named("/api/v1/deployments/{}", name))


def _follow(
    client: ApiClient, after: int | None, deployment: str | None, kind: EventKind | None, *, as_json: bool
) -> None:
    console = make_console()
    try:
        for answer in client.stream_events(after):
            row = parsed(EventOut, answer)
            if deployment in (None, row.deployment) and kind in (None, row.kind):
                _print_event(console, row, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print_event(console: Console, row: EventOut, *, as_json: bool) -> None:
    if as_json:
        console.print(row.model_dump_json(), markup=False)
    else:
        console.print(event_line(row, dated=True))
