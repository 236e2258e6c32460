"""Field types of the schema that are neither a plain number nor a plain text."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, PlainValidator, StringConstraints, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from controlplane.adapters.sitefile.quantities import parse_duration
from controlplane.adapters.sitefile.secrets import HOW, REFERENCE_EXPECTED, reference_of
from controlplane.domain.scaling import SignalKind
from controlplane.domain.secret import SecretRef
from controlplane.kernel.ids import NAME_PATTERN


def expected(words: str) -> JsonDict:
    """What an error says a field takes, where type and bounds do not say it; not part of the published schema."""
    return {"x-expected": words}


Name = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN.pattern),
    Field(json_schema_extra=expected("a name of a-z, 0-9 and inner hyphens, at most 40 characters")),
]
GpuModel = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$"),
    Field(json_schema_extra=expected("a GPU of the catalog, for example b200, h100 or a100-40")),
]
ModelName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"),
    Field(json_schema_extra=expected("a model of the catalog (`quarterdeck models list`)")),
]
ServedModelName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$"),
    Field(json_schema_extra=expected("a name of letters, digits and . _ / : -, at most 128 characters")),
]
Address = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:-]{0,253}$"),
    Field(json_schema_extra=expected("a host name or an IP address, without port and scheme")),
]
HttpUrl = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[A-Za-z0-9\[][^\s@]{0,1999}$"),
    Field(json_schema_extra=expected("an http:// or https:// URL without user and password")),
]
Weights = Annotated[
    str,
    # A hub allows 96 characters on each side; a path has no control characters, and no braces, which launchers fill in.
    StringConstraints(
        pattern=r"^(?:/[^\x00-\x1f\x7f{}]{1,4095}|[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})$"
    ),
    Field(json_schema_extra=expected("an absolute path of a folder, or a repository of the model hub as ORG/NAME")),
]
FilledText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096),
    Field(json_schema_extra=expected("a text that is not empty")),
]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
ArgumentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
PercentileKey = Annotated[str, StringConstraints(pattern=r"^p[1-9][0-9]?(?:\.[0-9]{1,3})?$")]
Port = Annotated[int, Field(ge=1, le=65535)]


def _secret_reference(found: object) -> SecretRef:
    reference = reference_of(found) if isinstance(found, Mapping) else None
    if reference is None:
        raise PydanticCustomError("secret", "{hint}", {"hint": HOW})
    return reference


def _argument_value(found: object) -> str:
    """A value of an engine argument as text; JSON for lists and mappings, as vLLM takes them."""
    match found:
        case bool():
            return "true" if found else "false"
        case str() | int() | float():
            return str(found)
        case list() | dict():
            return json.dumps(found, sort_keys=True, separators=(",", ":"))
        case _:
            raise PydanticCustomError("argument", "{hint}", {"hint": "write true for a flag that takes no value"})


@dataclass(frozen=True, slots=True)
class RuleValue:
    """A target or a threshold: `85%`, `500ms` or `12`, in the domain's units (0..1, seconds, a number)."""

    kind: SignalKind
    value: float


_PERCENTAGE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")
RULE_VALUES: Final[Mapping[SignalKind, str]] = {
    SignalKind.SHARE: "a percentage above 0%, at most 100%, for example 85%",
    SignalKind.LATENCY: "a duration with its unit, for example 500ms",
    SignalKind.AMOUNT: "a number above 0, for example 12",
}
"""What a rule's value looks like, by the kind of its signal."""


def rule_value_of(found: object) -> RuleValue | None:
    """None when it is no positive percentage, duration or number."""
    value: RuleValue | None = None
    if isinstance(found, int | float) and not isinstance(found, bool):
        value = RuleValue(SignalKind.AMOUNT, float(found))
    elif isinstance(found, str) and (percentage := _PERCENTAGE.fullmatch(found)):
        value = RuleValue(SignalKind.SHARE, float(percentage[1]) / 100)
    elif isinstance(found, str) and (length := parse_duration(found)) is not None:
        value = RuleValue(SignalKind.LATENCY, length.total_seconds())
    if value is None or not 0.0 < value.value <= _LARGEST[value.kind]:
        return None
    return value


_LARGEST: Final[Mapping[SignalKind, float]] = {
    SignalKind.SHARE: 1.0,
    SignalKind.LATENCY: 3600.0,
    SignalKind.AMOUNT: 1e9,
}


def _rule_value(found: object) -> RuleValue:
    value = rule_value_of(found)
    if value is None:
        raise PydanticCustomError("rule", "{hint}", {"hint": "see docs/site-file.md: each signal has its unit"})
    return value


SignalValue = Annotated[
    RuleValue,
    PlainValidator(_rule_value),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "pattern": r"^(?:[0-9]{1,3}(?:\.[0-9]{1,4})?%|(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+)$",
            "x-expected": "a percentage, a duration or a number, as the signal has it: 85%, 500ms, 12",
        }
    ),
]
"""What a rule compares its signal with; `rules.py` sees that it fits the signal."""

SecretReference = Annotated[
    SecretRef,
    PlainValidator(_secret_reference),
    WithJsonSchema(
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"env": {"type": "string", "description": "Name of an environment variable."}},
                    "required": ["env"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {"file": {"type": "string", "description": "Path of a file that holds it."}},
                    "required": ["file"],
                    "additionalProperties": False,
                },
            ],
            "x-expected": REFERENCE_EXPECTED,
            "x-secret": True,
        }
    ),
]

ArgumentValue = Annotated[
    str,
    PlainValidator(_argument_value),
    WithJsonSchema(
        {
            "type": ["string", "number", "boolean", "object", "array"],
            "x-expected": "a text, a number, true, false, a list or a mapping",
        }
    ),
]
