"""Values as canonical JSON and back: keys sorted, floats exact; the same value is always the same text.

Canonical, because a decision is proved by replay: the text that the same policy gives today is compared byte for byte
with the text that was kept. Times are Unix seconds, durations are seconds.
"""

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from datetime import timedelta
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import orjson

from controlplane.kernel.errors import InvalidError, Problem

type Decoder = Callable[[Any, str], Any]


def encode(value: object) -> str:
    """The canonical text of a frozen dataclass made of numbers, texts, enums, durations, tuples and the like."""
    return orjson.dumps(value, default=_plain, option=_CANONICAL).decode()


def decode[T](kind: type[T], text: str) -> T:
    """The value whose `encode` is `text`. InvalidError names the first field that does not fit.

    A field that has a default may be absent: what an older version wrote is read as it was meant then.
    """
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _unfit(kind.__name__, text[:40], f"JSON ({error})") from error
    shape: Any = kind  # a type variable is not known to be hashable; every type is
    value: T = _decoder(shape)(data, kind.__name__)
    return value


_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
"""orjson sorts the keys of dicts only, so dataclasses are handed over as such."""


def _plain(value: object) -> object:
    if is_dataclass(value):
        kind: Any = type(value)
        return {name: exact(getattr(value, name)) for name, exact in _writers(kind)}
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


@cache
def _writers(kind: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Each field with what makes its value canonical: 3 and 3.0 are equal, so a float's text is always `3.0`."""
    hints = get_type_hints(kind)
    return tuple((field.name, _exact(hints[field.name])) for field in fields(kind))


def _exact(kind: Any) -> Callable[[Any], Any]:
    if kind is float:
        return float
    if kind == float | None:
        return lambda value: None if value is None else float(value)
    if kind == tuple[float, ...]:
        return lambda values: [float(value) for value in values]
    return lambda value: value


@cache
def _decoder(kind: Any) -> Decoder:
    """A function that turns parsed JSON into `kind`; built once per type, since every tick decodes."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_decoder(kind)
    origin = get_origin(kind)
    if origin is tuple:
        return _tuple_decoder(get_args(kind))
    if origin in (types.UnionType, Union):
        return _optional_decoder(get_args(kind))
    if isinstance(kind, type):
        return _scalar_decoder(kind)
    supertype = getattr(kind, "__supertype__", None)
    assert supertype is not None, f"{kind!r} is not a type that values here are made of"
    return _decoder(supertype)


def _dataclass_decoder(kind: Any) -> Decoder:
    hints = get_type_hints(kind)
    parts = {field.name: _decoder(hints[field.name]) for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}

    def from_object(data: Any, path: str) -> Any:
        if not isinstance(data, dict) or not needed <= data.keys() <= parts.keys():
            found = sorted(data) if isinstance(data, dict) else data
            raise _unfit(path, found, f"an object with exactly {sorted(parts)}")
        return kind(**{name: parts[name](value, f"{path}.{name}") for name, value in data.items()})

    return from_object


def _tuple_decoder(args: tuple[Any, ...]) -> Decoder:
    if args[-1] is Ellipsis:
        item = _decoder(args[0])

        def from_list(data: Any, path: str) -> Any:
            if not isinstance(data, list):
                raise _unfit(path, data, "a list")
            return tuple([item(part, path) for part in data])

        return from_list
    items = [_decoder(arg) for arg in args]

    def from_row(data: Any, path: str) -> Any:
        if not isinstance(data, list) or len(data) != len(items):
            raise _unfit(path, data, f"a list of {len(items)}")
        return tuple([part(value, path) for part, value in zip(items, data, strict=True)])

    return from_row


def _optional_decoder(args: tuple[Any, ...]) -> Decoder:
    (inner,) = [arg for arg in args if arg is not type(None)]
    present = _decoder(inner)

    def from_optional(data: Any, path: str) -> Any:
        return None if data is None else present(data, path)

    return from_optional


def _scalar_decoder(kind: type) -> Decoder:
    if issubclass(kind, timedelta):
        return lambda data, path: timedelta(seconds=_number(data, path))
    if issubclass(kind, Enum):
        return lambda data, path: _member(kind, data, path)
    if kind is float:
        return _number

    def from_scalar(data: Any, path: str) -> Any:
        if type(data) is not kind:
            raise _unfit(path, data, kind.__name__)
        return data

    return from_scalar


def _number(data: Any, path: str) -> float:
    if type(data) not in (int, float):
        raise _unfit(path, data, "a number")
    return float(data)


def _member(kind: type[Enum], data: Any, path: str) -> Enum:
    try:
        return kind(data)
    except ValueError as error:
        raise _unfit(path, data, f"one of {[member.value for member in kind]}") from error


def _unfit(path: str, found: object, expected: str) -> InvalidError:
    return InvalidError([Problem(field=path, found=repr(found)[:200], expected=expected)])
