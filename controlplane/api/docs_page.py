"""The API documented on one plain page, made from its OpenAPI document: no script, nothing from elsewhere. Pure."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

DOCS_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
"""The page has a style sheet in it and loads nothing."""

_METHODS: Final = ("get", "put", "post", "delete", "patch")
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .6rem .8rem; background: #8881; }
summary { cursor: pointer; padding: .25rem 0; }
details { border-top: 1px solid #8884; }
details > :not(summary) { margin-left: 1rem; }
.method { display: inline-block; width: 3.6rem; font-weight: 600; text-transform: uppercase; }
td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0; }
:root { color-scheme: light dark; }
"""

type Document = Mapping[str, Any]
"""Parsed JSON: an OpenAPI document, or a part of one."""


def docs_page(document: Document, *, openapi_path: str) -> str:
    """Every endpoint with its parameters, body and answers; the shapes once, at the end."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    return "".join(
        (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: API</title>',
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
            f"<h1>{escape(title)}</h1><p>{escape(info.get('summary', ''))}</p>",
            f'<p>The same for programs: <a href="{escape(openapi_path)}">{escape(openapi_path)}</a>.</p>',
            *_groups(document),
            "<h2>Shapes</h2>",
            *_shapes(document),
            "</body></html>",
        )
    )


def _groups(document: Document) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                operation = operations[method]
                group = (operation.get("tags") or ["more"])[0]
                groups.setdefault(group, []).append(_endpoint(method, path, operation))
    for group, endpoints in groups.items():
        yield f"<h2>{escape(group.capitalize())}</h2>"
        yield from endpoints


def _endpoint(method: str, path: str, operation: Document) -> str:
    summary = operation.get("summary", "")
    return "".join(
        (
            f'<details><summary><span class="method">{method}</span> <code>{escape(path)}</code> ',
            f"{escape(summary)}</summary><p>{escape(operation.get('description', ''))}</p>",
            _parameters(operation),
            _body(operation),
            _answers(operation),
            "</details>",
        )
    )


def _parameters(operation: Document) -> str:
    rows = [
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}"
        f"{', required' if one.get('required') else ''}</td><td>{_type(one.get('schema', {}))}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    ]
    return f"<table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _body(operation: Document) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    content = "; ".join(f"{escape(kind)}: {_type(part.get('schema', {}))}" for kind, part in body["content"].items())
    return f"<p>Body{'' if body.get('required') else ' (optional)'}: {content}</p>"


def _answers(operation: Document) -> str:
    rows = []
    for status, answer in operation.get("responses", {}).items():
        shapes = ", ".join(_type(part.get("schema", {})) for part in answer.get("content", {}).values())
        rows.append(
            f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description', ''))}</td><td>{shapes}</td></tr>"
        )
    return f"<table><tr><th>answer</th><th></th><th></th></tr>{''.join(rows)}</table>"


def _shapes(document: Document) -> Iterator[str]:
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        text = escape(json.dumps(schema, indent=1))
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>'


def _type(schema: Document) -> str:
    """`list of NodeOut`, `integer or null`, with links to the shapes."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    shown = str(schema.get("type", "anything"))
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    default = [f"default {json.dumps(schema['default'])}"] if "default" in schema else []
    return escape(", ".join([" ".join([shown, *bounds]), *default]))
