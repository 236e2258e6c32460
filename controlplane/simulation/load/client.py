"""OpenAI requests over aiohttp, with little work per chunk: time the first and the last, keep a tail, parse it once."""

import json
import random
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from controlplane.simulation.load.model import Answer, Failed, Failure, Outcome, Request, Task

CHARS_PER_TOKEN: Final = 4
"""A three-letter word and a space. The simulated engine counts exactly so; a real tokenizer takes about one to two
tokens for it, so the report counts what the answer's usage says."""
_FILLER_TOKENS: Final = 1 << 18
"""1 MiB of text, beginning anew at its end: prompts start anywhere in it, so they share no prefix."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_TAIL_BYTES: Final = 4096
"""Of a stream, for the last token, the usage and the end mark: about ten events."""
_LAST_EVENTS: Final = 4
"""The finish reason and the usage are in the last two; the rest is room for other servers."""
_CONNECT_TIMEOUT_S: Final = 10.0
_ERROR_CHARS: Final = 200
_DONE: Final = b"data: [DONE]"
_FAILED_REASONS: Final = frozenset({"abort", "error"})


class GatewayClient:
    """Sends requests to one gateway; an async context manager around its connections."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, seed: int) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        self._filler = _filler(seed)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # No limit of connections here: the load's own concurrency bounds them, and a hidden queue would lie.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=self._headers, timeout=self._timeout
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> Outcome:
        """What became of it; a failure is a value."""
        assert self._session is not None, "used inside its context"
        path = "/v1/embeddings" if request.model.task is Task.EMBED else "/v1/completions"
        began_s = perf_counter()
        try:
            async with self._session.post(self._url + path, data=self._body(request)) as response:
                if response.status != 200:  # noqa: PLR2004  # HTTP's own
                    text = (await response.text())[:_ERROR_CHARS]
                    return Failed(kind=Failure.HTTP, detail=f"{response.status}: {text}")
                if request.model.task is Task.EMBED:
                    return await _whole(response, began_s)
                return await _streamed(response, began_s)
        except TimeoutError:
            return Failed(kind=Failure.TIMEOUT, detail=f"no complete answer within {self._timeout.total}s")
        except aiohttp.ClientPayloadError as error:
            return Failed(kind=Failure.BROKEN, detail=str(error))
        except (aiohttp.ClientError, OSError) as error:
            return Failed(kind=Failure.CONNECT, detail=f"{type(error).__name__}: {error}")

    def _body(self, request: Request) -> bytes:
        """JSON by hand: the filler needs no escaping, and encoding a long prompt per request would cost more."""
        text = self._text(request.text_offset, request.prompt_tokens)
        head = b'{"model":%b,' % json.dumps(request.model.name).encode()
        if request.model.task is Task.EMBED:
            return b'%b"input":"%b"}' % (head, text)
        return (
            b'%b"max_tokens":%d,"ignore_eos":true,"temperature":0,"stream":true,'
            b'"stream_options":{"include_usage":true},"prompt":"%b"}' % (head, request.output_tokens, text)
        )

    def _text(self, offset_tokens: int, tokens: int) -> bytes:
        start = offset_tokens % _FILLER_TOKENS * CHARS_PER_TOKEN
        length = tokens * CHARS_PER_TOKEN
        text = self._filler[start : start + length]
        while len(text) < length:
            text += self._filler[: length - len(text)]
        return text


async def _streamed(response: aiohttp.ClientResponse, began_s: float) -> Outcome:
    first_s = last_s = 0.0
    tail = b""
    async for chunk in response.content.iter_any():
        last_s = perf_counter()
        if first_s == 0.0:
            first_s = last_s
        tail = tail[-_TAIL_BYTES:] + chunk
    return _ended(tail, ttft_s=first_s - began_s, end_to_end_s=last_s - began_s)


def _ended(tail: bytes, *, ttft_s: float, end_to_end_s: float) -> Outcome:
    """The verdict on a stream from its last events."""
    if _DONE not in tail:
        return Failed(kind=Failure.BROKEN, detail=f"ended without [DONE]: ...{tail[-_ERROR_CHARS:]!r}")
    usage: dict[str, Any] | None = None
    reason: str | None = None
    events = [line for line in tail.split(b"\n") if line.startswith(b"data: {")]
    for line in events[-_LAST_EVENTS:]:
        event = _event(line)
        usage = event.get("usage") or usage
        reason = next((choice.get("finish_reason") for choice in event.get("choices", ())), None) or reason
    if reason is None or usage is None:
        return Failed(kind=Failure.BROKEN, detail=f"no {'finish_reason' if reason is None else 'usage'} before [DONE]")
    if reason in _FAILED_REASONS:
        return Failed(kind=Failure.ABORTED, detail=f"finish_reason {reason}")
    return Answer(
        ttft_s=ttft_s,
        end_to_end_s=end_to_end_s,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        output_tokens=int(usage.get("completion_tokens", 0)),
    )


def _event(line: bytes) -> dict[str, Any]:
    """An event's object; empty for a line that the tail cut in two."""
    try:
        event = orjson.loads(line.removeprefix(b"data: "))
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


async def _whole(response: aiohttp.ClientResponse, began_s: float) -> Outcome:
    """An answer in one piece: its first byte is as good as its last."""
    body = await response.read()
    took_s = perf_counter() - began_s
    start = body.rfind(b'"usage"')
    if start < 0 or b'"embedding"' not in body:
        return Failed(kind=Failure.BROKEN, detail=f"no embedding in the answer: {body[:_ERROR_CHARS]!r}")
    try:
        usage = orjson.loads(body)["usage"]
        return Answer(ttft_s=took_s, end_to_end_s=took_s, prompt_tokens=int(usage["prompt_tokens"]), output_tokens=0)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        return Failed(kind=Failure.BROKEN, detail=f"an answer that cannot be read: {error}")


def _filler(seed: int) -> bytes:
    rng = random.Random(seed)
    letters = "".join(rng.choices(_LETTERS, k=(CHARS_PER_TOKEN - 1) * _FILLER_TOKENS))
    words = [letters[at : at + CHARS_PER_TOKEN - 1] for at in range(0, len(letters), CHARS_PER_TOKEN - 1)]
    return (" ".join(words) + " ").encode()
