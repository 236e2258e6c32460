"""Launcher of make-believe processes under a fake clock: they load, serve, hang, crash, lose signals, leave orphans."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import (
    LaunchOutcome,
    LaunchResult,
    LaunchSpec,
    PortHolder,
    Seen,
    SeenReplica,
    Sighting,
    Unseen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one process will act."""

    load: timedelta = timedelta(seconds=5)
    """From its start to the first answered request."""
    wake: timedelta = timedelta(seconds=1)
    exit: timedelta = timedelta(milliseconds=500)
    """From an effective SIGTERM to its end."""
    crash_after: timedelta | None = None
    """The leader dies by itself so long after its start."""
    sigterms_lost: int = 0
    """So many SIGTERMs have no effect (vLLM loses one while it spawns its engine process)."""
    leaves_orphans: bool = False
    """When the leader ends, others of its group stay (a killed API server leaves its engine process)."""
    refuses_sleep: bool = False


WELL_BEHAVED: Final = Behaviour()


@dataclass(slots=True, kw_only=True)
class FakeProcess:
    """One process group."""

    spec: LaunchSpec
    behaviour: Behaviour
    started_at: datetime
    alive: bool = True
    orphans: bool = False
    exits_at: datetime | None = None
    sigterms: int = 0
    hung: bool = False
    asleep: bool = False
    awake_at: datetime | None = None
    log: list[str] = field(default_factory=list)

    def up(self, now: datetime) -> bool:
        """Would answer a request."""
        return self.looks_up(now) and not self.hung

    def looks_up(self, now: datetime) -> bool:
        """Alive, loaded and awake: all that can be told before a hang shows."""
        loaded = now - self.started_at >= self.behaviour.load
        awake = not self.asleep and (self.awake_at is None or now >= self.awake_at)
        return self.alive and loaded and awake


class FakeLauncher:
    """Implements `controlplane.replicas.ports.Launcher`. Faults are attributes that a test sets."""

    def __init__(self, clock: Clock, behave: Callable[[LaunchSpec], Behaviour] = lambda _: WELL_BEHAVED) -> None:
        self._clock = clock
        self._behave = behave
        self.processes: dict[ReplicaName, FakeProcess] = {}
        self.logs: dict[ReplicaName, list[str]] = {}
        self.blind: str | None = None
        """Why nothing can be seen; None: everything can."""
        self.refusal: str | None = None
        """Why nothing can be launched."""
        self.foreign_ports: set[int] = set()
        """Held by somebody else's process, also if it came after one of ours was launched there."""
        self.on_signal: Callable[[FakeProcess, str], None] = lambda _process, _signal: None
        """Called before a signal reaches a living leader: a checker's place."""

    async def observe(self) -> Sighting:
        if self.blind is not None:
            return Unseen(self.blind)
        self.settle()
        return Seen({name: self._seen(process) for name, process in self.processes.items()})

    async def launch(self, spec: LaunchSpec) -> LaunchOutcome:
        self.settle()
        present = self.processes.get(spec.name)
        if present is not None:
            same = (present.spec.port, present.spec.gpus, present.spec.node) == (spec.port, spec.gpus, spec.node)
            if present.alive and same:
                return LaunchResult.Accepted()
            return LaunchResult.Refused(f"a process of {spec.name} is left on port {present.spec.port}")
        if self.refusal is not None:
            return LaunchResult.Refused(self.refusal)
        ports = {process.spec.port for process in self.processes.values() if process.alive}
        if spec.port in self.foreign_ports | ports:
            return LaunchResult.Refused(f"port {spec.port} is taken", port_taken=True)
        behaviour = self._behave(spec)
        self.processes[spec.name] = FakeProcess(spec=spec, behaviour=behaviour, started_at=self._clock.now())
        self.logs[spec.name] = [f"loading for port {spec.port}"]
        return LaunchResult.Accepted()

    async def terminate(self, name: ReplicaName) -> None:
        self.settle()
        process = self.processes.get(name)
        if process is None or not process.alive:
            return
        self.on_signal(process, "SIGTERM")
        process.sigterms += 1
        if process.sigterms > process.behaviour.sigterms_lost and process.exits_at is None:
            process.exits_at = self._clock.now() + process.behaviour.exit

    async def kill(self, name: ReplicaName) -> None:
        process = self.processes.pop(name, None)
        if process is not None and process.alive:
            self.on_signal(process, "SIGKILL")

    async def log_tail(self, name: ReplicaName, lines: int) -> list[str]:
        return self.logs.get(name, [])[-lines:]

    # -- what happens without us

    def settle(self) -> None:
        """Bring every process to the present moment."""
        now = self._clock.now()
        for name, process in list(self.processes.items()):
            crash_after = process.behaviour.crash_after
            crashed = crash_after is not None and now - process.started_at >= crash_after
            exited = process.exits_at is not None and now >= process.exits_at
            if process.alive and (crashed or exited):
                self.logs[name].append("Traceback: crashed" if crashed else "bye")
                self.crash(name)

    def crash(self, name: ReplicaName) -> None:
        """The leader dies; its group too, unless it leaves orphans."""
        process = self.processes[name]
        process.alive = False
        if process.behaviour.leaves_orphans:
            process.orphans = True
        else:
            del self.processes[name]

    def misbehave(self, name: ReplicaName, behaviour: Behaviour) -> None:
        self.processes[name].behaviour = replace(behaviour, load=self.processes[name].behaviour.load)

    def _seen(self, process: FakeProcess) -> SeenReplica:
        lost = process.alive and process.spec.port in self.foreign_ports
        return SeenReplica(
            name=process.spec.name,
            node=process.spec.node,
            port=process.spec.port,
            gpus=process.spec.gpus,
            alive=process.alive,
            started_at=process.started_at,
            port_holder=PortHolder.OTHER if lost else self._holder(process),
            port_stranger="process 4711 (stranger)" if lost else "",
        )

    def _holder(self, process: FakeProcess) -> PortHolder:
        """An engine listens once it has loaded."""
        loaded = self._clock.now() - process.started_at >= process.behaviour.load
        return PortHolder.OWN if process.alive and loaded else PortHolder.NOBODY
