"""`quarterdeck site`: check a site file, see what it would change, apply it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from controlplane.adapters.sitefile.jsonschema import site_json_schema
from controlplane.adapters.sitefile.parse import Reading, examine_site, parse_site, read_text
from controlplane.adapters.sitefile.planned import CheckedFile, PlannedFile, check_site_file, plan_reading
from controlplane.api.wire import SiteChangeOut
from controlplane.catalog.arguments import unknown_arguments
from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.catalog.planning import plan_serving
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, parsed
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.view import make_console, print_table, table_of
from controlplane.kernel.errors import ConflictError, Problem
from controlplane.kernel.units import format_bytes
from controlplane.sites.change import compare_sites
from controlplane.sites.model import Advisor, Planner

app = typer.Typer(help="Check, compare and apply site files.", no_args_is_help=True)

SiteFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A site.yaml.", show_default=False)]

_APPLIED_ALREADY: Final = "nothing changes: it is applied already"


@app.command()
def check(file: SiteFileArgument, *, as_json: AsJson = False) -> None:
    """Check a site file: every problem with its line, and whether each model fits. Needs no control plane."""
    with reported():
        text = read_text(file)
        catalog = load_catalog()
        checked = check_site_file(_read(text, catalog, file=str(file)), *_planning(catalog))
    if checked.planned is None:
        _show_problems(checked, file, as_json=as_json)
        raise typer.Exit(ExitCode.FAILED)
    if as_json:
        _print_json(_summary(checked.planned))
    else:
        _show_plans(checked.planned, file)


@app.command()
def diff(
    file: SiteFileArgument,
    *,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="Compare with this file, not the running site.")
    ] = None,
    control_plane: ControlPlane = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what a site file would change, and whether applying it would be refused."""
    with reported():
        catalog = load_catalog()
        after = _planned(read_text(file), catalog, file=str(file))
        if against is None:
            # The control plane's own answer: it knows what runs, and it is the one that will apply or refuse.
            _send(control_plane, after.document, dry_run=True, as_json=as_json)
            return
        before = _planned(read_text(against), catalog, file=str(against))
        change = compare_sites(before.site, before.plans, after.site, after.plans)
        _show_changes(list(change.sentences()), nothing="nothing changes", as_json=as_json)


@app.command()
def apply(
    file: SiteFileArgument,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    control_plane: ControlPlane = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Make the running control plane's site what the file says."""
    with reported():
        document = read_text(file)
        parse_site(document, file=str(file))
        _send(control_plane, document, dry_run=dry_run, as_json=as_json)


@app.command()
def schema(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here, not to the terminal.")
    ] = None,
) -> None:
    """Print the JSON Schema of site files, for editors."""
    text = schema_text()
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"error: {out} cannot be written ({error.strerror}): name a file in a folder of yours", err=True)
        raise typer.Exit(ExitCode.USAGE) from error


def schema_text() -> str:
    """The published schema as it stands in schemas/site.schema.json."""
    return json.dumps(site_json_schema(), indent=2) + "\n"


def _send(control_plane: str, document: str, *, dry_run: bool, as_json: bool) -> None:
    """Apply, or ask what applying would do: the same answer in both cases, a refusal too."""
    try:
        with ApiClient(control_plane) as client:
            answer = client.put("/api/v1/site", {"document": document}, {"dry_run": dry_run})
    except ConflictError as error:
        _show_refusal(str(error), as_json=as_json)
        raise typer.Exit(ExitCode.CONFLICT) from error
    _show_changes(parsed(SiteChangeOut, answer).changes, nothing=_APPLIED_ALREADY, as_json=as_json)


def _show_refusal(sentence: str, *, as_json: bool) -> None:
    if as_json:
        _print_json({"changed": False, "changes": [], "refused": sentence})
    else:
        typer.echo(f"refused: {sentence}")


def _planned(text: str, catalog: Catalog, *, file: str) -> PlannedFile:
    return plan_reading(_read(text, catalog, file=file), *_planning(catalog))


def _read(text: str, catalog: Catalog, *, file: str) -> Reading:
    models, gpus = frozenset(catalog.models), frozenset(catalog.gpus)
    return examine_site(text, file=file, known_models=models, known_gpus=gpus)


def _planning(catalog: Catalog) -> tuple[Planner, Advisor]:
    return partial(plan_serving, catalog=catalog), partial(unknown_arguments, catalog=catalog)


def _show_problems(checked: CheckedFile, file: Path, *, as_json: bool) -> None:
    problems = checked.problems
    if as_json:
        found = [asdict(problem) for problem in problems]
        _print_json({"ok": False, "problems": found, "warnings": [], "note": checked.note})
        return
    for problem in problems:
        typer.echo(_in_lines(problem))
    note = f"; {checked.note}" if checked.note else ""
    typer.echo(f"{file}: {len(problems)} problem{'' if len(problems) == 1 else 's'}{note}")


def _in_lines(problem: Problem) -> str:
    """`file:line:column: field`, as editors and terminals recognise it, then what a person needs."""
    return (
        f"{_place(problem)}{problem.field}\n"
        f"  found     {problem.found}\n"
        f"  expected  {problem.expected}\n"
        f"  next      {problem.hint or 'see docs/site-file.md'}"
    )


def _place(problem: Problem) -> str:
    return f"{problem.file}:{problem.line}:{problem.column}: " if problem.line else ""


def _summary(planned: PlannedFile) -> dict[str, Any]:
    return {
        "ok": True,
        "site": planned.site.name,
        "problems": [],
        "warnings": [asdict(problem) for problem in planned.warnings],
        "notes": [asdict(problem) for problem in planned.notes],
        "deployments": [
            {
                "name": spec.name,
                "model": spec.model,
                "replicas_min": spec.replicas_min,
                "replicas_max": spec.replicas_max,
                "gpus_per_replica": planned.plans[spec.name].gpus_per_replica,
                "gpu_models": list(planned.plans[spec.name].gpu_models),
                "memory_bytes_per_gpu": planned.plans[spec.name].memory_bytes_per_gpu,
                "revision": planned.plans[spec.name].revision,
            }
            for spec in planned.site.deployments
        ],
    }


def _show_plans(planned: PlannedFile, file: Path) -> None:
    table = table_of("deployment", "model", "replicas", "GPUs each", "on", "memory per GPU")
    for spec in planned.site.deployments:
        plan = planned.plans[spec.name]
        table.add_row(
            spec.name,
            spec.model,
            f"{spec.replicas_min}..{spec.replicas_max}",
            str(plan.gpus_per_replica),
            ", ".join(plan.gpu_models),
            format_bytes(plan.memory_bytes_per_gpu),
        )
    print_table(make_console(), table)
    for problem in planned.warnings:
        typer.echo(f"warning: {_in_lines(problem)}")
    for problem in planned.notes:
        typer.echo(f"note: {_place(problem)}{problem.field}: {problem.found} is read as {problem.expected}")
    nodes = planned.site.nodes
    gpus = sum(node.gpus for node in nodes)
    typer.echo(f"{file}: ok, site {planned.site.name}, nodes: {len(nodes)}, GPUs: {gpus}")


def _show_changes(changes: Sequence[str], *, nothing: str, as_json: bool) -> None:
    if as_json:
        _print_json({"changed": bool(changes), "changes": list(changes)})
        return
    for sentence in changes or [nothing]:
        typer.echo(sentence)


def _print_json(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, indent=2))
