"""Who listens on a replica's port, on real processes and sockets; a stranger's answer makes no replica ready."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.adapters.system import SystemClock
from controlplane.domain.health import ProbeVerdict
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import TelemetrySnapshot
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, ServedName
from controlplane.replicas.limits import Limits
from controlplane.replicas.ports import LaunchResult, LaunchSpec, PortHolder, Seen, SeenReplica
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec, make_template
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.traffic import FakeTraffic
from controlplane.testing.world import NoHints

pytestmark = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="this system has no /proc/net/tcp: the launcher cannot tell there"
)

CHAT = DeploymentName("chat")
MODEL = ServedName("chat")
LISTEN = (
    "import socket, sys, time\n"
    "listener = socket.socket()\n"
    "listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
    "listener.bind(('127.0.0.1', int(sys.argv[1])))\n"
    "listener.listen()\n"
    "time.sleep(60)\n"
)
WAIT = ("sh", "-c", "exec sleep 60")
HIDDEN = ("sh", "-c", 'env -i "$0" -c "$1" "$2" & exec sleep 60', sys.executable, LISTEN, "{port}")
ELSEWHERE = (
    *("sh", "-c", 'env -i "$0" -c "$1" "$2" >/dev/null 2>&1 & exec sleep 60'),
    *(sys.executable, LISTEN, "{port}"),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def spec_of(port: int, argv: tuple[str, ...]) -> LaunchSpec:
    replica = make_replica(port=port)
    return LaunchSpec(
        name=replica.name,
        node=replica.node,
        gpus=replica.gpus,
        gpu_model="b200",
        numa_domain=None,
        port=port,
        template=replace(make_template(), argv=argv),
    )


@asynccontextmanager
async def running(tmp_path: Path, argv: tuple[str, ...]) -> AsyncIterator[tuple[LocalLauncher, LaunchSpec]]:
    launcher, spec = LocalLauncher(tmp_path, environ=dict(os.environ)), spec_of(free_port(), argv)
    try:
        assert await launcher.launch(spec) == LaunchResult.Accepted()
        yield launcher, spec
    finally:
        await launcher.kill(spec.name)


async def until(launcher: LocalLauncher, spec: LaunchSpec, holder: PortHolder) -> SeenReplica:
    async with asyncio.timeout(20):
        while True:
            sighting = await launcher.observe()
            assert isinstance(sighting, Seen)
            seen = sighting.replicas[spec.name]
            if seen.port_holder is holder:
                return seen
            await asyncio.sleep(0.05)


@contextmanager
def sharing(port: int) -> Iterator[None]:
    """A listener of ours that lets others listen on its port as well."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


async def test_its_own_listener_is_known_and_so_is_one_that_joins_it(tmp_path: Path) -> None:
    async with running(tmp_path, (sys.executable, "-c", LISTEN, "{port}")) as (launcher, spec):
        await until(launcher, spec, PortHolder.OWN)
        with sharing(spec.port):
            seen = await until(launcher, spec, PortHolder.OTHER)
            assert seen.port_stranger.startswith(f"process {os.getpid()} (")
        await until(launcher, spec, PortHolder.OWN)


async def test_a_stranger_is_named_before_the_engine_listens(tmp_path: Path) -> None:
    async with running(tmp_path, WAIT) as (launcher, spec):
        await until(launcher, spec, PortHolder.NOBODY)
        with socket.create_server(("127.0.0.1", spec.port)):
            seen = await until(launcher, spec, PortHolder.OTHER)
            assert seen.port_stranger.startswith(f"process {os.getpid()} (")
            again = await until(launcher, spec, PortHolder.OTHER)
            assert again.port_stranger == seen.port_stranger
        await until(launcher, spec, PortHolder.NOBODY)


@pytest.mark.parametrize("argv", [HIDDEN, ELSEWHERE], ids=["hides its environment", "writes elsewhere too"])
async def test_a_child_that_listens_is_of_the_group(tmp_path: Path, argv: tuple[str, ...]) -> None:
    async with running(tmp_path, argv) as (launcher, spec):
        await until(launcher, spec, PortHolder.OWN)


