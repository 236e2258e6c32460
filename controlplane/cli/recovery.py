"""`quarterdeck recovery | backup | drill`, through the API. Restoring is in `restore.py`: it needs no control plane."""

import getpass
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from controlplane.api.wire import Wire
from controlplane.api.wire_recovery import (
    AcceptedOut,
    BackupRunOut,
    DrillOut,
    EvidenceOut,
    KeepOut,
    PermissionOut,
    PointOut,
    RecoveryOut,
    ScheduleOut,
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
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.moments import typed_moment
from controlplane.cli.recovery_view import (
    coloured,
    drill_lines,
    drills_table,
    point_lines,
    points_table,
    recovery_lines,
    recovery_table,
    retention_table,
    runs_table,
    schedule_table,
)
from controlplane.cli.view import make_console, print_json, print_table
from controlplane.domain.dataset import DrillSelection, KeyPurpose
from controlplane.domain.recovery import RiskyAction

recovery = typer.Typer(no_args_is_help=True, help="Whether what must survive would, and what is refused until it does.")
backup = typer.Typer(no_args_is_help=True, help="Copies: take one, look at them, see what retention would delete.")
drill = typer.Typer(no_args_is_help=True, help="Restores that prove themselves, with evidence.")

DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset of the site file.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="Of this dataset only.")]
BucketOption = Annotated[
    str | None, typer.Option("--bucket", metavar="NAME", help="In this bucket, e.g. another region.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch it until it ends.")]

_LOOK_S: Final = 0.5


