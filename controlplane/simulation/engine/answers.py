"""Answers to generation requests, whole and streamed. What is the same in every event of a stream is encoded once."""

import time
from collections.abc import Callable
from typing import Final

import orjson

from controlplane.simulation.engine.families import FinishReason
from controlplane.simulation.engine.http_server import Exchange
from controlplane.simulation.engine.text import CHARS_PER_TOKEN, filler
from controlplane.simulation.engine.wire import GenerationRequest, internal_error

_DONE: Final = b"data: [DONE]\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int | None]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
    }


class WholeAnswer:
    """Nothing happens until the end; then one JSON body."""

    streams = False

    def __init__(self, exchange: Exchange, request: GenerationRequest, answer_id: str) -> None:
        self._exchange = exchange
        self._request = request
        self._id = answer_id
        self._created = int(time.time())

    def advance(self, generated: int) -> None:
        """Not interested."""

    def finish(self, generated: int, reason: FinishReason) -> None:
        request = self._request
        content = filler(request.prompt.fingerprint, 0, generated)[: request.cut_chars]
        stop_reason = request.stop_reason if reason is FinishReason.STOP else None
        self._exchange.respond(200, orjson.dumps(self._body(content, generated, reason, stop_reason)))

    def fail(self, message: str) -> None:
        refusal = internal_error(message)
        self._exchange.respond(refusal.status, refusal.body())

    def _body(self, content: str, generated: int, reason: FinishReason, stop_reason: str | None) -> dict[str, object]:
        request = self._request
        choice: dict[str, object] = {"index": 0}
        if request.chat:
            choice["message"] = {"role": "assistant", "content": content, "refusal": None, "tool_calls": []}
        else:
            choice["text"] = content
        choice |= {"logprobs": None, "finish_reason": reason.value, "stop_reason": stop_reason, "token_ids": None}
        return {
            "id": self._id,
            "object": "chat.completion" if request.chat else "text_completion",
            "created": self._created,
            "model": request.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": usage(request.prompt.tokens, generated),
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }


class StreamedAnswer:
    """Server-sent events, one per `interval` tokens; the first token comes at once, as with vLLM's option."""

    streams = True

    def __init__(self, exchange: Exchange, request: GenerationRequest, answer_id: str, interval: int) -> None:
        self._exchange = exchange
        self._fingerprint = request.prompt.fingerprint
        self._request = request
        self._interval = interval
        self._sent = 0
        cut = request.cut_chars
        self._shown_max = request.output_tokens if cut is None else cut // CHARS_PER_TOKEN
        """Tokens before a stop string that ends the answer: it must not be seen."""
        kind = b"chat.completion.chunk" if request.chat else b"text_completion"
        common = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(answer_id),
            kind,
            int(time.time()),
            orjson.dumps(request.model),
        )
        self._common = common
        if request.chat:
            self._head = common + b'{"index":0,"delta":{"content":"'
            self._close_text = b'"},"logprobs":null,"finish_reason":'
            self._close = b"}]}\n\n"
        else:
            self._head = common + b'{"index":0,"text":"'
            self._close_text = b'","logprobs":null,"finish_reason":'
            self._close = b'}],"usage":null}\n\n'
        self._tail = self._close_text + b'null,"stop_reason":null' + self._close
        one = exchange.frame(self._head + b"0" * CHARS_PER_TOKEN + self._tail)
        at = one.index(self._head) + len(self._head)
        self._one_head, self._one_tail = one[:at], one[at + CHARS_PER_TOKEN :]
        exchange.start_stream("text/event-stream; charset=utf-8")

    def advance(self, generated: int) -> None:
        generated = min(generated, self._shown_max)
        fresh = generated - self._sent
        if fresh <= 0 or not self._exchange.writable:
            return
        if self._sent == 0:
            self._exchange.write_raw(self._frames(self._opening(), self._event(0, fresh)))
        elif fresh < self._interval:
            return
        elif fresh == 1:
            word = filler(self._fingerprint, self._sent, 1).encode()
            self._exchange.write_raw(self._one_head + word + self._one_tail)
        else:
            self._exchange.write_raw(self._exchange.frame(self._event(self._sent, fresh)))
        self._sent = generated

    def finish(self, generated: int, reason: FinishReason) -> None:
        """The last tokens, the reason, the usage if asked for, and the end mark: one write."""
        request = self._request
        stop_reason = orjson.dumps(request.stop_reason if reason is FinishReason.STOP else None)
        content = filler(self._fingerprint, self._sent, generated - self._sent)
        if request.cut_chars is not None:
            content = content[: request.cut_chars - self._sent * CHARS_PER_TOKEN]
        ending = b'"%b","stop_reason":%b' % (reason.value.encode(), stop_reason)
        events = [] if self._sent else [self._opening()]
        events.append(self._head + content.encode() + self._close_text + ending + self._close)
        if request.include_usage:
            counted = orjson.dumps(usage(request.prompt.tokens, generated))
            events.append(self._common + b'],"usage":' + counted + b"}\n\n")
        events.append(_DONE)
        self._exchange.write_raw(self._frames(*events))
        self._exchange.end_stream()

    def fail(self, message: str) -> None:
        """The stream ends early, without its end mark."""
        self._exchange.write_raw(self._exchange.frame(b"data: " + internal_error(message).body() + b"\n\n"))
        self._exchange.end_stream()

    def _event(self, start: int, count: int) -> bytes:
        return self._head + filler(self._fingerprint, start, count).encode() + self._tail

    def _opening(self) -> bytes:
        """Chat streams begin with the role."""
        if not self._request.chat:
            return b""
        return (
            self._common
            + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        )

    def _frames(self, *events: bytes) -> bytes:
        return self._exchange.frame(b"".join(events))


class PooledAnswer:
    """The answer to requests that have nothing to show before their end, made of one or several engine requests."""

    streams = False

    def __init__(self, exchange: Exchange, parts: int, body: Callable[[int], tuple[bytes, str]]) -> None:
        self._exchange = exchange
        self._left = parts
        self._body = body
        self._generated = 0

    def advance(self, generated: int) -> None:
        """Not interested."""

    def finish(self, generated: int, reason: FinishReason) -> None:
        """Answer with the last part. An aborted part fails the whole: half an embedding is none."""
        if reason is FinishReason.ABORT:
            self.fail("Request aborted")
            return
        self._generated += generated
        self._left -= 1
        if self._left == 0:
            body, content_type = self._body(self._generated)
            self._exchange.respond(200, body, content_type)

    def fail(self, message: str) -> None:
        refusal = internal_error(message)
        self._exchange.respond(refusal.status, refusal.body())
