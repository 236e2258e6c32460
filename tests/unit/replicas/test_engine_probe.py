"""How the answer to a probe is judged, for every task, and that the request is a small real one."""

import io
import json
import wave
from dataclasses import replace

import pytest

from controlplane.adapters.engines.probe import judge, probe_request, silent_wav
from controlplane.domain.deployment import TaskKind
from controlplane.domain.health import ProbeVerdict
from controlplane.kernel.ids import ServedName
from controlplane.testing.builders import make_template


def completion(finish_reason: str | None) -> bytes:
    return json.dumps({"choices": [{"text": "a", "finish_reason": finish_reason}]}).encode()


@pytest.mark.parametrize(
    ("task", "status", "body", "passes"),
    [
        (TaskKind.GENERATE, 200, completion("length"), True),
        (TaskKind.GENERATE, 200, completion("stop"), True),
        (TaskKind.GENERATE, 200, completion("abort"), False),
        (TaskKind.GENERATE, 200, completion(None), False),
        (TaskKind.GENERATE, 200, b'{"choices": []}', False),
        (TaskKind.GENERATE, 200, b"<html>", False),
        (TaskKind.GENERATE, 200, b"[]", False),
        (TaskKind.GENERATE, 500, b"cannot schedule new futures after shutdown", False),
        (TaskKind.EMBED, 200, b'{"data": [{"embedding": [0.1]}]}', True),
        (TaskKind.EMBED, 200, b'{"data": []}', False),
        (TaskKind.TRANSCRIBE, 200, b'{"text": ""}', True),
        (TaskKind.TRANSCRIBE, 200, b"{}", False),
        (TaskKind.SPEAK, 200, b"RIFF", True),
        (TaskKind.SPEAK, 200, b"", False),
    ],
)
def test_judged_by_what_was_answered(task: TaskKind, status: int, body: bytes, *, passes: bool) -> None:
    result = judge(task, status, body)
    assert result.verdict is (ProbeVerdict.PASSED if passes else ProbeVerdict.FAILED)
    assert result.detail


def test_a_failure_quotes_the_answer_in_short() -> None:
    detail = judge(TaskKind.GENERATE, 500, b"x" * 5000).detail
    assert detail.startswith("answered 500: xxx")
    assert len(detail) < 200


@pytest.mark.parametrize("task", list(TaskKind))
def test_every_task_has_its_request_for_the_served_name(task: TaskKind) -> None:
    request = probe_request(replace(make_template(), task=task, probe_model=ServedName("served")))
    sent = request.json_body if request.json_body is not None else request.fields
    assert sent is not None
    assert sent["model"] == "served"
    assert request.path.startswith("/v1/")


def test_the_silence_is_a_wave_file() -> None:
    with wave.open(io.BytesIO(silent_wav())) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (1, 16_000, 1_600)
