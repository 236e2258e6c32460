"""Replicas as process groups on this machine. All nodes of an embedded site, real or simulated, are this machine."""

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.instance import site_mark
from controlplane.adapters.launchers.local import logs, spawn
from controlplane.adapters.launchers.local.listeners import UNTOLD, PortSight, PortWatch
from controlplane.adapters.launchers.local.processes import LOG_NAME, Member, ProcessTable
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import LaunchOutcome, LaunchResult, LaunchSpec, Seen, SeenReplica, Sighting, Unseen

_LOCK_WAIT_S: Final = 5.0
"""Another launch of the same name holds its lock for milliseconds; longer means a stuck disk."""
_LOCK_POLL_S: Final = 0.02
_KILL_ROUNDS: Final = 10
"""A group that forks while it is being killed is caught by the next round."""
_KILL_PAUSE_S: Final = 0.02
_LOG_CHECK_S: Final = 60.0
"""Between two looks at the sizes of all logs: even 1 MiB/s stays below the bound in between."""


class LocalLauncher:
    """Implements `controlplane.replicas.ports.Launcher`. Blocking work runs in threads, one at a time per lock."""

    def __init__(self, state_dir: Path, *, environ: Mapping[str, str], host: str = "127.0.0.1") -> None:
        """`environ`: what replicas may inherit from (filtered); `host`: the address that they listen on."""
        self._replicas_dir = state_dir.resolve() / "replicas"
        self._mark = site_mark(state_dir)
        self._environ = environ
        self._host = host
        self._table = ProcessTable(self._mark, self._replicas_dir)
        self._ports = PortWatch(host)
        self._lock = threading.Lock()
        self._children: dict[int, ReplicaName] = {}
        self._exit_codes: dict[ReplicaName, int] = {}
        self._logs_checked_at = 0.0

    async def observe(self) -> Sighting:
        try:
            return await asyncio.to_thread(self._observe)
        except (OSError, psutil.Error, ValueError) as error:
            return Unseen(f"the processes of this machine cannot be listed: {error}")

    async def launch(self, spec: LaunchSpec) -> LaunchOutcome:
        """RetryableError when another launch of the name does not end."""
        return await asyncio.to_thread(self._launch, spec)

    async def terminate(self, name: ReplicaName) -> None:
        await asyncio.to_thread(self._terminate, name)

    async def kill(self, name: ReplicaName) -> None:
        await asyncio.to_thread(self._kill, name)

    async def log_tail(self, name: ReplicaName, lines: int) -> list[str]:
        return await asyncio.to_thread(logs.tail, self.log_path(name), lines)

    def log_path(self, name: ReplicaName) -> Path:
        """Where a replica's output is."""
        return self._replicas_dir / name / LOG_NAME

    # -- in threads

    def _observe(self) -> Seen:
        with self._lock:
            groups = self._scan()
            ports = self._ports.look(groups)
        self._bound_logs(groups)
        return Seen({name: self._seen(name, members, ports.get(name, UNTOLD)) for name, members in groups.items()})

    def _groups(self) -> dict[ReplicaName, list[Member]]:
        with self._lock:
            return self._scan()

    def _scan(self) -> dict[ReplicaName, list[Member]]:
        self._reap()
        return self._table.scan()

    def _seen(self, name: ReplicaName, members: list[Member], port: PortSight) -> SeenReplica:
        first = members[0]
        return SeenReplica(
            name=name,
            node=first.node,
            port=first.port,
            gpus=first.gpus,
            alive=first.is_leader,
            started_at=datetime.fromtimestamp(first.process.create_time(), UTC),
            exit_code=None if first.is_leader else self._exit_codes.get(name),
            port_holder=port.holder,
            port_stranger=port.stranger,
        )

    def _launch(self, spec: LaunchSpec) -> LaunchOutcome:
        folder = self._replicas_dir / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / "lock"):
            members = self._groups().get(spec.name)
            if members:
                return _present(spec, members)
            return self._start(spec)

    def _start(self, spec: LaunchSpec) -> LaunchOutcome:
        command = spawn.command_of(spec, self._host)
        environment = spawn.environment_of(spec, self._host, self._mark, self._environ)
        program = spawn.find_program(command, environment, spec.template.engine)
        if isinstance(program, spawn.MissingProgram):
            return LaunchResult.Refused(program.sentence)
        if not spawn.port_is_free(self._host, spec.port):
            return LaunchResult.Refused(
                f"port {spec.port} of {self._host} is taken by another process", port_taken=True
            )
        log = self.log_path(spec.name)
        try:
            logs.begin_log(log)
            pid = spawn.spawn(program, command, environment, log)
        except OSError as error:
            return LaunchResult.Refused(f"{program} could not be started: {error.strerror or error}")
        spawn.stay_near(pid, spec.numa_domain)
        with self._lock:
            self._children[pid] = spec.name
            self._exit_codes.pop(spec.name, None)
        return LaunchResult.Accepted()

    def _terminate(self, name: ReplicaName) -> None:
        for member in self._groups().get(name, []):
            if member.is_leader:
                _signal(member, signal.SIGTERM)

    def _kill(self, name: ReplicaName) -> None:
        for _ in range(_KILL_ROUNDS):
            members = self._groups().get(name)
            if not members:
                return
            for member in members:
                _signal_group(member)
                _signal(member, signal.SIGKILL)
            time.sleep(_KILL_PAUSE_S)

    def _reap(self) -> None:
        """Collect our own ended children: a zombie would keep its process id, and its exit code is worth a log line."""
        for pid, name in list(self._children.items()):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                del self._children[pid]
                continue
            if ended:
                del self._children[pid]
                self._exit_codes[name] = os.waitstatus_to_exitcode(status)

    def _bound_logs(self, groups: Mapping[ReplicaName, list[Member]]) -> None:
        if time.monotonic() - self._logs_checked_at < _LOG_CHECK_S:
            return
        self._logs_checked_at = time.monotonic()
        for name in groups:
            logs.bound_log(self.log_path(name))


def _present(spec: LaunchSpec, members: list[Member]) -> LaunchOutcome:
    first = members[0]
    if not first.is_leader:
        pids = ", ".join(str(member.pid) for member in members)
        return LaunchResult.Refused(f"remains of an earlier {spec.name} are left (process {pids}): they must end first")
    if (first.node, first.port, first.gpus) != (spec.node, spec.port, spec.gpus):
        found = f"{first.node} port {first.port} GPUs {list(first.gpus)}"
        return LaunchResult.Refused(f"{spec.name} runs already, but on {found} (process {first.pid})")
    return LaunchResult.Accepted()


def _signal(member: Member, number: signal.Signals) -> None:
    """The start time is compared first (by psutil): a process id given to somebody else since is never signalled."""
    with contextlib.suppress(psutil.NoSuchProcess):
        member.process.send_signal(number)


def _signal_group(member: Member) -> None:
    """SIGKILL to all of the leader's group at once, so that none can start another in between."""
    if not member.is_leader:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if member.process.is_running() and os.getpgid(member.pid) == member.pid:
            os.killpg(member.pid, signal.SIGKILL)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Between processes and threads, for one name; the kernel frees it when its holder dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    message = f"another launch holds {path} for more than {_LOCK_WAIT_S:.0f}s"
                    raise RetryableError(message) from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)
