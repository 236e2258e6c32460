"""How far the log in a pgBackRest repository reaches: from what lies there, not from what an archiver reported.

pgBackRest can drop log on purpose and report it as archived (`archive-push-queue-max`): a monitor that believes
pg_stat_archiver stays green. Here the segments are listed, the newest is read back, and its last commit tells the time.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.children import run
from controlplane.adapters.backup.pgbackrest_archive import (
    LastCommit,
    Segment,
    end_position,
    gaps,
    last_commit,
    stored_bytes,
    unbroken,
)
from controlplane.adapters.backup.pgbackrest_repository import SEGMENT_BYTES, Repository, RepositoryInfo
from controlplane.adapters.backup.postgresql.counting import WriteMark, write_mark
from controlplane.adapters.backup.postgresql.programs import programs_for
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import LogCoverage, SilentWatch, Watch

_LOOK_BACK: Final = 8
"""Segments without a commit that are looked through, newest first; idle servers archive such ones."""
_CONNECT_S: Final = 5
_DUMP_S: Final = 60.0
_XID_MASK: Final = 0xFFFFFFFF
"""The log has the low 32 bits of a transaction's number."""


@dataclass(slots=True, kw_only=True)
class PgbackrestCoverage:
    """One stanza's. Not safe for threads: one surveyor calls it."""

    repository: Repository
    now: Callable[[], datetime]
    url: str | None = None
    """Of the live server: tells whether anything was written since the newest segment; None: nothing is assumed."""
    _known: tuple[str, LastCommit] | None = field(default=None, init=False)
    """The newest segment that had a commit: it is read once."""

    def look(self, watch: Watch | None = None) -> LogCoverage | None:
        """None: there is no backup yet that a log could be replayed on."""
        watching = watch or SilentWatch()
        info = self.repository.info(watching)
        if not info.backup:
            return None
        asked_at, mark = self.now(), self._mark()
        every = self.repository.archive(info, watching).since(info.backup[0].archive.start)
        needed = [segment for segment in every if segment.name >= info.backup[-1].archive.start]
        reach = unbroken(needed)
        if not reach:
            raise TerminalError(
                f"backup {info.backup[-1].label} needs the log from {info.backup[-1].archive.start} on, and the "
                "repository has none of it: it cannot be restored. Make a new backup"
            )
        newest = self._newest_commit(reach, info, watching)
        return LogCoverage(
            position=end_position(reach[-1], SEGMENT_BYTES),
            covered_at=_covered_at(newest, asked_at, mark, info),
            segments=len(every),
            stored_bytes=stored_bytes(every),
            gaps=gaps(every),
        )

    def _mark(self) -> WriteMark | None:
        if self.url is None:
            return None
        with suppress(psycopg.Error), psycopg.connect(self.url, connect_timeout=_CONNECT_S) as connection:
            return write_mark(connection)
        return None

    def _newest_commit(self, reach: Sequence[Segment], info: RepositoryInfo, watch: Watch) -> LastCommit | None:
        for segment in reversed(reach[-_LOOK_BACK:]):
            if self._known is not None and self._known[0] == segment.name:
                return self._known[1]
            with tempfile.TemporaryDirectory(prefix="quarterdeck-wal-") as folder:
                found = commits_in(self.repository, segment, info, Path(folder), watch)
            if found is not None:
                self._known = (segment.name, found)
                return found
        return None


def commits_in(
    repository: Repository, segment: Segment, info: RepositoryInfo, into: Path, watch: Watch, data: Path | None = None
) -> LastCommit | None:
    """Fetch a segment into the folder, if it is not there, and look for its last commit."""
    if not (into / segment.name).exists():
        repository.fetch(segment, info, data, into, watch)
    dump = programs_for(int(info.db[-1].version.partition(".")[0])).path("pg_waldump")
    # A segment ends in the middle of a record that the next one goes on with: an error at its end is no damage.
    done = run([dump, "--rmgr=Transaction", into / segment.name], watch, deadline_s=_DUMP_S, env={"TZ": "UTC"})
    return last_commit(done.out)


def _covered_at(
    newest: LastCommit | None, asked_at: datetime, mark: WriteMark | None, info: RepositoryInfo
) -> datetime:
    started_at = info.backup[-1].started_at
    if newest is None:
        return started_at
    if mark is not None and not mark.running and int(mark.next_xid) & _XID_MASK == (newest.newest_xid + 1) & _XID_MASK:
        return asked_at  # no transaction wrote anything since
    return max(newest.at, started_at)
