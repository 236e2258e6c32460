"""Is this restored SQLite file the copy, and is it sound? Every answer is an outcome; bad data never raise."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, Self

from controlplane.adapters.backup.assertions import compare_bytes, compare_counts, differences, failed, judge, passed
from controlplane.adapters.backup.sqlite_content import (
    FOREIGN_KEYS_FACT,
    SCHEMA_FACT,
    SqliteContent,
    content_of,
    foreign_key_violations,
    schema_facts,
)
from controlplane.adapters.backup.sqlite_copy import open_read_only
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import CancelledWorkError, VerifyRequest, Watch

_CHECK_DEADLINE_S: Final = 60.0
"""Of one assertion of the site: longer is a query that wants an index."""
_STEPS_BETWEEN_LOOKS: Final = 100_000
"""Of SQLite's machine, between two looks at whether to stop: about a millisecond."""
_PROBLEMS_MAX: Final = 20
"""That `integrity_check` collects before it gives up."""


def verify_file(path: Path, stream: str, request: VerifyRequest, watch: Watch) -> Iterator[CheckOutcome]:
    """The file's bytes, SQLite's own checks, schema and counts against the manifest, then the site's assertions."""
    watch.step("verify", path.stat().st_size)
    manifest = request.manifest
    yield compare_bytes("bytes", path, stream, manifest, watch)
    yield _guarded("integrity_check", partial(_integrity, path, watch))
    yield _guarded("foreign_key_check", partial(_foreign_keys, path, manifest))
    yield _guarded("schema", partial(_schema, path, manifest))
    try:
        content = content_of(path, watch)
    except (sqlite3.Error, OSError) as error:
        yield failed("counts", f"the tables cannot be read: {error}")
    else:
        yield _counts(content, request)
        yield _hashes(content, manifest)
    for check in request.checks:
        yield _guarded(check.name, partial(_asserted, path, check, request, watch))


def _guarded(name: str, check: Callable[[], CheckOutcome]) -> CheckOutcome:
    try:
        return check()
    except (sqlite3.Error, OSError) as error:
        return failed(name, f"SQLite says: {error}")


def _integrity(path: Path, watch: Watch) -> CheckOutcome:
    with closing(open_read_only(path)) as connection, _Stoppable(connection, watch):
        rows = connection.execute(f"PRAGMA integrity_check({_PROBLEMS_MAX})").fetchall()
    problems = [str(row[0]).replace("\n", " ") for row in rows if row[0] != "ok"]
    return differences("integrity_check", problems, otherwise="SQLite finds every page and every index in order")


def _foreign_keys(path: Path, manifest: Manifest) -> CheckOutcome:
    with closing(open_read_only(path)) as connection:
        found = foreign_key_violations(connection)
    expected = manifest.fact(FOREIGN_KEYS_FACT) or "0"
    sentence = f"rows that name a parent which is not there: {found}, at the copy: {expected}"
    return passed("foreign_key_check", sentence) if found == expected else failed("foreign_key_check", sentence)


def _schema(path: Path, manifest: Manifest) -> CheckOutcome:
    with closing(open_read_only(path)) as connection:
        found = dict(schema_facts(connection))
    expected = {name: value for name, value in manifest.facts if name.startswith(SCHEMA_FACT)}
    names = sorted(found.keys() | expected.keys())
    drift = [_drift(name, found.get(name), expected.get(name)) for name in names]
    return differences(
        "schema", [line for line in drift if line], otherwise=f"all {len(expected)} definitions are same"
    )


def _drift(name: str, found: str | None, expected: str | None) -> str:
    label = name.removeprefix(SCHEMA_FACT)
    if found == expected:
        return ""
    if found is None:
        return f"{label} is missing"
    if expected is None:
        return f"{label} is there, and was not at the copy"
    return f"{label} is defined otherwise than at the copy"


def _counts(content: SqliteContent, request: VerifyRequest) -> CheckOutcome:
    found = {count.name: count.rows for count in content.counts}
    return compare_counts(request.manifest.counts, found, exact=request.exact_counts)


def _hashes(content: SqliteContent, manifest: Manifest) -> CheckOutcome:
    found = {count.name: count.sha256 for count in content.counts}
    wrong = [
        f"{count.name}: its {count.rows} rows are not those that were copied"
        for count in manifest.counts
        if count.sha256 is not None and count.name in found and found[count.name] != count.sha256
    ]
    return differences("contents", wrong, otherwise=f"the contents of {len(found)} tables are those that were copied")


def _asserted(path: Path, check: CheckSpec, request: VerifyRequest, watch: Watch) -> CheckOutcome:
    with (
        closing(open_read_only(path)) as connection,
        _Stoppable(connection, watch, deadline_s=_CHECK_DEADLINE_S) as limit,
    ):
        try:
            row = connection.execute(check.sql).fetchone()
        except sqlite3.OperationalError:
            if limit.late:
                return failed(check.name, f"no answer within {_CHECK_DEADLINE_S:.0f} s; the query wants an index")
            raise
    return judge(check, None if row is None else row[0], request)


class _Stoppable:
    """Interrupts a statement when somebody asked to stop, or when it takes too long."""

    def __init__(self, connection: sqlite3.Connection, watch: Watch, *, deadline_s: float | None = None) -> None:
        self.late = False
        self._connection = connection
        self._watch = watch
        self._deadline_s = deadline_s
        self._until = 0.0
        self._stopped: CancelledWorkError | None = None

    def __enter__(self) -> Self:
        self._until = time.monotonic() + (self._deadline_s or 0.0)
        self._connection.set_progress_handler(self._look, _STEPS_BETWEEN_LOOKS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _look(self) -> int:
        try:
            self._watch.advance(0)
        except CancelledWorkError as stopped:
            self._stopped = stopped
            return 1
        self.late = self._deadline_s is not None and time.monotonic() >= self._until
        return int(self.late)
