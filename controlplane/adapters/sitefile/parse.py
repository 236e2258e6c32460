"""From a site file's text to a `Site`, or to every problem in it, each as file:line:column with the next step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Final, NoReturn

from controlplane.adapters.sitefile.convert import to_site
from controlplane.adapters.sitefile.feasibility_findings import feasibility_findings
from controlplane.adapters.sitefile.findings import Finding, Path, Plain, nearest, shown
from controlplane.adapters.sitefile.jsonschema import field_names
from controlplane.adapters.sitefile.outline import section
from controlplane.adapters.sitefile.outline import text as text_of
from controlplane.adapters.sitefile.positions import (
    DOCUMENT_BYTES_MAX,
    Entries,
    Items,
    Place,
    PlacedFinding,
    Tree,
    UnreadableError,
    compose,
    locate,
    path_at,
    plain,
)
from controlplane.adapters.sitefile.references import Known, reference_findings
from controlplane.adapters.sitefile.rules import rule_findings
from controlplane.adapters.sitefile.salvage import Salvaged, salvage
from controlplane.adapters.sitefile.schema import SiteDocument
from controlplane.adapters.sitefile.schema_findings import validate
from controlplane.adapters.sitefile.secrets import instead_of_secret, mask, secret_findings, secret_places
from controlplane.domain.site import Site
from controlplane.kernel.errors import InvalidError, Problem
from controlplane.kernel.units import format_bytes

_EXAMPLE: Final = "start from examples/demo/site.yaml"
_BOM: Final = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFile:
    """A site together with where everything in it stood, so that what is found later can be placed too."""

    site: Site
    text: str
    file: str
    tree: Tree

    def problem_at(self, path: Path, problem: Problem) -> Problem:
        """The problem, placed at the path or the deepest part of it that the file has."""
        place, reached = locate(self.tree, path, at_key=True)
        # A list's entry begins at its first key: the line that names the deployment is the better place.
        if reached and isinstance(reached[-1], int):
            place, _ = locate(self.tree, (*reached, "name"), at_key=True)
        return replace(problem, file=self.file, line=place.line, column=place.column)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A file that was read: sound, or with problems."""

    sound: SiteFile | None = None
    problems: tuple[Problem, ...] = ()
    rest: SiteFile | None = None
    """With problems: the deployments that can be planned all the same, if there are any."""
    left_out: tuple[str, ...] = ()
    """The names of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    document: SiteDocument | None
    problems: list[Problem]
    broken: frozenset[Path]
    """Where the problems are."""


def parse_site(
    text: str, *, file: str, known_models: frozenset[str] | None = None, known_gpus: frozenset[str] | None = None
) -> Site:
    """The site that the text declares. InvalidError with all problems; `file` is what they name as their place."""
    return read_site(text, file=file, known_models=known_models, known_gpus=known_gpus).site


def load_site(
    path: FilePath, *, known_models: frozenset[str] | None = None, known_gpus: frozenset[str] | None = None
) -> tuple[Site, str]:
    """The site that the file declares, and the file's text. InvalidError with all problems."""
    text = read_text(path)
    return parse_site(text, file=str(path), known_models=known_models, known_gpus=known_gpus), text


def read_site(
    text: str, *, file: str, known_models: frozenset[str] | None = None, known_gpus: frozenset[str] | None = None
) -> SiteFile:
    """As `parse_site`, with the positions kept."""
    reading = examine_site(text, file=file, known_models=known_models, known_gpus=known_gpus)
    if reading.sound is None:
        raise InvalidError(reading.problems)
    return reading.sound


def examine_site(
    text: str, *, file: str, known_models: frozenset[str] | None = None, known_gpus: frozenset[str] | None = None
) -> Reading:
    """As `read_site`, with problems as a value beside what can be planned in spite of them. InvalidError: too large."""
    text = text.removeprefix(_BOM)
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > DOCUMENT_BYTES_MAX:
        _refuse_size(size_bytes, file)
    secrets_seen = tuple(secret_places(text))
    try:
        tree, yaml_problems = compose(text)
    except UnreadableError as error:
        return Reading(problems=_ordered(file, [_of_text(error.finding), *_shaped_secrets(secrets_seen, None)]))
    if tree is None:
        return Reading(problems=_ordered(file, [_empty(text), *_shaped_secrets(secrets_seen, None)]))
    checked = _checked(tree, Known(models=known_models, gpus=known_gpus), secrets_seen)
    problems = [*checked.problems, *(_of_text(problem) for problem in yaml_problems)]
    if not problems:
        assert checked.document is not None, "a document without a problem is valid"
        sound = SiteFile(site=to_site(checked.document), text=text, file=file, tree=tree)
        refused = [_of_path(_by_index(finding, tree), tree) for finding in feasibility_findings(sound.site)]
        return Reading(problems=_ordered(file, refused), rest=sound) if refused else Reading(sound=sound)
    # Which of two equal keys was meant is not known: then nothing is planned.
    rest = Salvaged(site=None, left_out=()) if yaml_problems else salvage(plain(tree), checked.broken)
    return Reading(
        problems=_ordered(file, problems),
        rest=None if rest.site is None else SiteFile(site=rest.site, text=text, file=file, tree=tree),
        left_out=rest.left_out,
    )


