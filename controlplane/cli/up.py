"""`quarterdeck up`: the control plane, the gateway and the site's load, in one command."""

import asyncio
import faulthandler
import logging
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from controlplane.adapters.instance import InstanceLock, InstanceNote, read_note
from controlplane.api.wire import EventOut, StatusOut
from controlplane.bootstrap.options import READY_PATIENCE, Running, ServeOptions, Told, log_file
from controlplane.bootstrap.preflight import check_lent_key, check_state_dir
from controlplane.cli.banner import banner_lines, print_event
from controlplane.cli.client import ApiClient, parsed
from controlplane.cli.down import StateDir
from controlplane.cli.exits import ExitCode, fail, reported
from controlplane.cli.view import make_console
from controlplane.kernel.errors import QuarterdeckError, TerminalError
from controlplane.settings import read_settings

_LOG = logging.getLogger(__name__)

_SAYS_NOTHING_S: Final = READY_PATIENCE.total_seconds() + 60.0
"""The one that was started waits for its first replicas itself; without a word for a minute more, it hangs."""
_HANGS_S: Final = 10.0
"""All is ended and written down, and a thread does not come back: the process says where, and ends."""
_LOOK_S: Final = 0.3
_LOG_LINES_ON_FAILURE: Final = 15
_STARTING: Final = "starting; the first replicas take some seconds"
_LENT: Final = (
    "the break-glass key is lent: until this control plane ends it is on a running machine. After the drill stop it, "
    "unset QUARTERDECK_BREAK_GLASS_KEY, remove the file, and start again"
)
_ERROR: Final = "error: "
"""How `fail` begins."""

Site = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FILE",
        help="A site.yaml. Without it: the site last applied in the state folder, or the demo.",
    ),
]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="The gateway's port instead of the site's.")]
ControlPort = Annotated[int, typer.Option("--control-port", min=1, max=65535, help="The control plane's own port.")]
Instance = Annotated[
    str | None,
    typer.Option(
        "--instance",
        envvar="QUARTERDECK_INSTANCE",
        metavar="NAME",
        help="Its name, where several control planes share a state folder and a PostgreSQL store.",
    ),
]


def up(
    site: Site = None,
    state_dir: StateDir = None,
    port: Port = None,
    control_port: ControlPort = 8080,
    instance: Instance = None,
    *,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Send the site's own load, if it declares one.")
    ] = True,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Do not start (exit code 4) when recovery refuses what the file would replace."),
    ] = False,
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
            instance=instance,
            strict=strict,
            break_glass=settings.break_glass,
            break_glass_passphrase=settings.break_glass_passphrase,
        )
        check_lent_key(options)
        if options.break_glass is not None:
            make_console().print(_LENT, style="yellow")
        if detach:
            _detach(options)
        else:
            with suppress(KeyboardInterrupt):  # before it listened for signals: nothing was started yet
                _serve(options)
            make_console().print("stopped; `up` again picks up here", style="dim")


def _serve(options: ServeOptions) -> None:
    from controlplane.bootstrap.serve import serve  # noqa: PLC0415  # a second of imports that only `up` needs

    async def serve_and_end(told: Told) -> None:
        try:
            await serve(options, told)
        finally:
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback_later(_HANGS_S, exit=True, file=sys.__stderr__)

    try:
        asyncio.run(serve_and_end(Told(on_starting=_on_starting, on_ready=_on_ready, on_event=_on_event)))
    except (QuarterdeckError, OSError):
        raise
    except Exception as error:
        if isinstance(error, ExceptionGroup) and error.split(QuarterdeckError)[1] is None:
            raise
        _LOG.exception("the control plane failed")
        raise TerminalError(
            f"the control plane failed ({type(error).__name__}: {error}). Gateway and replicas go on serving: `up` "
            "takes them over again, `down` stops them"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def _on_starting(refused: str) -> None:
    _print_refused(refused)
    make_console().print(_STARTING, style="dim")


def _print_refused(refused: str) -> None:
    if refused:
        make_console().print(f"[bold red]refused:[/bold red] {escape(refused)}")


def _on_ready(running: Running) -> None:
    lines = banner_lines(
        running.status, control_url=running.control_url, state_dir=running.state_dir, detached=False, load=running.load
    )
    for line in lines:
        make_console().print(line)
    make_console().print()


def _on_event(event: EventOut) -> None:
    print_event(make_console(), event)


def _detach(options: ServeOptions) -> None:
    """Start the same command in a session of its own and wait until it answers."""
    check_state_dir(options.state_dir)
    with InstanceLock(options.state_dir, options.instance):
        pass  # the same refusal as without --detach, before anything is started
    log = options.state_dir / "logs" / (f"up-{options.instance}.log" if options.instance else "up.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "controlplane", "up", *_arguments(options)]
    with log.open("ab") as output:
        before_bytes = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    give_up_at = time.monotonic() + _SAYS_NOTHING_S
    with make_console().status(_STARTING):
        while (note := _announced(options, process.pid)) is None:
            if process.poll() is not None:
                fail(f"{_last_words(log, before_bytes)}\n(its whole output: {log})", _code_of(process.returncode))
            if time.monotonic() > give_up_at:
                fail(
                    f"it says nothing after {_SAYS_NOTHING_S:.0f} s (pid {process.pid}); what it does is in "
                    f"{log_file(options)}, `quarterdeck down` stops it",
                    ExitCode.FAILED,
                )
            time.sleep(_LOOK_S)
    _print_refused(note.refused)
    with ApiClient(note.control_url) as client:
        status = parsed(StatusOut, client.get("/api/v1/status"))
    for line in banner_lines(
        status, control_url=note.control_url, state_dir=options.state_dir, detached=True, load=note.load or ""
    ):
        make_console().print(line)


def _last_words(log: Path, from_byte: int) -> str:
    """Why it ended: its own error, or else the end of what it printed."""
    said = log.read_bytes()[from_byte:].decode("utf-8", "replace")
    _, error, sentence = said.rpartition(_ERROR)
    if error:
        return sentence.strip()
    return "it ended with:\n" + "\n".join(said.splitlines()[-_LOG_LINES_ON_FAILURE:])


def _code_of(returncode: int) -> ExitCode:
    return ExitCode(returncode) if returncode in tuple(ExitCode) and returncode else ExitCode.FAILED


def _announced(options: ServeOptions, pid: int) -> InstanceNote | None:
    """The note of the one that was started, once it has waited for its first replicas, in vain or not."""
    note = read_note(options.state_dir, options.instance)
    return note if note is not None and note.pid == pid and note.load is not None else None


def _arguments(options: ServeOptions) -> list[str]:
    arguments = ["--state-dir", str(options.state_dir), "--control-port", str(options.control_port)]
    if options.site_file is not None:
        arguments += ["--site", str(options.site_file)]
    if options.gateway_port is not None:
        arguments += ["--port", str(options.gateway_port)]
    if options.instance is not None:
        arguments += ["--instance", options.instance]
    if options.strict:
        arguments += ["--strict"]
    return arguments if options.load else [*arguments, "--no-load"]
