"""`quarterdeck autoscale doctor`: autoscaling recipes that cannot work, or are unsafe, each at its line."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from controlplane.adapters.doctor.documents import Diagnosed, Folder, read_documents
from controlplane.adapters.doctor.live import ask_prometheus, read_page
from controlplane.adapters.system import SystemClock
from controlplane.autoscaler.doctor.diagnose import diagnose, queries, understand
from controlplane.autoscaler.doctor.live import Answer, Showing
from controlplane.autoscaler.doctor.model import Severity
from controlplane.autoscaler.doctor.recipe import Recipe
from controlplane.cli.client import AsJson, Json
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.view import make_console
from controlplane.kernel.errors import InvalidError, Problem

_COLOURS: Final[Mapping[Severity, str]] = {
    Severity.BROKEN: "red",
    Severity.RISKY: "yellow",
    Severity.ADVICE: "cyan",
}


def doctor(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Manifests, Helm values, or folders of them.")],
    *,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="URL|FILE", help="An engine's /metrics page.")
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option("--prometheus", metavar="URL", help="A Prometheus, to try the queries in.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on any finding, not only on broken ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what cannot work in HPA, KEDA, monitors, adapter rules and Helm values; exit code 1 when something is."""
    with reported():
        folder = read_documents(paths)
        recipe = understand([read.document for read in folder.documents])
        _require_something(recipe, paths)
        showings, answers = asyncio.run(_look(recipe, metrics, prometheus))
        found = folder.ordered(diagnose(recipe, showings=showings, answers=answers))
    failed = any(strict or one.finding.rule.severity == Severity.BROKEN for one in found)
    if as_json:
        typer.echo(json.dumps(_json(folder, recipe, found, ok=not failed), indent=2, ensure_ascii=False))
    else:
        _show(make_console(), folder, recipe, found)
    if failed:
        raise typer.Exit(int(ExitCode.FAILED))


def _require_something(recipe: Recipe, paths: Sequence[Path]) -> None:
    """A check that looks at nothing must not pass."""
    if recipe.autoscalers or recipe.monitors or recipe.adapter or recipe.recorded:
        return
    expected = "an HPA, ScaledObject, PodAutoscaler, monitor, adapter or recording rule, or values with autoscaling on"
    raise InvalidError([Problem(field=str(paths[0]), found="nothing that scales or is scraped", expected=expected)])


async def _look(
    recipe: Recipe, page: str | None, prometheus: str | None
) -> tuple[Sequence[Showing], Mapping[str, Answer]]:
    clock = SystemClock()
    showings: list[Showing] = []
    answers: Mapping[str, Answer] = {}
    if page is not None:
        showings.append(await read_page(page, clock))
    if prometheus is not None:
        showing, answers = await ask_prometheus(prometheus, queries(recipe), clock)
        showings.append(showing)
    return showings, answers


def _show(console: Console, folder: Folder, recipe: Recipe, found: Sequence[Diagnosed]) -> None:
    for one in found:
        finding = one.finding
        rule, source = finding.rule, finding.at.document.source
        colour = _COLOURS[rule.severity]
        place = f"{source}:{one.line}:{one.column}"
        console.print(f"{escape(place)}: [{colour}]{rule.severity}[/{colour}] {rule.id}")
        rows = (
            ("field", one.field),
            ("found", finding.found),
            ("expected", finding.expected),
            ("why", f"{rule.why} ({rule.source})"),
            ("fix", finding.fix),
        )
        for name, text in rows:
            if text:
                console.print(f"  {name:<9} {escape(text)}")
    for note in folder.notes:
        console.print(f"note: {escape(note)}")
    console.print(_summary(folder, recipe, found))


def _summary(folder: Folder, recipe: Recipe, found: Sequence[Diagnosed]) -> str:
    counts = Counter(one.finding.rule.severity for one in found)
    said = ", ".join(f"{counts[severity]} {severity}" for severity in Severity if counts[severity]) or "nothing found"
    read = (
        _counted(folder.files, "file"),
        _counted(len(recipe.autoscalers), "autoscaler"),
        _counted(len(recipe.monitors), "monitor"),
        _counted(len(recipe.workloads), "workload"),
        _counted(len(recipe.parsed), "query", "queries"),
    )
    return f"{', '.join(one for one in read if one)}: {said}"


def _counted(count: int, noun: str, nouns: str = "") -> str:
    if not count:
        return ""
    return f"1 {noun}" if count == 1 else f"{count} {nouns or f'{noun}s'}"


def _json(folder: Folder, recipe: Recipe, found: Sequence[Diagnosed], *, ok: bool) -> Json:
    return {
        "ok": ok,
        "files": folder.files,
        "autoscalers": len(recipe.autoscalers),
        "findings": [_json_of(one) for one in found],
        "notes": list(folder.notes),
    }


def _json_of(one: Diagnosed) -> Json:
    finding = one.finding
    return {
        "id": finding.rule.id,
        "severity": finding.rule.severity.value,
        "file": finding.at.document.source,
        "line": one.line,
        "column": one.column,
        "field": one.field,
        "found": finding.found,
        "expected": finding.expected,
        "why": finding.rule.why,
        "source": finding.rule.source,
        "fix": finding.fix,
    }
