"""`quarterdeck load`: the load's own command, with this program's errors and exit codes."""

import functools

from controlplane.cli.exits import reported
from controlplane.simulation.load import command


@functools.wraps(command.load)
def load(**options: object) -> None:
    """See `controlplane.simulation.load.command.load`; typer reads its signature through the wrapper."""
    with reported():
        command.load(**options)  # type: ignore[arg-type]  # the wrapped signature is what typer checks
