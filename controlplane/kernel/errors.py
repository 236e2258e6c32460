"""One tree of exceptions, named by what the caller should do about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


class QuarterdeckError(Exception):
    """Root of every expected operating error. The message is a sentence for a person."""


class RetryableError(QuarterdeckError):
    """The same call may succeed later; nothing was changed."""

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class TerminalError(QuarterdeckError):
    """The same call will fail again until a person changes something."""


class ConflictError(QuarterdeckError):
    """Somebody else changed the thing first (generation), or its present state forbids the call."""


class StaleClaimError(ConflictError):
    """The claim under which work was done has passed to another worker: drop the result, count it."""


class NotFoundError(QuarterdeckError):
    """Nothing has that name; the message carries the nearest valid one where there is one."""


class DeniedError(QuarterdeckError):
    """The caller may not do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with an input, placed where the user can see it. Lines and columns count from 1."""

    field: str
    found: str
    expected: str
    hint: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.file and self.line else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{place}{self.field}: found {self.found}, expected {self.expected}{hint}"


class InvalidError(QuarterdeckError):
    """The input is wrong; every problem found is in `problems`, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an InvalidError carries at least one problem"
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
