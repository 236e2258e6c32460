"""What the gateway itself answers, in OpenAI's shapes, and the private headers between its two processes. Pure."""

import json
from collections.abc import Sequence
from typing import Final

from controlplane.kernel.ids import ServedName

HEADER_PREFIX: Final = "X-Quarterdeck-"
"""Headers with it are deleted from outside requests: only the gateway's own parts may set them."""

MODEL_HEADER: Final = "X-Quarterdeck-Model"
"""The request's model, percent-encoded."""
DEPLOYMENT_HEADER: Final = "X-Quarterdeck-Deployment"
TENANT_HEADER: Final = "X-Quarterdeck-Tenant"
ARRIVAL_HEADER: Final = "X-Quarterdeck-Arrival"
"""On a request that comes back from the slow path and was not counted as an arrival yet."""
RESENT_HEADER: Final = "X-Quarterdeck-Resent"
"""On a request that the activator sent back: if no replica can take it, it is told so instead of being held again."""
REFUSE_HEADER: Final = "X-Quarterdeck-Refuse"
"""A status that the activator should answer after it read the rest of a long body away, so that the caller sees it."""
LOOK_HEADER: Final = "X-Quarterdeck-Look"
"""On a request without body by which the activator asks only whether HAProxy knows the model: 404 or 204."""
RETRY_AFTER_HEADER: Final = "X-Quarterdeck-Retry-After"

HOLD_STATUS: Final = 421
"""Between activator and HAProxy only: no replica is up, hold it. Never seen outside; no 5xx, so not counted as one."""

RETRY_AFTER_S: Final = 5
"""Told to callers of an overloaded or cold deployment: a few queue lengths, shorter than a cold start, since other
replicas may come up in between."""

NAMES_SHOWN_MAX: Final = 40
"""Served names listed in an error: enough to see a typing mistake, small beside the reply's other parts."""

INFERENCE_PATHS: Final = (
    "/classify",
    "/detokenize",
    "/pooling",
    "/rerank",
    "/score",
    "/tokenize",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
    "/v2/rerank",
)
"""What callers may POST to. A closed list: an engine has more (`/sleep`, `/v1/load_lora_adapter`, ...), which are the
control plane's and would let any caller put a replica to sleep. Source: vLLM's OpenAI server."""


def error_json(message: str, *, kind: str, code: str, param: str | None = None) -> str:
    """An error in OpenAI's shape, as JSON text."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def invalid_request(message: str, *, code: str, param: str | None = None) -> str:
    return error_json(message, kind="invalid_request_error", code=code, param=param)


def overloaded(message: str) -> str:
    """503: the same request may succeed after the Retry-After that goes with it."""
    return error_json(message, kind="overloaded_error", code="service_unavailable")


def body_too_large(limit_bytes: int) -> str:
    return invalid_request(
        f"The request body is larger than the gateway's limit of {limit_bytes} bytes (site file: gateway.body_max).",
        code="request_too_large",
    )


def key_refused() -> str:
    return invalid_request(
        "Send a valid API key as `Authorization: Bearer KEY` (or `x-api-key`).", code="invalid_api_key"
    )


def rate_limited() -> str:
    return error_json(
        "Too many requests for this key within one minute; wait as long as Retry-After says.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
    )


def names_listed(names: Sequence[ServedName]) -> str:
    """`a, b, c and 12 more`."""
    if not names:
        return "none"
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def model_entry(name: str) -> dict[str, str | int]:
    """One entry of GET /v1/models. `created` is part of OpenAI's shape and means nothing here."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "quarterdeck"}


def models_json(names: Sequence[ServedName]) -> str:
    return json.dumps({"object": "list", "data": [model_entry(name) for name in names]})
