"""`python -m controlplane.simulation.load`: the load as its own process, without the rest of the command line."""

import sys

import typer

from controlplane.kernel.errors import QuarterdeckError
from controlplane.simulation.load.command import load


def main() -> None:
    """Exit codes: 0 all answered, 1 some failed, 2 bad options or trace."""
    try:
        typer.run(load)
    except QuarterdeckError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
