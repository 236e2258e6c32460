"""Durations and sizes as people write them: `500ms`, `1h30m`, `64MiB`. A bare number is refused: of what?"""

import re
from datetime import timedelta
from typing import Annotated, Final

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from controlplane.kernel.units import GIB, KIB, MIB, format_bytes, format_duration

type QuantityField = Annotated[object, ...]

_DURATION_PATTERN: Final = r"^(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+$"
_DURATION: Final = re.compile(_DURATION_PATTERN)
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS_OF_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SIZE_PATTERN: Final = r"^[0-9]+(?:\.[0-9]+)?(?:KiB|MiB|GiB)$"
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(KiB|MiB|GiB)")
_BYTES_OF_UNIT: Final = {"KiB": KIB, "MiB": MIB, "GiB": GIB}

_TEXT_CHARACTERS_MAX: Final = 32
"""Longer than any sensible quantity; keeps the arithmetic small."""


def parse_duration(text: str) -> timedelta | None:
    """`1.5s`, `1h30m`; None when it is no duration."""
    if len(text) > _TEXT_CHARACTERS_MAX or not _DURATION.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS_OF_UNIT[unit] for number, unit in _DURATION_PART.findall(text))
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        return None


def parse_size(text: str) -> int | None:
    """`64MiB` in bytes; None when it is no size."""
    match = _SIZE.fullmatch(text) if len(text) <= _TEXT_CHARACTERS_MAX else None
    return None if match is None else int(float(match[1]) * _BYTES_OF_UNIT[match[2]])
