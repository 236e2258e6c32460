"""What a probe sends and how its answer is judged: one real request of the task, as small as it gets. Pure.

/health answers 200 while the engine process is stopped (vLLM, seen with SIGSTOP) and while it refuses requests during
a shutdown; only an answered request proves that a replica serves.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

from controlplane.domain.deployment import LaunchTemplate, TaskKind
from controlplane.domain.health import ProbeResult, ProbeVerdict

_PROMPT: Final = "ping"
_SILENCE_S: Final = 0.1
_SAMPLE_RATE_HZ: Final = 16_000
_OK: Final = 200
_DETAIL_CHARS_MAX: Final = 160
"""Of an unexpected answer, so much is quoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """A POST. Either `json_body`, or `fields` and `file` as multipart form data."""

    path: str
    json_body: Mapping[str, Any] | None = None
    fields: Mapping[str, str] | None = None
    file: bytes = b""


def probe_request(template: LaunchTemplate) -> ProbeRequest:
    model = template.probe_model
    match template.task:
        case TaskKind.GENERATE:
            body = {"model": model, "prompt": _PROMPT, "max_tokens": 1, "temperature": 0, "stream": False}
            return ProbeRequest(path="/v1/completions", json_body=body)
        case TaskKind.EMBED:
            return ProbeRequest(path="/v1/embeddings", json_body={"model": model, "input": _PROMPT})
        case TaskKind.TRANSCRIBE:
            fields = {"model": str(model), "response_format": "json"}
            return ProbeRequest(path="/v1/audio/transcriptions", fields=fields, file=silent_wav())
        case TaskKind.SPEAK:
            body = {"model": model, "input": _PROMPT, "voice": "default", "response_format": "wav"}
            return ProbeRequest(path="/v1/audio/speech", json_body=body)
        case _:
            assert_never(template.task)


def judge(task: TaskKind, status: int, body: bytes) -> ProbeResult:
    """A 200 is not enough: vLLM answers 200 with finish_reason `abort` when it is shut down under load."""
    if status != _OK:
        return _failed(f"answered {status}: {_quote(body)}")
    if task is TaskKind.SPEAK:
        return _passed(f"{len(body)} bytes of audio") if body else _failed("answered 200 with no audio")
    try:
        answer = json.loads(body)
    except ValueError:
        return _failed(f"answered 200 with something that is not JSON: {_quote(body)}")
    if not isinstance(answer, dict):
        return _failed(f"answered 200 with something that is not an object: {_quote(body)}")
    match task:
        case TaskKind.GENERATE:
            return _judge_completion(answer)
        case TaskKind.EMBED:
            return _passed("one embedding") if answer.get("data") else _failed("answered 200 without an embedding")
        case TaskKind.TRANSCRIBE:
            return _passed("one transcription") if "text" in answer else _failed("answered 200 without a text")
        case _:
            assert_never(task)


def silent_wav() -> bytes:
    """A tenth of a second of silence: 16 kHz, 16 bit, mono."""
    data = bytes(int(_SAMPLE_RATE_HZ * _SILENCE_S) * 2)
    head = struct.pack(
        "<4sI4s4sIHHIIHH",
        b"RIFF",
        36 + len(data),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        _SAMPLE_RATE_HZ,
        _SAMPLE_RATE_HZ * 2,
        2,
        16,
    )
    return head + struct.pack("<4sI", b"data", len(data)) + data


def _judge_completion(answer: dict[str, Any]) -> ProbeResult:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _failed("answered 200 without a choice")
    reason = choices[0].get("finish_reason")
    if reason not in ("stop", "length"):
        return _failed(f"answered 200 with finish_reason {reason!r}")
    return _passed("one token")


def _passed(detail: str) -> ProbeResult:
    return ProbeResult(verdict=ProbeVerdict.PASSED, detail=detail)


def _failed(detail: str) -> ProbeResult:
    return ProbeResult(verdict=ProbeVerdict.FAILED, detail=detail)


def _quote(body: bytes) -> str:
    return body[:_DETAIL_CHARS_MAX].decode("utf-8", errors="replace").strip() or "nothing"
