"""The one place where an exception becomes an HTTP answer: problem+json (RFC 9457)."""

import logging
from collections.abc import Sequence
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from controlplane.kernel.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    Problem,
    QuarterdeckError,
    RetryableError,
    TerminalError,
)

PROBLEM_JSON: Final = "application/problem+json"
_RETRY_AFTER_DEFAULT_S: Final = 5
"""When a retryable error does not say when: one or two ticks of any loop."""

_STATUS: Final[Sequence[tuple[type[QuarterdeckError], int, str]]] = (
    (InvalidError, 422, "invalid"),
    (NotFoundError, 404, "not-found"),
    (ConflictError, 409, "conflict"),
    (DeniedError, 403, "denied"),
    (RetryableError, 503, "try-again"),
    (TerminalError, 500, "failed"),
)

_log = logging.getLogger(__name__)


def problem_response(
    status: int, kind: str, detail: str, *, problems: Sequence[Problem] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    body: dict[str, object] = {
        "type": f"urn:quarterdeck:{kind}",
        "title": kind.replace("-", " "),
        "status": status,
        "detail": detail,
    }
    if problems:
        body["problems"] = [
            {
                "field": problem.field,
                "found": problem.found,
                "expected": problem.expected,
                "hint": problem.hint,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
            }
            for problem in problems
        ]
    return JSONResponse(body, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(QuarterdeckError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unforeseen)


async def _on_ours(_request: Request, error: Exception) -> JSONResponse:
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            problems = error.problems if isinstance(error, InvalidError) else ()
            headers = {"Retry-After": str(_retry_after_s(error))} if isinstance(error, RetryableError) else None
            return problem_response(status, name, str(error), problems=problems, headers=headers)
    return problem_response(500, "failed", str(error))


async def _on_validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(
            field=".".join(str(part) for part in detail["loc"]),
            found=_shown(detail.get("input")),
            expected=str(detail["msg"]),
        )
        for detail in error.errors()
    ]
    return problem_response(422, "invalid", "The request does not have the documented form.", problems=problems)


async def _on_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return problem_response(error.status_code, "http", str(error.detail), headers=headers)


async def _on_unforeseen(request: Request, error: Exception) -> JSONResponse:
    _log.error("request failed", extra={"path": request.url.path, "error": type(error).__name__}, exc_info=error)
    return problem_response(500, "failed", "The control plane failed on this request; its log says where.")


def _retry_after_s(error: RetryableError) -> int:
    if error.after is None:
        return _RETRY_AFTER_DEFAULT_S
    return max(1, round(error.after.total_seconds()))


def _shown(value: object) -> str:
    """At most 80 characters of what was sent; a body may be large, and may hold what should not be echoed."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 - the docstring names it
