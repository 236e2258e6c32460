"""A recovery point back on disk, with the log beside it, ready to be started. Never touches a live folder.

    <into>/data          the cluster's files
    <into>/tablespaces   what lay in tablespaces, wherever these were
    <into>/wal           the log that is replayed on top
    <into>/restore.json  what `start` needs to know

Where we are root and PostgreSQL's account may not enter `into`, the first three lie elsewhere and `data` is a link.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from controlplane.adapters.backup.postgresql.base_backup import MANIFEST
from controlplane.adapters.backup.postgresql.places import CopyPlaces, places_of
from controlplane.adapters.backup.postgresql.programs import Account, Programs, account, must_run
from controlplane.adapters.backup.postgresql.server import PID_FILE, make_private
from controlplane.adapters.backup.postgresql.snapshot import FACT_SINCE
from controlplane.adapters.backup.postgresql.tar import unpack
from controlplane.adapters.backup.scratch import require_empty, sync_filesystem
from controlplane.kernel.errors import ConflictError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import FetchedLog, Restored, RestoreRequest, SnapshotSource, Watch

MAJOR_LINKS: Final = 18
"""pg_combinebackup can link files that it takes whole from this version on."""

_COMBINE_DEADLINE_S: Final = 6 * 3600.0
"""A cluster of some terabytes; a request to stop ends it sooner."""
_PRIVATE: Final = 0o600


class RestoreNote(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    major: int
    database: str
    superuser: str
    segment_bytes: int
    start_lsn: str
    log_newest_at: datetime | None
    """Up to this moment the log beside the copy has everything; None: there is no log beside it."""


def read_note(places: CopyPlaces) -> RestoreNote:
    """TerminalError when the folder holds no restored copy of ours."""
    try:
        return RestoreNote.model_validate_json(places.note.read_bytes())
    except (OSError, ValidationError) as error:
        raise TerminalError(
            f"{places.into} holds no restored copy (no whole {places.note.name}): restore it"
        ) from error


def restore_into(request: RestoreRequest, programs: Programs, watch: Watch) -> Restored:
    """Durable when it returns; the folder is empty again when it raises.

    ConflictError for a folder that is in use, TerminalError for a copy that is damaged.
    """
    refuse_live(request.into)
    require_empty(request.into)
    places = places_of(request.into)
    try:
        return _restore(request, places, programs, watch)
    except BaseException:
        clear(places)
        raise


def refuse_live(into: Path) -> None:
    if (into / PID_FILE).exists() or (into / "PG_VERSION").exists():
        raise ConflictError(f"{into} is the data folder of a PostgreSQL cluster: name an empty folder beside it")


def clear(places: CopyPlaces) -> None:
    """Everything in the folder, and what lies elsewhere for it."""
    if places.is_elsewhere and places.home.exists():
        shutil.rmtree(places.home)
    for path in places.into.iterdir() if places.into.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _restore(request: RestoreRequest, places: CopyPlaces, programs: Programs, watch: Watch) -> Restored:
    who = account()
    if places.is_elsewhere:
        shutil.rmtree(places.home, ignore_errors=True)
        (places.into / "data").symlink_to(places.data)
    for folder in (places.home, places.wal, places.tablespaces):
        make_private(folder, who)
    point = request.chain[-1].manifest
    with ThreadPoolExecutor(1, thread_name_prefix="wal-fetch") as pool:
        fetching = pool.submit(_fetch_log, request, point, places, who, watch)
        plain_bytes = _unpack_chain(request.chain, places, programs, who, watch)
        fetched = fetching.result()
    _ready_for_recovery(places, who)
    _write_note(places, point, fetched)
    watch.step("make durable")
    sync_filesystem(places.home)
    return Restored(plain_bytes=plain_bytes, log=fetched, notes=_notes(point, places))


def _fetch_log(
    request: RestoreRequest, point: Manifest, places: CopyPlaces, who: Account | None, watch: Watch
) -> FetchedLog | None:
    since = point.fact(FACT_SINCE)
    if request.log is None or since is None:
        return None
    fetched = request.log.fetch(since=since, into=places.wal, to_time=request.to_time, watch=watch)
    if who is not None:
        for file in places.wal.iterdir():
            os.chown(file, who.uid, who.gid)
    return fetched


def _unpack_chain(
    chain: tuple[SnapshotSource, ...], places: CopyPlaces, programs: Programs, who: Account | None, watch: Watch
) -> int:
    if len(chain) == 1:
        return _unpack_point(chain[0], places.data, places.tablespaces, who, watch)
    parts: list[Path] = []
    plain_bytes = 0
    make_private(places.chain, who)
    for index, source in enumerate(chain):
        part = places.chain / f"{index:03d}"
        spaces = make_private(places.chain / f"{index:03d}-tablespaces", who)
        plain_bytes += _unpack_point(source, part, spaces, who, watch)
        parts.append(part)
    _combine(parts, places, programs, watch)
    shutil.rmtree(places.chain)
    return plain_bytes


def _unpack_point(source: SnapshotSource, data: Path, tablespaces: Path, who: Account | None, watch: Watch) -> int:
    manifest = source.manifest
    watch.step(f"restore {manifest.point}", manifest.plain_bytes)
    done = 0
    for stream in manifest.streams:
        pieces = source.read(stream.name)
        if stream.name == MANIFEST:
            done += _write_manifest(pieces, data / MANIFEST, who, watch)
            continue
        number = stream.name.removesuffix(".tar")
        folder = data if number == "base" else tablespaces / number
        done += unpack(pieces, folder, tablespaces=tablespaces, who=who, watch=watch)
    if not (data / "PG_VERSION").exists():
        raise TerminalError(f"recovery point {manifest.point} has no cluster in it (no base.tar with a PG_VERSION)")
    return done


def _write_manifest(pieces: Iterator[bytes], path: Path, who: Account | None, watch: Watch) -> int:
    written = 0
    with path.open("xb") as file:
        for piece in pieces:
            written += file.write(piece)
            watch.advance(len(piece))
        os.fchmod(file.fileno(), _PRIVATE)
        if who is not None:
            os.fchown(file.fileno(), who.uid, who.gid)
    return written


def _combine(parts: list[Path], places: CopyPlaces, programs: Programs, watch: Watch) -> None:
    """PostgreSQL's own tool puts the newest version of every block together. It checks that the parts are a chain."""
    watch.step("combine")
    argv: list[str | Path] = [programs.path("pg_combinebackup"), "-o", places.data, "--no-sync"]
    if programs.major >= MAJOR_LINKS:
        argv.append("--link")
    spaces = parts[-1] / "pg_tblspc"
    for link in spaces.iterdir() if spaces.exists() else ():
        argv += ["-T", f"{link.readlink()}={places.tablespaces / link.name}"]
    must_run([*argv, *parts], cwd=places.home, deadline_s=_COMBINE_DEADLINE_S, watch=watch)


