"""The gateway's processes: started into their own session, so that they outlive the control plane, and found again."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.instance import ROLE_VARIABLE, SITE_VARIABLE

LOG_BYTES_MAX: Final = 16 * 1024 * 1024
"""A log larger than this moves to `.1` when its process starts anew; HAProxy logs failures and changes only."""

KILL_AFTER: Final = timedelta(seconds=3)
"""From a stop signal to SIGKILL, for a process that has nothing left to finish."""

_POLL: Final = timedelta(milliseconds=20)


def spawn(argv: Sequence[str], *, site: str, role: str, log: Path, env: Mapping[str, str]) -> psutil.Process:
    """Start it in its own session, output to the log, marked as ours. It is no child to wait for: see `is_alive`."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))
    marks = {SITE_VARIABLE: site, ROLE_VARIABLE: role}
    to_log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        {**env, **marks},
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), to_log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return psutil.Process(pid)


def is_alive(process: psutil.Process) -> bool:
    """False for what ended, reaped or not; reaps it when it is our child."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leaders(site: str, role: str) -> list[psutil.Process]:
    """Living processes with our marks whose parent has none: HAProxy's master, not its workers."""
    found = {process.pid: process for process in psutil.process_iter() if _is_marked(process, site, role)}
    own: list[psutil.Process] = []
    for process in found.values():
        with suppress(psutil.Error):
            if process.ppid() not in found and is_alive(process):
                own.append(process)
    return own


def _is_marked(process: psutil.Process, site: str, role: str) -> bool:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return False  # another user's, or just gone
    return environment.get(SITE_VARIABLE) == site and environment.get(ROLE_VARIABLE) == role


async def end(
    process: psutil.Process, *, first: signal.Signals = signal.SIGTERM, grace: timedelta = KILL_AFTER
) -> None:
    """Signal it, wait for at most `grace`, then kill it. No error when it is gone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(first)
    if await ended(process, grace):
        return
    with suppress(psutil.NoSuchProcess):
        process.kill()
    await ended(process, KILL_AFTER)


async def ended(process: psutil.Process, within: timedelta) -> bool:
    try:
        async with asyncio.timeout(within.total_seconds()):
            while is_alive(process):  # noqa: ASYNC110 - no event tells of a process that may not be our child
                await asyncio.sleep(_POLL.total_seconds())
    except TimeoutError:
        return False
    return True
