"""The reference page and the published schema say what the schema says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
from ruamel.yaml import YAML

from controlplane.adapters.sitefile.jsonschema import (
    JsonSchema,
    expected_at,
    field_paths,
    required_fields,
    site_json_schema,
)
from controlplane.cli.site import schema_text

ROOT: Final = Path(__file__).parents[3]
DOCS: Final = (ROOT / "docs" / "site-file.md").read_text(encoding="utf-8")


def documented_rows() -> Iterator[tuple[str, str]]:
    """Each field with its row as docs/site-file.md must have it."""
    required = required_fields()
    for path, schema in field_paths():
        parts = tuple(0 if part == "[]" else part for part in path.replace("[]", ".[]").split("."))
        takes = expected_at(parts).replace("|", "\\|")
        default = "required" if path in required else _default(schema)
        yield path, f"| `{path}` | {takes} | {default} | {schema['description']} |"


def _default(schema: JsonSchema) -> str:
    default = schema.get("default")
    if default is None or isinstance(default, dict | list):
        return ""
    return f"`{json.dumps(default) if isinstance(default, bool) else default}`"


@pytest.mark.parametrize(("path", "row"), list(documented_rows()))
def test_every_field_has_its_line_in_the_docs(path: str, row: str) -> None:
    assert row in DOCS.splitlines(), f"docs/site-file.md lacks the line of {path}; it should be:\n{row}"


def test_the_published_schema_is_current() -> None:
    published = (ROOT / "schemas" / "site.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run: quarterdeck site schema --out schemas/site.schema.json"


def test_the_published_schema_is_a_schema_and_has_none_of_our_notes() -> None:
    schema = site_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert '"x-' not in json.dumps(schema)


@pytest.mark.parametrize("name", ["demo", "sovren", "sophia", "nura", "nova", "agent"])
def test_the_published_schema_accepts_the_examples(name: str) -> None:
    document: Any = YAML(typ="safe", pure=True).load((ROOT / "examples" / name / "site.yaml").read_text("utf-8"))
    jsonschema.Draft202012Validator(site_json_schema()).validate(document)


@pytest.mark.parametrize(
    "change",
    [
        {"site": {"name": "Demo"}},
        {"extra": 1},
        {"gateway": {"hold": {"bytes": "64MB"}}},
        {"gateway": {"queue_timeout": 60}},
        {"gateway": {"tenants": [{"name": "a", "keys": ["written-out"]}]}},
        {"engines": [{"name": "e", "kind": "vlm"}]},
        {"engines": [{"name": "e", "kind": "vllm", "args": {"--flag": 1}}]},
    ],
)
def test_the_published_schema_refuses_what_the_check_refuses(change: dict[str, Any]) -> None:
    document: Any = YAML(typ="safe", pure=True).load((ROOT / "examples" / "demo" / "site.yaml").read_text("utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(site_json_schema()).validate({**document, **change})
