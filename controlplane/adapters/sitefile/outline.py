"""A tolerant look into the document: what is of the wrong type is passed over, since the schema reports it."""

from collections.abc import Iterator, Mapping
from datetime import timedelta

from controlplane.adapters.sitefile.findings import Path, Plain
from controlplane.adapters.sitefile.quantities import parse_duration

type Entry = Mapping[str, Plain]


def section(data: Plain, *keys: str) -> Entry:
    """The mapping under the keys; empty where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def entries(data: Plain, *keys: str) -> Iterator[tuple[Path, Entry]]:
    """The mappings in the list under the keys, each with its path."""
    listed = section(data, *keys[:-1]).get(keys[-1])
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(entry, Mapping):
            yield (*keys, index), entry


def text(entry: Entry, key: str) -> str | None:
    found = entry.get(key)
    return found if isinstance(found, str) and found else None


def texts(entry: Entry, key: str) -> list[tuple[int, str]] | None:
    """The texts of a list with their indices; None where there is no list."""
    found = entry.get(key)
    if not isinstance(found, list):
        return None
    return [(index, item) for index, item in enumerate(found) if isinstance(item, str)]


def integer(entry: Entry, key: str) -> int | None:
    found = entry.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def number(entry: Entry, key: str) -> float | None:
    found = entry.get(key)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def duration(entry: Entry, key: str) -> timedelta | None:
    found = text(entry, key)
    return None if found is None else parse_duration(found)


def names(data: Plain, *keys: str) -> frozenset[str]:
    """The `name` of each entry of a list."""
    return frozenset(name for _, entry in entries(data, *keys) if (name := text(entry, "name")))
