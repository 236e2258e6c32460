"""The control planes of a state folder, usually one: a lock that dies with its holder, and a note of who it is."""

import fcntl
import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from controlplane.kernel.errors import ConflictError, InvalidError, Problem

SITE_VARIABLE: Final = "QUARTERDECK_SITE"
"""Set in every process started for a state folder, to the folder's `site_mark`: by it they are found again."""
ROLE_VARIABLE: Final = "QUARTERDECK_ROLE"
"""What a process that is no replica is for: gateway, activator, load."""
_FILES: Final = "control-plane"
_LOCK: Final = ".lock"
_NOTE: Final = ".json"
_MARK_DIGITS: Final = 16
_TRIES: Final = 5
_TRY_S: Final = 0.02
"""Whoever asks whether a lock is held holds it for some microseconds itself."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNote:
    """How to reach, and stop, a control plane of a state folder."""

    pid: int
    control_url: str
    gateway_url: str
    load: str | None = None
    """The load that it sends, in words; None until it has waited for its first replicas."""
    refused: str = ""
    """Why the site file that it was started with is not applied; empty: it is."""


class InstanceLock:
    """Held for the life of the process; the kernel drops it at any kind of death.

    Without a name it is the folder's only control plane. Named ones may be several: they share the folder's gateway and
    replicas, and a store that is made for it. ConflictError on entering while one is there that it cannot be with;
    InvalidError for a name that is none.
    """

    def __init__(self, state_dir: Path, name: str | None = None) -> None:
        if name is not None and not _NAME.fullmatch(name):
            raise InvalidError(
                [
                    Problem(
                        field="--instance",
                        found=repr(name),
                        expected="1 to 32 small letters, digits and dashes",
                        hint="for example --instance a (or QUARTERDECK_INSTANCE=a)",
                    )
                ]
            )
        self._state_dir = state_dir
        self._name = name
        self._fd = -1

    def __enter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(_path(self._state_dir, self._name, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._locked():
            os.close(self._fd)
            raise self._refusal(self._name)
        others = self.others()
        if others and (self._name is None or None in others):
            os.close(self._fd)
            raise self._refusal(others[0])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _path(self._state_dir, self._name, _NOTE).unlink(missing_ok=True)
        os.close(self._fd)

    def _locked(self) -> bool:
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_TRY_S)
            else:
                return True
        return False

    def others(self) -> list[str | None]:
        """Names of the other control planes that live in the folder."""
        return [name for name in held_by(self._state_dir) if name != self._name]

    def write_note(self, note: InstanceNote) -> None:
        path = _path(self._state_dir, self._name, _NOTE)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(note)), encoding="utf-8")
        draft.replace(path)

    def _refusal(self, holder: str | None) -> ConflictError:
        note = read_note(self._state_dir, holder)
        who = f" (pid {note.pid}, {note.control_url})" if note is not None else ""
        return ConflictError(
            f"a control plane{who} already works in {self._state_dir}; stop it with `make down` or "
            "`quarterdeck down`, or choose another folder with --state-dir"
        )


def held_by(state_dir: Path) -> list[str | None]:
    """The names of the control planes that live in the folder; None is the one without a name."""
    names = (path.name.removeprefix(_FILES).removesuffix(_LOCK) for path in state_dir.glob(f"{_FILES}*{_LOCK}"))
    return [name.removeprefix("-") or None for name in sorted(names) if is_held(state_dir, name.removeprefix("-"))]


def is_held(state_dir: Path, name: str | None = None) -> bool:
    """Whether the control plane of that name lives in the folder."""
    path = _path(state_dir, name, _LOCK)
    if not path.exists():
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_note(state_dir: Path, name: str | None = None) -> InstanceNote | None:
    """Who holds, or last held, that lock of the folder; None when nobody said."""
    try:
        return InstanceNote(**json.loads(_path(state_dir, name, _NOTE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _path(state_dir: Path, name: str | None, suffix: str) -> Path:
    return state_dir / (f"{_FILES}-{name}{suffix}" if name else f"{_FILES}{suffix}")


def site_mark(state_dir: Path) -> str:
    """What marks every process started for this state folder; two folders never share one.

    It comes from the path alone, so what a wiped folder left running is found too.
    """
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:_MARK_DIGITS]
