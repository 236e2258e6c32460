"""Speech models as far as a gateway can tell: how long audio is, how much work it makes, how long speech takes."""

import math
from dataclasses import dataclass
from typing import Final

import orjson

_ENCODER_POSITIONS_PER_S: Final = 50
"""Whisper: 1500 encoder positions for 30 s."""
_TEXT_TOKENS_PER_S: Final = 3.0
"""Fast conversational English: about 150 words, 200 tokens a minute."""
_COMPRESSED_BYTES_PER_S: Final = 16_000
"""Files that are not WAV are taken for 128 kbit/s."""
_SPEECH_CHARS_PER_S: Final = 15.0
_CODEC_FRAMES_PER_S: Final = 25
"""One generated token per 40 ms of speech, as current codec models."""
SAMPLE_RATE_HZ: Final = 24_000
_SAMPLE_BYTES: Final = 2
_WAV_HEADER_BYTES: Final = 44


@dataclass(frozen=True, slots=True)
class FormPart:
    filename: str
    content: bytes


def audio_seconds(content: bytes) -> float:
    """From a WAV header's byte rate, else guessed from the size."""
    rate = _COMPRESSED_BYTES_PER_S
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE" and len(content) >= _WAV_HEADER_BYTES:
        rate = int.from_bytes(content[28:32], "little") or rate
    return max(0.1, len(content) / rate)


def transcription_tokens(seconds: float) -> tuple[int, int]:
    """Encoder positions in, text tokens out."""
    return math.ceil(seconds * _ENCODER_POSITIONS_PER_S), math.ceil(seconds * _TEXT_TOKENS_PER_S)


def speech_seconds(text: str) -> float:
    return max(0.2, len(text) / _SPEECH_CHARS_PER_S)


def speech_tokens(seconds: float) -> int:
    return math.ceil(seconds * _CODEC_FRAMES_PER_S)


def silence(seconds: float, *, wav: bool) -> bytes:
    """So long a silence, 16-bit mono, with or without a WAV header."""
    samples = b"\0" * (int(seconds * SAMPLE_RATE_HZ) * _SAMPLE_BYTES)
    if not wav:
        return samples
    rate = SAMPLE_RATE_HZ
    fields = (
        (b"RIFF", 0), (36 + len(samples), 4), (b"WAVEfmt ", 0), (16, 4), (1, 2), (1, 2), (rate, 4),
        (rate * _SAMPLE_BYTES, 4), (_SAMPLE_BYTES, 2), (8 * _SAMPLE_BYTES, 2), (b"data", 0), (len(samples), 4),
    )  # fmt: skip
    header = b"".join(value if isinstance(value, bytes) else value.to_bytes(size, "little") for value, size in fields)
    return header + samples


def parse_form(content_type: bytes, body: bytes) -> dict[str, FormPart] | None:
    """The parts of a multipart/form-data body by name; None when it is not one."""
    kind, _, parameters = content_type.partition(b";")
    boundary = parameters.partition(b"boundary=")[2].split(b";")[0].strip().strip(b'"')
    if kind.strip().lower() != b"multipart/form-data" or not boundary:
        return None
    parts: dict[str, FormPart] = {}
    for piece in body.split(b"--" + boundary)[1:]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        name = _parameter(head, b'name="')
        if blank and name:
            parts[name] = FormPart(_parameter(head, b'filename="'), content.removesuffix(b"\r\n"))
    return parts


def transcription_body(text: str, seconds: float, response_format: str) -> tuple[bytes, str]:
    """Body and content type."""
    if response_format == "text":
        return text.encode(), "text/plain; charset=utf-8"
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    answer: dict[str, object] = {"text": text, "usage": usage}
    if response_format == "verbose_json":
        answer |= {"task": "transcribe", "language": "en", "duration": str(seconds), "segments": [], "words": None}
    return orjson.dumps(answer), "application/json"


def _parameter(head: bytes, key: bytes) -> str:
    for place in (b" " + key, b";" + key):
        _, found, rest = head.partition(place)
        if found:
            return rest.partition(b'"')[0].decode("utf-8", "replace")
    return ""
