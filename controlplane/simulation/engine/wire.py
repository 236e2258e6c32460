"""OpenAI requests as vLLM reads them: parsed and bounded, or refused in vLLM's words and JSON shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson

from controlplane.simulation.engine import text
from controlplane.simulation.engine.families import FinishReason
from controlplane.simulation.engine.text import Prompt

_COMPLETION_TOKENS_DEFAULT: Final = 16
"""OpenAI's default for /v1/completions; chat takes what the context leaves."""
_STOPS_MAX: Final = 16
"""Stop strings looked for; OpenAI allows 4, vLLM does not say."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer."""

    status: int
    message: str
    kind: str
    param: str | None = None

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


def bad_request(message: str, param: str | None = None) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message, "BadRequestError", param)


def internal_error(message: str) -> Refusal:
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message, "InternalServerError")


class RefusedError(Exception):
    """Carries a refusal out of parsing."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels:
    """Which names are served and how their prompts are read."""

    names: tuple[str, ...]
    adapters: tuple[tuple[str, str], ...]
    max_model_len: int
    block_tokens: int
    seed: int
    prefix_caching: bool

    def check(self, name: object) -> str:
        """The model's name; an absent one means the first. RefusedError with 404 for any other."""
        if name is None or name == "":
            return self.names[0]
        if isinstance(name, str) and (name in self.names or any(name == adapter for adapter, _ in self.adapters)):
            return name
        message = f"The model `{name}` does not exist."
        raise RefusedError(Refusal(HTTPStatus.NOT_FOUND, message, "NotFoundError", "model"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A completion or a chat turn, complete: what it says and how long it gets is settled."""

    model: str
    prompt: Prompt
    chat: bool
    stream: bool
    include_usage: bool
    max_tokens: int
    output_tokens: int
    reason: FinishReason
    stop_reason: str | None
    cut_chars: int | None
    """Characters of the answer to show when a stop string ends it; None: all."""


def parse_object(body: bytes) -> dict[str, Any]:
    """RefusedError with 400 unless the body is a JSON object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(bad_request(f"JSON decode error: {error}")) from None
    if not isinstance(value, dict):
        raise RefusedError(bad_request(f"Input should be a valid dictionary, found {type(value).__name__}"))
    return value


def parse_generation(body: bytes, *, chat: bool, models: ServedModels) -> GenerationRequest:
    """RefusedError for everything that vLLM would refuse."""
    fields = parse_object(body)
    model = models.check(fields.get("model"))
    if _whole(fields, "n", 1) != 1:
        raise RefusedError(bad_request("n must be 1: this engine simulates one answer per request", "n"))
    stream = _flag(fields, "stream")
    prompt = _chat_prompt(fields, model, models) if chat else parse_prompt(fields.get("prompt"), model, models)
    limit = _max_tokens(fields, prompt, chat=chat, models=models)
    natural = limit
    if not _flag(fields, "ignore_eos"):
        natural = max(text.natural_length(prompt.fingerprint, models.seed), _whole(fields, "min_tokens", 0, low=0))
    output = min(limit, natural)
    reason = FinishReason.LENGTH if output == limit else FinishReason.STOP
    stop = _first_stop(_stops(fields), text.filler(prompt.fingerprint, 0, output)) if "stop" in fields else None
    if stop is not None:
        at, stop_text = stop
        output = -(-(at + len(stop_text)) // text.CHARS_PER_TOKEN)
        reason = FinishReason.STOP
    return GenerationRequest(
        model=model,
        prompt=prompt,
        chat=chat,
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
        max_tokens=limit,
        output_tokens=output,
        reason=reason,
        stop_reason=None if stop is None else stop[1],
        cut_chars=None if stop is None else stop[0],
    )


def parse_prompt(value: object, model: str, models: ServedModels) -> Prompt:
    """Text or token ids, or a list of just one of either."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    salt = "" if model in models.names else model
    block = models.block_tokens if models.prefix_caching else 1 << 62
    if isinstance(value, str) and value:
        return text.prompt_of_text(value, block_tokens=block, salt=salt)
    if isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value):
        return text.prompt_of_ids(value, block_tokens=block, salt=salt)
    if isinstance(value, list) and value and all(isinstance(item, str | list) for item in value):
        raise RefusedError(bad_request("prompt: this engine simulates one prompt per request", "prompt"))
    raise RefusedError(bad_request("prompt must be a non-empty string or list of token ids", "prompt"))


def parse_embedding_inputs(fields: Mapping[str, Any], model: str, models: ServedModels) -> list[Prompt]:
    """One prompt per input; too long ones are refused."""
    value = fields.get("input")
    several = isinstance(value, list) and bool(value) and all(isinstance(item, str | list) for item in value)
    prompts = [parse_prompt(item, model, models) for item in (value if several and value else [value])]
    for prompt in prompts:
        if prompt.tokens > models.max_model_len:
            raise RefusedError(_too_long(prompt, models))
    return prompts


def chat_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise RefusedError(bad_request("messages must be a non-empty list of objects", "messages"))
    return messages


def _chat_prompt(fields: Mapping[str, Any], model: str, models: ServedModels) -> Prompt:
    return parse_prompt(text.chat_text(chat_messages(fields)), model, models)


def _max_tokens(fields: Mapping[str, Any], prompt: Prompt, *, chat: bool, models: ServedModels) -> int:
    """The longest answer this request may get."""
    room = models.max_model_len - prompt.tokens
    if room < 1:
        raise RefusedError(_too_long(prompt, models))
    name = "max_completion_tokens" if chat and fields.get("max_completion_tokens") is not None else "max_tokens"
    if fields.get(name) is None:
        return room if chat else min(room, _COMPLETION_TOKENS_DEFAULT)
    asked = _whole(fields, name, 0, low=1)
    if asked > room:
        length = models.max_model_len
        message = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context length is "
            f"{length} tokens and your request has {prompt.tokens} input tokens ({asked} > {length} - {prompt.tokens})."
        )
        raise RefusedError(bad_request(message, "max_tokens"))
    return asked


def _too_long(prompt: Prompt, models: ServedModels) -> Refusal:
    return bad_request(
        f"This model's maximum context length is {models.max_model_len} tokens. However, your request has "
        f"{prompt.tokens} input tokens. Please reduce the length of the input messages.",
        "input_tokens",
    )


def _include_usage(fields: Mapping[str, Any], *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise RefusedError(bad_request("Stream options can only be defined when `stream=True`.", "stream_options"))
    if not isinstance(options, dict):
        raise RefusedError(bad_request("stream_options must be an object", "stream_options"))
    return _flag(options, "include_usage")


def _stops(fields: Mapping[str, Any]) -> list[str]:
    value = fields.get("stop")
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > _STOPS_MAX or not all(isinstance(stop, str) for stop in stops):
        raise RefusedError(bad_request(f"stop must be a string or a list of at most {_STOPS_MAX} strings", "stop"))
    return [stop for stop in stops if stop]


def _first_stop(stops: list[str], answer: str) -> tuple[int, str] | None:
    """Where the answer meets its first stop string, and which."""
    found = [(at, stop) for stop in stops if (at := answer.find(stop)) >= 0]
    return min(found, default=None)


def _whole(fields: Mapping[str, Any], name: str, default: int, *, low: int = 1) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise RefusedError(bad_request(f"{name} must be a whole number, found {value!r}", name))
    if value < low:
        raise RefusedError(bad_request(f"{name} must be at least {low}, got {value}.", name))
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RefusedError(bad_request(f"{name} must be true or false, found {value!r}", name))
    return value
