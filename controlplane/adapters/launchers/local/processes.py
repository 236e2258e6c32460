"""Finds the process groups of our replicas among all processes, by the environment that they were started with.

No file of process ids is kept, so nothing can go out of date: what the kernel shows is the truth, also after any crash
of ours. A zombie is dead: container init processes may leave it unreaped for long.

vLLM's engine and worker processes give themselves a title (`VLLM::EngineCore`), which is written over their
environment: it then reads as empty (seen on 0.32). Such a process is known by its output, which is its replica's log.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.instance import SITE_VARIABLE
from controlplane.kernel.ids import NodeName, ReplicaName

REPLICA_VARIABLE: Final = "QUARTERDECK_REPLICA"
NODE_VARIABLE: Final = "QUARTERDECK_NODE"
GPUS_VARIABLE: Final = "QUARTERDECK_GPUS"
PORT_VARIABLE: Final = "QUARTERDECK_PORT"

LOG_NAME: Final = "log"
"""A replica's output, in the folder of its name."""
_OUTPUTS: Final = (1, 2)
_UNLINKED: Final = " (deleted)"
"""How the kernel marks a file that is gone, as after a state folder was wiped."""

_FOREIGN_AFTER_S: Final = 5.0
"""A younger process without our mark may be between fork and exec, where its environment shows nothing yet: it is
looked at again. An older one is remembered as somebody else's and costs one read of its start time from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A living process of a replica's group. Where it was placed is blank when it hides its environment."""

    process: psutil.Process
    name: ReplicaName
    node: NodeName
    port: int
    gpus: tuple[int, ...]
    is_leader: bool
    """It leads its session: the one that was started, not a child of it."""

    @property
    def pid(self) -> int:
        return self.process.pid


class ProcessTable:
    """Who is ours. Not safe for threads: its user holds a lock."""

    def __init__(self, mark: str, replicas_dir: Path) -> None:
        """`replicas_dir`: absolute; has a folder with the log of each replica."""
        self._mark = mark
        self._replicas_dir = replicas_dir
        self._known: dict[int, tuple[psutil.Process, Member | None]] = {}

    def scan(self) -> dict[ReplicaName, list[Member]]:
        """Living members by replica, leaders first. Costs some 30 us per process of the machine."""
        groups: dict[ReplicaName, list[Member]] = {}
        known: dict[int, tuple[psutil.Process, Member | None]] = {}
        for process, member, certain in self._look():
            if certain:
                known[process.pid] = (process, member)
            if member is not None:
                groups.setdefault(member.name, []).append(member)
        self._known = known
        for members in groups.values():
            members.sort(key=lambda member: (not member.is_leader, member.process.create_time(), member.pid))
        return groups

    def _look(self) -> Iterator[tuple[psutil.Process, Member | None, bool]]:
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                before = self._known.get(pid)
                if before is None or before[0] != process:
                    member, certain = self._meet(process)
                else:
                    member, certain = before[1], True
                if member is not None and process.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.NoSuchProcess:
                continue
            yield process, member, certain

    def _meet(self, process: psutil.Process) -> tuple[Member | None, bool]:
        """The member that a process is, if it is one, and whether that can be remembered."""
        try:
            environ = process.environ()
        except psutil.AccessDenied:
            return None, True
        if not environ:
            return self._meet_hidden(process)
        if environ.get(SITE_VARIABLE) != self._mark or REPLICA_VARIABLE not in environ:
            return None, not _is_young(process)
        gpus = environ.get(GPUS_VARIABLE, "")
        member = Member(
            process=process,
            name=ReplicaName(environ[REPLICA_VARIABLE]),
            node=NodeName(environ.get(NODE_VARIABLE, "")),
            port=int(environ.get(PORT_VARIABLE, "0")),
            gpus=tuple(int(gpu) for gpu in gpus.split(",") if gpu),
            is_leader=_leads_session(process),
        )
        return member, True

    def _meet_hidden(self, process: psutil.Process) -> tuple[Member | None, bool]:
        """One that shows no environment: a title was written over it, or it is between fork and exec."""
        leads, young = _leads_session(process), _is_young(process)
        name = self._replica_of_output(process.pid)
        if name is None or (leads and young):
            return None, not young
        member = Member(process=process, name=name, node=NodeName(""), port=0, gpus=(), is_leader=leads)
        return member, not young

    def _replica_of_output(self, pid: int) -> ReplicaName | None:
        """Whose log both its outputs are."""
        try:
            files = {Path(f"/proc/{pid}/fd/{number}").readlink() for number in _OUTPUTS}
        except OSError:
            # It ended, or this system has no such list.
            return None
        path = files.pop()
        is_log = path.name.removesuffix(_UNLINKED) == LOG_NAME and path.parent.parent == self._replicas_dir
        return ReplicaName(path.parent.name) if is_log and not files else None


def _is_young(process: psutil.Process) -> bool:
    return time.time() - process.create_time() < _FOREIGN_AFTER_S


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        raise psutil.NoSuchProcess(process.pid) from None
