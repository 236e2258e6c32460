"""A private Redis server over a restored RDB file: no port, its socket in its own folder, nothing can be written."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from controlplane.adapters.backup.assertions import (
    Value,
    compare_bytes,
    compare_counts,
    failed,
    judge,
    not_run,
    passed,
)
from controlplane.adapters.backup.children import POLL_S, end, last_words, log_words, run, spawn
from controlplane.adapters.backup.redis_link import ONCE
from controlplane.adapters.backup.redis_rdb import HEAD_BYTES, parse_head
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.errors import QuarterdeckError, RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Started, VerifyRequest, Watch

STREAM: Final = "rdb"
RDB_NAME: Final = "dump.rdb"
SERVERS: Final = frozenset({"redis-server", "valkey-server"})
INSTALL: Final = "apt-get install redis-server (or valkey-server)"

_SOCKET: Final = "redis.sock"
_LOG: Final = "redis.log"
_START_S: Final = 30.0
_LOAD_BYTES_PER_S: Final = 10 * MIB
"""A slow machine's rate of loading; a server that is slower than this is taken for stuck."""
_ANSWER_S: Final = 60.0
"""Of one command of an assertion."""
_DATABASES: Final = 4096
"""A file from a server with more logical databases than the one that loads it is refused; an empty one costs little."""
_SETTINGS: Final = {
    "port": "0",
    "unixsocket": _SOCKET,
    "unixsocketperm": "700",
    "dbfilename": RDB_NAME,
    "logfile": _LOG,
    "loglevel": "warning",
    "daemonize": "no",
    "save": "",
    "appendonly": "no",
    "databases": str(_DATABASES),
    "maxmemory": "0",
    # Every value is looked at in depth while it is loaded, not only the file's checksum.
    "sanitize-dump-payload": "yes",
    # A replica of nobody (no port can be 0): it takes no writes, and it keeps keys that have expired since the copy, so
    # that the counts are those of the copy however old it is.
    "replicaof": "127.0.0.1 0",
    "replica-read-only": "yes",
    "replica-serve-stale-data": "yes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisScratch:
    """A ScratchInstance."""

    folder: Path
    started: Started

    def verify(self, request: VerifyRequest, watch: Watch) -> tuple[CheckOutcome, ...]:
        return tuple(self._outcomes(request, watch))

    def _outcomes(self, request: VerifyRequest, watch: Watch) -> Iterator[CheckOutcome]:
        path = self.folder / RDB_NAME
        watch.step("verify", request.manifest.plain_bytes)
        yield compare_bytes("bytes", path, STREAM, request.manifest, watch)
        yield _rdb_outcome(path, watch)
        try:
            with _client(self.folder) as client:
                sizes = {name: value["keys"] for name, value in client.info("keyspace").items()}
        except (redis.exceptions.RedisError, OSError) as error:
            yield failed("counts", f"the restored server does not answer: {error}")
            return
        # A database that was empty at the copy is not in the server's list.
        found = {**{count.name: 0 for count in request.manifest.counts}, **sizes}
        yield compare_counts(request.manifest.counts, found, unit="keys", exact=request.exact_counts)
        for check in request.checks:
            watch.advance(0)
            yield _asserted(self.folder, check, request)


@contextmanager
def running(folder: Path, watch: Watch) -> Iterator[RedisScratch]:
    """Started, loaded, answering. TerminalError with the server's own words when it will not."""
    path = folder / RDB_NAME
    if not path.is_file():
        raise TerminalError(f"{folder} holds no {RDB_NAME}: nothing was restored")
    watch.step("start", path.stat().st_size)
    process = spawn(_argv(), cwd=folder)
    try:
        began = time.monotonic()
        _await_loaded(process, folder, watch, began + _START_S + path.stat().st_size / _LOAD_BYTES_PER_S)
        with path.open("rb") as file:
            newest_at = parse_head(file.read(HEAD_BYTES)).created_at
        yield RedisScratch(folder=folder, started=Started(newest_at=newest_at, loaded_s=time.monotonic() - began))
    finally:
        end(process)


def _argv() -> list[str]:
    settings = [word for name, value in _SETTINGS.items() for word in (f"--{name}", *_words(name, value))]
    return [_program("server"), *settings]


def _words(name: str, value: str) -> list[str]:
    return value.split() if name == "replicaof" else [value]


def _program(role: str) -> str:
    for engine in ("redis", "valkey"):
        if found := shutil.which(f"{engine}-{role}"):
            return found
    raise TerminalError(f"the program redis-{role} is not on this machine; install it: {INSTALL}")


def _await_loaded(process: subprocess.Popen[bytes], folder: Path, watch: Watch, until: float) -> None:
    while True:
        watch.advance(0)
        if process.poll() is not None:
            raise TerminalError(f"Redis did not load the restored file: {log_words(folder / _LOG)}")
        try:
            with _client(folder) as client:
                client.ping()
                return
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
            # Loading is a ConnectionError in redis-py.
            if time.monotonic() > until:
                raise RetryableError(
                    f"the scratch Redis server did not answer in time: {log_words(folder / _LOG)}"
                ) from error
        time.sleep(POLL_S)


@contextmanager
def _client(folder: Path, db: int = 0) -> Iterator[Any]:
    """Over the folder's socket, by a path that always fits the 107 bytes of an address."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        place = f"/proc/self/fd/{handle}/{_SOCKET}"
        with closing(redis.Redis(unix_socket_path=place, db=db, socket_timeout=_ANSWER_S, retry=ONCE)) as client:
            yield client
    finally:
        os.close(handle)


def _rdb_outcome(path: Path, watch: Watch) -> CheckOutcome:
    try:
        done = run([_program("check-rdb"), path], watch, deadline_s=_START_S + path.stat().st_size / _LOAD_BYTES_PER_S)
    except (QuarterdeckError, OSError) as error:
        return not_run("redis-check-rdb", str(error))
    if done.status != 0:
        return failed("redis-check-rdb", last_words(done.out + done.err))
    facts = [line.removeprefix("[info] ") for line in done.out.splitlines() if line.startswith("[info] ")]
    return passed("redis-check-rdb", ", ".join(facts) or last_words(done.out))


def _asserted(folder: Path, check: CheckSpec, request: VerifyRequest) -> CheckOutcome:
    try:
        db, words = _command(check.sql)
        with _client(folder, db) as client:
            reply: Any = client.execute_command(*words)
    except (redis.exceptions.RedisError, OSError, ValueError) as error:
        return failed(check.name, f"`{check.sql}`: {error}")
    return judge(check, _value(reply), request)


def _command(line: str) -> tuple[int, list[str]]:
    """As redis-cli takes it: words, quoted where needed, `-n DB` in front for another database."""
    words = shlex.split(line)
    db = 0
    if words[:1] == ["-n"]:
        db, words = int(words[1]), words[2:]
    if not words:
        raise ValueError("found no command, expected one such as `DBSIZE` or `-n 1 GET last-order`")
    return db, words


def _value(reply: Any) -> Value:
    """Numbers and texts as they are, lists as their elements with spaces between."""
    match reply:
        case None:
            return None
        case bool():
            return int(reply)
        case int() | float() | str():
            return reply
        case bytes():
            return reply.decode(errors="backslashreplace")
        case list() | tuple() | set():
            return " ".join(str(_value(part)) for part in reply)
        case _:
            return str(reply)
