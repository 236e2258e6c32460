"""`quarterdeck up`: the control plane, the gateway and the site's load, in one command."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from controlplane.adapters.instance import read_note
from controlplane.api.wire import EventOut, StatusOut
from controlplane.bootstrap.serve import Running, ServeOptions, serve
from controlplane.cli.banner import banner_lines, print_event
from controlplane.cli.client import ApiClient
from controlplane.cli.down import StateDir
from controlplane.cli.exits import ExitCode, UnreachableError, fail, reported
from controlplane.kernel.errors import RetryableError
from controlplane.settings import read_settings

_READY_S: Final = 180.0
"""How long `--detach` waits for the first replicas; the real engine's cold start may take longer, and it says so."""
_LOOK_S: Final = 0.3
_LOG_LINES_ON_FAILURE: Final = 15

Site = Annotated[
    Path | None,
    typer.Option(
        "--site",
        exists=False,
        help="A site.yaml. Without it: the site last applied in the state folder, or the demo.",
    ),
]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="The gateway's port instead of the site's.")]
ControlPort = Annotated[int, typer.Option("--control-port", min=1, max=65535, help="The control plane's own port.")]

_console = Console()


def up(
    site: Site = None,
    state_dir: StateDir = None,
    port: Port = None,
    control_port: ControlPort = 8080,
    *,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Send the site's own load, if it declares one.")
    ] = True,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; `quarterdeck down` stops it.")
    ] = False,
) -> None:
    """Run a site: the demo by default, on simulated GPUs; a site of your own with --site."""
    with reported():
        settings = read_settings()
        options = ServeOptions(
            state_dir=state_dir or settings.state_dir,
            site_file=site,
            gateway_port=port,
            control_port=control_port,
            load=load,
            log_level=settings.log_level,
            instance=settings.instance,
        )
        if detach:
            _detach(options)
        else:
            _console.print("starting; the first run takes some seconds", style="dim")
            asyncio.run(serve(options, on_ready=_on_ready, on_event=_on_event))
            _console.print("stopped; `up` again picks up here", style="dim")


def _on_ready(running: Running) -> None:
    lines = banner_lines(
        running.status, control_url=running.control_url, state_dir=running.state_dir, detached=False, load=running.load
    )
    for line in lines:
        _console.print(line, soft_wrap=True, highlight=False)
    _console.print()


def _on_event(event: EventOut) -> None:
    print_event(_console, event)


def _detach(options: ServeOptions) -> None:
    """Start the same command in a session of its own and wait until it answers."""
    log = options.state_dir / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "controlplane", "up", *_arguments(options)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    give_up_at = time.monotonic() + _READY_S
    with _console.status("starting; the first run takes some seconds"):
        while not _answers(options, process.pid):
            if process.poll() is not None:
                tail = "\n".join(
                    log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_ON_FAILURE:]
                )
                fail(f"it ended with exit code {process.returncode}; the end of {log}:\n{tail}", ExitCode.FAILED)
            if time.monotonic() > give_up_at:
                fail(f"not ready after {_READY_S:.0f} s; it goes on starting, {log} says why", ExitCode.FAILED)
            time.sleep(_LOOK_S)
    note = read_note(options.state_dir)
    assert note is not None, "a control plane that answers has written its note"
    status = StatusOut.model_validate(ApiClient(note.control_url).get("/api/v1/status"))
    load = "runs in the background" if options.load else "none (--no-load)"
    for line in banner_lines(
        status, control_url=note.control_url, state_dir=options.state_dir, detached=True, load=load
    ):
        _console.print(line, soft_wrap=True, highlight=False)


def _answers(options: ServeOptions, pid: int) -> bool:
    note = read_note(options.state_dir)
    if note is None or note.pid != pid:
        return False
    try:
        ApiClient(note.control_url).get("/readyz")
        status = StatusOut.model_validate(ApiClient(note.control_url).get("/api/v1/status"))
    except (UnreachableError, RetryableError):
        return False
    return all(row.replicas_by_phase.get("ready", 0) >= row.replicas_min for row in status.deployments)


def _arguments(options: ServeOptions) -> list[str]:
    arguments = ["--state-dir", str(options.state_dir), "--control-port", str(options.control_port)]
    if options.site_file is not None:
        arguments += ["--site", str(options.site_file)]
    if options.gateway_port is not None:
        arguments += ["--port", str(options.gateway_port)]
    return arguments if options.load else [*arguments, "--no-load"]
