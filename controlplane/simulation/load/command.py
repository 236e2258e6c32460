"""The command line of the load, the same for `quarterdeck load` and `python -m controlplane.simulation.load`."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console

from controlplane.simulation.load.model import LoadConfig
from controlplane.simulation.load.options import LoadOptions, config_of
from controlplane.simulation.load.progress import watching
from controlplane.simulation.load.report import LoadReport, tables

_COLUMNS: Final = 120
"""The report's tables are as wide; a narrower terminal wraps them, which beats names that are cut."""


def load(
    *,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=WEIGHT]", help="A model to ask, and its share. Repeatable.")
    ] = None,
    embed: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=WEIGHT]", help="The same for embedding models.")
    ] = None,
    gateway: Annotated[str, typer.Option(metavar="URL", help="Where the requests go.")] = "http://127.0.0.1:8000",
    control_plane: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Asked for the SLOs and, at the end, for GPU-hours. Optional."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parquet with timestamp_s, prompt_tokens, output_tokens. Default: a day."),
    ] = None,
    speed: Annotated[float, typer.Option(help="Arrival times are divided by it.")] = 1.0,
    day: Annotated[str, typer.Option(help="How long a generated day takes, before --speed.")] = "10m",
    peak_rps: Annotated[float, typer.Option(help="Of the generated day's season; bursts go above it.")] = 10.0,
    trough_rps: Annotated[float, typer.Option(help="Of the generated day.")] = 1.0,
    prompt_tokens: Annotated[int, typer.Option(help="Mean, of the generated day.")] = 600,
    output_tokens: Annotated[int, typer.Option(help="Mean, of the generated day.")] = 120,
    duration: Annotated[str, typer.Option(help="Ends sending after this: 90, 10m, 1h.")] = "30m",
    max_requests: Annotated[int, typer.Option(help="Ends sending after so many.")] = 1_000_000,
    concurrency_max: Annotated[int, typer.Option(help="Requests open at once; beyond, sending is late.")] = 1000,
    context_max: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Cut prompts so that prompt and output fit.")
    ] = None,
    request_timeout: Annotated[str, typer.Option(help="Longest wait for one whole answer.")] = "300s",
    slo_ttft: Annotated[str | None, typer.Option(metavar="T", help="Time to first token: 1s, 500ms.")] = None,
    slo_itl: Annotated[str | None, typer.Option(metavar="T", help="Mean time per output token.")] = None,
    slo_e2e: Annotated[str | None, typer.Option(metavar="T", help="Whole answer.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the gateway's key.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the day, the choice of models and the prompts.")] = 7,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the report as JSON; `-` is standard output.")
    ] = None,
) -> None:
    """Send a trace or a generated day to a gateway, and report what came back. Ctrl-C ends it with a report."""
    options = LoadOptions(
        models=model or [], embed_models=embed or [], gateway=gateway, control_plane=control_plane, trace=trace,
        speed=speed, day=day, peak_rps=peak_rps, trough_rps=trough_rps, prompt_tokens_mean=prompt_tokens,
        output_tokens_mean=output_tokens, duration=duration, requests_max=max_requests,
        concurrency_max=concurrency_max, context_max=context_max, request_timeout=request_timeout,
        slo_ttft=slo_ttft, slo_itl=slo_itl, slo_e2e=slo_e2e, api_key_env=api_key_env, seed=seed,
    )  # fmt: skip
    config = config_of(options, os.environ)
    console = Console(stderr=True)
    console.width = max(console.width, _COLUMNS)
    report = _play(config, console)
    _show(report, json_out, console)
    if report.total.failed:
        raise typer.Exit(1)


def _play(config: LoadConfig, console: Console) -> LoadReport:
    from controlplane.simulation.load.runner import run_load  # noqa: PLC0415  # keeps the other commands quick

    with watching(console) as on_progress, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            runner.get_loop().add_signal_handler(number, stop.set)
        return runner.run(run_load(config, on_progress=on_progress, stop=stop))


def _show(report: LoadReport, json_out: Path | None, console: Console) -> None:
    text = json.dumps(report.to_json(), indent=2)
    if json_out is not None and str(json_out) == "-":
        sys.stdout.write(text + "\n")
        return
    if json_out is not None:
        json_out.write_text(text + "\n", encoding="utf-8")
    for part in tables(report):
        console.print(part)