def read_text(path: FilePath) -> str:
    """The file's text. InvalidError when there is none, it is no file, too large or not UTF-8."""
    try:
        with path.open("rb") as opened:
            content = opened.read(DOCUMENT_BYTES_MAX + 1)
    except FileNotFoundError:
        _refuse_file(path, "no such file", _nearby(path))
    except IsADirectoryError:
        inside = path / "site.yaml"
        _refuse_file(path, "a directory", f"name the file, for example {inside}" if inside.exists() else _EXAMPLE)
    except OSError as error:
        _refuse_file(path, f"a file that cannot be read ({error.strerror})", "check its owner and permissions")
    if len(content) > DOCUMENT_BYTES_MAX:
        _refuse_size(path.stat().st_size, str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        hint = f"save it as UTF-8, for example with `iconv -t UTF-8 {path.name}`"
        _refuse(str(path), [_problem(place, "document", "bytes that are not UTF-8", "UTF-8 text", hint)])


def _checked(tree: Tree, known: Known, secrets_seen: Sequence[tuple[Place, str]]) -> _Checked:
    """The document, and what schema, rules and the search for secrets say. A secret's place gets that problem alone."""
    if not isinstance(tree, Entries):
        found, hint = shown(plain(tree)), f"begin with `site:`; {_EXAMPLE}"
        problem = _problem(tree.place, "document", found, "a mapping with site, node_pools and engines", hint)
        problems = [problem, *_shaped_secrets(secrets_seen, tree)]
        return _Checked(document=None, problems=problems, broken=frozenset({()}))
    data = plain(tree)
    document, findings = validate(data)
    shaped = {path for place, _ in secrets_seen if (path := path_at(tree, place)) is not None}
    named = [finding for finding in secret_findings(data, field_names()) if finding.path not in shaped]
    secret = shaped | {finding.path for finding in named}
    others = (*findings, *reference_findings(data, known), *rule_findings(data))
    kept = [*named, *(finding for finding in others if finding.at_key or finding.path not in secret)]
    problems = [_of_path(finding, tree) for finding in kept]
    return _Checked(
        document=document,
        problems=[*problems, *_shaped_secrets(secrets_seen, tree)],
        broken=frozenset(shaped | {finding.path for finding in kept}),
    )


def _shaped_secrets(seen: Sequence[tuple[Place, str]], tree: Tree | None) -> Iterator[Problem]:
    for place, kind in seen:
        path = None if tree is None else path_at(tree, place)
        name = "document" if path is None or tree is None else field_name(path, tree)
        hint = instead_of_secret(path or ())
        yield _problem(place, name, f"{kind} written out (not repeated here)", "no secret in the file", hint)


def _empty(text: str) -> Problem:
    found = "only comments" if text.strip() else "an empty file"
    return _problem(Place(1, 1), "document", found, "a site", f"{_EXAMPLE}")


def _by_index(finding: Finding, tree: Tree) -> Finding:
    """With the dataset's name in its path replaced by its place in the list."""
    section, key, name, *rest = finding.path
    listed = plain_at(tree, (section, key))
    entries = listed if isinstance(listed, list) else []
    places = [at for at, entry in enumerate(entries) if isinstance(entry, dict) and entry.get("name") == name]
    return replace(finding, path=(section, key, places[0], *rest) if places else (section,))


def _of_text(finding: PlacedFinding) -> Problem:
    return _problem(finding.place, finding.field, finding.found, finding.expected, finding.hint)


def _of_path(finding: Finding, tree: Tree) -> Problem:
    place, reached = locate(tree, finding.path, at_key=finding.at_key)
    if reached != finding.path and reached:
        # What is missing is missed where its section begins.
        place, _ = locate(tree, reached, at_key=True)
    return _problem(place, field_name(finding.path, tree), finding.found, finding.expected, finding.hint)


def _problem(place: Place, name: str, found: str, expected: str, hint: str) -> Problem:
    return Problem(
        field=mask(name),
        found=mask(found),
        expected=mask(expected),
        hint=mask(hint),
        line=place.line,
        column=place.column,
    )


def field_name(path: Path, tree: Tree) -> str:
    """`deployments[chat-8b].slo.ttft`: list entries by their names where they have one, else by index."""
    written = ""
    for depth, part in enumerate(path):
        if isinstance(part, int):
            name = text_of(section(plain_at(tree, path[: depth + 1])), "name")
            written += f"[{part if name is None else shown(name)[1:-1]}]"
        else:
            written += f".{part}" if written else part
    return written or "document"


def plain_at(tree: Tree, path: Path) -> Plain:
    """The data at the path, or of the deepest part of it that is there."""
    for part in path:
        match tree, part:
            case Entries(items=entries), str() if part in entries:
                tree = entries[part][1]
            case Items(items=items), int() if part < len(items):
                tree = items[part]
            case _:
                break
    return plain(tree)


def _nearby(path: FilePath) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    except OSError:
        return f"there is no folder {path.parent} either; {_EXAMPLE}"
    close = nearest(path.name, names)
    return _EXAMPLE if close is None else f"did you mean {path.parent / close}?"


def _refuse_file(path: FilePath, found: str, hint: str) -> NoReturn:
    raise InvalidError([Problem(field=str(path), found=found, expected="a site file", hint=hint, file=str(path))])


def _refuse_size(size_bytes: int, file: str) -> NoReturn:
    expected = f"at most {format_bytes(DOCUMENT_BYTES_MAX)}"
    hint = "a site of 2,000 nodes is smaller: is this the right file?"
    raise InvalidError([Problem(field=file, found=format_bytes(size_bytes), expected=expected, hint=hint, file=file)])


def _refuse(file: str, problems: Iterable[Problem]) -> NoReturn:
    raise InvalidError(_ordered(file, problems))


def _ordered(file: str, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    placed = (replace(problem, file=file) for problem in problems)
    ordered = sorted(placed, key=lambda problem: (problem.line, problem.column, problem.field))
    return tuple(dict.fromkeys(ordered))
