"""Field types of the schema that are neither a plain number nor a plain text."""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PlainValidator, StringConstraints, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from controlplane.adapters.sitefile.secrets import HOW, REFERENCE_EXPECTED, reference_of
from controlplane.domain.site import SecretRef
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
