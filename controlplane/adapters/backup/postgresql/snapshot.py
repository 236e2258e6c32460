"""One copy of a running cluster: full, or only what changed since a parent, with the facts that a restore needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import pq

from controlplane.adapters.backup.postgresql.base_backup import MANIFEST, Copied, ServerMoments, copy_cluster
from controlplane.adapters.backup.postgresql.counting import (
    EXACT,
    MOVING,
    WriteMark,
    counts_of,
    databases,
    write_mark,
)
from controlplane.adapters.backup.postgresql.lsn import Position, format_lsn, segment_end, segment_start
from controlplane.adapters.backup.postgresql.programs import MAJOR_INCREMENTAL
from controlplane.adapters.backup.postgresql.replication import CONNECT_S, Replication, ServerFacts
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import SnapshotFacts, SnapshotSink, SnapshotSource, Watch

FACT_COPY: Final = "copy"
"""`full` or `incremental`: a parent that cannot be built upon gives a full copy all the same."""
FULL: Final = "full"
INCREMENTAL: Final = "incremental"
FACT_SINCE: Final = "log_since"
"""From where the log is needed on top of the copy: for `LogReader.fetch` and `wal_coverage`."""

_HOLD_SLOT: Final = "quarterdeck_copy"


class _NotIncrementalError(Exception):
    """Why it has to be a full copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    count_rows: bool = True
    rate_kib_s: int | None = None
    """The server sends no faster than this; None: as fast as it can."""


def take_snapshot(
    url: str,
    sink: SnapshotSink,
    watch: Watch,
    *,
    parent: Manifest | None,
    open_point: Callable[[Manifest], SnapshotSource] | None,
    options: SnapshotOptions,
) -> SnapshotFacts:
    """RetryableError when the server does not answer or breaks off; TerminalError with what a person must change."""
    try:
        with (
            psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S) as connection,
            Replication(url, application_name="quarterdeck_backup") as server,
        ):
            facts = server.facts()
            before = write_mark(connection)
            # Keeps the log of the copy until it is sent; gone with this connection.
            server.create_slot(f"{_HOLD_SLOT}_{server.backend_pid}", temporary=True)
            copied, why_full = _copy(server, facts, connection, sink, watch, parent, open_point, options)
            names = databases(connection)
            counts = counts_of(url, names, watch) if options.count_rows else ()
            told = _facts(connection, facts, copied, why_full, before, parent, standby=server.is_standby)
            return SnapshotFacts(engine=facts.engine, consistent_at=copied.consistent_at, counts=counts, facts=told)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TerminalError(
            f"the role of the dataset's url may not take a copy ({error.diag.message_primary}): "
            "ALTER ROLE ... REPLICATION, and GRANT pg_read_all_stats"
        ) from error
    except psycopg.Error as error:
        raise RetryableError(f"PostgreSQL broke off the copy: {str(error).strip()}") from error


def _copy(
    server: Replication,
    facts: ServerFacts,
    connection: psycopg.Connection,
    sink: SnapshotSink,
    watch: Watch,
    parent: Manifest | None,
    open_point: Callable[[Manifest], SnapshotSource] | None,
    options: SnapshotOptions,
) -> tuple[Copied, str]:
    moments = ServerMoments(connection, server.backend_pid)
    why_full = "no parent was given"
    if parent is not None:
        try:
            _offer_parent(server, facts, connection, parent, open_point)
            copied = _ask(server, sink, watch, moments, options, incremental=True)
        except _NotIncrementalError as error:
            why_full = str(error)
        else:
            return copied, ""
    return _ask(server, sink, watch, moments, options, incremental=False), why_full


def _ask(
    server: Replication,
    sink: SnapshotSink,
    watch: Watch,
    moments: ServerMoments,
    options: SnapshotOptions,
    *,
    incremental: bool,
) -> Copied:
    watch.step("checkpoint")
    try:
        return copy_cluster(
            server,
            sink,
            watch,
            moments,
            label="quarterdeck",
            incremental=incremental,
            rate_kib_s=options.rate_kib_s,
        )
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        # E.g. summaries of the log since the parent are gone. The server says so before it sends anything.
        if incremental:
            raise _NotIncrementalError(str(error).strip()) from error
        raise


def _offer_parent(
    server: Replication,
    facts: ServerFacts,
    connection: psycopg.Connection,
    parent: Manifest,
    open_point: Callable[[Manifest], SnapshotSource] | None,
) -> None:
    if facts.major < MAJOR_INCREMENTAL:
        raise _NotIncrementalError(f"increments came with PostgreSQL {MAJOR_INCREMENTAL}, this is {facts.major}")
    if open_point is None:
        raise _NotIncrementalError("the parent cannot be read here")
    if parent.fact("system_id") != facts.system_id:
        raise _NotIncrementalError(f"the parent is of another cluster ({parent.fact('system_id')})")
    row = connection.execute("SHOW summarize_wal").fetchone()
    if row is None or row[0] != "on":
        raise _NotIncrementalError("summarize_wal is off: ALTER SYSTEM SET summarize_wal = on, and reload")
    server.send("UPLOAD_MANIFEST")
    found = server.result()
    if found is None or found.status != pq.ExecStatus.COPY_IN:
        raise RetryableError("the server takes no manifest of the parent")
    server.upload(open_point(parent).read(MANIFEST))


def _facts(
    connection: psycopg.Connection,
    facts: ServerFacts,
    copied: Copied,
    why_full: str,
    before: WriteMark,
    parent: Manifest | None,
    *,
    standby: bool,
) -> tuple[tuple[str, str], ...]:
    quiet = before.quiet_until(write_mark(connection))
    row = connection.execute("SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY oid LIMIT 1").fetchone()
    told = {
        FACT_COPY: FULL if why_full else INCREMENTAL,
        "start_lsn": format_lsn(copied.start.lsn),
        "stop_lsn": format_lsn(copied.stop.lsn),
        "timeline": str(copied.stop.timeline),
        "system_id": facts.system_id,
        "version": str(facts.major),
        "segment_bytes": str(facts.segment_bytes),
        "counts": EXACT if quiet else MOVING,
        "database": connection.info.dbname,
        "superuser": str(row[0]) if row else "postgres",
        FACT_SINCE: str(_since(copied, facts, standby=standby)),
    }
    if parent is not None and why_full:
        told["full_because"] = why_full
    return tuple(told.items())


def _since(copied: Copied, facts: ServerFacts, *, standby: bool) -> Position:
    """A primary ends the segment with the copy, which has all of it; a standby cannot: its last one is not full."""
    bound = segment_start if standby else segment_end
    return Position(copied.stop.timeline, bound(copied.stop.lsn, facts.segment_bytes))
