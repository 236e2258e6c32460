"""The API's client: JSON in, JSON out, problem+json back into our exceptions."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

import httpx2
import typer
from pydantic import BaseModel, ValidationError

from controlplane.cli.exits import UnreachableError
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

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_TIMEOUT_S: Final = 10.0
"""Every answer of the control plane comes from memory or one short transaction."""
_STREAM_SILENCE_S: Final = 60.0
"""An open event stream says that it is still there every 15 s."""
PROBLEM_JSON: Final = "application/problem+json"
"""As in `controlplane.api.problems`, which would load the whole web framework."""
_SHOWN_CHARS: Final = 120
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

type Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

ControlPlane = Annotated[
    str,
    typer.Option("--control-plane", envvar="QUARTERDECK_URL", help="URL of the control plane.", metavar="URL"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class ApiClient:
    """Synchronous; one per command, used as a context. InvalidError when the URL is none."""

    def __init__(self, url: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._url = _checked(url)
        self._http = httpx2.Client(base_url=self._url, timeout=_TIMEOUT_S, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, str | int | bool | None] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> Json:
        kept = {key: value for key, value in (params or {}).items() if value is not None}
        return self._call("GET", path, params=kept, timeout=timeout_s)

    def post(self, path: str, body: Mapping[str, Json], *, timeout_s: float = _TIMEOUT_S) -> Json:
        """A change, sent under a fresh idempotency key so that a retry by the transport cannot double it."""
        key = {"Idempotency-Key": str(uuid.uuid4())}
        return self._call("POST", path, json=dict(body), headers=key, timeout=timeout_s)

    def put(self, path: str, body: Mapping[str, Json], params: Mapping[str, str | bool] | None = None) -> Json:
        return self._call("PUT", path, json=dict(body), params=params)

    def stream_events(self, after: int | None) -> Iterator[Json]:
        """Events as they happen, until the connection ends."""
        params = {} if after is None else {"after": after}
        try:
            with self._http.stream(
                "GET",
                "/api/v1/events/stream",
                params=params,
                timeout=httpx2.Timeout(_TIMEOUT_S, read=_STREAM_SILENCE_S),
            ) as response:
                if not response.is_success:
                    response.read()
                    raise _error_of(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **options: object) -> Json:
        try:
            response = self._http.request(method, path, **options)  # type: ignore[arg-type] # the client's own keywords
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            if response.status_code == HTTPStatus.NOT_FOUND and not _is_problem(response):
                raise self._stranger()
            raise _error_of(response)
        try:
            answer: Json = response.json()
        except ValueError:
            raise self._stranger() from None
        return answer

    def _stranger(self) -> UnreachableError:
        return UnreachableError(
            f"what answers at {self._url} is no control plane (the gateway has a port of its own); its URL is the line "
            "`control plane` of `quarterdeck up`, or name another with --control-plane URL"
        )

    def _unreachable(self, error: httpx2.RequestError) -> UnreachableError:
        return UnreachableError(
            f"no control plane answers at {self._url} ({type(error).__name__}); start one with `make up` or "
            "`quarterdeck up`, or name another with --control-plane URL"
        )


def named(path: str, name: str) -> str:
    """The path with a name that a person typed; NotFoundError for what can be no name, and would be another path."""
    if _NAME.fullmatch(name) is None:
        raise NotFoundError(f"nothing is named {name!r}; names have letters, digits, '-', '.' and '_'")
    return path.format(name)


def parsed[T: BaseModel](shape: type[T], answer: Json) -> T:
    """TerminalError when another version of the control plane answers in another shape."""
    try:
        return shape.model_validate(answer)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise TerminalError(
            f"the control plane answered in a form that this command does not know ({shape.__name__}, at {where!r}); "
            "they are of different versions: `quarterdeck --version` and the `version` of /api/v1/status say which"
        ) from error


def parsed_rows[T: BaseModel](shape: type[T], answer: Json) -> list[T]:
    return [parsed(shape, row) for row in (answer if isinstance(answer, list) else [answer])]


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidError([Problem(field="--control-plane", found=repr(url), expected=f"a URL such as {DEFAULT_URL}")])
    return url.rstrip("/")


def _is_problem(response: httpx2.Response) -> bool:
    """Whether our API said it."""
    return response.headers.get("content-type", "").startswith(PROBLEM_JSON)


def _error_of(response: httpx2.Response) -> QuarterdeckError:
    try:
        body = response.json()
    except ValueError:
        said = " ".join(response.text.split())[:_SHOWN_CHARS]
        return TerminalError(f"{response.url} answered HTTP {response.status_code}: {said or 'nothing more'}")
    detail = str(body.get("detail", f"HTTP {response.status_code}")) if isinstance(body, dict) else str(body)
    problems = [
        Problem(
            field=found["field"], found=found["found"], expected=found["expected"], hint=found.get("hint", ""),
            file=found.get("file", ""), line=found.get("line", 0), column=found.get("column", 0),
        )
        for found in (body.get("problems", []) if isinstance(body, dict) else [])
    ]  # fmt: skip
    if problems:
        return InvalidError(problems)
    kinds: dict[int, type[QuarterdeckError]] = {
        403: DeniedError, 404: NotFoundError, 409: ConflictError, 503: RetryableError,
    }  # fmt: skip
    return kinds.get(response.status_code, TerminalError)(detail)
