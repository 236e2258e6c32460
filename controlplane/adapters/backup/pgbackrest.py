"""PostgreSQL at a site that already runs pgBackRest: its repository holds the data; here it is watched and drilled.

A recovery point of this kind is a small record that names a backup of the repository and lists its files. Restores are
pgBackRest's own; started and verified as every other restored PostgreSQL.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.assertions import compare_bytes
from controlplane.adapters.backup.pgbackrest_archive import stored_bytes, unbroken
from controlplane.adapters.backup.pgbackrest_coverage import commits_in
from controlplane.adapters.backup.pgbackrest_files import LIST_NAME, compare_files
from controlplane.adapters.backup.pgbackrest_repository import SEGMENT_BYTES, Repository, RepositoryBackup
from controlplane.adapters.backup.postgresql.counting import EXACT, MOVING, counts_of, databases, write_mark
from controlplane.adapters.backup.postgresql.places import CopyPlaces, places_of
from controlplane.adapters.backup.postgresql.programs import account, give
from controlplane.adapters.backup.postgresql.restore import RestoreNote, clear, refuse_live
from controlplane.adapters.backup.postgresql.server import make_private
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.postgresql.verify import VerifyOptions
from controlplane.adapters.backup.scratch import require_empty, sync_filesystem, write_stream
from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.manifest import Count, Manifest
from controlplane.recovery.ports import (
    FetchedLog,
    Restored,
    RestoreRequest,
    ScratchInstance,
    SilentWatch,
    SnapshotFacts,
    SnapshotSink,
    Source,
    Started,
    VerifyRequest,
    Watch,
)

LIST_STREAM: Final = "files"
_CONNECT_S: Final = 10
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class PgbackrestDataset:
    """A DatasetAdapter. With a parent: an incremental backup, of which pgBackRest itself keeps what it needs."""

    repository: Repository
    url: str | None = None
    """Of the live server; None: rows are not counted, and the superuser is the one that pgBackRest connects as."""
    verify: VerifyOptions = field(default_factory=VerifyOptions)

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.PGBACKREST

    def probe(self) -> Source:
        info = self.repository.info(SilentWatch())
        size_bytes = info.backup[-1].info.size if info.backup else 0
        return Source(engine=f"pgbackrest of postgresql {info.db[-1].version}", size_bytes=size_bytes)

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        info = self.repository.info(watch)
        before = {backup.label for backup in info.backup}
        watch.step("back up")
        known = parent is not None and parent.fact("label") in before
        with self._counted(watch) as counted:
            self.repository.back_up("incr" if known else "full", watch)
        info = self.repository.info(watch)
        backup = next((found for found in reversed(info.backup) if found.label not in before), None)
        if backup is None:
            raise RetryableError("pgBackRest ended without a new backup in its repository")
        if backup.error:
            raise TerminalError(f"pgBackRest found damaged pages while it copied: see its log of {backup.label}")
        listing = self.repository.manifest_of(backup.label, watch)
        with sink.stream(LIST_STREAM, size_hint=len(listing)) as writer:
            writer.write(listing)
            watch.advance(len(listing))
        return SnapshotFacts(
            engine=f"postgresql {info.db[-1].version}",
            # pgBackRest tells whole seconds and rounds; the start is what the backup surely goes beyond.
            consistent_at=backup.started_at,
            counts=counted.counts,
            facts=(*self._facts(backup, info.db[-1].version, info.db[-1].system_id), *counted.facts),
        )

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        refuse_live(request.into)
        require_empty(request.into)
        places = places_of(request.into)
        try:
            return self._restore(request, places, watch)
        except BaseException:
            clear(places)
            raise

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator["PgbackrestScratch"]:
        watch.step("compare files")
        places = places_of(into)
        files = compare_files(into / LIST_NAME, places.data, watch)
        if files.verdict is not Verdict.PASSED:
            # Not started at all: a server may hang on, or write over, what is no copy.
            raise TerminalError(f"the restored files are not those of the backup: {files.sentence}")
        with self._postgresql().start(into, watch, to_time=to_time) as running:
            yield PgbackrestScratch(running=running, files=files, listing=into / LIST_NAME)

    def leftovers(self, into: Path) -> Sequence[str]:
        return self._postgresql().leftovers(into)

    def end_leftovers(self, into: Path) -> None:
        self._postgresql().end_leftovers(into)

    def _restore(self, request: RestoreRequest, places: CopyPlaces, watch: Watch) -> Restored:
        source = request.chain[-1]
        manifest = source.manifest
        label = _required(manifest, "label")
        if places.is_elsewhere:
            shutil.rmtree(places.home, ignore_errors=True)
            (places.into / "data").symlink_to(places.data)
        locks = places.home / "locks"
        for folder in (places.home, places.data, places.wal, places.tablespaces, locks):
            make_private(folder)
        write_stream(source, LIST_STREAM, places.into / LIST_NAME, watch)
        watch.step("restore by pgBackRest")
        self.repository.restore(label, places.data, places.tablespaces, locks, watch)
        fetched = self._fetch_log(manifest, places, request.to_time, watch)
        _hand_over(places)
        places.note.write_text(_note(manifest, fetched).model_dump_json(indent=2), encoding="utf-8")
        sync_filesystem(places.home)
        return Restored(plain_bytes=int(_required(manifest, "size_bytes")), log=fetched, notes=(f"backup {label}",))

    def _postgresql(self) -> PostgreSQLAdapter:
        """For what is the same once the files are there."""
        return PostgreSQLAdapter(url=self.url or "", dataset=self.repository.stanza, verify=self.verify)

    def _facts(self, backup: RepositoryBackup, version: str, system_id: int) -> tuple[tuple[str, str], ...]:
        conninfo = psycopg.conninfo.conninfo_to_dict(self.url or "")
        return (
            ("label", backup.label),
            ("type", backup.type),
            ("size_bytes", str(backup.info.size)),
            ("start_lsn", backup.lsn.start),
            ("stop_lsn", backup.lsn.stop),
            ("archive_start", backup.archive.start),
            ("version", version.partition(".")[0]),
            ("system_id", str(system_id)),
            ("database", str(conninfo.get("dbname") or "postgres")),
            ("superuser", self.repository.user),
        )

    @contextmanager
    def _counted(self, watch: Watch) -> Iterator["_Counted"]:
        """Rows right after what is inside, and whether anybody wrote meanwhile."""
        counted = _Counted()
        if self.url is None:
            yield counted
            return
        try:
            with psycopg.connect(self.url, autocommit=True, connect_timeout=_CONNECT_S) as connection:
                before = write_mark(connection)
                yield counted
                counted.counts = counts_of(self.url, databases(connection), watch)
                quiet = before.quiet_until(write_mark(connection))
                counted.facts = (("counts", EXACT if quiet else MOVING),)
        except psycopg.Error as error:
            raise RetryableError(f"PostgreSQL does not answer: {str(error).strip()}") from error

    def _fetch_log(self, manifest: Manifest, places: CopyPlaces, to_time: datetime | None, watch: Watch) -> FetchedLog:
        """All that follows the backup, or up to the first segment with a commit after the asked moment."""
        info = self.repository.info(watch)
        archive = self.repository.archive(info, watch)
        needed = unbroken(archive.since(_required(manifest, "archive_start")))
        watch.step("fetch log", stored_bytes(needed))
        for history in archive.histories:
            self.repository.history(history, info, places.wal, watch)
        newest_at: datetime | None = None
        done = 0
        for segment in needed:
            self.repository.fetch(segment, info, places.data, places.wal, watch)
            watch.advance(segment.stored_bytes)
            done += 1
            if segment is needed[-1] or (to_time is not None and segment.stored_at > to_time):
                commit = commits_in(self.repository, segment, info, places.wal, watch)
                newest_at = commit.at if commit else newest_at
                if to_time is not None and commit is not None and commit.at > to_time:
                    break
        return FetchedLog(files=done, stored_bytes=stored_bytes(needed[:done]), newest_at=newest_at)


@dataclass(slots=True)
class _Counted:
    counts: tuple[Count, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PgbackrestScratch:
    """A ScratchInstance: a restored PostgreSQL, whose files were compared before it was first started."""

    running: ScratchInstance
    files: CheckOutcome
    listing: Path

    @property
    def started(self) -> Started:
        return self.running.started

    def verify(self, request: VerifyRequest, watch: Watch) -> Sequence[CheckOutcome]:
        listing = compare_bytes("list of files", self.listing, LIST_STREAM, request.manifest, watch)
        return (listing, self.files, *self.running.verify(request, watch))


def _required(manifest: Manifest, fact: str) -> str:
    value = manifest.fact(fact)
    if not value:
        raise TerminalError(f"recovery point {manifest.point} does not tell its {fact}: it is of another kind")
    return value


def _note(manifest: Manifest, fetched: FetchedLog) -> RestoreNote:
    return RestoreNote(
        major=int(_required(manifest, "version")),
        database=_required(manifest, "database"),
        superuser=_required(manifest, "superuser"),
        segment_bytes=SEGMENT_BYTES,
        start_lsn=_required(manifest, "start_lsn"),
        log_newest_at=fetched.newest_at,
    )


def _hand_over(places: CopyPlaces) -> None:
    """Everything belongs to the account that PostgreSQL runs as; recovery begins at the first start."""
    (places.data / "recovery.signal").touch(mode=_PRIVATE)
    with suppress(FileNotFoundError):
        (places.data / "standby.signal").unlink()
    who = account()
    if who is None:
        return
    for root, folders, files in os.walk(places.home):
        for name in (*folders, *files):
            give(Path(root) / name, who)
