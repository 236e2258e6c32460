"""pydantic's errors in our words: what was found, what the schema expected there, what to do next."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controlplane.adapters.sitefile.findings import Finding, Path, Plain, nearest, shown, shown_text, suggestion
from controlplane.adapters.sitefile.jsonschema import (
    example_at,
    expected_at,
    is_secret_path,
    keys_at,
    schema_at,
    text_schema_at,
)
from controlplane.adapters.sitefile.schema import SiteDocument
from controlplane.adapters.sitefile.secrets import HIDDEN, HOW

DOCS: Final = "docs/site-file.md"

_KEY_MARK: Final = "[key]"
"""What pydantic appends to the location of a wrong key of a free mapping."""

_YAML_1_1_BOOLEANS: Final = frozenset({"yes", "no", "on", "off", "y", "n"})


def validate(data: Plain) -> tuple[SiteDocument | None, tuple[Finding, ...]]:
    """The document as the schema has it, or everything that the schema has against it."""
    try:
        return SiteDocument.model_validate(data), ()
    except ValidationError as error:
        return None, tuple(_findings(error.errors(include_url=False), data))


def _findings(errors: Sequence[ErrorDetails], data: Plain) -> Iterator[Finding]:
    meant = _meant(errors, data)
    for error in errors:
        path, value, at_key = _place(error["loc"], data)
        match error["type"]:
            case "extra_forbidden":
                yield _unknown_key(path)
            case "missing" if (*path, str(error["loc"][-1])) in meant:
                continue  # the unknown key says what it should be called
            case "missing":
                yield _missing((*path, str(error["loc"][-1])))
            case _ if is_secret_path(path):
                yield Finding(path=path, found=_hidden(value), expected=expected_at(path), hint=HOW)
            case _ if at_key:
                yield _wrong_key(path)
            case _:
                yield _wrong_value(path, value, error)


def _meant(errors: Sequence[ErrorDetails], data: Plain) -> frozenset[Path]:
    """The keys that the unknown ones are near to."""
    unknown = [_place(error["loc"], data)[0] for error in errors if error["type"] == "extra_forbidden"]
    near = ((path, nearest(str(path[-1]), keys_at(path[:-1]))) for path in unknown)
    return frozenset((*path[:-1], close) for path, close in near if close is not None)


def _place(loc: tuple[str | int, ...], data: Plain) -> tuple[Path, Plain, bool]:
    """The path inside the data that the location names: pydantic adds tags of unions and marks of keys to it."""
    path: list[str | int] = []
    for part in loc:
        match data, part:
            case Mapping(), str() if part in data:
                data = data[part]
            case list(), int() if part < len(data):
                data = data[part]
            case _:
                continue
        path.append(part)
    return tuple(path), data, bool(loc) and loc[-1] == _KEY_MARK


def _unknown_key(path: Path) -> Finding:
    key, valid = str(path[-1]), keys_at(path[:-1])
    close = nearest(key, valid)
    return Finding(
        path=path,
        found=f"an unknown key {shown_text(key)}",
        expected="one of " + ", ".join(sorted(valid)),
        hint=f"delete it, or see {DOCS}" if close is None else f'did you mean "{close}"?',
        at_key=True,
    )


def _missing(path: Path) -> Finding:
    example = example_at(path)
    hint = f"add {path[-1]}" if example is None else f"add {path[-1]}, for example `{path[-1]}: {example}`"
    return Finding(path=path, found="nothing", expected=expected_at(path), hint=hint)


def _wrong_key(path: Path) -> Finding:
    key, place = str(path[-1]), path[:-1]
    patterns = (schema_at(place) or {}).get("patternProperties", {})
    known = {
        "ttft": "a percentile such as p50, p95 or p99.9",
        "inter_token": "a percentile such as p50, p95 or p99.9",
        "end_to_end": "a percentile such as p50, p95 or p99.9",
        "args": "an option of the engine in lower case without its dashes, e.g. max-num-batched-tokens",
        "engine_args": "an option of the engine in lower case without its dashes, e.g. max-num-batched-tokens",
        "env": "the name of an environment variable",
        "deployments": "the name of a deployment",
    }.get(str(place[-1]), f"a key that matches {', '.join(patterns)}")
    stripped = key.lstrip("-")
    hint = f"write {stripped}" if stripped != key and stripped else f"see {DOCS}"
    return Finding(path=path, found=f"the key {shown_text(key)}", expected=known, hint=hint, at_key=True)


def _wrong_value(path: Path, value: Plain, error: ErrorDetails) -> Finding:
    context = error.get("ctx", {})
    hint = str(context["hint"]) if "hint" in context else _hint(path, value)
    return Finding(path=path, found=shown(value), expected=expected_at(path), hint=hint)


def _hint(path: Path, value: Plain) -> str:
    schema = schema_at(path) or {}
    if isinstance(value, str):
        if schema.get("enum"):
            return suggestion(value, [str(option) for option in schema["enum"]], what="value")
        if schema.get("type") == "boolean" and value.lower() in _YAML_1_1_BOOLEANS:
            return "write true or false: YAML 1.2 knows no others"
        if schema.get("type") in {"integer", "number"} and value.strip().isdigit():
            return f"write {value.strip()} without quotes"
        lowered = value.lower().replace("_", "-").replace(" ", "-")
        if lowered != value and re.search(text_schema_at(path).get("pattern", "(?!)"), lowered):
            return f"write {lowered}, for example"
    if isinstance(value, int | float) and schema.get("type") == "string" and not isinstance(value, bool):
        return f'quote it: "{value}"'
    example = example_at(path)
    return f"see {DOCS}" if example is None else f"for example {path[-1] if path else 'site'}: {example}"


def _hidden(value: Plain) -> str:
    return "nothing" if value is None else HIDDEN
