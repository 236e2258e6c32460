"""One embedded control plane per state folder: a lock that dies with its holder, and a note of who it is."""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from controlplane.kernel.errors import ConflictError

_LOCK_FILE: Final = "control-plane.lock"
_NOTE_FILE: Final = "control-plane.json"
_MARK_DIGITS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNote:
    """How to reach, and stop, the control plane of a state folder."""

    pid: int
    control_url: str
    gateway_url: str


class InstanceLock:
    """Held for the life of the process; the kernel drops it at any kind of death.

    ConflictError on entering while another process holds it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._fd = -1

    def __enter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(self._state_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            note = read_note(self._state_dir)
            who = f" (pid {note.pid}, {note.control_url})" if note is not None else ""
            raise ConflictError(
                f"a control plane{who} already works in {self._state_dir}; stop it with `make down` or "
                "`quarterdeck down`, or choose another folder with --state-dir"
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        (self._state_dir / _NOTE_FILE).unlink(missing_ok=True)
        os.close(self._fd)

    def write_note(self, note: InstanceNote) -> None:
        path = self._state_dir / _NOTE_FILE
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(note)), encoding="utf-8")
        draft.replace(path)


def is_held(state_dir: Path) -> bool:
    """Whether a living control plane works in the folder."""
    path = state_dir / _LOCK_FILE
    if not path.exists():
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_note(state_dir: Path) -> InstanceNote | None:
    """Who holds, or last held, the folder; None when nobody said."""
    try:
        return InstanceNote(**json.loads((state_dir / _NOTE_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def site_mark(state_dir: Path) -> str:
    """What marks every process started for this state folder; two folders never share one.

    It comes from the path alone, so what a wiped folder left running is found too.
    """
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:_MARK_DIGITS]
