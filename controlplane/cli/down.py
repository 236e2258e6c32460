"""`quarterdeck down`: stop the control plane of a state folder, and by default all that it started."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer

from controlplane.adapters.instance import InstanceNote, held_by, is_held, read_note, site_mark
from controlplane.bootstrap.leftovers import stop_embedded, stop_leftovers
from controlplane.cli.exits import ExitCode, fail, reported
from controlplane.cli.view import make_console
from controlplane.settings import STATE_DIR_DEFAULT, read_settings

_WAIT_S: Final = 120.0
"""The longest orderly stop: the gateway's drain (60 s) and the engines' stop deadline (30 s), and some."""
_GONE_S: Final = 15.0
"""Between its lock and its last instruction an interpreter takes half a second; `up` ends one that hangs after 10 s."""
_LOOK_S: Final = 0.1

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="QUARTERDECK_STATE_DIR",
        help="Where everything that outlives a process is kept.",
        show_default=str(STATE_DIR_DEFAULT),
    ),
]


def down(
    state_dir: StateDir = None,
    *,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="End only the control plane; gateway and replicas go on.")
    ] = False,
) -> None:
    """Stop a control plane: requests in flight finish, then replicas and gateway end."""
    with reported():
        folder = state_dir or read_settings().state_dir
        names = held_by(folder)
        for name in names:
            note = read_note(folder, name)
            if note is None or (not psutil.pid_exists(note.pid) and is_held(folder, name)):
                fail(f"a control plane works in {folder} but has not said its pid yet; try again", ExitCode.FAILED)
            _stop(note, folder, name, keep_serving=keep_serving)
        if not keep_serving and not names:
            stop_embedded(folder)
        stopped = 0 if keep_serving else stop_leftovers(site_mark(folder))
        if names:
            how_many = "the control plane" if len(names) == 1 else f"{len(names)} control planes"
            make_console().print(f"stopped {how_many} of {folder}" + (" (still serving)" if keep_serving else ""))
        elif stopped:
            make_console().print(
                f"no control plane ran in {folder}; stopped {stopped} processes that one had left serving"
            )
        else:
            make_console().print(f"nothing runs for {folder}")


def _stop(note: InstanceNote, folder: Path, name: str | None, *, keep_serving: bool) -> None:
    """One by one: the last one finds itself alone, and ends what serves."""
    with suppress(psutil.NoSuchProcess), make_console().status("requests in flight finish, replicas end"):
        process = psutil.Process(note.pid)
        process.send_signal(signal.SIGHUP if keep_serving else signal.SIGTERM)
        if not _comes_true(lambda: not is_held(folder, name), within_s=_WAIT_S):
            fail(
                f"the control plane (pid {note.pid}) has not ended after {_WAIT_S:.0f} s; its log is in {folder}/logs",
                ExitCode.FAILED,
            )
        if not _comes_true(lambda: _is_gone(process), within_s=_GONE_S):
            fail(
                f"the control plane has ended its work, but its process (pid {note.pid}) is still there after "
                f"{_GONE_S:.0f} s; its log is in {folder}/logs",
                ExitCode.FAILED,
            )


def _comes_true(condition: Callable[[], bool], *, within_s: float) -> bool:
    give_up_at = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(_LOOK_S)
    return True


def _is_gone(process: psutil.Process) -> bool:
    """A zombie has ended; whoever started it has not asked yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
