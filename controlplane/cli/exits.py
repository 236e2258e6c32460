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
    Problem,
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
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(int(code))


def check_json_asks_nothing(*, as_json: bool, answered: bool) -> None:
    """InvalidError for a script that would have to answer a question."""
    if as_json and not answered:
        raise InvalidError([Problem(field="--json", found="a question to ask", expected="--yes or --dry-run with it")])


def agreed(question: str) -> None:
    """Goes on after a yes; a no, or nobody there to answer, ends the command as refused."""
    try:
        said = typer.confirm(question, default=False)
    except typer.Abort:
        fail(f"nobody answered `{question}`; add --yes where nobody can", ExitCode.CONFLICT)
    if not said:
        raise typer.Exit(int(ExitCode.CONFLICT))


@contextmanager
def reported() -> Iterator[None]:
    """Expected errors become a sentence and an exit code; no traceback reaches a user."""
    try:
        yield
    except QuarterdeckError as error:
        fail(_sentence(error), exit_code(error))
    except ExceptionGroup as group:
        expected, unforeseen = group.split(QuarterdeckError)
        if unforeseen is not None or expected is None:
            raise
        errors = list(_leaves(expected))
        fail("\n".join(dict.fromkeys(_sentence(error) for error in errors)), exit_code(errors[0]))
    except BrokenPipeError:
        raise  # the reader of a pipe has gone, which is no failure of ours: typer ends quietly
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}", ExitCode.FAILED)


def exit_code(error: QuarterdeckError) -> ExitCode:
    match error:
        case UnreachableError():
            return ExitCode.UNREACHABLE
        case ConflictError() | DeniedError():
            return ExitCode.CONFLICT
        case InvalidError() | NotFoundError():
            return ExitCode.USAGE
        case _:
            return ExitCode.FAILED


def _sentence(error: QuarterdeckError) -> str:
    if isinstance(error, InvalidError) and len(error.problems) > 1:
        return f"{len(error.problems)} problems\n{error}"
    return str(error)


def _leaves(group: ExceptionGroup[QuarterdeckError]) -> Iterator[QuarterdeckError]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
