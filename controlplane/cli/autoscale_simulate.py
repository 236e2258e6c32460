"""`quarterdeck autoscale simulate`: our policy, its peers and the clairvoyant on a trace, in virtual time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.exits import reported


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """The command line's words."""

    trace: Path
    model: str
    gpu: str
    tp: int | None
    precision: str | None
    cold_start: str
    cold_start_cv: float
    wake_time: str | None
    asleep_share: float | None
    sleepers_max: int | None
    slo_ttft: str
    slo_itl: str
    percentile: float
    policies: str
    tuned: bool
    replicas_min: int
    replicas_max: int
    seeds: int
    series: str | None
    scale: str
    start: str
    end: str | None
    jobs: int | None
    json_out: Path | None
    plot: Path | None


def simulate(
    *,
    trace: Annotated[
        Path, typer.Option(metavar="FILE", help="Parquet with a row per request, or with rates over time.")
    ],
    model: Annotated[str, typer.Option(help="A model of the catalog that generates.")],
    gpu: Annotated[str, typer.Option(help="A GPU of the catalog: b200, h100, h200...")],
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor parallel degree; left out: the smallest.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp8, awq...; left out: the first that fits.")] = None,
    cold_start: Annotated[str, typer.Option(metavar="S", help="Seconds from a replica's order to ready, on average.")],
    cold_start_cv: Annotated[float, typer.Option(min=0.0, max=3.0, help="Its deviation over its mean.")] = 0.1,
    wake_time: Annotated[
        str | None, typer.Option(metavar="S", help="Replicas sleep instead of going, and are awake after so long.")
    ] = None,
    asleep_share: Annotated[
        float | None, typer.Option(metavar="X", help="What a sleeper's GPUs count of a ready one's: 0 to 1; default 1.")
    ] = None,
    sleepers_max: Annotated[
        int | None, typer.Option(metavar="N", help="Asleep at once; left out: all that are given back.")
    ] = None,
    slo_ttft: Annotated[str, typer.Option(metavar="S", help="Longest time to first token: 2, 500ms.")],
    slo_itl: Annotated[str, typer.Option(metavar="S", help="Longest mean time per output token: 0.05, 50ms.")],
    percentile: Annotated[float, typer.Option(help="Share of requests that must meet both.")] = 0.99,
    policies: Annotated[
        str, typer.Option(metavar="all|NAMES", help="Separated by commas: quarterdeck,clairvoyant,hpa...")
    ] = "all",
    tuned: Annotated[bool, typer.Option("--tuned", help="Peers also with the best knobs that a search finds.")] = False,
    replicas_min: Annotated[int, typer.Option(min=0, help="Of every policy.")] = 1,
    replicas_max: Annotated[int, typer.Option(min=1, max=512, help="Of every policy.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each policy: seeds 0 to N-1.")] = 3,
    series: Annotated[str | None, typer.Option(metavar="NAME", help="Model or service of a file with several.")] = None,
    scale: Annotated[str, typer.Option(metavar="auto|X", help="Times the recorded rate; 1: as recorded.")] = "auto",
    start: Annotated[str, typer.Option(metavar="T", help="Of the trace: seconds, or 30m, 12h, 2d.")] = "0",
    end: Annotated[str | None, typer.Option(metavar="T", help="Of the trace; left out: its end.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes; left out: 1, or one per core for what takes long.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write every run as JSON; `-` is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.svg", help="Draw the first seed's runs over time.")] = None,
) -> None:
    """Play a trace to our autoscaler, to other projects' and to one that knows the future: SLO attainment and cost."""
    from controlplane.cli.autoscale_comparison import simulated  # noqa: PLC0415  # numba, numpy and pyarrow: a second

    with reported():
        simulated(
            SimulateOptions(
                trace=trace, model=model, gpu=gpu, tp=tp, precision=precision, cold_start=cold_start,
                cold_start_cv=cold_start_cv, wake_time=wake_time, asleep_share=asleep_share,
                sleepers_max=sleepers_max, slo_ttft=slo_ttft, slo_itl=slo_itl, percentile=percentile,
                policies=policies, tuned=tuned, replicas_min=replicas_min, replicas_max=replicas_max, seeds=seeds,
                series=series, scale=scale, start=start, end=end, jobs=jobs, json_out=json_out, plot=plot,
            )
        )  # fmt: skip
