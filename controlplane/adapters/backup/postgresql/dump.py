"""The adapter of logical dumps: PostgreSQL in files that any later PostgreSQL can load, for the long term."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.assertions import compare_bytes, compare_counts, failed, passed
from controlplane.adapters.backup.postgresql.counting import ONE_SNAPSHOT, counts_in
from controlplane.adapters.backup.postgresql.dump_cluster import CLIENTS, Cluster, build, check_whole, loader_for
from controlplane.adapters.backup.postgresql.dump_contents import CONTENTS, DumpContents, contents_of, read_contents
from controlplane.adapters.backup.postgresql.dump_source import dump_cluster, large_objects, source_size
from controlplane.adapters.backup.postgresql.login import login_of
from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.programs import Programs, servable
from controlplane.adapters.backup.postgresql.remains import end_remains, remains
from controlplane.adapters.backup.postgresql.restore import refuse_live
from controlplane.adapters.backup.postgresql.server import stop_server
from controlplane.adapters.backup.postgresql.verify import assertion, words
from controlplane.adapters.backup.scratch import (
    filling,
    sync_filesystem,
    sync_folder,
    write_stream,
)
from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.units import format_bytes
from controlplane.recovery.manifest import Count, Manifest
from controlplane.recovery.ports import (
    Restored,
    RestoreRequest,
    SnapshotFacts,
    SnapshotSink,
    Source,
    Started,
    VerifyRequest,
    Watch,
)

_STOP_S: Final = 60.0
"""For the new cluster to write its last checkpoint; then it is ended without."""
_SAME_MOMENT: Final = timedelta(seconds=1)
"""As precisely as people write one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgreSQLDump:
    """A DatasetAdapter. Always full copies, each of one moment."""

    url: str
    only: str | None = None
    """The database to dump; None: every one of the cluster."""
    search: tuple[Path, ...] | None = None
    """Folders with PostgreSQL's programs; None: wherever they are usually installed."""

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.POSTGRESQL_DUMP

    def probe(self) -> Source:
        version, size_bytes = source_size(login_of(self.url), self.only)
        return Source(engine=f"postgresql {version}", size_bytes=size_bytes)

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        del parent
        return dump_cluster(self.url, self.only, sink, watch, self.search)

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        source = request.chain[-1]
        manifest = source.manifest
        _require_moment(manifest, request.to_time)
        refuse_live(request.into)
        contents = contents_of(manifest)
        watch.step("restore", manifest.plain_bytes)
        with filling(request.into):
            _require_room(request.into, manifest.plain_bytes + contents.size_bytes)
            written = sum(write_stream(source, file, request.into / file, watch) for file in contents.files)
            _write_list(request.into / CONTENTS, contents)
        return Restored(plain_bytes=written, notes=_notes(manifest, contents))

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator["DumpScratch"]:
        del to_time  # `restore` took no other than the dump's own
        contents = read_contents(into)
        places = places_of(into)
        programs = servable(loader_for(contents, self.search))
        begin_s = time.monotonic()
        check_whole(places.into, contents, programs, watch)
        checked_s = time.monotonic()
        cluster = build(places, contents, programs, watch)
        started = Started(newest_at=None, loaded_s=time.monotonic() - checked_s, checked_s=checked_s - begin_s)
        try:
            yield DumpScratch(cluster=cluster, contents=contents, programs=programs, started=started)
        finally:
            stop_server(places.data, grace_s=_STOP_S)
        if places.home.exists():
            sync_filesystem(places.home)  # it was loaded without: a person may go on with it

    def leftovers(self, into: Path) -> Sequence[str]:
        return remains(into, CLIENTS)

    def end_leftovers(self, into: Path) -> None:
        end_remains(into, CLIENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpScratch:
    """A ScratchInstance: a cluster that was filled from the dump without an error."""

    cluster: Cluster
    contents: DumpContents
    programs: Programs
    started: Started

    @property
    def url(self) -> str:
        """Of the database that assertions ask."""
        return self.cluster.url(self.contents.database)

    def verify(self, request: VerifyRequest, watch: Watch) -> tuple[CheckOutcome, ...]:
        return tuple(self._outcomes(request, watch))

    def _outcomes(self, request: VerifyRequest, watch: Watch) -> Iterator[CheckOutcome]:
        watch.step("verify", request.manifest.plain_bytes)
        yield self._bytes(request, watch)
        databases = len(self.contents.databases)
        yield passed(
            "pg_restore",
            f"all {databases} archives are whole, and PostgreSQL {self.programs.version} took {self.contents.server}'s "
            "roles, tables, indexes and constraints without an error",
        )
        watch.step("count rows")
        yield self._counted(request.manifest.counts, watch)
        watch.step("assertions")
        for check in request.checks:
            watch.advance(0)
            yield assertion(self.url, check, request)

    def _bytes(self, request: VerifyRequest, watch: Watch) -> CheckOutcome:
        """Also what was flipped inside a value, which pg_restore cannot know."""
        total = 0
        for file in self.contents.files:
            path = self.cluster.places.into / file
            outcome = compare_bytes("bytes", path, file, request.manifest, watch)
            if outcome.verdict is not Verdict.PASSED:
                return outcome
            total += path.stat().st_size
        return passed("bytes", f"all {total} bytes of {len(self.contents.files)} files are those that were copied")

    def _counted(self, expected: tuple[Count, ...], watch: Watch) -> CheckOutcome:
        """They hold exactly: rows were counted in the snapshot that the dump is of."""
        wanted = frozenset(count.name for count in expected)
        found: dict[str, int] = {}
        try:
            for database in self.contents.databases:
                with psycopg.connect(self.cluster.url(database.name), autocommit=True) as connection:
                    connection.execute(ONE_SNAPSHOT)
                    found |= {count.name: count.rows for count in counts_in(connection, watch, wanted=wanted)}
                    row = connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone()
                    found[large_objects(database.name)] = int(row[0]) if row else 0
        except psycopg.Error as error:
            return failed("counts", words(error))
        return compare_counts(expected, found)


def _require_moment(manifest: Manifest, to_time: datetime | None) -> None:
    if to_time is None or abs(to_time - manifest.consistent_at) < _SAME_MOMENT:
        return
    raise TerminalError(
        f"a dump holds one moment and no log: recovery point {manifest.point} is of "
        f"{manifest.consistent_at:%Y-%m-%d %H:%M:%S} UTC, not of {to_time:%Y-%m-%d %H:%M:%S} UTC. Take it as it is "
        f"(--point {manifest.point}, without --to-time), or restore a dataset of kind postgresql to the moment"
    )


def _write_list(path: Path, contents: DumpContents) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(contents.model_dump_json(indent=2))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _require_room(into: Path, needed_bytes: int) -> None:
    """For the dump, and for the cluster that is built from it: with its indexes that is often the larger one."""
    home = places_of(into).home
    for folder in {into, home if home.exists() else home.parent}:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < needed_bytes:
            raise TerminalError(
                f"{folder} has room for {format_bytes(free_bytes)}; the dump and the databases that are built from it "
                f"need {format_bytes(needed_bytes)}: free some, or name a folder on a larger disk"
            )


def _notes(manifest: Manifest, contents: DumpContents) -> tuple[str, ...]:
    names = ", ".join(database.name for database in contents.databases)
    left_out = manifest.fact("left_out")
    notes = [
        f"a dump of {manifest.engine} by pg_dump {contents.pg_dump}: {names}; {CONTENTS} says which file is which",
        "roles have no passwords: set them (ALTER ROLE ... PASSWORD)",
    ]
    return (*notes, f"not in it: {left_out}") if left_out else tuple(notes)
