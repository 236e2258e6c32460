"""Prometheus text exposition, format 0.0.4, read line by line. For small bodies, and to learn the layout of large ones.

Source of the format: prometheus.io, "Exposition formats".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_LABELS = rb'\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}'
_LINE: Final = re.compile(
    rb"[ \t]*([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:" + _LABELS + rb"[ \t]*|[ \t])[ \t]*([^ \t\r]+)(?:[ \t]+-?\d+)?[ \t\r]*"
)
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Series:
    """One sample of one labelled series."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """A sample with its place: `prefix` is the line up to its number, which is all that stays between two scrapes."""

    index: int
    prefix: bytes
    series: Series


class MalformedExpositionError(ValueError):
    """A line is neither comment nor sample. The message says which, and what it was."""


def read_series(body: bytes, *, starting: tuple[bytes, ...] = ()) -> Iterator[SeriesLine]:
    """Every sample whose line starts with one of `starting` (empty: every sample), in order.

    Raises MalformedExpositionError at the first line that is no sample.
    """
    for index, line in enumerate(body.split(b"\n")):
        if starting and not line.startswith(starting):
            continue
        if not line or line.startswith(b"#") or line.isspace():
            continue
        yield _read_line(index, line)


def _read_line(index: int, line: bytes) -> SeriesLine:
    match = _LINE.fullmatch(line)
    if match is None:
        raise _malformed(index, line)
    name, labels, number = match.groups()
    try:
        value = float(number)
        text = labels.decode() if labels else ""
    except ValueError as error:
        raise _malformed(index, line) from error
    pairs = {label: _unescape(found) for label, found in _LABEL.findall(text)}
    return SeriesLine(index, line[: match.start(3)], Series(name.decode(), pairs, value))


def _malformed(index: int, line: bytes) -> MalformedExpositionError:
    return MalformedExpositionError(f"line {index + 1} is no sample: {line[:80].decode(errors='replace')!r}")


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)
