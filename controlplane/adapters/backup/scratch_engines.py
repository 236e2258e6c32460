"""The end of a restored copy by what lies and runs in its folder: what it is of may no longer be declared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

from controlplane.adapters.backup.mongodb_scratch import SERVERS as MONGODB_PROGRAMS
from controlplane.adapters.backup.postgresql.dump_cluster import CLIENTS as POSTGRESQL_CLIENTS
from controlplane.adapters.backup.postgresql.remains import end_remains, remains
from controlplane.adapters.backup.redis_scratch import SERVERS as REDIS_PROGRAMS
from controlplane.domain.dataset import DatasetKind


def _programs(kind: DatasetKind) -> frozenset[str]:
    """Of an engine that a drill starts in its folder."""
    match kind:
        case DatasetKind.REDIS:
            return REDIS_PROGRAMS
        case DatasetKind.MONGODB:
            return MONGODB_PROGRAMS
        case DatasetKind.POSTGRESQL_DUMP:
            return POSTGRESQL_CLIENTS  # its server as the others'
        case DatasetKind.POSTGRESQL | DatasetKind.PGBACKREST:
            return frozenset()  # by its pid file and data folder, wherever its account could be let in
        case DatasetKind.SQLITE | DatasetKind.FILES:
            return frozenset()  # nothing runs
        case _ as unknown:
            assert_never(unknown)


_PROGRAMS: Final = frozenset[str]().union(*(_programs(kind) for kind in DatasetKind))


def end_scratch(into: Path) -> None:
    """End what runs in the folder, of whichever kind, then remove it and what belongs to it elsewhere."""
    end_remains(into, _PROGRAMS)


def scratch_left(into: Path) -> Sequence[str]:
    """What is still there, as `DatasetAdapter.leftovers` tells it; empty: nothing."""
    return remains(into, _PROGRAMS)