async def test_a_listener_on_all_addresses_is_a_stranger_too(tmp_path: Path) -> None:
    async with running(tmp_path, WAIT) as (launcher, spec):
        with socket.create_server(("", spec.port)):
            await until(launcher, spec, PortHolder.OTHER)


# -- the loop

ENGINE = '"$0" -m controlplane.simulation.engine demo --host "$1" --port "$2" --served-model-name chat'


class NoTelemetry:
    """Nothing is measured."""

    def snapshot(self) -> TelemetrySnapshot:
        return TelemetrySnapshot(at=SystemClock().now())


@contextmanager
def stranger(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An engine of nobody's site that serves the same model name."""
    command = [sys.executable, "-m", "controlplane.simulation.engine", "demo", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "chat", "--sim-cold-start", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


class Site:
    """The replica loop over real processes: one replica wanted, whose engine never binds the first port."""

    def __init__(self, state_dir: Path, engines: HttpEngines) -> None:
        self.first = free_port()
        self.store, self.clock = MemoryStore(), SystemClock()
        self.launcher = LocalLauncher(state_dir, environ=dict(os.environ))
        self.reconciler = ReplicaReconciler(
            store=self.store,
            launcher=self.launcher,
            engines=engines,
            traffic=FakeTraffic(),
            telemetry=NoTelemetry(),
            clock=self.clock,
            hints=NoHints(),
            limits=Limits(ports=(self.first, min(self.first + 50, 65535))),
        )

    async def declare(self) -> None:
        script = f'if [ "$2" = {self.first} ]; then exec sleep 60; else exec {ENGINE} --sim-cold-start 0.2; fi'
        made, node = make_plan("chat"), make_node_spec("node-1")
        argv = ("sh", "-c", script, "{python}", "{host}", "{port}")
        launch = replace(made.launch, argv=argv, probe_model=MODEL, stop_deadline=timedelta(seconds=5))
        spec = make_spec("chat", replicas_min=1, replicas_max=1)
        async with self.store.transaction() as tx:
            await tx.put_node_spec(node)
            await tx.set_node_state(node.name, NodeState.READY, "declared")
            await tx.put_deployment_spec(spec, replace(made, launch=launch), self.clock.now())

    async def tick(self) -> tuple[Replica, ...]:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                "replicas/chat",
                token=ClaimToken(now.isoformat()),
                holder=InstanceId("test"),
                now=now,
                expires_at=now + timedelta(seconds=15),
            )
        assert claim is not None
        await self.reconciler.tick("chat", claim)
        async with self.store.transaction() as tx:
            return tuple(await tx.replicas(CHAT))

    async def lost_ports(self) -> list[str]:
        async with self.store.transaction() as tx:
            events = await tx.events(deployment=CHAT)
        return [entry.event.sentence for entry in events if entry.event.reason is Reason.PORT_LOST]

    async def end_all(self) -> None:
        sighting = await self.launcher.observe()
        assert isinstance(sighting, Seen)
        for name in sighting.replicas:
            await self.launcher.kill(name)


async def test_an_engine_of_somebody_else_never_makes_a_replica_ready(tmp_path: Path) -> None:
    """Ours would bind its port late, as vLLM does; meanwhile another engine serves there, and passes any probe."""
    async with HttpEngines() as engines, asyncio.timeout(40):
        site = Site(tmp_path, engines)
        await site.declare()
        try:
            await site.tick()
            with stranger(site.first) as other:
                await answers(engines, site.first)
                while True:
                    rows = await site.tick()
                    ready = [row for row in rows if row.phase is ReplicaPhase.READY]
                    assert all(row.port != site.first for row in ready), "traffic would go to the stranger"
                    if ready and len(rows) == 1:
                        break
                    await asyncio.sleep(0.05)
                (sentence,) = await site.lost_ports()
            assert f"process {other.pid} (" in sentence
            assert f"port {site.first}" in sentence
        finally:
            await site.end_all()


async def answers(engines: HttpEngines, port: int) -> None:
    """Until a probe of that port passes."""
    template = replace(make_template(), probe_model=MODEL)
    while True:
        found = await engines.probe(make_replica(port=port), template)
        if found.verdict is ProbeVerdict.PASSED:
            return
        await asyncio.sleep(0.05)
