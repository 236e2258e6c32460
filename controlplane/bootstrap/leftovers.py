"""Processes of a state folder, found by their mark, whoever started them: for the stop of everything."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.instance import SITE_VARIABLE, site_mark

_TERM_GRACE_S: Final = 20.0
"""For open requests: nobody routes to these processes any more, or nobody drained them first."""
_TERM_AGAIN_S: Final = 5.0
"""A SIGTERM that arrives while an engine starts is lost (seen on vLLM 0.32); a second one is not."""
_KILL_GRACE_S: Final = 5.0
"""A process may have started another one between a look and the signal; one in the kernel ends a moment later."""
_LOOK_S: Final = 0.05


def stop_embedded(state_dir: Path) -> None:
    """The object store and the PostgreSQL of the folder, in their own way: what they acknowledged is on disk."""
    if not marked_processes(site_mark(state_dir)):
        return
    # A second of imports, only where a control plane died.
    from controlplane.adapters.backup.postgresql.embedded import EmbeddedPostgreSQL  # noqa: PLC0415
    from controlplane.adapters.objectstore.seaweedfs import FOLDER, EmbeddedObjectStore  # noqa: PLC0415

    mark = site_mark(state_dir)
    EmbeddedPostgreSQL(state_dir, mark).stop()
    EmbeddedObjectStore(state_dir / FOLDER, site_mark=mark).stop()


def marked_processes(mark: str) -> list[psutil.Process]:
    """Living processes of this user that carry the mark; zombies are dead."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _carries(process, mark)]


def stop_leftovers(mark: str, *, grace_s: float = _TERM_GRACE_S) -> int:
    """End all of them: SIGTERM, once more, then SIGKILL after the grace; how many there were."""
    found = marked_processes(mark)
    _signal(found, signal.SIGTERM)
    started_s = time.monotonic()
    again = False
    while (left := marked_processes(mark)) and time.monotonic() - started_s < grace_s:
        if not again and time.monotonic() - started_s > _TERM_AGAIN_S:
            _signal(left, signal.SIGTERM)
            again = True
        time.sleep(_LOOK_S)
    killing_s = time.monotonic()
    while (left := marked_processes(mark)) and time.monotonic() - killing_s < _KILL_GRACE_S:
        _kill_groups(left)
        time.sleep(_LOOK_S)
    return len(found)


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        # Under root the embedded PostgreSQL runs as another user.
        if os.getuid() not in (0, process.uids().real) or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(SITE_VARIABLE) == mark
    except psutil.Error:
        return False


def _kill_groups(processes: Iterable[psutil.Process]) -> None:
    """With all of their sessions' groups: vLLM's engine process hides its environment, so it is not among the marked.

    Everything that we start leads a session of its own; a process of another session is killed alone.
    """
    own_session = os.getsid(0)
    for process in processes:
        try:
            session = os.getsid(process.pid)
            if session not in (0, own_session) and os.getpgid(process.pid) == session:
                os.killpg(session, signal.SIGKILL)
            process.kill()
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
