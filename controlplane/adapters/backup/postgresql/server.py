"""A PostgreSQL server of ours: started apart from us, found again by its data folder, ended without a trace."""

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.backup.postgresql.programs import Account, Programs, account, give, run_program
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError

PID_FILE: Final = "postmaster.pid"
PROGRAM: Final = "postgres"

_LAUNCH: Final = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
"""For a shell that ends at once, so that the server belongs to init; it tells the process id, which pg_ctl does not."""
_LAUNCH_DEADLINE_S: Final = 20.0
_ORPHAN_WAIT_S: Final = 10.0
"""Children of a killed postmaster notice within a moment and leave."""
_SOCKET_BYTES_MAX: Final = 90
"""Of a socket's folder: the system allows 107 for the whole name (`sun_path`), `/.s.PGSQL.65535` takes 15."""
_POLL_S: Final = 0.02
_SHMEM_LINE: Final = 6
"""Line 7 of the pid file: key and id of the System V segment that guards the folder (PostgreSQL's miscinit.c)."""
_SHMEM_FIELDS: Final = 2


def start_server(
    programs: Programs, data: Path, *, settings: Mapping[str, str], log: Path, marks: Mapping[str, str] | None = None
) -> psutil.Process:
    """Fork it off, in a session of its own; whether it answers is the caller's to find out. RetryableError if not.

    `settings` win over every file in the folder. It outlives us and is no child of ours: nothing to wait for.
    """
    _forget_the_dead(data, Path(settings["unix_socket_directories"]))
    options = [f"-c{name}={value}" for name, value in settings.items()]
    argv: list[str | Path] = ["sh", "-c", _LAUNCH, str(log), programs.path(PROGRAM), "-D", data, *options]
    done = run_program(argv, cwd=data.parent, deadline_s=_LAUNCH_DEADLINE_S, env=marks)
    if done.returncode != 0 or not done.stdout.strip().isdecimal():
        raise RetryableError(f"the server in {data} could not be started: {done.stdout.strip()[-400:]}")
    try:
        return psutil.Process(int(done.stdout))
    except psutil.NoSuchProcess:
        raise RetryableError(f"the server in {data} ended at once; see {log}: {tail(log)}") from None


def postmaster_of(data: Path) -> psutil.Process | None:
    """The living server of the data folder, whoever started it; None: nobody runs there."""
    try:
        pid = int((data / PID_FILE).read_text(encoding="utf-8").splitlines()[0])
        process = psutil.Process(pid)
        if is_alive(process) and Path(process.cwd()) == data.resolve():
            return process
    except (OSError, ValueError, IndexError, psutil.Error):
        pass
    return None


def is_alive(process: psutil.Process) -> bool:
    """A zombie is dead: the init process of a container may never fetch it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def servers_in(folder: Path) -> list[psutil.Process]:
    """Processes of PostgreSQL whose data folder lies in the folder, the postmaster first where it lives."""
    found = []
    place = folder.resolve()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != PROGRAM:
            continue
        with suppress(psutil.Error, OSError):
            if is_alive(process) and Path(process.cwd()).is_relative_to(place):
                found.append(process)
    pids = {process.pid for process in found}
    return sorted(found, key=lambda process: _parent(process) in pids)


def stop_server(data: Path, *, first: signal.Signals = signal.SIGINT, grace_s: float = 30.0) -> None:
    """Fast shutdown (SIGINT); when that takes longer than `grace_s`, immediate (SIGQUIT), then SIGKILL."""
    process = postmaster_of(data)
    if process is None:
        return
    for sign, wait_s in ((first, grace_s), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(sign)
        if gone(process, wait_s):
            return
    raise TerminalError(f"process {process.pid} (postgres in {data}) does not end, even by SIGKILL: look at its disk")


def end_servers(folder: Path) -> None:
    """Whatever of PostgreSQL runs in the folder is ended at once, and the memory that it shared is freed."""
    for process in servers_in(folder):
        # SIGQUIT to a postmaster is an immediate shutdown, which also frees its shared memory; its children follow.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGQUIT)
        gone(process, 5.0)
    for process in servers_in(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
        gone(process, 5.0)
    for pid_file in folder.rglob(PID_FILE):
        _free_shared_memory(pid_file)


def tail(log: Path, chars: int = 400) -> str:
    """The last words of a server."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-chars:].strip()
    except OSError:
        return "it has no log yet"


def gone(process: psutil.Process, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while is_alive(process):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def socket_folder(home: Path) -> Path:
    """Where the server of a home folder has its socket: there, or elsewhere where that name is too long."""
    wanted = home.resolve() / "socket"
    if len(os.fsencode(wanted)) <= _SOCKET_BYTES_MAX:
        return wanted
    mark = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"qd-pg-{mark}"


def make_private(folder: Path, who: Account | None = None) -> Path:
    """The folder, for PostgreSQL's account alone. ConflictError when it is there already and somebody else's."""
    who = who or account()
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    ours = {os.geteuid()} | ({who.uid} if who else set())
    if folder.is_symlink() or not folder.is_dir() or info.st_uid not in ours:
        raise ConflictError(f"{folder} is not a folder of ours (it belongs to user {info.st_uid}): remove it")
    folder.chmod(0o700)
    give(folder, who)
    return folder


def _forget_the_dead(data: Path, sockets: Path) -> None:
    """Remove the lock files of a killed postmaster that init has not fetched yet: to PostgreSQL it looks alive.

    Only once its children are gone, which still wrote to the data; PostgreSQL itself takes care of all other cases.
    """
    try:
        pid = int((data / PID_FILE).read_text(encoding="utf-8").splitlines()[0])
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return
    except (OSError, ValueError, IndexError, psutil.Error):
        return
    for process in servers_in(data):
        if not gone(process, _ORPHAN_WAIT_S):
            raise RetryableError(f"process {process.pid} of a killed server still works in {data}; it will end itself")
    _free_shared_memory(data / PID_FILE)
    for left in (data / PID_FILE, *sockets.glob(".s.PGSQL.*")):
        left.unlink(missing_ok=True)


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _free_shared_memory(pid_file: Path) -> None:
    """A postmaster that was killed leaves a System V segment of a few bytes behind; nobody else would remove it."""
    try:
        line = pid_file.read_text(encoding="utf-8").splitlines()[_SHMEM_LINE].split()
    except (OSError, IndexError):
        return
    if len(line) != _SHMEM_FIELDS or not all(word.isdecimal() for word in line):
        return
    if _is_unused_segment(key=int(line[0]), identifier=int(line[1])):
        with suppress(OSError, TerminalError):
            run_program(["ipcrm", "-m", line[1]], cwd=Path("/"), deadline_s=_LAUNCH_DEADLINE_S)


def _is_unused_segment(*, key: int, identifier: int) -> bool:
    """Linux' own list: key, shmid, perms, size, cpid, lpid, nattch..."""
    try:
        rows = Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    for row in rows:
        fields = row.split()
        if int(fields[1]) == identifier:
            return int(fields[0]) & 0xFFFFFFFF == key & 0xFFFFFFFF and fields[6] == "0"
    return False
