"""Redis and Valkey: the RDB file of a live server over the network; drills load it into a private server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import redis

from controlplane.adapters.backup.redis_link import CONNECT_S, ONCE, full_sync
from controlplane.adapters.backup.redis_rdb import HEAD_BYTES, DbSize, RdbHead, RdbTail, parse_head
from controlplane.adapters.backup.redis_scratch import RDB_NAME, SERVERS, STREAM, RedisScratch, running
from controlplane.adapters.backup.scratch import end_leftovers, filling, leftovers, write_stream
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.manifest import Count, Manifest
from controlplane.recovery.ports import (
    Restored,
    RestoreRequest,
    SnapshotFacts,
    SnapshotSink,
    Source,
    StreamWriter,
    Watch,
)

_ANSWER_S: Final = 10.0
"""For INFO: a server that is busy for longer with one command (KEYS, a script) is worth a word."""
_LATER: Final = (redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisDataset:
    """A DatasetAdapter. Always full copies: the format knows no others."""

    url: str
    """`redis://`, `rediss://` or `unix://`, as redis-py reads it; carries the password."""
    now: Callable[[], datetime]

    @property
    def kind(self) -> DatasetKind:
        return DatasetKind.REDIS

    def probe(self) -> Source:
        info = self._info()
        return Source(engine=_engine(info), size_bytes=int(info.get("used_memory", 0)))

    def snapshot(self, sink: SnapshotSink, *, parent: Manifest | None, watch: Watch) -> SnapshotFacts:
        del parent
        before = self._info()
        asked_at = self.now()
        watch.step("wait for the server's file")
        with full_sync(self.url, watch) as synchronisation, sink.stream(STREAM) as writer:
            file = _File(writer, watch)
            for piece in synchronisation.pieces():
                file.put(piece)
            head = file.finish()
            file.tail.require_whole(head.version)
        after = self._info()
        counts, uncounted = _counted(head, before, after)
        created_at = head.created_at
        return SnapshotFacts(
            engine=_engine(before),
            # The fork came after we asked. Its own time is closer, where the server's clock agrees with ours.
            consistent_at=created_at if created_at and asked_at <= created_at <= self.now() else asked_at,
            counts=counts,
            facts=(
                ("rdb_version", str(head.version)),
                ("aof", "on" if before.get("aof_enabled") else "off"),
                *((("uncounted", ", ".join(uncounted)),) if uncounted else ()),
            ),
        )

    def restore(self, request: RestoreRequest, watch: Watch) -> Restored:
        source = request.chain[-1]
        watch.step("restore", source.manifest.plain_bytes)
        with filling(request.into):
            written = write_stream(source, STREAM, request.into / RDB_NAME, watch)
        return Restored(plain_bytes=written)

    @contextmanager
    def start(self, into: Path, watch: Watch, *, to_time: datetime | None = None) -> Iterator[RedisScratch]:
        del to_time
        with running(into, watch) as scratch:
            yield scratch

    def leftovers(self, into: Path) -> tuple[str, ...]:
        return leftovers(into, SERVERS)

    def end_leftovers(self, into: Path) -> None:
        end_leftovers(into, SERVERS)

    def _info(self) -> Mapping[str, Any]:
        try:
            with closing(
                redis.Redis.from_url(self.url, socket_timeout=_ANSWER_S, socket_connect_timeout=CONNECT_S, retry=ONCE)
            ) as client:
                found: Mapping[str, Any] = client.info()
                return found
        except redis.exceptions.AuthenticationError as error:
            raise TerminalError(f"Redis refuses the dataset's user or password: {error}") from error
        except _LATER as error:
            raise RetryableError(f"Redis does not answer: {error}") from error
        except redis.exceptions.RedisError as error:
            raise TerminalError(
                f"Redis refuses INFO: {error}; the dataset's user needs the permission +info"
            ) from error
        except ValueError as error:
            raise TerminalError("the dataset's url cannot be read, expected redis://USER:PASSWORD@HOST:PORT") from error


@dataclass(slots=True)
class _File:
    """The file on its way through: what its beginning says is kept."""

    writer: StreamWriter
    watch: Watch
    tail: RdbTail = field(default_factory=RdbTail)
    _head: bytearray = field(default_factory=bytearray)

    def put(self, piece: bytes) -> None:
        if len(self._head) < HEAD_BYTES:
            self._head += piece[: HEAD_BYTES - len(self._head)]
        self.tail.feed(piece)
        self.writer.write(piece)
        self.watch.advance(len(piece))

    def finish(self) -> RdbHead:
        return parse_head(bytes(self._head))


def _engine(info: Mapping[str, Any]) -> str:
    if version := info.get("valkey_version"):
        return f"valkey {version}"
    return f"redis {info.get('redis_version', 'unknown')}"


def _counted(
    head: RdbHead, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[Count, ...], tuple[str, ...]]:
    """Counts that hold exactly for the file, and the databases for which there are none.

    The file itself tells those of its first database. For the others the server was asked before and after: equal
    answers are taken, others mean that keys came or went.
    """
    if head.empty:
        return (), ()
    exact = {_name(head.first): head.first.keys} if head.first is not None else {}
    uncounted = []
    for name in sorted(before.keys() | after.keys()):
        if not _is_db(name) or name in exact:
            continue
        keys = {info[name]["keys"] if name in info else 0 for info in (before, after)}
        if len(keys) == 1:
            exact[name] = keys.pop()
        else:
            uncounted.append(name)
    return tuple(Count(name=name, rows=rows) for name, rows in sorted(exact.items())), tuple(uncounted)


def _name(size: DbSize) -> str:
    return f"db{size.index}"


def _is_db(name: str) -> bool:
    return name.startswith("db") and name[2:].isdecimal()
