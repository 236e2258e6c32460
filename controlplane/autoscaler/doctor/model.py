"""Documents, rules and findings: what the doctor reads and what it says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from typing import Final

type Path = tuple[str | int, ...]
"""Keys and list indices from a document's root."""

type Plain = str | int | float | bool | Sequence[Plain] | Mapping[str, Plain] | None
"""A document as plain data: mappings, lists, scalars."""

_QUANTITY: Final = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti|%)?")
_SCALES: Final = dict(
    (
        *(("", 1.0), ("m", 1e-3), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("%", 1e-2)),
        *(("Ki", 2.0**10), ("Mi", 2.0**20), ("Gi", 2.0**30), ("Ti", 2.0**40)),
    )
)
"""Suffixes of a Kubernetes quantity. Source: k8s.io/apimachinery `resource.Quantity`; `%` as Knative writes it."""
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_UNIT_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SECONDS_MAX: Final = 1e9
"""Thirty years: what is written beyond that is a slip, and no `timedelta` has to hold it."""


class Severity(StrEnum):
    """How bad a finding is."""

    BROKEN = "broken"
    """It cannot work."""
    RISKY = "risky"
    """It works until something ordinary happens: an outage, a slow start, a rollout."""
    ADVICE = "advice"
    """It works; something in it does not do what it seems to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that the doctor looks for."""

    id: str
    severity: Severity
    looks_for: str
    """In a few words, for the table of rules."""
    why: str
    """One sentence: why it fails."""
    source: str
    """Where that fact is from."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One YAML document, or one part of it that is YAML itself."""

    source: str
    """File or URL, as messages name it."""
    index: int
    """Of the document among all that were read."""
    data: Plain

    @cached_property
    def root(self) -> "Field":
        return Field(self, (), self.data)

    @property
    def kind(self) -> str:
        return self.root["kind"].text

    @property
    def api_version(self) -> str:
        return self.root["apiVersion"].text

    @property
    def name(self) -> str:
        return self.root.at("metadata", "name").text

    @property
    def namespace(self) -> str:
        """Empty: not said, so whatever the file is applied to."""
        return self.root.at("metadata", "namespace").text


@dataclass(frozen=True, slots=True)
class Field:
    """A value with its place; what is absent is a field too, without a value."""

    document: Document
    path: Path
    value: Plain

    def __getitem__(self, key: str | int) -> "Field":
        value: Plain = None
        if isinstance(self.value, Mapping) and isinstance(key, str):
            value = self.value.get(key)
        elif isinstance(self.value, Sequence) and not isinstance(self.value, str) and isinstance(key, int):
            value = self.value[key] if key < len(self.value) else None
        return Field(self.document, (*self.path, key), value)

    def at(self, *parts: str | int) -> "Field":
        field = self
        for part in parts:
            field = field[part]
        return field

    @property
    def there(self) -> bool:
        return self.value is not None

    @property
    def text(self) -> str:
        """The scalar as text; empty without one."""
        match self.value:
            case bool():
                return "true" if self.value else "false"
            case str() | int() | float():
                return str(self.value)
            case _:
                return ""

    @property
    def number(self) -> float | None:
        """The scalar as a Kubernetes quantity: 5, "5", "500m", "80%"."""
        return None if isinstance(self.value, bool) else quantity(self.text)

    @property
    def duration(self) -> timedelta | None:
        """Seconds as a number, or text such as `5m` and `1m30s`."""
        if isinstance(self.value, bool):
            return None
        return duration(self.text)

    @property
    def flag(self) -> bool | None:
        return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(self.text.lower())

    def items(self) -> Iterator["Field"]:
        """The entries of a list; none where there is no list."""
        if isinstance(self.value, Sequence) and not isinstance(self.value, str):
            for index in range(len(self.value)):
                yield self[index]

    def entries(self) -> Iterator[tuple[str, "Field"]]:
        """The entries of a mapping; none where there is no mapping."""
        if isinstance(self.value, Mapping):
            for key in self.value:
                yield key, self[key]

    def texts(self) -> Mapping[str, str]:
        """A mapping of scalars as text, as labels are."""
        return {key: field.text for key, field in self.entries()}


class Change(StrEnum):
    """What a query's repair does, in the order in which several are made."""

    METRIC = "1 another metric's name"
    LABEL = "2 another label's name"
    SUM = "3 a sum around it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One change to a query; all those of one query make one text to paste."""

    change: Change
    query: str
    """As it stands."""
    key: str
    """Under which it stands."""
    old: str = ""
    new: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, at a field."""

    rule: Rule
    at: Field
    found: str
    expected: str
    fix: str = ""
    """A value or lines to paste, or what to do."""
    at_key: bool = False
    """The key is what is wrong, or what stands there names the place better than its value."""
    repair: Repair | None = None
    """Where the fix is a change to a query: `fix` is made of all of that query's."""


def quantity(text: str) -> float | None:
    """A Kubernetes quantity as a number, None where it is none."""
    match = _QUANTITY.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _SCALES[match[2] or ""]


def duration(text: str) -> timedelta | None:
    """`300`, `5m`, `1m30s`; None where it is no duration."""
    text = text.strip()
    parts = _DURATION_PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    else:
        plain = quantity(text) if text.replace(".", "", 1).isdigit() else None
        if plain is None:
            return None
        seconds = plain
    return timedelta(seconds=seconds) if seconds < _SECONDS_MAX else None


def in_seconds(span: timedelta) -> str:
    """`90 s`."""
    return f"{span.total_seconds():g} s"


def number_text(value: float) -> str:
    """`5`, `0.8`."""
    return f"{value:g}"
