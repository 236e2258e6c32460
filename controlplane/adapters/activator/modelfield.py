"""Which model a body asks for. Pure. The whole body is here, so `model` may stand anywhere in it."""

from dataclasses import dataclass
from email.message import Message
from typing import Final

import orjson

_FIELD: Final = b"model"
_MODEL_BYTES_MAX: Final = 1024
"""No model's name is longer; a form field of that name that is, is something else."""


@dataclass(frozen=True, slots=True)
class NoModel:
    """Why there is none, for the caller."""

    why: str


def find_model(content_type: str, body: bytes | bytearray) -> str | NoModel:
    """The `model` of a JSON object or a multipart form. Of equal JSON keys the last counts, as in the engine."""
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_maintype() == "multipart":
        return _in_form(header.get_boundary(), body)
    return _in_json(body)


def _in_json(body: bytes | bytearray) -> str | NoModel:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return NoModel(f"The body is not valid JSON: {error}.")
    if not isinstance(document, dict):
        return NoModel("The body is not a JSON object.")
    return _checked(document.get("model"))


def _checked(model: object) -> str | NoModel:
    match model:
        case None:
            return NoModel("The body has no `model`.")
        case str() if model:
            return model
        case str():
            return NoModel("`model` is empty.")
        case _:
            return NoModel(f"`model` must be a string, found {type(model).__name__}.")


def _in_form(boundary: str | None, body: bytes | bytearray) -> str | NoModel:
    """Parts are looked at by their headers only; a part's content (audio) is jumped over, not copied."""
    if not boundary:
        return NoModel("The form has no boundary in its Content-Type.")
    mark = b"--" + boundary.encode("latin-1", errors="replace")
    start = body.find(mark)
    while start >= 0:
        start += len(mark)
        end = body.find(b"\r\n" + mark, start)
        head_end = body.find(b"\r\n\r\n", start, end if end >= 0 else len(body))
        if end < 0 or head_end < 0:
            break
        if _is_model_part(body[start:head_end]):
            if end - head_end > _MODEL_BYTES_MAX:
                return NoModel("The form's `model` is too long.")
            return _checked(body[head_end + 4 : end].decode(errors="replace").strip())
        start = end + 2
    return NoModel("The form has no field `model`.")


def _is_model_part(head: bytes | bytearray) -> bool:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            disposition = Message()
            disposition["Content-Disposition"] = value.strip().decode(errors="replace")
            return disposition.get_param("name", header="content-disposition") == _FIELD.decode()
    return False
