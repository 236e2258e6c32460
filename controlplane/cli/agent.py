"""`quarterdeck agent` serves this node's GPU metrics; `quarterdeck agent check` says whether they are fit."""

import asyncio
import json
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from controlplane.adapters.agent import DEFAULT_PORT
from controlplane.adapters.cpu import CpuMeter
from controlplane.adapters.gpu.check import gpu_problems
from controlplane.adapters.gpu.simulated import GpuStateFolder, SimulatedGpus
from controlplane.adapters.gpu.source import GpuReader, GpuSource
from controlplane.adapters.system import SystemClock
from controlplane.bootstrap.preflight import check_port
from controlplane.catalog.files import load_catalog
from controlplane.cli.exits import ExitCode, reported
from controlplane.kernel.errors import ConflictError

_DEFAULT_GPUS: Final = 8
"""Of a simulated node: an HGX board."""
_PORT_MAX: Final = 65_535

app = typer.Typer(help="Show this node's GPUs to the control plane.", invoke_without_command=True)

SimulateOption = Annotated[
    str | None,
    typer.Option("--simulate", metavar="GPU", help="Play this GPU (catalog name, e.g. b200); needs no driver."),
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, max=64, help="How many GPUs there should be (simulated: 8).")
]
NodeOption = Annotated[
    str | None, typer.Option("--node", help="The node's name in the site file (default: host name).")
]
StateOption = Annotated[
    Path, typer.Option("--gpu-state-dir", file_okay=False, help="Where simulated engines write what their GPUs do.")
]
_DEFAULT_STATE_DIR: Final = Path(".quarterdeck/gpu-state")


@app.callback()
def serve(
    context: typer.Context,
    simulate: SimulateOption = None,
    gpus: GpusOption = None,
    node: NodeOption = None,
    gpu_state_dir: StateOption = _DEFAULT_STATE_DIR,
    host: Annotated[str, typer.Option(help="Address to listen on; the control plane must reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=_PORT_MAX, help="0 picks a free one.")] = DEFAULT_PORT,
) -> None:
    """Serve /metrics (DCGM's names), /healthz and /v1/gpus until interrupted."""
    name = node or socket.gethostname()
    if context.invoked_subcommand is not None:
        return
    with reported():
        source = _source(simulate, gpus, name, gpu_state_dir)
        check_port(host, port, what="node agent", option="--port")
        try:
            asyncio.run(_serve(source, name, gpus, host, port))
        except OSError as error:
            raise ConflictError(
                f"the node agent cannot listen on {host}:{port}: {error.strerror}; choose with --port"
            ) from error


@app.command()
def check(
    simulate: SimulateOption = None,
    gpus: GpusOption = None,
    node: NodeOption = None,
    gpu_state_dir: StateOption = _DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Exit 0 when this node's GPUs are fit to serve, else 1 with a sentence for each reason.

    Made for Slurm's HealthCheckProgram and for people.
    """
    name = node or socket.gethostname()
    with reported():
        source = _source(simulate, gpus, name, gpu_state_dir)
        sample = asyncio.run(GpuReader(source, SystemClock()).read())
    problems = gpu_problems(sample.gpus, expected=gpus)
    out = Console(soft_wrap=True, highlight=False, markup=False)
    if as_json:
        out.print(json.dumps({"node": name, "problems": problems, "gpus": [asdict(gpu) for gpu in sample.gpus]}))
    elif not problems:
        out.print(f"{name}: {len(sample.gpus)} GPUs are fit")
    if problems and not as_json:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print("\n".join(problems))
    raise typer.Exit(ExitCode.FAILED if problems else ExitCode.OK)


def _source(simulate: str | None, gpus: int | None, node: str, gpu_state_dir: Path) -> GpuSource:
    if simulate is None:
        from controlplane.adapters.gpu.nvml import NvmlGpus  # noqa: PLC0415  # keeps other commands quick

        return NvmlGpus()
    load_catalog().gpu(simulate)  # NotFoundError with the nearest name
    folder = GpuStateFolder(gpu_state_dir, SystemClock())
    return SimulatedGpus(folder, node=node, gpu_model=simulate, gpus=gpus or _DEFAULT_GPUS)


async def _serve(source: GpuSource, node: str, expected_gpus: int | None, host: str, port: int) -> None:
    """Until SIGINT or SIGTERM. The first reading decides whether there is anything to serve."""
    from controlplane.adapters.agent.server import AgentOptions, serve_agent  # noqa: PLC0415  # keeps others quick

    options = AgentOptions(node=node, expected_gpus=expected_gpus)
    reader = GpuReader(source, SystemClock(), cpu=CpuMeter())
    sample = await reader.read()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with serve_agent(reader, options, host=host, port=port) as bound:
        Console(soft_wrap=True, highlight=False).print(
            f"{options.node}: {len(sample.gpus)} GPUs on http://{host}:{bound}/metrics (also /healthz, /v1/gpus)"
        )
        await ended.wait()
