"""docs/models.md states the fit's error as it is, and names every command."""

from collections import defaultdict
from pathlib import Path
from typing import Final

from controlplane.catalog.files import load_catalog
from controlplane.catalog.known import Check, checks
from controlplane.cli.models import app

DOC: Final = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_stated_errors_are_the_computed_ones() -> None:
    sections: dict[str, list[Check]] = defaultdict(list)
    for check in checks(load_catalog()):
        sections[check.section].append(check)

    for section, found in sections.items():
        largest = max(abs(check.error) for check in found)
        assert f"| {section} | {len(found)} | {largest:.1%} |" in DOC


def test_every_command_has_a_line() -> None:
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback is not None else "")
        assert f"quarterdeck models {name}" in DOC, name
