"""`quarterdeck backup delete`: one recovery point, by name, with a reason; a plan first."""

import getpass
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from rich.markup import escape

from controlplane.api.wire_removal import RemovalOut
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, Json, parsed
from controlplane.cli.exits import ExitCode, agreed, check_json_asks_nothing, fail, reported
from controlplane.cli.view import make_console, print_json
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import format_bytes
from controlplane.recovery.phrases import count_of

_DELETION_S: Final = 600.0
"""The control plane answers within this, done or not."""
_LOOK_S: Final = 70.0
_OVERRIDE: Final = 'quarterdeck recovery override retention --reason "..."'


def backup_delete(
    point: Annotated[str, typer.Argument(metavar="POINT", help="A recovery point, also one that cannot be read.")],
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept in the event.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Whose; needed for one that no list shows.")
    ] = None,
    bucket: Annotated[
        str | None, typer.Option("--bucket", metavar="NAME", help="Where it goes; others keep it.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who takes it on; left out: the user of this machine.")] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the plan. Exit code 4: it may not go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete one recovery point, its manifest first. Never the newest, a locked one, or a link of a chain in use."""
    console = make_console()
    with reported(), ApiClient(control_plane) as client:
        _check(reason, dry_run=dry_run, yes=yes, as_json=as_json)
        wish: dict[str, str | int | bool | None] = {"point": point, "dataset": dataset, "bucket": bucket}
        plan = parsed(RemovalOut, client.get("/api/v1/recovery/removal", wish, timeout_s=_LOOK_S))
        if as_json and (dry_run or not plan.allowed):
            print_json(console, plan.model_dump(mode="json"))
        elif not as_json:
            for line in plan_lines(plan):
                console.print(line)
        if not plan.allowed:
            fail(f"{plan.point} stays: {_why_not(plan)}", ExitCode.CONFLICT)
        if dry_run:
            return
        if not yes:
            agreed("Delete?")
        body: dict[str, Json] = {
            "point": point, "dataset": plan.dataset, "bucket": plan.bucket, "by": by or getpass.getuser(),
            "reason": reason,
        }  # fmt: skip
        with console.status(f"deletes {count_of(plan.objects, 'object')}"):
            done = parsed(RemovalOut, client.post("/api/v1/recovery/removals", body, timeout_s=_DELETION_S))
    if as_json:
        print_json(console, done.model_dump(mode="json"))
    else:
        console.print(f"{done.dataset} in {done.bucket}: {done.sentence}", markup=False)


def _check(reason: str | None, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    if dry_run:
        return
    if not (reason or "").strip():
        raise InvalidError(
            [Problem(field="--reason", found="none", expected="why it goes", hint="--dry-run shows the plan alone")]
        )
    check_json_asks_nothing(as_json=as_json, answered=yes)


def _why_not(plan: RemovalOut) -> str:
    """The reasons are above already."""
    if plan.refusals:
        return f"{len(plan.refusals)} reasons that nothing overrides" if len(plan.refusals) > 1 else plan.refusals[0]
    return f"that takes somebody's name: `{_OVERRIDE}`, then the same command"


def plan_lines(plan: RemovalOut) -> Iterator[str]:
    yield f"[bold]plan[/bold]  delete {escape(plan.point)} of {plan.dataset} from {plan.bucket}"
    yield f"  it is      {escape(plan.state)}"
    yield f"  of         {'no list shows it' if plan.consistent_at is None else f'{plan.consistent_at:%F %T} UTC'}"
    yield f"  holds      {count_of(plan.objects, 'object')}, {format_bytes(plan.stored_bytes)}"
    if plan.dependants:
        yield f"  needed by  {', '.join(plan.dependants)}"
    yield from (f"  [red]stays      {escape(refusal)}[/red]" for refusal in plan.refusals)
    mark = "objection" if plan.overridden_by is None else "overridden"
    yield from (f"  [yellow]{mark:<10} {escape(objection)}[/yellow]" for objection in plan.objections)
    if plan.allowed:
        yield "  [green]may go[/green]     nothing else is touched"
    if plan.overridden_by is not None:
        yield f"  override   by {escape(plan.overridden_by)}"
