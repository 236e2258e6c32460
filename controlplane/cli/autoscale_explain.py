"""`quarterdeck autoscale explain`: any past decision, taken apart."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from controlplane.api.wire import DecisionDetail, DecisionOut
from controlplane.autoscaler.account import Account, account
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, Json, named, parsed, parsed_rows
from controlplane.cli.exits import reported
from controlplane.cli.moments import typed_moment
from controlplane.cli.view import make_console, print_json, print_table, table_of
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.reason import Reason
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem, TerminalError
from controlplane.kernel.ids import DeploymentName

_APPLIED = {True: "applies", False: "no", None: "-"}


def explain(
    deployment: Annotated[str, typer.Argument(help="The deployment's name.")],
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="The decision that held then, e.g. 2026-01-31T12:00:00 (UTC)."),
    ] = None,
    sequence: Annotated[
        int | None, typer.Option("--decision", metavar="#", min=1, help="By its number in `quarterdeck decisions`.")
    ] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Take a past decision apart: what was seen, known and expected, and which rule applied. Default: the last one."""
    console = make_console()
    with reported():
        if at is not None and sequence is not None:
            hint = "leave one of them out"
            raise InvalidError([Problem(field="--at", found="--at and --decision", expected="one of them", hint=hint)])
        moment = None if at is None else typed_moment("--at", at)
        with ApiClient(control_plane) as client:
            detail = _fetched(client, deployment, moment, sequence)
        told = _told(detail)
        if as_json:
            return print_json(console, _json(detail, told))
        _show(console, detail, told)
    return None


def _fetched(client: ApiClient, deployment: str, moment: datetime | None, sequence: int | None) -> DecisionDetail:
    client.get(named("/api/v1/deployments/{}", deployment))  # a name that is none is an error, not an empty list
    if sequence is None:
        until = None if moment is None else moment.isoformat()
        query: dict[str, str | int | bool | None] = {"deployment": deployment, "limit": 1, "until": until}
        rows = parsed_rows(DecisionOut, client.get("/api/v1/decisions", query))
        if not rows:
            when = "" if moment is None else f" at or before {moment:%Y-%m-%d %H:%M:%S}"
            raise NotFoundError(f"no decision on {deployment} is kept{when}; `quarterdeck decisions` lists them")
        sequence = rows[0].sequence
    detail = parsed(DecisionDetail, client.get(f"/api/v1/decisions/{sequence}"))
    if detail.deployment != deployment:
        raise NotFoundError(
            f"decision {sequence} is on {detail.deployment}, not on {deployment}; "
            f"`quarterdeck decisions --deployment {deployment}` lists its own"
        )
    return detail


def _told(detail: DecisionDetail) -> Account:
    try:
        return account(_record(detail))
    except InvalidError as error:
        raise TerminalError(
            f"decision {detail.sequence} was recorded by another version of the control plane ({error}); "
            f"`quarterdeck decisions --show {detail.sequence}` prints what it was made from"
        ) from error


def _record(detail: DecisionDetail) -> DecisionRecord:
    """As the store has it: canonical texts."""
    return DecisionRecord(
        deployment=DeploymentName(detail.deployment),
        at=detail.at,
        wanted_before=detail.wanted_before,
        wanted=detail.wanted,
        reason=Reason(detail.reason),
        sentence=detail.sentence,
        policy=detail.policy,
        observation_json=_canonical(detail.observation),
        state_before_json=_canonical(detail.state_before) if detail.state_before else "",
        state_after_json=_canonical(detail.state_after),
        params_json=_canonical(detail.params),
        sequence=detail.sequence,
    )


def _canonical(value: dict[str, object]) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _json(detail: DecisionDetail, told: Account) -> Json:
    decision = DecisionOut.model_validate(detail.model_dump(include=set(DecisionOut.model_fields)))
    facts: dict[str, Json] = {
        section.name: {fact.name: fact.value for fact in section.facts} for section in told.sections
    }
    return {
        "decision": decision.model_dump(mode="json"),
        **facts,
        **({"answers": [asdict(said) for said in told.said]} if told.said else {}),
        "rules": [asdict(line) for line in told.rules],
    }


def _show(console: Console, detail: DecisionDetail, told: Account) -> None:
    shadow = " [yellow](in shadow: not acted upon)[/yellow]" if detail.shadow else ""
    console.print(
        f"[bold]decision {detail.sequence}[/bold]  {detail.deployment}  {detail.at:%Y-%m-%d %H:%M:%S} UTC  "
        f"{detail.reason}  {detail.policy}{shadow}"
    )
    console.print(escape(detail.sentence))
    for section in told.sections:
        console.print(f"\n[bold]{section.title}[/bold]")
        width = max(len(fact.name) for fact in section.facts)
        for fact in section.facts:
            console.print(f"  [cyan]{fact.name:<{width}}[/cyan]  {escape(fact.text)}")
    if told.said:
        console.print("\n[bold]What the site's rules said[/bold]")
    for said in told.said:
        console.print(f"  {escape(said.text)}")
    console.print("\n[bold]Rules, in order[/bold]")
    table = table_of("  rule", "applies", "because")
    for line in told.rules:
        table.add_row(f"  {line.rule}", _APPLIED[line.applied], escape(line.why))
    print_table(console, table)
