"""A site's pgBackRest repository, through pgBackRest itself: what is in it, read back, added to."""

import bz2
import configparser
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import zstandard
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from controlplane.adapters.backup.children import Finished, Piped, last_words, program, run
from controlplane.adapters.backup.pgbackrest_archive import Archive, Segment, parse_listing
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Watch

INSTALL: Final = "apt-get install pgbackrest (https://pgbackrest.org)"
SEGMENT_BYTES: Final = 16 * MIB
"""PostgreSQL's own; other sizes are an option of initdb that pgBackRest's listing does not tell."""

_ASK_S: Final = 120.0
"""For a listing of a large repository in an object store."""
_BACKUP_S: Final = 7 * 86_400.0
"""Longer than any backup that is made daily; somebody's request to stop ends it sooner."""
_SILENCE_S: Final = 300.0
_ERROR: Final = re.compile(r"ERROR: \[(?P<code>\d{3})\]: (?P<words>[^\n]+)")
_LATER: Final = frozenset({"049", "050", "056", "062", "082", "103"})
"""pgBackRest's own numbers: host connect, lock held, database connect, stop file, archive timeout, no repository that
can be read: what may be gone at the next try."""
_UNPACKED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".gz": lambda body: zlib.decompress(body, wbits=zlib.MAX_WBITS | 16),
    ".bz2": bz2.decompress,
    ".zst": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}
"""By the end of a segment's name. Others (lz4) pgBackRest itself must unpack, beside a data folder."""


class _Wire(BaseModel):
    # Newer versions tell more than is read here.
    model_config = ConfigDict(extra="ignore", frozen=True)


class BackupArchive(_Wire):
    start: str
    stop: str


class BackupLsn(_Wire):
    start: str
    stop: str


class BackupTimes(_Wire):
    start: int
    stop: int


class BackupSize(_Wire):
    size: int


class RepositoryBackup(_Wire):
    label: str
    type: str
    error: bool | None = None
    """Pages whose checksum was wrong when they were copied."""
    prior: str | None
    archive: BackupArchive
    lsn: BackupLsn
    timestamp: BackupTimes
    info: BackupSize

    @property
    def started_at(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp.start, UTC)


class RepositoryDatabase(_Wire):
    id: int
    version: str
    system_id: int

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=lambda name: name.replace("_", "-"))


class RepositoryStatus(_Wire):
    code: int
    message: str


class RepositoryInfo(_Wire):
    """Of one stanza; the newest backup is the last."""

    name: str
    backup: tuple[RepositoryBackup, ...]
    db: tuple[RepositoryDatabase, ...]
    status: RepositoryStatus

    @property
    def archive_id(self) -> str:
        """Folder of the newest cluster's log: `15-1`."""
        newest = self.db[-1]
        return f"{newest.version}-{newest.id}"


