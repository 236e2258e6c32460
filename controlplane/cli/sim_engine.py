"""`quarterdeck sim-engine`: the simulated engine, with its own option parser (vLLM's option names, not typer's)."""

from typing import Final

import typer

from controlplane.bootstrap.preflight import check_port
from controlplane.cli.exits import reported

CONTEXT: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Every word after the command's name goes through untouched, --help included."""


def sim_engine(context: typer.Context) -> None:
    """Run one simulated engine: vLLM's HTTP and metrics, no model, no GPU. See `sim-engine --help`."""
    from controlplane.simulation.engine.options import parse_options  # noqa: PLC0415  # keeps other commands quick
    from controlplane.simulation.engine.process import main  # noqa: PLC0415  # the same

    with reported():
        options = parse_options(context.args)
        check_port(options.host, options.port, what="simulated engine", option="--port")
    raise typer.Exit(main(context.args))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("sim-engine", context_settings=dict(CONTEXT), add_help_option=False, rich_help_panel="Run")(sim_engine)
