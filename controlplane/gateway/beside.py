"""The files beside haproxy.cfg: maps that route, replies that callers read. Pure."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from controlplane.gateway import replies
from controlplane.gateway.model import RouteTable
from controlplane.kernel.ids import TenantName

_MODEL: Final = "MODEL-OF-REQUEST"
_PATH: Final = "PATH-OF-REQUEST"

OWN_ERRORS: Final[Mapping[int, str]] = {
    400: replies.invalid_request("The request is not valid HTTP.", code="bad_request"),
    408: replies.invalid_request("The request did not arrive in time.", code="request_timeout"),
    500: replies.error_json("The gateway failed on this request.", kind="server_error", code="gateway_error"),
    502: replies.error_json("The replica broke off before it answered.", kind="server_error", code="replica_failed"),
    504: replies.error_json("The replica did not answer in time.", kind="server_error", code="replica_timeout"),
}
"""HAProxy's own errors by status, in OpenAI's shape instead of HTML. 503 has two texts: see below."""

ACTIVATOR_AWAY: Final = replies.overloaded("The gateway's activator restarts; try again after Retry-After.")
"""503 where only the activator could take the request."""

_MORE: Final = "MORE-ON-SERVER"


def overloaded_format(more_map: str) -> str:
    """503 elsewhere, as an HAProxy log-format without apostrophes; the map says more on the server that failed."""
    text = replies.overloaded(f"No replica could take the request in time{_MORE}; try again after Retry-After.")
    return _log_format(text, _MORE, f"%[srv_name,map_str({more_map})]")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDigest:
    """SHA-256 of an API key in upper-case hex, and whose it is. Keys themselves are in no file."""

    sha256: str
    tenant: TenantName


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideFiles:
    """Texts by file name, and the file name of each by its plain one.

    File names carry a digest of the text: an old and a new configuration never share one, and writing the new ones
    cannot harm a running worker.
    """

    texts: Mapping[str, str]
    names: Mapping[str, str]


def render_files(table: RouteTable, keys: Sequence[KeyDigest]) -> BesideFiles:
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, text in _files(table, keys):
        stem, _, suffix = name.rpartition(".")
        names[name] = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.{suffix}"
        texts[names[name]] = text
    return BesideFiles(texts=texts, names=names)


def encoded(model: str) -> str:
    """A model's name as HAProxy's `url_enc` writes it: map keys may hold neither spaces nor `#`."""
    return quote(model, safe="-._~")


def _files(table: RouteTable, keys: Sequence[KeyDigest]) -> Iterator[tuple[str, str]]:
    served = sorted(name for route in table.routes for name in route.served_names)
    yield "models.map", _map((encoded(name), route.deployment) for route in table.routes for name in route.served_names)
    yield "models.json", replies.models_json(served)
    yield "model.json", _log_format(json.dumps(replies.model_entry(_MODEL)), _MODEL, "%[var(txn.asked),json(utf8s)]")
    unknown = f"The model `{_MODEL}` does not exist. Served: {replies.names_listed(served)}."
    yield (
        "unknown-model.json",
        _log_format(
            replies.invalid_request(unknown, code="model_not_found", param="model"),
            _MODEL,
            "%[var(txn.asked),json(utf8s)]",
        ),
    )
    yield (
        "unknown-path.json",
        _log_format(
            replies.invalid_request(f"Unknown path {_PATH}. GET /v1/models lists what is served.", code="unknown_url"),
            _PATH,
            "%[path,json(utf8s)]",
        ),
    )
    yield "method.json", replies.invalid_request("Use POST for this path.", code="method_not_allowed")
    yield "headers.json", replies.invalid_request("The request's headers are too large.", code="headers_too_large")
    yield "too-large.json", replies.body_too_large(table.spec.body_bytes_max)
    yield "health.json", '{"status":"ok"}'
    for status, text in OWN_ERRORS.items():
        yield f"error-{status}.json", text
    yield "error-503-slow.json", ACTIVATOR_AWAY
    yield "more.map", _map([("hold", ", and the gateway's activator, which would hold it, restarts")])
    if table.spec.tenants:
        yield "no-key.json", replies.key_refused()
        yield "too-often.json", replies.rate_limited()
        yield "keys.map", _map((key.sha256, key.tenant) for key in keys)
        limited = [
            (t.name, str(t.requests_per_minute)) for t in table.spec.tenants if t.requests_per_minute is not None
        ]
        yield "limits.map", _map(limited)


def _map(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{key} {value}\n" for key, value in rows)


def _log_format(text: str, mark: str, expression: str) -> str:
    """`text` as an HAProxy log-format: its own percent signs doubled, `mark` replaced by an expression."""
    return text.replace("%", "%%").replace(mark, expression)