_INFOS: Final = TypeAdapter(tuple[RepositoryInfo, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What can be asked of one stanza. RetryableError or TerminalError with pgBackRest's own words."""

    configuration: Path
    stanza: str

    def info(self, watch: Watch) -> RepositoryInfo:
        done = self._ask(["info", "--output=json"], watch)
        try:
            found = next((info for info in _INFOS.validate_json(done.out) if info.name == self.stanza), None)
        except ValidationError as error:
            raise TerminalError(f"pgBackRest describes its repository otherwise than expected: {error}") from error
        if found is None or not found.db:
            said = found.status.message if found else "it is not known"
            raise TerminalError(
                f"no stanza {self.stanza} in the repository of {self.configuration}: {said}. "
                "Correct the dataset's stanza, or run `pgbackrest stanza-create`"
            )
        return found

    def archive(self, info: RepositoryInfo, watch: Watch) -> Archive:
        """Paths below `archive/STANZA/ID`, as the store lists them: not what an archiver reported."""
        done = self._ask(["repo-ls", "--output=json", "--recurse", self._archive_path(info)], watch)
        return parse_listing(done.out or "{}", SEGMENT_BYTES)

    def read(self, path: str, watch: Watch) -> bytes:
        """A file of the repository: decrypted where it is encrypted, still compressed where it is compressed."""
        return b"".join(Piped(self._argv(["repo-get", path]), watch, _SILENCE_S).pieces())

    def fetch(self, segment: Segment, info: RepositoryInfo, data: Path | None, into: Path, watch: Watch) -> int:
        """The plain segment as a file, compared with its hash. TerminalError when it is not what was archived."""
        target = into / segment.name
        if segment.suffix in _UNPACKED:
            stored = self.read(f"{self._archive_path(info)}/{segment.path}", watch)
            body = self._unpacked(segment, stored)
        elif data is not None:
            self._ask(["archive-get", f"--pg1-path={data}", "--no-archive-async", segment.name, str(target)], watch)
            body = target.read_bytes()
        else:
            raise TerminalError(f"{segment.path} is compressed as {segment.suffix}, which cannot be read here")
        found = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        if found != segment.sha1:
            raise TerminalError(f"{segment.path} in the repository is damaged: its SHA-1 is {found}")
        target.write_bytes(body)
        return len(body)

    def history(self, path: str, info: RepositoryInfo, into: Path, watch: Watch) -> None:
        name = path.rpartition("/")[2]
        (into / name).write_bytes(self.read(f"{self._archive_path(info)}/{path}", watch))

    def manifest_of(self, label: str, watch: Watch) -> bytes:
        """The list of a backup's files with their hashes, as pgBackRest keeps it."""
        return self.read(f"backup/{self.stanza}/{label}/backup.manifest", watch)

    def back_up(self, kind: str, watch: Watch) -> None:
        """`full` or `incr`; stops when asked, and is resumed by the next one."""
        self._ask([f"--type={kind}", "backup"], watch, deadline_s=_BACKUP_S, user=self._owner(), log=True)

    def restore(self, label: str, data: Path, tablespaces: Path, locks: Path, watch: Watch) -> None:
        """The backup's files; what has to be replayed on top comes from elsewhere."""
        words = [
            f"--pg1-path={data}",
            f"--set={label}",
            "--type=none",
            f"--tablespace-map-all={tablespaces}",
            f"--lock-path={locks}",
            "restore",
        ]
        self._ask(words, watch, deadline_s=_BACKUP_S)

    @property
    def user(self) -> str:
        """Whom pgBackRest connects as."""
        return self._option("pg1-user") or "postgres"

    def _archive_path(self, info: RepositoryInfo) -> str:
        return f"archive/{self.stanza}/{info.archive_id}"

    def _unpacked(self, segment: Segment, stored: bytes) -> bytes:
        try:
            return _UNPACKED[segment.suffix](stored)
        except (zlib.error, zstandard.ZstdError, OSError, EOFError, ValueError) as error:
            raise TerminalError(f"{segment.path} in the repository is damaged: {error}") from error

    def _owner(self) -> int | None:
        """As root we would leave files in its folders that the archiver's account could not touch."""
        place = self._option("pg1-path")
        if os.geteuid() != 0 or place is None or not Path(place).exists():
            return None
        return Path(place).stat().st_uid

    def _option(self, name: str) -> str | None:
        parsed = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parsed.read_string(self.configuration.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise TerminalError(f"pgBackRest's configuration {self.configuration} cannot be read: {error}") from error
        for section in (f"{self.stanza}:backup", self.stanza, "global"):
            if parsed.has_option(section, name):
                return parsed.get(section, name)
        return None

    def _argv(self, words: Sequence[str], *, log: bool = False) -> list[str]:
        quiet = [] if log else ["--log-level-file=off"]
        place = [f"--config={self.configuration}", f"--stanza={self.stanza}"]
        return [program("pgbackrest", INSTALL), *place, "--log-level-console=off", *quiet, *words]

    def _ask(
        self,
        words: Sequence[str],
        watch: Watch,
        *,
        deadline_s: float = _ASK_S,
        user: int | None = None,
        log: bool = False,
    ) -> Finished:
        if not self.configuration.is_file():
            raise TerminalError(f"no pgBackRest configuration at {self.configuration}; correct the dataset's path")
        done = run(self._argv(words, log=log), watch, deadline_s=deadline_s, user=user)
        if done.status == 0:
            return done
        raise _failure(done)


def _failure(done: Finished) -> Exception:
    match = _ERROR.search(done.err) or _ERROR.search(done.out)
    if match is None:
        return TerminalError(f"pgBackRest failed with status {done.status}: {last_words(done.err + done.out)}")
    words = f"pgBackRest says: {match['words']} (error {match['code']})"
    return RetryableError(words) if match["code"] in _LATER else TerminalError(words)
