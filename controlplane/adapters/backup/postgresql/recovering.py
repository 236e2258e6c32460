"""A restored cluster brought up on a private socket: the log replayed, promoted, watched on the way.

Nothing of it reaches the network or the live cluster: no listener, no archiver, no replication, no preloaded code of
the site's.
"""

import re
import shlex
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psutil
import psycopg

from controlplane.adapters.backup.postgresql.lsn import parse_lsn
from controlplane.adapters.backup.postgresql.places import CopyPlaces
from controlplane.adapters.backup.postgresql.private import PORT, private_settings
from controlplane.adapters.backup.postgresql.programs import Programs, must_run
from controlplane.adapters.backup.postgresql.restore import RestoreNote
from controlplane.adapters.backup.postgresql.server import (
    is_alive,
    make_private,
    postmaster_of,
    start_server,
    stop_server,
)
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import Started, Watch

REPLAY_DEADLINE: Final = timedelta(hours=24)
"""Of a whole recovery; a request to stop ends it sooner."""
_RECOVERY: Final = {
    "primary_conninfo": "",
    "primary_slot_name": "",
    # Queries wait until all is replayed: then no setting has to be as large as on the live server.
    "hot_standby": "off",
    "recovery_target": "",
    "recovery_target_name": "",
    "recovery_target_xid": "",
    "recovery_target_lsn": "",
    "recovery_target_inclusive": "on",
    "recovery_target_action": "promote",
    "recovery_target_timeline": "latest",
    "recovery_init_sync_method": "syncfs",
    "fsync": "on",
    "log_startup_progress_interval": "1s",
}

_CONTROL_DEADLINE_S: Final = 30.0
_CONNECT_S: Final = 5
_POLL_S: Final = 0.03
_FATAL: Final = re.compile(r"^(?:FATAL|PANIC):\s*(.+)$", re.MULTILINE)
_NEVER: Final = re.compile(
    r"FATAL:\s*(database \".*\" does not exist|role \".*\" does not exist|role \".*\" is not permitted to log in"
    r"|database \".*\" is not currently accepting connections|cannot connect to invalid database \".*\""
    r"|permission denied for database \".*\"|no pg_hba\.conf entry for .*|\w+ authentication failed for user \".*\")"
)
"""Of a copy, so nobody will mend it. All else passes (the system is starting up, shutting down, has too many clients,
is out of memory) or ends the server, which shows. Words of postmaster.c, postinit.c and auth.c; `lc_messages` is C."""
_PROGRESS: Final = re.compile(r"redo in progress, elapsed time: [\d.]+ s, current LSN: ([0-9A-F]+/[0-9A-F]+)")
_TARGET_NOT_REACHED: Final = "recovery ended before configured recovery target was reached"
_NEEDED_SETTING: Final = re.compile(r"^max_prepared_xacts setting:\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCopy:
    process: psutil.Process
    url: str
    """Of the dataset's own database, as the superuser, over the private socket."""
    started: Started


class _TargetBeyondLogError(Exception):
    """No commit after the asked moment is in the log."""


def bring_up(
    places: CopyPlaces, note: RestoreNote, programs: Programs, watch: Watch, to_time: datetime | None
) -> RunningCopy:
    """TerminalError with PostgreSQL's own words when it does not come up. CancelledWorkError leaves nothing running."""
    if postmaster_of(places.data) is not None:
        stop_server(places.data)  # an earlier try was cut off: its server is in an unknown state
    try:
        return _recover(places, note, programs, watch, to_time)
    except _TargetBeyondLogError:
        # PostgreSQL calls it a failure when nothing was committed after the moment. It is none if the log reaches so
        # far: then all there is was committed before.
        if to_time is None or note.log_newest_at is None or note.log_newest_at < to_time:
            reach = f"{note.log_newest_at:%Y-%m-%d %H:%M:%S} UTC" if note.log_newest_at else "the end of the copy"
            raise TerminalError(
                f"the log reaches to {reach}, not to {to_time:%Y-%m-%d %H:%M:%S} UTC: ask for an earlier moment"
            ) from None
        return _recover(places, note, programs, watch, None)


def _recover(
    places: CopyPlaces, note: RestoreNote, programs: Programs, watch: Watch, to_time: datetime | None
) -> RunningCopy:
    log = places.log
    log_from = log.stat().st_size if log.exists() else 0
    sockets = make_private(places.sockets)
    settings = _settings(places, programs, to_time)
    watch.step("replay", sum(file.stat().st_size for file in places.wal.iterdir()))
    places.started.touch()
    try:
        process = start_server(programs, places.data, settings=settings, log=log)
        url = f"postgresql://{note.superuser}@/{note.database}?host={sockets}&port={PORT}"
        follower = _LogFollower(log, log_from, parse_lsn(note.start_lsn), watch)
        newest_at = _await_promotion(process, url, follower)
    except BaseException:
        stop_server(places.data, grace_s=1.0)
        raise
    return RunningCopy(process=process, url=url, started=Started(newest_at=newest_at))


def _settings(places: CopyPlaces, programs: Programs, to_time: datetime | None) -> dict[str, str]:
    copy = f"cp {shlex.quote(str(places.wal).replace('%', '%%'))}/%f %p"
    return {
        **private_settings(places, programs),
        **_RECOVERY,
        "restore_command": copy,
        "max_prepared_transactions": _prepared(places, programs),
        "recovery_target_time": to_time.isoformat() if to_time else "",
    }


def _prepared(places: CopyPlaces, programs: Programs) -> str:
    """Transactions that were prepared and not ended need a place each."""
    said = must_run(
        [programs.path("pg_controldata"), places.data], cwd=places.home, deadline_s=_CONTROL_DEADLINE_S
    ).stdout
    match = _NEEDED_SETTING.search(said)
    return match[1] if match else "0"


def _await_promotion(process: psutil.Process, url: str, follower: "_LogFollower") -> datetime | None:
    until = time.monotonic() + REPLAY_DEADLINE.total_seconds()
    while True:
        follower.look()
        if not is_alive(process):
            follower.look()
            raise follower.failure()
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_S) as connection:
                row = connection.execute("SELECT pg_is_in_recovery(), pg_last_xact_replay_timestamp()").fetchone()
            assert row is not None, "SELECT gives a row"
            if not row[0]:
                follower.look()
                newest: datetime | None = row[1]
                return newest.astimezone(UTC) if newest else None
        except psycopg.OperationalError as error:
            _refuse_for_good(error)
            if time.monotonic() > until:
                raise RetryableError(f"recovery did not end within {REPLAY_DEADLINE}: {error}") from error
        time.sleep(_POLL_S)


