"""What of a broken site file can be planned all the same, so that a missing name does not hide a model too large."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from controlplane.adapters.sitefile.convert import DEFAULT_ENGINE, to_site
from controlplane.adapters.sitefile.findings import Path, Plain
from controlplane.adapters.sitefile.outline import Entry, section, text
from controlplane.adapters.sitefile.schema_findings import validate
from controlplane.domain.site import Site

_PLANNED_FROM: Final = ("node_pools", "engines", "deployments")
"""The sections that decide where a model fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """The sound deployments on sound pools and engines; the names of the others."""

    site: Site | None
    """None: nothing can be planned."""
    left_out: tuple[str, ...]


def salvage(data: Plain, broken: Collection[Path]) -> Salvaged:
    """`broken`: where the findings are. A deployment that depends on anything broken is left out."""
    listed = {name: section(data).get(name) for name in _PLANNED_FROM}
    whole = {path[0] for path in broken if path and (len(path) == 1 or not isinstance(path[1], int))}
    if not whole.isdisjoint(_PLANNED_FROM) or () in broken:
        return Salvaged(site=None, left_out=())
    sound = {name: _sound(name, entries, broken) for name, entries in listed.items()}
    kept = [entry for entry in sound["deployments"] if _depends_on_sound(entry, listed, sound)]
    left_out = tuple(
        str(section(entry).get("name", f"the deployment at index {index}"))
        for index, entry in enumerate(_entries(listed["deployments"]))
        if not any(entry is other for other in kept)
    )
    ports = {} if "replica_ports" in {path[0] for path in broken if path} else section(data, "replica_ports")
    document, _ = validate(
        {
            "site": {"name": "salvaged"},
            "node_pools": sound["node_pools"],
            "engines": sound["engines"],
            "deployments": kept,
            "replica_ports": ports,
        }
    )
    return Salvaged(site=to_site(document) if document is not None and kept else None, left_out=left_out)


def _entries(listed: Plain) -> list[Plain]:
    return listed if isinstance(listed, list) else []


def _sound(name: str, listed: Plain, broken: Collection[Path]) -> list[Entry]:
    lost = {path[1] for path in broken if path[:1] == (name,) and len(path) > 1}
    return [section(entry) for index, entry in enumerate(_entries(listed)) if index not in lost]


def _depends_on_sound(deployment: Entry, listed: dict[str, Plain], sound: dict[str, list[Entry]]) -> bool:
    """Where it names no pool, every pool matters; where it names no engine, the only one or `default`."""
    names = {part: {text(entry, "name") for entry in sound[part]} for part in ("node_pools", "engines")}
    pool, engine = text(deployment, "pool"), text(deployment, "engine")
    every_pool = len(sound["node_pools"]) == len(_entries(listed["node_pools"]))
    only_engine = len(sound["engines"]) == len(_entries(listed["engines"])) == 1
    has_pool = every_pool if pool is None else pool in names["node_pools"]
    has_engine = only_engine or (engine or DEFAULT_ENGINE) in names["engines"]
    return has_pool and has_engine
