"""What a restored PostgreSQL leaves when its owner dies, by its folder alone: its server, files that lie elsewhere."""

import shutil
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.server import PROGRAM, end_servers, servers_in
from controlplane.adapters.backup.scratch import end_running, leftovers

_NO_OTHERS: Final = frozenset[str]()


def remains(into: Path, programs: frozenset[str] = _NO_OTHERS) -> tuple[str, ...]:
    """As `DatasetAdapter.leftovers` tells it; empty: nothing. `programs`: others that were started in the folder."""
    places = places_of(into)
    found = list(leftovers(into, programs))
    if places.is_elsewhere:
        found += leftovers(places.home, _NO_OTHERS)
    found += [f"process {process.pid} ({PROGRAM})" for process in servers_in(places.home)]
    if places.sockets.exists() and not places.sockets.is_relative_to(places.home):
        found.append(f"folder {places.sockets}")
    return tuple(found)


def end_remains(into: Path, programs: frozenset[str] = _NO_OTHERS) -> None:
    """Files last: a process whose folder is gone can no longer be found by it."""
    end_running(into, programs)
    places = places_of(into)
    end_servers(places.home)
    for folder in (places.sockets, places.home, into):
        if folder.exists():
            shutil.rmtree(folder)
