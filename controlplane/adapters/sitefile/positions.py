"""YAML to plain data that knows where each part of it stood. Bounded in bytes, depth and number of values.

The tree is built from ruamel.yaml's event stream instead of its composer: so depth is checked before the parser
recurses, aliases are counted as they are expanded (a "billion laughs" ends at the bound), a duplicate key is one
finding among others and not the end, and scalars follow YAML 1.2's core schema (`yes` is text, not true).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from controlplane.adapters.sitefile.findings import Path, Plain, shown_text

DOCUMENT_BYTES_MAX: Final = 256 * 1024
"""Bytes of a site file: some 2,000 nodes listed one by one; parsed in about a second and a half."""

DEPTH_MAX: Final = 24
"""Levels of nesting. The schema has 6; the scanner's time grows with the square of this."""

VALUES_MAX: Final = 50_000
"""Values after aliases are expanded: several times what DOCUMENT_BYTES_MAX can spell out in a sensible file."""

_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(
    r"[-+]?(?=[0-9.]*[.eE])(?:\.[0-9]{1,18}|[0-9]{1,18}(?:\.[0-9]{0,18})?)(?:[eE][-+]?[0-9]{1,2})?"
)
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TEXT_TAGS: Final = frozenset({"!", "tag:yaml.org,2002:str"})


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFinding:
    """A problem of the YAML itself, at a place of the text rather than at a field."""

    place: Place
    field: str
    found: str
    expected: str
    hint: str


@dataclass(frozen=True, slots=True)
class Leaf:
    value: str | int | float | bool | None
    place: Place
    end: Place


@dataclass(frozen=True, slots=True)
class Entries:
    """A mapping; keys as written, in order, the first of duplicates."""

    items: Mapping[str, tuple[Leaf, "Tree"]]
    place: Place


@dataclass(frozen=True, slots=True)
class Items:
    items: Sequence["Tree"]
    place: Place


type Tree = Leaf | Entries | Items


