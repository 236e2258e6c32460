"""Files and folders of YAML as documents, with where everything in them stands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Final, NoReturn

from controlplane.adapters.sitefile.parse import field_name
from controlplane.adapters.sitefile.positions import (
    Entries,
    Items,
    Leaf,
    Place,
    PlacedFinding,
    Tree,
    UnreadableError,
    compose_all,
    locate,
    plain,
)
from controlplane.autoscaler.doctor.model import Document, Finding, Path
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import KIB, format_bytes

FILE_BYTES_MAX: Final = 1024 * KIB
"""A rendered chart of a large release is some 200 KiB; one of this size is read in some five seconds."""
FILES_MAX: Final = 1000
"""In one folder: beyond that somebody named the wrong one."""
_SUFFIXES: Final = frozenset({".yaml", ".yml"})
_TEMPLATE: Final = "{{"
_RENDER: Final = "a Helm template is no YAML yet: render it first (`helm template RELEASE CHART > all.yaml`)"
_EMBEDDED_MARKS: Final = ("seriesQuery:", "autoscaling_config:")
"""What text in a ConfigMap or RayService holds when it is a configuration that the doctor reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadDocument:
    """A document with its tree; `shift` and `indent` place one that stands as text in another."""

    document: Document
    tree: Tree
    shift: int = 0
    """Lines above its first one."""
    indent: int = 0
    """Columns before its first one."""
    fixed: Place | None = None
    """Where all of it is, when the text's own lines cannot be told (quoted or folded text)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosed:
    """A finding at its line."""

    finding: Finding
    field: str
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Everything that was read."""

    documents: Sequence[ReadDocument]
    files: int
    notes: Sequence[str]
    """What was left aside, and why."""

    def placed(self, finding: Finding) -> Diagnosed:
        """The finding at the deepest part of its path that is written."""
        read = self.documents[finding.at.document.index]
        path = finding.at.path
        place, reached = locate(read.tree, path, at_key=finding.at_key)
        if reached != path and reached:
            # What is missing is missed where its section begins.
            place, _ = locate(read.tree, reached, at_key=True)
        if read.fixed is not None:
            place = read.fixed
        line, column = place.line + read.shift, place.column + read.indent
        return Diagnosed(finding=finding, field=field_name(path, read.tree), line=line, column=column)

    def ordered(self, findings: Sequence[Finding]) -> tuple[Diagnosed, ...]:
        """By file, line and column."""
        placed = [self.placed(finding) for finding in findings]
        files = {read.document.source: position for position, read in enumerate(reversed(self.documents))}
        return tuple(
            sorted(
                placed,
                key=lambda one: (-files[one.finding.at.document.source], one.line, one.column, one.finding.rule.id),
            )
        )


def read_documents(paths: Sequence[FilePath]) -> Folder:
    """All documents of the files, and of the YAML files in the folders. InvalidError: one cannot be read."""
    documents: list[ReadDocument] = []
    notes: list[str] = []
    files = 0
    for path, is_named in _files(paths):
        text = _text(path)
        try:
            trees, findings = compose_all(text)
        except UnreadableError as error:
            if _TEMPLATE in text and not is_named:
                notes.append(f"{path} was left aside: {_RENDER}")
                continue
            _refuse_yaml(path, error.finding, text)
        files += 1
        notes += [f"{path}:{one.place.line}: {one.found} was left aside; write {one.expected}" for one in findings]
        for tree in trees:
            documents += _documents(tree, str(path), text)
    numbered = [
        replace(read, document=Document(source=read.document.source, index=index, data=read.document.data))
        for index, read in enumerate(documents)
    ]
    return Folder(documents=numbered, files=files, notes=notes)


def _files(paths: Sequence[FilePath]) -> Iterator[tuple[FilePath, bool]]:
    """Every file once, and whether it was named itself."""
    seen: set[FilePath] = set()
    for path in paths:
        is_named = not path.is_dir()
        inside = [path] if is_named else sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES)
        if not inside:
            _refuse(path, "a folder without YAML files", "a folder with manifests or values")
        if len(inside) > FILES_MAX:
            _refuse(path, f"{len(inside)} YAML files", f"at most {FILES_MAX}", "name the folders that matter")
        for file in inside:
            if file.is_file() and file.resolve() in seen:
                continue
            seen.add(file.resolve())
            yield file, is_named


def _text(path: FilePath) -> str:
    try:
        with path.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        _refuse(path, "no such file", "a file or a folder")
    except OSError as error:
        _refuse(path, f"a file that cannot be read ({error.strerror})", "a readable file")
    if len(content) > FILE_BYTES_MAX:
        _refuse(path, f"more than {format_bytes(FILE_BYTES_MAX)}", "a smaller file", "split it at its documents")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse(path, "bytes that are not UTF-8", "UTF-8 text")


def _documents(tree: Tree, source: str, text: str) -> Iterator[ReadDocument]:
    """The document, or the objects of a List, and what stands in them as text."""
    match tree:
        case Entries(items=entries) if _word(tree, "kind").endswith("List") and "items" in entries:
            inside = entries["items"][1]
            for item in inside.items if isinstance(inside, Items) else ():
                yield from _documents(item, source, text)
        case Entries():
            yield ReadDocument(document=Document(source=source, index=0, data=plain(tree)), tree=tree)
            yield from _embedded(tree, source, text)
        case _:
            return


def _embedded(tree: Entries, source: str, text: str) -> Iterator[ReadDocument]:
    paths: dict[str, Path] = {"RayService": ("spec",), "ConfigMap": ("data",)}
    section: Tree | None = tree
    for part in paths.get(_word(tree, "kind"), ("",)):
        found = section.items.get(str(part)) if isinstance(section, Entries) else None
        section = None if found is None else found[1]
    if not isinstance(section, Entries):
        return
    for _, value in section.items.values():
        if isinstance(value, Leaf) and isinstance(value.value, str) and any(m in value.value for m in _EMBEDDED_MARKS):
            yield from _inner(value, value.value, source, text)


def _inner(leaf: Leaf, inner: str, source: str, text: str) -> Iterator[ReadDocument]:
    try:
        trees, _ = compose_all(inner)
    except UnreadableError:
        # Text that only looks like YAML is somebody else's.
        return
    lines = text.splitlines()
    opening = lines[leaf.place.line - 1][leaf.place.column - 1 :]
    is_literal = opening.startswith("|")
    first = lines[leaf.place.line] if is_literal and leaf.place.line < len(lines) else ""
    for tree in trees:
        yield ReadDocument(
            document=Document(source=source, index=0, data=plain(tree)),
            tree=tree,
            shift=leaf.place.line if is_literal else 0,
            indent=len(first) - len(first.lstrip(" ")),
            fixed=None if is_literal else leaf.place,
        )


def _word(tree: Entries, key: str) -> str:
    found = tree.items.get(key)
    value = found[1].value if found is not None and isinstance(found[1], Leaf) else None
    return value if isinstance(value, str) else ""


def _refuse_yaml(path: FilePath, finding: PlacedFinding, text: str) -> NoReturn:
    hint = _RENDER if _TEMPLATE in text else finding.hint
    problem = Problem(
        field=finding.field,
        found=finding.found,
        expected=finding.expected,
        hint=hint,
        file=str(path),
        line=finding.place.line,
        column=finding.place.column,
    )
    raise InvalidError([problem])


def _refuse(path: FilePath, found: str, expected: str, hint: str = "") -> NoReturn:
    raise InvalidError([Problem(field=str(path), found=found, expected=expected, hint=hint, file=str(path))])