@recovery.command("status")
def recovery_status(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """A line for each dataset: what would be lost now, how soon it would be back, who proved it."""
    with reported(), ApiClient(control_plane) as client:
        found = parsed(RecoveryOut, client.get("/api/v1/recovery"))
    console = make_console()
    if as_json:
        print_json(console, found.model_dump(mode="json"))
        return
    if not found.datasets:
        console.print("nothing is backed up: the site file has no section `recovery` (docs/recovery.md)")
        return
    print_table(console, recovery_table(found))
    for line in recovery_lines(found):
        console.print(line)


@recovery.command("may-proceed")
def recovery_may_proceed(
    action: Annotated[RiskyAction, typer.Argument(help="What is to be done.")],
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask before risky work, e.g. in a deploy script: exit code 0 for yes, 4 for no."""
    with reported(), ApiClient(control_plane) as client:
        found = parsed(PermissionOut, client.get("/api/v1/recovery/may-proceed", {"action": action}))
    console = make_console()
    if as_json:
        print_json(console, found.model_dump(mode="json"))
    else:
        console.print(found.sentence)
        for line in (*found.reasons, *found.notes):
            console.print(f"  {line}", markup=False)
    if not found.allowed:
        raise typer.Exit(ExitCode.CONFLICT)


@recovery.command("override")
def recovery_override(
    action: Annotated[RiskyAction, typer.Argument(help="What may proceed.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it cannot wait; everybody sees it.")],
    by: Annotated[str | None, typer.Option("--by", help="Who takes it on; left out: the user of this machine.")] = None,
    hours: Annotated[float, typer.Option("--hours", min=0.01, max=24.0, help="For how long.")] = 1.0,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Break the glass: risky work may proceed although recovery says no. Named, short, and an event."""
    body: dict[str, Json] = {"action": action, "by": by or getpass.getuser(), "reason": reason, "hours": hours}
    with reported(), ApiClient(control_plane) as client:
        answer = parsed(AcceptedOut, client.post("/api/v1/recovery/overrides", body))
    console = make_console()
    if as_json:
        print_json(console, answer.model_dump(mode="json"))
    else:
        console.print(answer.sentence, markup=False)


@backup.command("now")
def backup_now(
    dataset: DatasetArgument, control_plane: ControlPlane = DEFAULT_URL, *, wait: Wait = True, as_json: AsJson = False
) -> None:
    """Take a copy now, and watch it."""
    with reported(), ApiClient(control_plane) as client:
        path = named("/api/v1/recovery/datasets/{}/backup", dataset)
        run = parsed(BackupRunOut, client.post(path, {"asked_by": getpass.getuser()}))
        if wait:
            run = _watch_run(client, run, make_console())
    console = make_console()
    if as_json:
        print_json(console, run.model_dump(mode="json"))
    else:
        console.print(f"{coloured(run.phase)}  {run.sentence}")
    if run.phase == "failed":
        raise typer.Exit(ExitCode.FAILED)


def _watch_run(client: ApiClient, run: BackupRunOut, console: Console) -> BackupRunOut:
    with console.status(run.sentence) as shown:
        while run.phase not in {"done", "failed"}:
            time.sleep(_LOOK_S)
            rows = parsed_rows(BackupRunOut, client.get("/api/v1/recovery/backups", {"dataset": run.dataset}))
            run = next((row for row in rows if row.run == run.run), run)
            shown.update(f"{run.phase}: {run.sentence}")
    return run


@backup.command("list")
def backup_list(
    dataset: DatasetOption = None, bucket: BucketOption = None, control_plane: ControlPlane = DEFAULT_URL, *,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Recovery points, newest first, as they lie in the buckets."""
    with reported(), ApiClient(control_plane) as client:
        rows = parsed_rows(PointOut, client.get("/api/v1/recovery/points", {"dataset": dataset, "bucket": bucket}))
    _show(points_table(rows), rows, as_json=as_json)


@backup.command("show")
def backup_show(
    point: Annotated[str, typer.Argument(help="A recovery point.")],
    bucket: BucketOption = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """One recovery point: what it is of, what it builds on, who can open it, how long it is kept."""
    with reported(), ApiClient(control_plane) as client:
        row = parsed(PointOut, client.get(named("/api/v1/recovery/points/{}", point), {"bucket": bucket}))
    console = make_console()
    if as_json:
        print_json(console, row.model_dump(mode="json"))
        return
    for line in point_lines(row):
        console.print(line)


@backup.command("runs")
def backup_runs(
    dataset: DatasetOption = None, control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False
) -> None:
    """Copies under way and ended, newest first, with their sentences."""
    with reported(), ApiClient(control_plane) as client:
        rows = parsed_rows(BackupRunOut, client.get("/api/v1/recovery/backups", {"dataset": dataset}))
    _show(runs_table(rows), rows, as_json=as_json)


@backup.command("retention")
def backup_retention(
    dataset: DatasetArgument, control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False
) -> None:
    """What the rules keep and what they would delete, each with its reasons."""
    with reported(), ApiClient(control_plane) as client:
        rows = parsed_rows(KeepOut, client.get("/api/v1/recovery/retention", {"dataset": dataset}))
    _show(retention_table(rows), rows, as_json=as_json)


@drill.command("run")
def drill_run(
    dataset: Annotated[str, typer.Argument(metavar="DATASET|DRILL", help="A dataset, or a declared drill by name.")],
    selection: Annotated[DrillSelection, typer.Option(help="Which recovery point.")] = DrillSelection.LATEST,
    point: Annotated[str | None, typer.Option(help="This one instead.")] = None,
    to_time: Annotated[
        str | None, typer.Option("--to-time", metavar="TIME", help="Point in time, UTC without a zone.")
    ] = None,
    key: Annotated[KeyPurpose, typer.Option(help="Which key may open it.")] = KeyPurpose.SITE,
    bucket: BucketOption = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Restore into a scratch folder, start it, verify it, clean up, sign the evidence."""
    body: dict[str, Json] = {
        "dataset": dataset,
        "selection": selection,
        "key": key,
        "bucket": bucket,
        "point": point,
        "asked_by": getpass.getuser(),
    }
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        body["to_time"] = None if to_time is None else typed_moment("--to-time", to_time).isoformat()
        row = parsed(DrillOut, client.post("/api/v1/recovery/drills", body))
        if wait:
            with console.status(row.phase) as shown:
                while row.phase not in {"passed", "failed"}:
                    time.sleep(_LOOK_S)
                    row = parsed(DrillOut, client.get(named("/api/v1/recovery/drills/{}", row.drill)))
                    shown.update(f"{row.phase}: {row.sentence}")
    _show_drill(console, row, as_json=as_json)
    if row.phase == "failed":
        raise typer.Exit(ExitCode.FAILED)


@drill.command("list")
def drill_list(
    dataset: DatasetOption = None, control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False
) -> None:
    """Drills, newest first."""
    with reported(), ApiClient(control_plane) as client:
        rows = parsed_rows(DrillOut, client.get("/api/v1/recovery/drills", {"dataset": dataset}))
    _show(drills_table(rows), rows, as_json=as_json)


@drill.command("schedule")
def drill_schedule(control_plane: ControlPlane = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """The declared drills: how often, when last passed, when due."""
    with reported(), ApiClient(control_plane) as client:
        rows = parsed_rows(ScheduleOut, client.get("/api/v1/recovery/schedule"))
    _show(schedule_table(rows), rows, as_json=as_json)


@drill.command("show")
def drill_show(
    drill_id: Annotated[str, typer.Argument(metavar="DRILL", help="Its identifier, or the beginning of it.")],
    evidence: Annotated[
        Path | None, typer.Option("--evidence", metavar="FILE", help="Write the signed bundle here as well.")
    ] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """One drill: times, checks, key, and what was looked for after the clean-up."""
    with reported(), ApiClient(control_plane) as client:
        row = parsed(DrillOut, client.get(named("/api/v1/recovery/drills/{}", drill_id)))
        if evidence is not None:
            path = named("/api/v1/recovery/drills/{}/evidence", row.drill)
            evidence.write_text(parsed(EvidenceOut, client.get(path)).bundle, encoding="utf-8")
    _show_drill(make_console(), row, as_json=as_json)


def _show_drill(console: Console, row: DrillOut, *, as_json: bool) -> None:
    if as_json:
        print_json(console, row.model_dump(mode="json"))
        return
    for line in drill_lines(row):
        console.print(line)


def _show(table: Table, rows: Sequence[Wire], *, as_json: bool) -> None:
    console = make_console()
    if as_json:
        print_json(console, [row.model_dump(mode="json") for row in rows])
    elif rows:
        print_table(console, table)
    else:
        console.print("none yet")
