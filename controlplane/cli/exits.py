"""Exit codes that scripts can rely on, and the one way a command fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from controlplane.kernel.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    QuarterdeckError,
    RetryableError,
)


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    """The operation failed, or a check found problems."""
    USAGE = 2
    """Bad options or bad input."""
    UNREACHABLE = 3
    """No control plane answers."""
    CONFLICT = 4
    """Refused: somebody else changed it first, or its state forbids it."""


class UnreachableError(RetryableError):
    """No control plane answers at the URL."""


def fail(message: str, code: ExitCode) -> NoReturn:
    """One sentence on standard error, then the exit code."""
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(int(code))


@contextmanager
def reported() -> Iterator[None]:
    """Expected errors become a sentence and an exit code; no traceback reaches a user."""
    try:
        yield
    except UnreachableError as error:
        fail(str(error), ExitCode.UNREACHABLE)
    except (ConflictError, DeniedError) as error:
        fail(str(error), ExitCode.CONFLICT)
    except (InvalidError, NotFoundError) as error:
        fail(str(error), ExitCode.USAGE)
    except QuarterdeckError as error:
        fail(str(error), ExitCode.FAILED)
