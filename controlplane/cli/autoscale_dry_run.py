"""`quarterdeck autoscale dry-run`: what our autoscaler would have made of somebody's own history of plain vLLM."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.exits import reported


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunOptions:
    """The command line's words."""

    prometheus: str
    range: str
    start: str | None
    end: str | None
    step: str | None
    selector: str
    model_name: str | None
    deployment: str | None
    model: str | None
    gpu: str | None
    tp: int | None
    precision: str | None
    cold_start: str | None
    slo_ttft: str
    slo_itl: str
    percentile: float
    recipe: tuple[Path, ...]
    scaler: str | None
    replicas_min: int | None
    replicas_max: int | None
    seeds: int
    jobs: int | None
    json_out: Path | None


def dry_run(
    *,
    prometheus: Annotated[str, typer.Option(metavar="URL", help="The Prometheus that scrapes the engines.")],
    slo_ttft: Annotated[str, typer.Option(metavar="S", help="Longest time to first token: 2, 500ms.")],
    slo_itl: Annotated[str, typer.Option(metavar="S", help="Longest mean time per output token: 0.05, 50ms.")],
    range_: Annotated[str, typer.Option("--range", metavar="SPAN", help="How far back: 7d, 36h.")] = "7d",
    start: Annotated[
        str | None, typer.Option(metavar="TIME", help="Instead of --range: 2026-03-01T00:00, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="TIME", help="Left out: now.")] = None,
    step: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Left out: as fine as one answer of Prometheus can be.")
    ] = None,
    selector: Annotated[
        str, typer.Option(metavar="MATCHERS", help="""Of the engines' series: 'namespace="x"'.""")
    ] = "",
    model_name: Annotated[str | None, typer.Option(help="The label model_name, where there are several.")] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Of Kubernetes; left out: the one that the pods' names tell.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the catalog; left out: the nearest to its label.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="A GPU of the catalog; left out: what dcgm-exporter tells.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor parallel degree; left out: the smallest.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp8, awq...; left out: the first that fits.")] = None,
    cold_start: Annotated[
        str | None, typer.Option(metavar="S", help="From a replica's order to ready; left out: the catalog's.")
    ] = None,
    percentile: Annotated[float, typer.Option(help="Share of requests that must meet both.")] = 0.99,
    recipe: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="The HPA or ScaledObject in use; may be repeated.")
    ] = None,
    scaler: Annotated[str | None, typer.Option(metavar="NAME", help="Which autoscaler of the recipe.")] = None,
    replicas_min: Annotated[int | None, typer.Option(min=0, help="Left out: the recipe's, or the history's.")] = None,
    replicas_max: Annotated[int | None, typer.Option(min=1, max=512, help="Left out: the same.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each policy: seeds 0 to N-1.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=1, max=256, help="Processes; left out: one per core.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write everything as JSON; `-` is standard output.")
    ] = None,
) -> None:
    """Read the history of a plain vLLM from Prometheus: what it cost and missed, and what ours would have."""
    from controlplane.cli.dry_run_command import dry_ran  # noqa: PLC0415  # numba and numpy: a second

    with reported():
        dry_ran(
            DryRunOptions(
                prometheus=prometheus, range=range_, start=start, end=end, step=step, selector=selector,
                model_name=model_name, deployment=deployment, model=model, gpu=gpu, tp=tp, precision=precision,
                cold_start=cold_start, slo_ttft=slo_ttft, slo_itl=slo_itl, percentile=percentile,
                recipe=tuple(recipe or ()), scaler=scaler, replicas_min=replicas_min, replicas_max=replicas_max,
                seeds=seeds, jobs=jobs, json_out=json_out,
            )
        )  # fmt: skip