def _refuse_for_good(error: psycopg.OperationalError) -> None:
    """TerminalError, in the server's words, for a refusal that waiting changes nothing about."""
    refusal = _NEVER.search(str(error))
    if refusal is not None:
        raise TerminalError(f"the restored PostgreSQL runs, and lets nobody in: {refusal[1]}") from error


class _LogFollower:
    """Reads the server's log as it grows: progress while it replays, its reasons when it ends."""

    def __init__(self, log: Path, start_byte: int, start_lsn: int, watch: Watch) -> None:
        self._log = log
        self._offset = self._from = start_byte
        self._lsn = start_lsn
        self._watch = watch

    def look(self) -> None:
        try:
            with self._log.open("rb") as file:
                file.seek(self._offset)
                text = file.read().decode(errors="replace")
        except OSError:
            text = ""
        complete = text[: text.rfind("\n") + 1]
        self._offset += len(complete.encode())
        forward = 0
        for match in _PROGRESS.finditer(complete):
            lsn = parse_lsn(match[1])
            forward += max(0, lsn - self._lsn)
            self._lsn = max(lsn, self._lsn)
        self._watch.advance(forward)

    def failure(self) -> Exception:
        with self._log.open("rb") as file:
            file.seek(self._from)
            text = file.read().decode(errors="replace")
        if _TARGET_NOT_REACHED in text:
            return _TargetBeyondLogError()
        reasons = _FATAL.findall(text)
        said = "; ".join(reasons[-3:]) if reasons else text.strip()[-400:]
        return TerminalError(f"the restored PostgreSQL does not start: {said or 'it ended without a word'}")
