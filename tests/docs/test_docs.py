"""The docs say what is so: commands, options, links, variables, reasons, examples, dependencies, targets."""

import ast
import configparser
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from ruamel.yaml import YAML
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from controlplane.adapters.sitefile.parse import read_site
from controlplane.adapters.sitefile.planned import plan_site_file
from controlplane.catalog.files import load_catalog
from controlplane.catalog.planning import plan_serving
from controlplane.cli.main import app
from controlplane.domain.reason import Reason
from controlplane.simulation.engine.options import option_parser

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES: Final = sorted((ROOT / "examples").glob("*/site.yaml"))
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE: Final = re.compile(r"`([^`\n]+)`")
LINK: Final = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
VARIABLE: Final = re.compile(r"QUARTERDECK_[A-Z_]+")
OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def text(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(page: str) -> Iterator[list[str]]:
    """Rows of a page's tables, without heads."""
    for line in text(page).splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def fenced(page: str) -> Iterator[str]:
    """Lines of code blocks, continued ones joined, comments and prompts cut."""
    for block in FENCE.findall(page):
        for line in block[1].replace("\\\n", " ").splitlines():
            yield re.sub(r"\s+# .*", "", line.strip()).removeprefix("$ ").removeprefix(".venv/bin/")


# -- commands ---------------------------------------------------------------------------------------------------------


@cache
def program() -> TyperGroup:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return root


def leaves(group: TyperGroup, *words: str) -> Iterator[tuple[str, ...]]:
    """Every command that does something by itself, as words."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            if command.invoke_without_command:
                yield (*words, name)
            yield from leaves(command, *words, name)
        else:
            yield (*words, name)


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words begin with, and the words after it."""
    command: Any = program()
    rest = list(words)
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-") and rest[0].isascii():
        if rest[0] not in command.commands:
            pytest.fail(f"`quarterdeck {' '.join(words)}`: there is no command {rest[0]!r}")
        command = command.commands[rest.pop(0)]
    return command, rest


def options(command: TyperCommand | TyperGroup) -> set[str]:
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    if command.name == "sim-engine":
        known |= {option for action in option_parser()._actions for option in action.option_strings}
    return known


def spoken(page: str) -> Iterator[tuple[bool, str]]:
    """Each `quarterdeck ...` and `make up ARGS=...` of a page; True for a whole line that can be typed."""
    for line in fenced(page):
        if line.startswith("quarterdeck "):
            yield True, line.removeprefix("quarterdeck ")
        if line.startswith("make up ARGS="):
            yield True, "up " + shlex.split(line)[2].removeprefix("ARGS=")
    for code in INLINE.findall(FENCE.sub("", page)):
        if code.startswith("quarterdeck "):
            yield False, code.removeprefix("quarterdeck ")
        if code.startswith(("make up ARGS=", "ARGS=")):
            yield True, "up " + shlex.split(code.removeprefix("make up "))[0].removeprefix("ARGS=")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    for whole, line in spoken(text(page)):
        words = shlex.split(line)
        command, rest = found(words)
        unknown = [word for word in rest if OPTION.fullmatch(word.partition("=")[0])
                   and word.partition("=")[0] not in options(command)]  # fmt: skip
        assert not unknown, f"{named(page)}: `quarterdeck {line}`: there is no {unknown}"
        if whole and command.name != "sim-engine":
            command.make_context("quarterdeck", list(rest)).close()


@pytest.mark.parametrize("words", list(leaves(program())), ids=" ".join)
def test_every_command_has_its_line_in_the_command_page(words: tuple[str, ...]) -> None:
    rows = [cell for cell, *_ in cells("docs/cli.md")]
    assert rows.count(f"`quarterdeck {' '.join(words)}`") == 1


def test_the_options_in_the_command_page_are_those_of_their_command() -> None:
    for cell, said in (row for row in cells("docs/cli.md") if row[0].startswith("`quarterdeck ")):
        command, rest = found(cell.strip("`").split()[1:])
        assert not rest
        named_here = OPTION.findall(re.sub(r"`quarterdeck [^`]*`", "", said))
        assert set(named_here) <= options(command), cell


# -- links and targets ------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{named(page)} links to {target}, which is not there"
        assert not anchor or anchor in slugs(there), f"{named(page)} links to {target}, which has no such heading"


def test_every_page_is_named_in_the_readme() -> None:
    linked = {target.partition("#")[0] for target in LINK.findall(text("README.md"))}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for page in PAGES:
        codes = [*fenced(text(page)), *INLINE.findall(FENCE.sub("", text(page)))]
        asked = {name for code in codes for name in re.findall(r"(?:^|&& )make ([a-z-]+)", code)}
        assert asked <= targets, named(page)
    assert set(re.findall(r"^# make ([a-z-]+)", text("Makefile"), re.MULTILINE)) <= targets


# -- environment ------------------------------------------------------------------------------------------------------


@cache
def variables_of_the_program() -> frozenset[str]:
    """Whole string constants of that form: prose and examples in messages have more around the name."""
    return frozenset(
        node.value
        for path in (ROOT / "controlplane").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value)
    )


