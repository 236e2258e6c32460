"""The schema as JSON Schema: published for editors, and read here for what an error should say was expected."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from controlplane.adapters.sitefile.findings import Path, Plain, shown
from controlplane.adapters.sitefile.quantities import SIZE_PATTERN, write_duration, write_size
from controlplane.adapters.sitefile.schema import SiteDocument

type JsonSchema = Mapping[str, Any]

_OURS: Final = "x-"
"""Prefix of our own notes inside the schema; left out of what is published."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def site_json_schema() -> dict[str, Any]:
    """The JSON Schema of `site.yaml` for editors. Rules that span fields are only in `quarterdeck site check`."""
    published = _published(_root())
    assert isinstance(published, dict), "a model's schema is an object"
    return {"$schema": _DIALECT, **published, "title": "Quarterdeck site file"}


def schema_at(path: Path) -> JsonSchema | None:
    """The schema of what stands at the path; None where the schema has no such place."""
    found: JsonSchema | None = _root()
    for part in path:
        found = next((inner for option in _options(found or {}) for inner in _inside(option, part)), None)
        if found is None:
            return None
    options = _options(found or {})
    return {**options[0], **(found or {})} if len(options) == 1 else found


def text_schema_at(path: Path) -> JsonSchema:
    """What the schema says of a text at the path; empty where it takes none."""
    options = _options(schema_at(path) or {})
    return next((option for option in options if option.get("type") == "string"), {})


def expected_at(path: Path) -> str:
    """In words, what the schema takes at the path: `a whole number from 1 to 16`."""
    schema = schema_at(path)
    return "nothing of this name" if schema is None else _in_words(schema)


def keys_at(path: Path) -> tuple[str, ...]:
    """The keys that a section may have; empty where it is none or its keys are free."""
    options = _options(schema_at(path) or {})
    return tuple(key for option in options for key in option.get("properties", {}))


def example_at(path: Path) -> str | None:
    """One good value, as YAML in one line."""
    for option in (schema_at(path) or {}, *_options(schema_at(path) or {})):
        if option.get("examples"):
            return _flow(option["examples"][0])
    return None


def field_paths() -> Iterator[tuple[str, JsonSchema]]:
    """Every field of the schema as dotted path (`deployments[].slo.ttft`) with its schema."""
    yield from _fields("", _root())


def required_fields() -> frozenset[str]:
    """The fields of `field_paths` that their section cannot do without."""
    sections: dict[str, JsonSchema] = {"": _root(), **dict(field_paths())}
    return frozenset(
        f"{path}{'[]' if is_list else ''}.{key}".removeprefix(".")
        for path, schema in sections.items()
        for is_list, inner in ((False, schema), *((True, item) for item in _items(schema)))
        for option in _options(inner)
        for key in option.get("required", ())
    )


@cache
def field_names() -> frozenset[str]:
    """The last key of every field."""
    return frozenset(path.rsplit(".", 1)[-1] for path, _ in field_paths())


@cache
def secret_paths() -> tuple[Path, ...]:
    """Where the schema takes references to secrets; "*" stands for any index or key."""
    return tuple(
        tuple(path.replace("[]", ".*").split("."))
        for path, schema in field_paths()
        if any(option.get("x-secret") for inner in (schema, *_items(schema)) for option in _options(inner))
    )


def is_secret_path(path: Path) -> bool:
    """Whether the path stands at or inside a place for a secret, where nothing found may be repeated."""
    return any(
        len(path) >= len(secret) and all(want in ("*", part) for want, part in zip(secret, path, strict=False))
        for secret in secret_paths()
    )


class _WithUnits(GenerateJsonSchema):
    """Defaults of durations and sizes as they would stand in the file."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        default = schema.get("default")
        if "x-expected" in described and isinstance(default, timedelta):
            described["default"] = write_duration(default)
        elif described.get("pattern") == SIZE_PATTERN and isinstance(default, int):
            described["default"] = write_size(default)
        return described


@cache
def _root() -> JsonSchema:
    """Built once: a constant of the program, a few milliseconds of work."""
    return SiteDocument.model_json_schema(schema_generator=_WithUnits)


def _options(schema: JsonSchema) -> list[JsonSchema]:
    """The schema with references followed and alternatives spread out."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return _options(_root()["$defs"][name])
    if "x-secret" in schema:
        return [schema]
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives:
        return [option for inner in alternatives for option in _options(inner) if option.get("type") != "null"]
    return [schema]


def _inside(schema: JsonSchema, part: str | int) -> Iterator[JsonSchema]:
    if isinstance(part, int):
        yield from _items(schema)
        return
    if part in schema.get("properties", {}):
        yield schema["properties"][part]
    yield from schema.get("patternProperties", {}).values()
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _items(schema: JsonSchema) -> list[JsonSchema]:
    return [option["items"] for option in _options(schema) if "items" in option]


def _fields(prefix: str, schema: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
    for option in _options(schema):
        for key, inner in option.get("properties", {}).items():
            yield f"{prefix}{key}", inner
            yield from _fields(f"{prefix}{key}.", inner)
        for inner in _items(option):
            yield from _fields(f"{prefix.removesuffix('.')}[].", inner)


def _in_words(schema: JsonSchema) -> str:
    if "x-expected" in schema:
        return str(schema["x-expected"])
    return " or ".join(dict.fromkeys(_option_in_words(option) for option in _options(schema)))


def _option_in_words(schema: JsonSchema) -> str:
    if "x-expected" in schema:
        return str(schema["x-expected"])
    if "enum" in schema:
        return " or ".join(shown(value) for value in schema["enum"])
    match schema.get("type"):
        case "integer":
            return f"a whole number{_range(schema)}"
        case "number":
            return f"a number{_range(schema)}"
        case "boolean":
            return "true or false"
        case "array":
            return f"a list of {_count(schema, 'Items')} entries"
        case "object":
            keys = ", ".join(schema.get("required", ()))
            return f"a mapping with {keys}" if keys else "a mapping"
        case _:
            return "a text"


def _range(schema: JsonSchema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']}, at most {high}"
    return "" if low is None else f" from {low} to {high}"


def _count(schema: JsonSchema, noun: str) -> str:
    return f"{schema.get(f'min{noun}', 0)} to {schema.get(f'max{noun}', 'any number of')}"


def _flow(value: Plain) -> str:
    match value:
        case str():
            return value
        case Mapping():
            return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
        case Sequence():
            return "[" + ", ".join(_flow(inner) for inner in value) + "]"
        case _:
            return shown(value)


def _published(schema: Any) -> Any:
    """Without our notes, the titles that pydantic makes up, and nulls: leaving a field out says the same."""
    if isinstance(schema, list):
        return [_published(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not key.startswith(_OURS)}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    if "default" in kept:
        kept["default"] = _without_nulls(kept["default"])
    if "default" in kept and kept["default"] is None:
        del kept["default"]
    if "patternProperties" in kept:
        kept.setdefault("additionalProperties", False)
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        kept = {**options[0], **kept}
    return {key: _published(value) for key, value in kept.items() if not key.startswith(_OURS)}


def _without_nulls(default: Any) -> Any:
    if not isinstance(default, dict):
        return default
    return {key: _without_nulls(value) for key, value in default.items() if value is not None}