class UnreadableError(Exception):
    """The text is no YAML, or beyond a bound: there is no tree. Becomes an InvalidError in `parse.py`."""

    def __init__(self, finding: PlacedFinding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@dataclass(slots=True)
class _Composer:
    """State of one composition: the events ahead, the anchors seen, what was found on the way."""

    events: Iterator[Event]
    anchors: dict[str, Tree | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    values: int = 0
    findings: list[PlacedFinding] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    """Where the composition is: `deployments`, `[1]`, `name`."""


def compose(text: str) -> tuple[Tree | None, tuple[PlacedFinding, ...]]:
    """The document's tree (None: it has no content) and what is wrong with its YAML. UnreadableError without one."""
    composer = _Composer(_events(text))
    tree: Tree | None = None
    for event in composer.events:
        if isinstance(event, DocumentStartEvent):
            if tree is not None:
                _refuse(_start(event), "a second document (---)", "one document", "keep one site in a file")
            tree = _node(composer, next(composer.events), depth=1)
    if isinstance(tree, Leaf) and tree.value is None:
        tree = None
    return tree, tuple(composer.findings)


def compose_all(text: str) -> tuple[tuple[Tree, ...], tuple[PlacedFinding, ...]]:
    """As `compose`, of a file that may hold several documents; those without content are left out.

    The bound on values is that of each document; the whole is bounded by the text's size.
    """
    composer = _Composer(_events(text))
    trees: list[Tree] = []
    for event in composer.events:
        if isinstance(event, DocumentStartEvent):
            composer.anchors.clear()
            composer.sizes.clear()
            composer.values = 0
            trees.append(_node(composer, next(composer.events), depth=1))
    found = tuple(tree for tree in trees if not isinstance(tree, Leaf) or tree.value is not None)
    return found, tuple(composer.findings)


def plain(tree: Tree) -> Plain:
    """The data alone."""
    match tree:
        case Leaf(value=value):
            return value
        case Entries(items=entries):
            return {key: plain(value) for key, (_, value) in entries.items()}
        case Items(items=items):
            return [plain(item) for item in items]


def locate(tree: Tree, path: Path, *, at_key: bool = False) -> tuple[Place, Path]:
    """Where the path stands, or its deepest part that is there, and that part's path.

    `at_key`: the place of the last part's key instead of its value.
    """
    place = tree.place
    for reached, part in enumerate(path):
        match tree:
            case Entries(items=entries) if isinstance(part, str) and part in entries:
                key, tree = entries[part]
                is_key = at_key and reached == len(path) - 1
                place = key.place if is_key or _is_left_out(tree) else tree.place
            case Items(items=items) if isinstance(part, int) and 0 <= part < len(items):
                tree = items[part]
                place = tree.place
            case _:
                return place, path[:reached]
    return place, path


def _is_left_out(tree: Tree) -> bool:
    """Nothing stands after the key: the parser puts that at the next token, which may be lines below."""
    return isinstance(tree, Leaf) and tree.value is None and tree.place == tree.end


def leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    """Every scalar with its path."""
    match tree:
        case Leaf():
            yield path, tree
        case Entries(items=entries):
            for key, (_, value) in entries.items():
                yield from leaves(value, (*path, key))
        case Items(items=items):
            for index, item in enumerate(items):
                yield from leaves(item, (*path, index))


def path_at(tree: Tree, place: Place) -> Path | None:
    """The path of the scalar in whose text the place lies."""
    return next((path for path, leaf in leaves(tree) if leaf.place <= place < leaf.end), None)


def _events(text: str) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(1, 1) if mark is None else _place(mark)
        _refuse_syntax(text, place, " ".join(part for part in (error.context, error.problem) if part))
    except ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        _refuse(place, "a character that YAML does not allow", "printable text", "delete the character")


def _refuse_syntax(text: str, place: Place, problem: str) -> NoReturn:
    """The parser's words, and the step that usually helps."""
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        _refuse(place, "a tab", "spaces: YAML does not indent with tabs", "replace each tab by two spaces")
    hint = "check the indentation and brackets of this line and the one above; quote text that holds `: ` or ` #`"
    # The parser quotes single characters and token kinds, never a value: nothing secret can come with it.
    _refuse(place, f"text that is not YAML ({problem})", "valid YAML 1.2", hint)


def _node(composer: _Composer, event: Event, *, depth: int) -> Tree:
    place = _start(event)
    composer.values += 1
    if depth > DEPTH_MAX:
        _refuse(place, f"more than {DEPTH_MAX} levels", "a flatter file", "remove brackets or indentation")
    if isinstance(event, AliasEvent):
        return _aliased(composer, event, depth=depth)
    _check_values(composer, place)
    assert isinstance(event, NodeEvent), "a node begins with a node event"
    anchor: str | None = event.anchor
    before = composer.values
    if anchor is not None:
        composer.anchors[anchor] = None
    tree = _content(composer, event, depth=depth)
    if anchor is not None:
        composer.anchors[anchor] = tree
        composer.sizes[anchor] = composer.values - before + 1
    return tree


def _content(composer: _Composer, event: Event, *, depth: int) -> Tree:
    match event:
        case ScalarEvent():
            return _scalar(composer, event)
        case SequenceStartEvent():
            return _sequence(composer, event, depth=depth)
        case _:
            assert isinstance(event, MappingStartEvent), f"unexpected event {event!r}"
            return _mapping(composer, event, depth=depth)


def _aliased(composer: _Composer, event: AliasEvent, *, depth: int) -> Tree:
    anchor: str = event.anchor
    place = _start(event)
    tree = composer.anchors.get(anchor)
    if tree is not None:
        composer.values += composer.sizes[anchor]
        _check_values(composer, place)
        if depth + _height(tree) > DEPTH_MAX:
            _refuse(place, f"more than {DEPTH_MAX} levels with aliases expanded", "a flatter file", "remove aliases")
        return tree
    if anchor in composer.anchors:
        _note(composer, place, "an alias inside what it names", "no circle", "write the value out")
    else:
        expected = "an anchor (&name) above it"
        _note(composer, place, "an alias (*) without its anchor", expected, 'quote text that begins with "*"')
    return Leaf(None, place, _end(event))


def _height(tree: Tree) -> int:
    """Levels below this one. Anchors are refused beyond DEPTH_MAX, so it does not recurse further than that."""
    match tree:
        case Leaf():
            return 0
        case Entries(items=entries):
            return 1 + max((_height(value) for _, value in entries.values()), default=0)
        case Items(items=items):
            return 1 + max((_height(item) for item in items), default=0)


def _check_values(composer: _Composer, place: Place) -> None:
    if composer.values > VALUES_MAX:
        _refuse(place, f"more than {VALUES_MAX:,} values with aliases expanded", "fewer", "remove aliases (*name)")


def _sequence(composer: _Composer, start: SequenceStartEvent, *, depth: int) -> Items:
    _check_tag(composer, start)
    items: list[Tree] = []
    for event in composer.events:
        if isinstance(event, SequenceEndEvent):
            break
        composer.path.append(f"[{len(items)}]")
        items.append(_node(composer, event, depth=depth + 1))
        composer.path.pop()
    return Items(items, _start(start))


def _mapping(composer: _Composer, start: MappingStartEvent, *, depth: int) -> Entries:
    _check_tag(composer, start)
    entries: dict[str, tuple[Leaf, Tree]] = {}
    for event in composer.events:
        if isinstance(event, MappingEndEvent):
            break
        key = _node(composer, event, depth=depth + 1)
        composer.path.append(str(key.value) if isinstance(key, Leaf) else "?")
        value = _node(composer, next(composer.events), depth=depth + 1)
        _add_entry(composer, entries, key, event, value)
        composer.path.pop()
    return Entries(entries, _start(start))


def _add_entry(
    composer: _Composer, entries: dict[str, tuple[Leaf, Tree]], key: Tree, event: Event, value: Tree
) -> None:
    if not isinstance(key, Leaf) or not isinstance(event, ScalarEvent):
        expected = "a plain word before the colon"
        hint = "quote the key, or the value if it begins with a bracket"
        _note(composer, key.place, "a key that is a list, a mapping or an alias", expected, hint)
        return
    name: str = event.value
    if name == "<<":
        expected, hint = "keys of this section", "write the keys out, or give the whole value an alias (*name)"
        _note(composer, key.place, "a merge key (<<)", expected, hint)
    elif name in entries:
        first = entries[name][0].place
        found = f"the key {shown_text(name)} twice (first on line {first.line})"
        _note(composer, key.place, found, "each key once", "keep one of the two")
    else:
        entries[name] = (key, value)


def _scalar(composer: _Composer, event: ScalarEvent) -> Leaf:
    text: str = event.value
    tag = _check_tag(composer, event)
    is_plain = event.implicit[0] and tag is None
    return Leaf(_resolved(text) if is_plain else text, _start(event), _end(event))


def _resolved(text: str) -> str | int | float | bool | None:
    """A plain scalar's value by YAML 1.2's core schema. Infinities and octals are text: no field has a use for them."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _check_tag(composer: _Composer, event: ScalarEvent | SequenceStartEvent | MappingStartEvent) -> str | None:
    tag: str | None = event.tag
    if tag is not None and tag not in _TEXT_TAGS:
        _note(composer, _start(event), "a YAML tag (!)", "a plain value", 'quote text that begins with "!"')
    return tag


def _note(composer: _Composer, place: Place, found: str, expected: str, hint: str) -> None:
    name = ".".join(composer.path).replace(".[", "[") or "document"
    composer.findings.append(PlacedFinding(place=place, field=name, found=found, expected=expected, hint=hint))


def _refuse(place: Place, found: str, expected: str, hint: str) -> NoReturn:
    raise UnreadableError(PlacedFinding(place=place, field="document", found=found, expected=expected, hint=hint))


def _start(event: Event) -> Place:
    mark = event.start_mark
    return Place(1, 1) if mark is None else _place(mark)


def _end(event: Event) -> Place:
    mark = event.end_mark
    return Place(1, 1) if mark is None else _place(mark)


def _place(mark: StreamMark) -> Place:
    return Place(mark.line + 1, mark.column + 1)
