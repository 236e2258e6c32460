"""A private mongod, filled by mongorestore from a restored archive; it listens on a socket in its own folder alone."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from controlplane.adapters.backup.assertions import (
    compare_bytes,
    compare_counts,
    differences,
    failed,
    judge,
    not_run,
    passed,
)
from controlplane.adapters.backup.children import POLL_S, end, last_words, log_words, program, run, spawn
from controlplane.adapters.backup.mongodb_archive import restored
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Started, VerifyRequest, Watch

STREAM: Final = "archive"
ARCHIVE_NAME: Final = "dump.archive"
OPLOG_ARCHIVE_NAME: Final = "dump-with-oplog.archive"
"""The name says how it must be restored: with the changes that came while it was made."""
SERVERS: Final = frozenset({"mongod", "mongorestore"})
INSTALL: Final = "mongodb-org-server, mongodb-database-tools and mongodb-mongosh, from MongoDB's own package repository"

_SOCKET: Final = "mongod.sock"
_SOCKET_PATH_MAX: Final = 107
"""Bytes of a Unix socket's address on Linux."""
_LOG: Final = "mongod.log"
_START_S: Final = 60.0
_LOAD_BYTES_PER_S: Final = 2 * MIB
"""A slow machine's rate of mongorestore with its indexes; slower than this is taken for stuck."""
_ANSWER_S: Final = 60.0
_VALIDATE: Final = (
    "JSON.stringify(db.getMongo().getDBs().databases.flatMap(d => db.getSiblingDB(d.name).getCollectionNames()"
    ".map(c => [d.name + '.' + c, db.getSiblingDB(d.name).getCollection(c).validate({full: true})]))"
    ".filter(([n, r]) => !r.valid).map(([n, r]) => n + ': ' + (r.errors || []).join(', ')))"
)
"""Names and errors of the collections whose structure is broken, as a JSON list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MongodbScratch:
    """A ScratchInstance."""

    archive: Path
    url: str
    said: str
    """By mongorestore."""
    started: Started
    search: str | None

    def verify(self, request: VerifyRequest, watch: Watch) -> tuple[CheckOutcome, ...]:
        return tuple(self._outcomes(request, watch))

    def _outcomes(self, request: VerifyRequest, watch: Watch) -> Iterator[CheckOutcome]:
        watch.step("verify", request.manifest.plain_bytes)
        yield compare_bytes("bytes", self.archive, STREAM, request.manifest, watch)
        found, failures = restored(self.said)
        sentence = f"{failures} documents failed to restore, of {sum(found.values())}"
        yield passed("mongorestore", sentence) if failures == 0 else failed("mongorestore", sentence)
        yield compare_counts(request.manifest.counts, found, unit="documents", exact=request.exact_counts)
        yield self._validated(watch)
        for check in request.checks:
            yield self._asserted(check, request, watch)

    def _validated(self, watch: Watch) -> CheckOutcome:
        try:
            problems = json.loads(self._evaluate(_VALIDATE, watch))
        except TerminalError as error:
            return not_run("validate", str(error))
        except (RetryableError, ValueError) as error:
            return failed("validate", str(error))
        return differences(
            "validate", map(str, problems), otherwise="MongoDB finds every collection and index in order"
        )

    def _asserted(self, check: CheckSpec, request: VerifyRequest, watch: Watch) -> CheckOutcome:
        try:
            said = self._evaluate(check.sql, watch)
        except TerminalError as error:
            return not_run(check.name, str(error))
        except RetryableError as error:
            return failed(check.name, str(error))
        return judge(check, None if said in {"", "null", "undefined"} else said, request)

    def _evaluate(self, expression: str, watch: Watch) -> str:
        """What mongosh prints. TerminalError when there is none, RetryableError when it fails."""
        mongosh = program("mongosh", INSTALL, search=self.search)
        done = run([mongosh, self.url, "--quiet", "--norc", "--eval", expression], watch, deadline_s=_ANSWER_S)
        if done.status != 0:
            raise RetryableError(f"mongosh failed: {last_words(done.err + done.out)}")
        return done.out.strip()


@contextmanager
def running(folder: Path, watch: Watch, search: str | None) -> Iterator[MongodbScratch]:
    """Started, filled, answering. TerminalError with the words of mongod or mongorestore when they will not."""
    archive = _archive(folder)
    place = folder.resolve() / _SOCKET
    if len(str(place).encode()) > _SOCKET_PATH_MAX:
        raise TerminalError(f"{place} is too long for a socket; restore into a folder with a shorter path")
    mongod, mongorestore = (program(name, INSTALL, search=search) for name in ("mongod", "mongorestore"))
    watch.step("start", archive.stat().st_size)
    data = folder / "db"
    data.mkdir(exist_ok=True)
    # Only sockets, and all of them in this folder: no port that anybody else could reach.
    argv = [
        mongod,
        f"--dbpath={data}",
        f"--bind_ip={place}",
        f"--unixSocketPrefix={folder}",
        f"--logpath={folder / _LOG}",
    ]
    process = spawn(argv, cwd=folder)
    try:
        began = time.monotonic()
        _await_socket(process, place, folder / _LOG, watch)
        url = f"mongodb://{quote(str(place), safe='')}"
        options = ["--oplogReplay"] if archive.name == OPLOG_ARCHIVE_NAME else []
        done = run(
            [mongorestore, f"--uri={url}", f"--archive={archive}", *options],
            watch,
            deadline_s=_START_S + archive.stat().st_size / _LOAD_BYTES_PER_S,
        )
        if done.status != 0:
            raise TerminalError(f"mongorestore could not restore the archive: {last_words(done.err)}")
        yield MongodbScratch(
            archive=archive,
            url=url,
            said=done.err,
            started=Started(newest_at=None, loaded_s=time.monotonic() - began),
            search=search,
        )
    finally:
        end(process)


def _archive(folder: Path) -> Path:
    for name in (ARCHIVE_NAME, OPLOG_ARCHIVE_NAME):
        if (folder / name).is_file():
            return folder / name
    raise TerminalError(f"{folder} holds no archive: nothing was restored")


def _await_socket(process: subprocess.Popen[bytes], place: Path, log: Path, watch: Watch) -> None:
    until = time.monotonic() + _START_S
    while True:
        watch.advance(0)
        if process.poll() is not None:
            raise TerminalError(f"mongod ended at once: {log_words(log)}")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(place)) == 0:
                return
        if time.monotonic() > until:
            raise RetryableError(f"mongod did not answer within {_START_S:.0f} s: {log_words(log)}")
        time.sleep(POLL_S)
