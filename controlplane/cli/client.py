"""The API's client: JSON in, JSON out, problem+json back into our exceptions."""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import httpx2
import typer

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

type Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

ControlPlane = Annotated[
    str,
    typer.Option("--control-plane", envvar="QUARTERDECK_URL", help="URL of the control plane.", metavar="URL"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class ApiClient:
    """Synchronous; one per command."""

    def __init__(self, url: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self._url, timeout=_TIMEOUT_S, transport=transport)

    def get(self, path: str, params: Mapping[str, str | int | bool | None] | None = None) -> Json:
        kept = {key: value for key, value in (params or {}).items() if value is not None}
        return self._call("GET", path, params=kept)

    def post(self, path: str, body: Mapping[str, Json]) -> Json:
        """A change, sent under a fresh idempotency key so that a retry by the transport cannot double it."""
        return self._call("POST", path, json=dict(body), headers={"Idempotency-Key": str(uuid.uuid4())})

    def put(self, path: str, body: Mapping[str, Json], params: Mapping[str, str | bool] | None = None) -> Json:
        return self._call("PUT", path, json=dict(body), params=params)

    def stream_events(self, after: int | None) -> Iterator[Json]:
        """Events as they happen, until the connection ends."""
        params = {} if after is None else {"after": after}
        try:
            with self._http.stream(
                "GET", "/api/v1/events/stream", params=params, timeout=httpx2.Timeout(_TIMEOUT_S, read=None)
            ) as response:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **options: object) -> Json:
        try:
            response = self._http.request(method, path, **options)  # type: ignore[arg-type] # the client's own keywords
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            answer: Json = response.json()
            return answer
        raise _error_of(response)

    def _unreachable(self, error: httpx2.TransportError) -> UnreachableError:
        return UnreachableError(
            f"no control plane answers at {self._url} ({type(error).__name__}); start one with `make up` or "
            "`quarterdeck up`, or name another with --control-plane URL"
        )


def _error_of(response: httpx2.Response) -> QuarterdeckError:
    try:
        body = response.json()
    except ValueError:
        return TerminalError(f"the answer was HTTP {response.status_code} without a readable body")
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
