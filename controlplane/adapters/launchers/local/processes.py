"""Finds the process groups of our replicas among all processes, by the environment that they were started with.

No file of process ids is kept, so nothing can go out of date: what the kernel shows is the truth, also after any crash
of ours. A zombie is dead: container init processes may leave it unreaped for long.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil

from controlplane.kernel.ids import NodeName, ReplicaName

SITE_VARIABLE: Final = "QUARTERDECK_SITE"
REPLICA_VARIABLE: Final = "QUARTERDECK_REPLICA"
NODE_VARIABLE: Final = "QUARTERDECK_NODE"
GPUS_VARIABLE: Final = "QUARTERDECK_GPUS"
PORT_VARIABLE: Final = "QUARTERDECK_PORT"

_FOREIGN_AFTER_S: Final = 5.0
"""A younger process without our mark may be between fork and exec, where its environment shows nothing yet: it is
looked at again. An older one is remembered as somebody else's and costs one read of its start time from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A living process of a replica's group."""

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

    def __init__(self, mark: str) -> None:
        self._mark = mark
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
        if environ.get(SITE_VARIABLE) != self._mark or REPLICA_VARIABLE not in environ:
            return None, time.time() - process.create_time() >= _FOREIGN_AFTER_S
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


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        raise psutil.NoSuchProcess(process.pid) from None