def _ready_for_recovery(places: CopyPlaces, who: Account | None) -> None:
    """It replays the log to its end or to the asked moment, then goes on as a new timeline."""
    signal = places.data / "recovery.signal"
    signal.touch(mode=_PRIVATE)
    if who is not None:
        os.chown(signal, who.uid, who.gid)
    with suppress(FileNotFoundError):
        (places.data / "standby.signal").unlink()


def _write_note(places: CopyPlaces, point: Manifest, fetched: FetchedLog | None) -> None:
    note = RestoreNote(
        major=major_of_point(point),
        database=point.fact("database") or "postgres",
        superuser=point.fact("superuser") or "postgres",
        segment_bytes=int(point.fact("segment_bytes") or 0),
        start_lsn=point.fact("start_lsn") or "0/0",
        log_newest_at=fetched.newest_at if fetched else None,
    )
    places.note.write_text(note.model_dump_json(indent=2), encoding="utf-8")


def major_of_point(point: Manifest) -> int:
    found = point.fact("version") or ""
    if not found.isdecimal():
        raise TerminalError(f"recovery point {point.point} does not say which version of PostgreSQL it is of")
    return int(found)


def _notes(point: Manifest, places: CopyPlaces) -> tuple[str, ...]:
    what = f"a copy of {point.engine}, system {point.fact('system_id')}, consistent from {point.fact('stop_lsn')} on"
    where = f"its files lie in {places.home}: PostgreSQL's account may not enter {places.into.parent}"
    return (what, where) if places.is_elsewhere else (what,)