def documented_variables(page: str) -> list[str]:
    return sorted(cell.strip("`") for cell, *_ in cells(page) if VARIABLE.fullmatch(cell.strip("`")))


def test_the_command_page_lists_the_variables_that_the_program_knows() -> None:
    assert documented_variables("docs/cli.md") == sorted(variables_of_the_program())


def test_contributing_lists_the_variables_that_the_tests_and_tools_read() -> None:
    files = [path for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*")]
    read = {
        name
        for path in files
        if path.suffix in (".py", ".sh")
        for name in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    assert documented_variables("CONTRIBUTING.md") == sorted(read - variables_of_the_program())


# -- reasons ----------------------------------------------------------------------------------------------------------


def test_every_reason_is_given_by_the_program() -> None:
    given = {
        node.attr
        for path in (ROOT / "controlplane").rglob("*.py")
        if "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }
    assert {reason.name for reason in Reason} <= given


def test_every_reason_has_its_line_and_no_line_is_of_another() -> None:
    rows = list(cells("docs/reasons.md"))
    assert sorted(row[0].strip("`") for row in rows) == sorted(Reason)
    assert all(len(row) == 3 and all(row) for row in rows)


def test_reasons_that_other_pages_name_in_tables_are_reasons() -> None:
    section = text("docs/autoscaling.md").partition("## Rules, in order")[2].partition("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in INLINE.findall(row)}
    assert told <= set(Reason)


# -- site files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_every_example_checks_clean(path: Path) -> None:
    """Maxima that need more than there is are meant: deployments that peak at different times share GPUs."""
    result = CliRunner().invoke(app, ["site", "check", str(path), "--json"])
    assert result.exit_code == 0, result.output
    warnings = json.loads(result.output)["warnings"]
    assert all(warning["found"].startswith("maxima that need") for warning in warnings), warnings


def snippets() -> list[dict[str, Any]]:
    reader = YAML(typ="safe", pure=True)
    pages = text("docs/site-file.md") + text("docs/datasets.md")
    blocks = [body for language, body in FENCE.findall(pages) if language == "yaml"]
    return [document for body in blocks if (document := reader.load(body)) is not None]


@pytest.mark.parametrize("index", range(len(snippets())))
def test_the_snippets_of_the_pages_about_the_site_file_are_valid(index: int) -> None:
    """Pieces are put into the page's first, whole file."""
    whole, piece = snippets()[0], snippets()[index]
    catalog, document = load_catalog(), StringIO()
    YAML().dump({**whole, **piece}, document)
    read = read_site(
        document.getvalue(), file="page", known_models=frozenset(catalog.models), known_gpus=frozenset(catalog.gpus)
    )
    assert plan_site_file(read, partial(plan_serving, catalog=catalog)).plans


# -- the project ------------------------------------------------------------------------------------------------------


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0] for requirement in requirements}


@pytest.mark.parametrize("section", ["To run", "To test and check"])
def test_every_direct_dependency_has_its_line(section: str) -> None:
    project = tomllib.loads(text("pyproject.toml"))
    groups = project["dependency-groups"]
    wanted = {"To run": project["project"]["dependencies"], "To test and check": [*groups["build"], *groups["dev"]]}
    body = text("docs/dependencies.md").partition(f"## {section}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!package|---)([^|]+) \|", body, re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} == declared(wanted[section])


def test_the_changelog_has_a_section_for_what_is_new() -> None:
    first = re.search(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert "unreleased" in first[1].lower() or re.match(r"\d+\.\d+\.\d+", first[1])


def packages() -> set[str]:
    return {path.parent.name for path in (ROOT / "controlplane").glob("*/__init__.py")}


def test_the_directions_of_import_name_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter", encoding="utf-8")
    layers = config["importlinter:contract:layers"]["layers"]
    assert packages() <= set(re.findall(r"controlplane\.(\w+)", layers))


def test_the_architecture_page_names_every_package() -> None:
    section = text("docs/architecture.md").partition("## Packages")[2].partition("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in INLINE.findall(row)}
    assert packages() <= told


def test_the_rules_of_the_house_hold() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: tools/check_tree.py looks at what git tracks")
    result = subprocess.run(
        [sys.executable, "tools/check_tree.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
