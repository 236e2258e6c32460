"""Durations and sizes as people write them: `500ms`, `1h30m`, `64MiB`. A bare number is refused: it has no unit."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from controlplane.kernel.units import GIB, KIB, MIB

_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNITS: Final = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(KiB|MiB|GiB)")
SIZE_PATTERN: Final = f"^{_SIZE.pattern}$"
_BYTES_OF_UNIT: Final = {"GiB": GIB, "MiB": MIB, "KiB": KIB}

_BOUNDS_HINT: Final = "choose a value inside these bounds"

_TEXT_CHARACTERS_MAX: Final = 32
"""Longer than any sensible quantity; keeps the arithmetic small."""


def parse_duration(text: str) -> timedelta | None:
    """`1.5s`, `1h30m`; None when it is no duration."""
    if len(text) > _TEXT_CHARACTERS_MAX or not _DURATION.fullmatch(text):
        return None
    try:
        return sum((float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)), timedelta())
    except OverflowError:
        return None


def write_duration(duration: timedelta) -> str:
    """The shortest spelling that `parse_duration` reads back: `10m`, `90s`, `500ms`."""
    for unit, length in _UNITS.items():
        if duration and duration % length == timedelta():
            return f"{duration // length}{unit}"
    return f"{duration.total_seconds():g}s"


def parse_size(text: str) -> int | None:
    """`64MiB` in bytes; None when it is no size."""
    match = _SIZE.fullmatch(text) if len(text) <= _TEXT_CHARACTERS_MAX else None
    return None if match is None else int(float(match[1]) * _BYTES_OF_UNIT[match[2]])


def write_size(size_bytes: int) -> str:
    """The shortest spelling that `parse_size` reads back."""
    for unit, factor in _BYTES_OF_UNIT.items():
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes / KIB:g}KiB"


@dataclass(frozen=True, slots=True)
class DurationBetween:
    """Annotation of a `timedelta` field: a text with units, from `low` to `high`."""

    low: timedelta
    high: timedelta
    usual_unit: str = "s"
    """What a number without a unit probably meant."""

    def parse(self, found: object) -> timedelta:
        """The duration; a pydantic error otherwise."""
        duration = parse_duration(found) if isinstance(found, str) else None
        if duration is None:
            raise _refusal(_duration_hint(found, self.usual_unit))
        if not self.low <= duration <= self.high:
            raise _refusal(_BOUNDS_HINT)
        return duration

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(write_duration)
        return core_schema.no_info_plain_validator_function(self.parse, serialization=written)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        words = f"a duration with its unit, from {write_duration(self.low)} to {write_duration(self.high)}"
        return {"type": "string", "pattern": f"^{_DURATION.pattern}$", "x-expected": words}


@dataclass(frozen=True, slots=True)
class SizeBetween:
    """Annotation of an `int` field of bytes: a text with its unit, from `low` to `high`."""

    low: int
    high: int

    def parse(self, found: object) -> int:
        """Bytes; a pydantic error otherwise."""
        size_bytes = parse_size(found) if isinstance(found, str) else None
        if size_bytes is None:
            raise _refusal(_size_hint(found))
        if not self.low <= size_bytes <= self.high:
            raise _refusal(_BOUNDS_HINT)
        return size_bytes

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(write_size)
        return core_schema.no_info_plain_validator_function(self.parse, serialization=written)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        words = f"a size with its unit, from {write_size(self.low)} to {write_size(self.high)}"
        return {"type": "string", "pattern": SIZE_PATTERN, "x-expected": words}


def _refusal(hint: str) -> PydanticCustomError:
    return PydanticCustomError("quantity", "{hint}", {"hint": hint})


def _duration_hint(found: object, usual_unit: str) -> str:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return f"add the unit, for example {found}{usual_unit} (units: ms, s, m, h, d)"
    return "write a number and ms, s, m, h or d without a space, for example 500ms or 1h30m"


def _size_hint(found: object) -> str:
    if isinstance(found, int | float) and not isinstance(found, bool):
        return f"add the unit, for example {found}MiB (units: KiB, MiB, GiB)"
    if isinstance(found, str) and re.fullmatch(r"[0-9.]{1,20} ?[KMG]B?", found):
        return f"sizes are binary: write {found.rstrip('B').replace(' ', '')}iB"
    return "write a number and KiB, MiB or GiB without a space, for example 64MiB"
