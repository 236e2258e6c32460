"""`quarterdeck site`: check a site file, see what it would change, apply it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from controlplane.adapters.sitefile.jsonschema import site_json_schema
from controlplane.adapters.sitefile.parse import parse_site, read_site, read_text
from controlplane.adapters.sitefile.planned import PlannedFile, plan_site_file
from controlplane.api.wire import SiteChangeOut, SiteDocument
from controlplane.catalog.files import load_catalog
from controlplane.catalog.model import Catalog
from controlplane.catalog.planning import plan_serving
from controlplane.cli.client import DEFAULT_URL, ApiClient, AsJson, ControlPlane, parsed
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.view import make_console, print_table, table_of
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import format_bytes
from controlplane.sites.change import compare_sites

app = typer.Typer(help="Check, compare and apply site files.", no_args_is_help=True)

SiteFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A site.yaml.", show_default=False)]

_RUNNING: Final = "the running site"
"""Stands for a file's name in messages about the document that the control plane has."""


@app.command()
def check(file: SiteFileArgument, *, as_json: AsJson = False) -> None:
    """Check a site file: every problem with its line, and whether each model fits. Needs no control plane."""
    with reported():
        text = read_text(file)
        catalog = load_catalog()
    try:
        planned = _planned(text, catalog, file=str(file))
    except InvalidError as error:
        _show_problems(error.problems, file, as_json=as_json)
        raise typer.Exit(ExitCode.FAILED) from error
    if as_json:
        _print_json(_summary(planned))
    else:
        _show_plans(planned, file)


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
    """Show what a site file would change."""
    with reported():
        catalog = load_catalog()
        after = _planned(read_text(file), catalog, file=str(file))
        if against is None:
            with ApiClient(control_plane) as client:
                running = parsed(SiteDocument, client.get("/api/v1/site/document"))
            before = _planned(running.document, catalog, file=_RUNNING)
        else:
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
        with ApiClient(control_plane) as client:
            answer = client.put("/api/v1/site", {"document": document}, {"dry_run": dry_run})
        changes = parsed(SiteChangeOut, answer).changes
        _show_changes(changes, nothing="nothing changes: it is applied already", as_json=as_json)


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


def _planned(text: str, catalog: Catalog, *, file: str) -> PlannedFile:
    read = read_site(text, file=file, known_models=frozenset(catalog.models), known_gpus=frozenset(catalog.gpus))
    return plan_site_file(read, partial(plan_serving, catalog=catalog))


def _show_problems(problems: Sequence[Problem], file: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json({"ok": False, "problems": [asdict(problem) for problem in problems], "warnings": []})
        return
    for problem in problems:
        typer.echo(_in_lines(problem))
    typer.echo(f"{file}: {len(problems)} problem{'' if len(problems) == 1 else 's'}")


def _in_lines(problem: Problem) -> str:
    """`file:line:column: field`, as editors and terminals recognise it, then what a person needs."""
    place = f"{problem.file}:{problem.line}:{problem.column}: " if problem.line else ""
    return (
        f"{place}{problem.field}\n"
        f"  found     {problem.found}\n"
        f"  expected  {problem.expected}\n"
        f"  next      {problem.hint or 'see docs/site-file.md'}"
    )


def _summary(planned: PlannedFile) -> dict[str, Any]:
    return {
        "ok": True,
        "site": planned.site.name,
        "problems": [],
        "warnings": [asdict(problem) for problem in planned.warnings],
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
