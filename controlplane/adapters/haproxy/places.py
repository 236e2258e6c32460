"""Where the gateway's files and sockets are. Derived from the state directory, so that a restart finds them."""

import fcntl
import hashlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from controlplane.kernel.errors import RetryableError, TerminalError

SOCKET_PATH_BYTES_MAX: Final = 80
"""A Unix socket's path has at most 107 bytes, of which HAProxy takes up to 20 for a name beside it while binding."""

TAIL_BYTES_MAX: Final = 64 * 1024
"""Of a log, for an error message."""

_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@")
_LONGEST_NAME: Final = "activator-control.sock"
_PRIVATE_MODE: Final = 0o700
_PRIVATE_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPaths:
    logs: Path
    """In the state directory."""
    run: Path
    """Configuration, maps and sockets: in the state directory, or beside it where its path is too long for a socket
    or has characters that HAProxy's configuration would read as syntax."""

    @classmethod
    def under(cls, state_dir: Path) -> Self:
        """For a state directory; creates nothing."""
        home = state_dir.absolute() / "gateway"
        fits = len(os.fsencode(home / _LONGEST_NAME)) <= SOCKET_PATH_BYTES_MAX and _SAFE.issuperset(str(home))
        if fits:
            return cls(logs=home, run=home)
        mark = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
        return cls(logs=home, run=Path(tempfile.gettempdir()) / f"quarterdeck-{os.getuid()}-{mark}")

    @property
    def config(self) -> Path:
        return self.run / "haproxy.cfg"

    @property
    def candidate(self) -> Path:
        """A configuration that has not been found valid yet."""
        return self.run / "haproxy.cfg.next"

    @property
    def admin_socket(self) -> Path:
        return self.run / "admin.sock"

    @property
    def master_socket(self) -> Path:
        return self.run / "master.sock"

    @property
    def internal_socket(self) -> Path:
        return self.run / "internal.sock"

    @property
    def activator_socket(self) -> Path:
        return self.run / "activator.sock"

    @property
    def activator_control(self) -> Path:
        return self.run / _LONGEST_NAME

    @property
    def activator_config(self) -> Path:
        return self.run / "activator.json"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def hosts_file(self) -> Path:
        """Host names by IP address; not there where the site has addresses only."""
        return self.run / "hosts"

    @property
    def metrics_port_file(self) -> Path:
        return self.run / "metrics-port"

    def create(self) -> None:
        """Make the directories, for this user only. TerminalError when the one beside belongs to somebody else."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        found = self.run.stat(follow_symlinks=False)
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise TerminalError(f"{self.run} belongs to user {found.st_uid}: remove it, or use a shorter --state-dir")
        self.run.chmod(_PRIVATE_MODE)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new one; only this user. Not synced: what it says can be derived again."""
    beside = path.with_name(path.name + ".tmp")
    beside.touch(mode=_PRIVATE_FILE_MODE)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def metrics_port(paths: GatewayPaths) -> int:
    """The exporter's port: a free one, found once and kept, so that who scrapes it need not look again."""
    file = paths.metrics_port_file
    try:
        return int(file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        port = _free_port()
        write_atomically(file, f"{port}\n")
        return port


def forget_metrics_port_if_taken(paths: GatewayPaths) -> None:
    """Before HAProxy starts: another program may have taken the port while nothing of ours ran."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", metrics_port(paths)))
        except OSError:
            paths.metrics_port_file.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def start_lock(paths: GatewayPaths) -> Iterator[None]:
    """Only one control plane at a time starts things; RetryableError for the other."""
    with paths.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RetryableError("another control plane is starting the gateway") from error
        yield


def tail(log: Path, from_byte: int) -> str:
    """What was written to the log since; at most TAIL_BYTES_MAX of it. Empty when it was replaced meanwhile."""
    with log.open("rb") as file:
        file.seek(from_byte)
        return file.read(TAIL_BYTES_MAX).decode(errors="replace")
