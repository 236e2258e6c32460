"""Where PostgreSQL's files lie, given that its account has to reach them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.postgresql.programs import account, first_closed
from controlplane.adapters.backup.postgresql.server import socket_folder
from controlplane.kernel.errors import TerminalError

_OPEN_TO_ALL: Final = "/var/tmp"  # noqa: S108 - a folder of ours is made there, checked to be ours; it outlives a boot
_MARK_DIGITS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlaces:
    """Of one restored copy."""

    into: Path
    """As it was asked for."""
    home: Path
    """With all of PostgreSQL's files: `into` itself, or a folder that PostgreSQL's account can reach."""

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def wal(self) -> Path:
        return self.home / "wal"

    @property
    def tablespaces(self) -> Path:
        return self.home / "tablespaces"

    @property
    def chain(self) -> Path:
        """Only while a chain is put together."""
        return self.home / "chain"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def note(self) -> Path:
        return self.into / "restore.json"

    @property
    def started(self) -> Path:
        """There from the first start on: since then files are not what was copied."""
        return self.home / "started"

    @property
    def sockets(self) -> Path:
        return socket_folder(self.home)

    @property
    def is_elsewhere(self) -> bool:
        return self.home != self.into


def places_of(into: Path) -> CopyPlaces:
    """The same for the same folder, also when nothing of it is there any more."""
    resolved = into.resolve()
    mark = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:_MARK_DIGITS]
    return CopyPlaces(into=resolved, home=reachable(resolved, f"quarterdeck-copy-{mark}"))


def reachable(wanted: Path, name: str) -> Path:
    """The folder, or one of that name elsewhere when we are root and PostgreSQL's account may not go there."""
    who = account()
    if who is None or first_closed(wanted.parent, who) is None:
        return wanted
    closed = first_closed(Path(_OPEN_TO_ALL), who)
    if closed is not None:
        raise TerminalError(
            f"PostgreSQL runs as {who.name} under root, who may enter neither {wanted.parent} nor {closed}: run the "
            "control plane as an ordinary user"
        )
    return Path(_OPEN_TO_ALL) / name
