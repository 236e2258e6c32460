"""What every launcher promises, on the fake and on real processes of this machine."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.replicas.ports import Launcher, LaunchResult, LaunchSpec, Seen, SeenReplica
from controlplane.testing.builders import make_template
from controlplane.testing.effects import FakeClock
from controlplane.testing.launcher import Behaviour, FakeLauncher

NAME = ReplicaName("qd-chat-0a1b2c3d-0")
SERVE = "import signal, time; print('up', flush=True); time.sleep(60)"
WITH_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', "
    "'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
    "print('up', flush=True)\n"
    "time.sleep(60)\n"
)


class Bench(Protocol):
    """A launcher, and how its world moves on."""

    launcher: Launcher

    def spec(self, *, orphans: bool = False) -> LaunchSpec: ...
    async def wait(self) -> None: ...
    def crash(self, seen: SeenReplica) -> None: ...
    def occupy(self, port: int) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self._clock = FakeClock()
        self._orphans = False
        self.fake = FakeLauncher(self._clock, lambda _: Behaviour(leaves_orphans=self._orphans))
        self.launcher: Launcher = self.fake

    def spec(self, *, orphans: bool = False) -> LaunchSpec:
        self._orphans = orphans
        return make_launch_spec(port=20000)

    async def wait(self) -> None:
        self._clock.jump(timedelta(seconds=1))

    def crash(self, seen: SeenReplica) -> None:
        self.fake.crash(seen.name)

    def occupy(self, port: int) -> None:
        self.fake.foreign_ports.add(port)


class LocalBench:
    def __init__(self, state_dir: Path) -> None:
        self.local = LocalLauncher(state_dir, environ=dict(os.environ))
        self.launcher: Launcher = self.local
        self._sockets: list[socket.socket] = []
        self._port = free_port()

    def spec(self, *, orphans: bool = False) -> LaunchSpec:
        argv = (sys.executable, "-c", WITH_CHILD if orphans else SERVE)
        spec = make_launch_spec(port=self._port)
        return replace(spec, template=replace(spec.template, argv=argv))

    async def wait(self) -> None:
        """Processes start and end in their own time: the tests ask until it is so."""
        await asyncio.sleep(0.05)

    def crash(self, seen: SeenReplica) -> None:
        pid = next(m.pid for m in self.local._table.scan()[seen.name] if m.is_leader)
        os.kill(pid, 9)

    def occupy(self, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        self._sockets.append(listener)

    async def close(self) -> None:
        for listener in self._sockets:
            listener.close()
        await self.local.kill(NAME)


def make_launch_spec(*, port: int) -> LaunchSpec:
    return LaunchSpec(
        name=NAME,
        node=NodeName("node-1"),
        gpus=(2, 3),
        gpu_model="b200",
        numa_domain=0,
        port=port,
        template=make_template(),
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(params=["fake", "local"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        yield FakeBench()
        return
    local = LocalBench(tmp_path)
    yield local
    await local.close()


async def seen(bench: Bench) -> SeenReplica | None:
    sighting = await bench.launcher.observe()
    assert isinstance(sighting, Seen), sighting
    return sighting.replicas.get(NAME)


async def until_running(bench: Bench) -> SeenReplica:
    for _ in range(100):
        if await bench.launcher.log_tail(NAME, 5):
            found = await seen(bench)
            assert found is not None
            return found
        await bench.wait()
    raise AssertionError("the process did not come up")


async def until_gone(bench: Bench) -> None:
    for _ in range(100):
        if await seen(bench) is None:
            return
        await bench.wait()
    raise AssertionError("the process did not go away")


async def test_a_launched_replica_is_seen_as_it_was_specified(bench: Bench) -> None:
    spec = bench.spec()
    assert await bench.launcher.launch(spec) == LaunchResult.Accepted()
    found = await until_running(bench)
    assert (found.name, found.node, found.port, found.gpus) == (NAME, spec.node, spec.port, (2, 3))
    assert found.alive


async def test_launching_twice_is_launching_once(bench: Bench) -> None:
    spec = bench.spec()
    outcomes = await asyncio.gather(*(bench.launcher.launch(spec) for _ in range(4)))
    assert outcomes == [LaunchResult.Accepted()] * 4
    first = await until_running(bench)
    assert await bench.launcher.launch(spec) == LaunchResult.Accepted()
    again = await seen(bench)
    assert again is not None
    assert again.started_at == first.started_at


async def test_the_same_name_elsewhere_is_refused(bench: Bench) -> None:
    spec = bench.spec()
    await bench.launcher.launch(spec)
    outcome = await bench.launcher.launch(replace(spec, gpus=(0, 1)))
    assert isinstance(outcome, LaunchResult.Refused)
    assert not outcome.port_taken


async def test_terminate_ends_it_and_is_no_error_when_it_is_gone(bench: Bench) -> None:
    await bench.launcher.launch(bench.spec())
    await until_running(bench)
    await bench.launcher.terminate(NAME)
    await until_gone(bench)
    await bench.launcher.terminate(NAME)
    await bench.launcher.kill(NAME)


async def test_the_name_can_be_used_again(bench: Bench) -> None:
    spec = bench.spec()
    await bench.launcher.launch(spec)
    await until_running(bench)
    await bench.launcher.kill(NAME)
    await until_gone(bench)
    assert await bench.launcher.launch(spec) == LaunchResult.Accepted()
    await until_running(bench)


async def test_orphans_are_seen_as_remains_and_killed(bench: Bench) -> None:
    spec = bench.spec(orphans=True)
    await bench.launcher.launch(spec)
    bench.crash(await until_running(bench))
    await bench.wait()
    remains = await seen(bench)
    assert remains is not None
    assert not remains.alive
    outcome = await bench.launcher.launch(spec)
    assert isinstance(outcome, LaunchResult.Refused)
    await bench.launcher.kill(NAME)
    await until_gone(bench)


async def test_a_taken_port_is_told_apart(bench: Bench) -> None:
    spec = bench.spec()
    bench.occupy(spec.port)
    outcome = await bench.launcher.launch(spec)
    assert isinstance(outcome, LaunchResult.Refused)
    assert outcome.port_taken
    assert str(spec.port) in outcome.sentence
    assert await seen(bench) is None


async def test_a_stranger_that_takes_the_port_after_the_launch_is_told(bench: Bench) -> None:
    spec = bench.spec()
    await bench.launcher.launch(spec)
    before = await until_running(bench)
    assert not before.port_lost
    bench.occupy(spec.port)
    after = await seen(bench)
    assert after is not None
    assert after.port_lost
    assert "process" in after.port_stranger


async def test_there_is_no_log_of_what_never_ran(bench: Bench) -> None:
    assert await bench.launcher.log_tail(ReplicaName("qd-none-0a1b2c3d-0"), 5) == []


async def test_a_missing_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, environ=dict(os.environ))
    spec = make_launch_spec(port=free_port())
    spec = replace(spec, template=replace(spec.template, argv=("no-such-engine-here", "--port", "{port}")))
    outcome = await launcher.launch(spec)
    assert isinstance(outcome, LaunchResult.Refused)
    assert "no-such-engine-here" in outcome.sentence
    assert "command:" in outcome.sentence


async def test_processes_of_other_sites_are_not_seen_and_not_touched(tmp_path: Path) -> None:
    mine, other = LocalBench(tmp_path / "mine"), LocalBench(tmp_path / "other")
    unmarked = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, env={"QUARTERDECK_REPLICA": NAME}, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await other.launcher.launch(other.spec())
        await until_running(other)
        assert await seen(mine) is None
        await mine.launcher.kill(NAME)
        assert await seen(other) is not None
        assert unmarked.returncode is None
    finally:
        unmarked.kill()
        await unmarked.wait()
        await other.close()
