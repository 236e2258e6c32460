"""Rules of the house that no linter knows: module length, words of unfinished work, machine paths, pure modules."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LINES_MAX = 500
"""STYLE.md: under 300 wanted, 500 at most."""

PURE_BANNED = frozenset(
    {"asyncio", "os", "time", "random", "socket", "subprocess", "logging", "httpx", "aiohttp", "sqlalchemy", "fastapi"}
)
PURE = ("controlplane/kernel", "controlplane/domain", "controlplane/metering", "controlplane/sites/change.py")
PURE_FEATURES = ("autoscaler", "catalog", "fleet", "gateway", "recovery", "replicas")
SHELL_MODULES = frozenset(
    {"reconciler.py", "executor.py", "runner.py", "service.py", "load.py", "observation.py", "files.py"}
)
"""Thin shells inside features, and readers of files: they may touch the world through what they are given."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|not implemented yet")
MACHINE = re.compile(r"(?<![\w.])/(root|work|farm)/|--?(extra-)?index-url\b|\bpypi\.org\b|\bregistry\.npmjs\b")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".cfg", ".lock", ".json", ""}
EXEMPT = frozenset({Path("tools/check_tree.py"), Path("tools/lock.sh")})
"""They name what they look for, or the option that keeps addresses out of the locks."""


def tracked() -> list[Path]:
    """Files that git tracks, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    return [path for line in listed.stdout.splitlines() if (path := Path(line)).is_file() and path not in EXEMPT]


def problems_of(path: Path) -> Iterator[str]:
    if path.suffix not in TEXT:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    if path.suffix == ".py" and len(lines) > LINES_MAX and not str(path).startswith("tests/"):
        yield f"{path}: {len(lines)} lines, at most {LINES_MAX}: split it by noun"
    for number, line in enumerate(lines, start=1):
        if UNFINISHED.search(line):
            yield f"{path}:{number}: a word of unfinished work: {line.strip()[:80]}"
        if MACHINE.search(line):
            yield f"{path}:{number}: a path of some machine, or a registry's address: {line.strip()[:80]}"
    if is_pure(path):
        yield from impure_imports(path, text)


def is_pure(path: Path) -> bool:
    name = path.as_posix()
    if path.suffix != ".py":
        return False
    if name.startswith(PURE):
        return True
    feature = name.startswith(tuple(f"controlplane/{feature}/" for feature in PURE_FEATURES))
    return feature and path.name not in SHELL_MODULES


def impure_imports(path: Path, text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                names = [module]
            case _:
                continue
        for name in names:
            if name.partition(".")[0] in PURE_BANNED:
                yield f"{path}:{node.lineno}: a pure module imports {name}; move the effect into its shell"


def main() -> int:
    found = [problem for path in tracked() for problem in problems_of(path)]
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
