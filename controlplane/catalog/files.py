"""The catalog's files: their schema (pydantic, nothing unknown allowed) and how they are read.

Entries are parsed when they are first asked for: a site uses three models of twenty-three, and the YAML reader is the
slow part. `Catalog.models` behaves like any mapping; iterating over its values reads all.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from controlplane.catalog.file_schema import CatalogFile, EngineFile, HardwareFile, ModelFile
from controlplane.catalog.model import Catalog
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem

_PACKAGE: Final = Path(__file__).resolve().parent.parent

CATALOG_PLACES: Final = (_PACKAGE.parent / "model_catalog", _PACKAGE / "model_catalog")
"""A checkout has the catalog beside the package, an installed wheel inside it."""

SCHEMAS: Final[Mapping[str, type[BaseModel]]] = {
    "model.schema.json": ModelFile,
    "hardware.schema.json": HardwareFile,
    "engine.schema.json": EngineFile,
}
"""The generated JSON schemas that stand beside the files, for editors."""


class _LazyEntries[T](Mapping[str, T]):
    """A folder of YAML files as a mapping from file name to parsed entry; each file is read once, when asked for."""

    def __init__(self, folder: Path, parse: Callable[[Path], T]) -> None:
        self._paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        self._parse = parse
        self._read: dict[str, T] = {}

    def __getitem__(self, key: str) -> T:
        if key not in self._read:
            self._read[key] = self._parse(self._paths[key])
        return self._read[key]

    def __contains__(self, key: object) -> bool:
        return key in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def load_catalog(root: Path | None = None) -> Catalog:
    """The catalog under `root`, or the one that came with the program.

    NotFoundError when there is none. InvalidError (file, field, found, expected) when an entry that is asked for is
    wrong: entries are read on first use.
    """
    folder = root if root is not None else _shipped()
    if not (folder / "models").is_dir():
        raise NotFoundError(f"no model catalog in {folder}: expected a folder with models/, hardware/ and engines/")
    return Catalog(
        models=_LazyEntries(folder / "models", lambda path: _parse(path, ModelFile).to_card()),
        gpus=_LazyEntries(folder / "hardware", lambda path: _parse(path, HardwareFile).to_gpu()),
        engines=_LazyEntries(folder / "engines", lambda path: _parse(path, EngineFile).to_card()),
    )


def schema_text(schema: type[BaseModel]) -> str:
    """The JSON schema as it stands beside the files."""
    return json.dumps(schema.model_json_schema(), indent=2, sort_keys=True) + "\n"


def _shipped() -> Path:
    for place in CATALOG_PLACES:
        if (place / "models").is_dir():
            return place
    raise NotFoundError(f"the program came without its model catalog: looked in {', '.join(map(str, CATALOG_PLACES))}")


def _parse[F: CatalogFile](path: Path, schema: type[F]) -> F:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        parsed = schema.model_validate(content)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = Problem(
            field="the file", found=str(error.problem), expected="YAML", file=str(path), line=line, column=1
        )
        raise InvalidError([problem]) from error
    except ValidationError as error:
        raise InvalidError(
            [_problem(path, item["loc"], item["msg"], item["input"]) for item in error.errors()]
        ) from error
    if parsed.name_in_file != path.stem:
        problem = Problem(
            field="id", found=parsed.name_in_file, expected=f"the file's name, {path.stem}", file=str(path)
        )
        raise InvalidError([problem])
    return parsed


def _problem(path: Path, place: tuple[int | str, ...], message: str, found: object) -> Problem:
    field = ".".join(str(part) for part in place) or "the file"
    return Problem(field=f"{path.name}: {field}", found=repr(found)[:80], expected=message, file=str(path))
