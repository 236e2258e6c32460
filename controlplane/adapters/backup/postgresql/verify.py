"""What is asked of a restored cluster: PostgreSQL's own checkers, the counts of the copy, the site's assertions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from controlplane.adapters.backup.assertions import failed, judge, not_run, passed
from controlplane.adapters.backup.postgresql.base_backup import MANIFEST
from controlplane.adapters.backup.postgresql.counting import EXACT, counts_of, databases, verdict
from controlplane.adapters.backup.postgresql.places import CopyPlaces
from controlplane.adapters.backup.postgresql.private import PORT
from controlplane.adapters.backup.postgresql.programs import Programs, run_program
from controlplane.adapters.backup.postgresql.restore import RestoreNote
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome
from controlplane.recovery.ports import VerifyRequest, Watch

_TOOL_DEADLINE_S: Final = 12 * 3600.0
"""A checker reads everything there is; a request to stop ends it sooner."""
_SQL_MS: Final = 60_000
"""For one assertion."""
_JOBS: Final = 2
_SHOWN_CHARS: Final = 300
_LOST_CONNECTION: Final = "the server went away while it was asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    files: bool = True
    """pg_verifybackup: every file against the checksums that PostgreSQL took while it sent them. Reads all of them."""
    amcheck: bool = True
    """pg_amcheck: every heap and B-tree is consistent in itself."""
    heap_all_indexed: bool = False
    """And every row is found by its indexes: about four times as long."""


def verify_files(places: CopyPlaces, programs: Programs, options: VerifyOptions, watch: Watch) -> CheckOutcome:
    """Before the first start: afterwards files differ from what was copied.

    Its log is left to the start, which replays all of it and fails without: pg_waldump over the same takes ten times as
    long as everything else here.
    """
    name = "pg_verifybackup"
    if not options.files:
        return not_run(name, "not asked for")
    if places.started.exists():
        return not_run(name, "it was started before: its files are not what was copied any more")
    if not (places.data / MANIFEST).exists():
        return not_run(name, "the copy carries no list of its files")
    if not programs.has(name):
        return not_run(name, f"{programs.path(name)} is not there")
    watch.step(name)
    argv: list[str | Path] = [programs.path(name), "--quiet", "--no-parse-wal", places.data]
    done = run_program(argv, cwd=places.home, deadline_s=_TOOL_DEADLINE_S, watch=watch)
    if done.returncode != 0:
        return failed(name, _shown(done.stdout))
    return passed(name, "every file is as PostgreSQL sent it")


def verify_running(
    places: CopyPlaces,
    url: str,
    note: RestoreNote,
    programs: Programs,
    options: VerifyOptions,
    request: VerifyRequest,
    watch: Watch,
) -> Iterator[CheckOutcome]:
    watch.step("verify")
    yield _amcheck(places, note, programs, options, watch)
    yield _counts(url, request, watch)
    watch.step("assertions")
    for check in request.checks:
        watch.advance(0)
        yield assertion(url, check, request)


def _amcheck(
    places: CopyPlaces, note: RestoreNote, programs: Programs, options: VerifyOptions, watch: Watch
) -> CheckOutcome:
    name = "pg_amcheck"
    if not options.amcheck:
        return not_run(name, "not asked for")
    if not programs.has(name):
        return not_run(name, f"{programs.path(name)} is not there")
    watch.step(name)
    argv = [programs.path(name), "--all", "--install-missing", f"--jobs={_JOBS}", "--no-strict-names"]
    argv += ["-h", str(places.sockets), "-p", str(PORT), "-U", note.superuser]
    if options.heap_all_indexed:
        argv.append("--heapallindexed")
    done = run_program(argv, cwd=places.home, deadline_s=_TOOL_DEADLINE_S, watch=watch)
    if done.returncode == 0:
        return passed(name, "every table and B-tree is consistent in itself")
    if "extension control file" in done.stdout or 'extension "amcheck" is not available' in done.stdout:
        return not_run(name, "the extension amcheck is not installed beside PostgreSQL here")
    return failed(name, _shown(done.stdout))


def _counts(url: str, request: VerifyRequest, watch: Watch) -> CheckOutcome:
    expected = request.manifest.counts
    if not expected:
        return not_run("counts", "the copy carries no counts")
    exact = request.exact_counts and request.manifest.fact("counts") == EXACT
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            names = databases(connection)
        return verdict(expected, counts_of(url, names, watch), exact=exact)
    except psycopg.Error as error:
        return failed("counts", words(error))


def assertion(url: str, check: CheckSpec, request: VerifyRequest) -> CheckOutcome:
    """Of the site, on a connection that can only read."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f"SET statement_timeout = {_SQL_MS}".encode())
            connection.execute("SET default_transaction_read_only = on")
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET DateStyle = 'ISO'")
            cursor = connection.execute(check.sql.encode())
            found = cursor.pgresult.get_value(0, 0) if cursor.pgresult and cursor.pgresult.ntuples else None
            return judge(check, found.decode() if found is not None else None, request)
    except psycopg.Error as error:
        return failed(check.name, words(error))


def words(error: psycopg.Error) -> str:
    """Why, in the engine's own words."""
    return error.diag.message_primary or str(error).strip() or _LOST_CONNECTION


def _shown(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    more = f" (and {len(lines) - 3} more lines)" if len(lines) > 3 else ""  # noqa: PLR2004 - a sentence stays short
    return ("; ".join(lines[:3])[:_SHOWN_CHARS] or "it failed without a word") + more
