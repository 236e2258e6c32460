"""Machine code is kept for exactly the sources that it was made of."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.simulation.fleet import compiled as compiled_module
from controlplane.simulation.fleet.compiled import SOURCES, cache_folder, compiled

FLEET = Path(compiled_module.__file__).parent


def copy_of_the_sources(tmp_path: Path) -> Path:
    folder = tmp_path / "simulation" / "fleet"
    for name in SOURCES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(FLEET / name, target)
    return folder


@pytest.mark.parametrize("changed", SOURCES)
def test_a_change_in_any_source_leads_to_another_folder(changed: str, tmp_path: Path) -> None:
    folder = copy_of_the_sources(tmp_path)
    before = cache_folder(folder)
    assert before == cache_folder(), "the same text elsewhere is the same code"
    (folder / changed).write_text((folder / changed).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert cache_folder(folder) != before


def compiled_functions(module: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "compiled" for each in node.decorator_list):
            yield node


def calls(function: ast.FunctionDef) -> set[str]:
    """Names of what it calls."""
    return {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_every_module_with_a_compiled_function_is_a_source() -> None:
    found = {module.name for module in FLEET.glob("*.py") if any(compiled_functions(module))}
    assert found
    assert found <= set(SOURCES)


def test_every_constant_in_a_compiled_function_comes_from_a_source() -> None:
    """By import: a value from another module would be frozen into the machine code."""
    for module in {module for module in FLEET.glob("*.py") if any(compiled_functions(module))}:
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("controlplane"):
                source = f"{(node.module or '').rpartition('.')[2]}.py"
                assert source in {*SOURCES, "compiled.py"}, f"{module.name} imports from {node.module}"


def test_no_compiled_function_recurses() -> None:
    """Not through others either: numba's cache does not bear that."""
    callees = {
        function.name: calls(function) for module in FLEET.glob("*.py") for function in compiled_functions(module)
    }
    for name, called in callees.items():
        reached, ahead = set[str](), set(called)
        while ahead:
            reached |= ahead
            ahead = {other for each in ahead for other in callees.get(each, ())} - reached
        assert name not in reached


def test_a_compiled_function_is_the_same_function() -> None:
    @compiled
    def triple(value: int) -> int:
        return 3 * value

    assert triple(14) == 42
