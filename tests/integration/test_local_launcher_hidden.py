"""Processes of a replica that show no environment, as vLLM's engine process does once it has set its title."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil

from controlplane.adapters.instance import site_mark
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.bootstrap.leftovers import _kill_groups, marked_processes
from controlplane.domain.replica import Replica
from controlplane.replicas.ports import LaunchResult, LaunchSpec, Seen
from controlplane.testing.builders import make_replica, make_template

HIDING = ("sh", "-c", "env -i sleep 60 & exec sleep 60")


async def test_what_hides_is_found_by_its_output_and_killed_without_its_leader(tmp_path: Path) -> None:
    replica = make_replica(port=1)
    spec = _spec(replica)
    launcher = LocalLauncher(tmp_path, environ=dict(os.environ))
    try:
        assert await launcher.launch(spec) == LaunchResult.Accepted()
        leader = launcher._groups()[replica.name][0]
        hidden = await _child(leader.process)
        assert hidden.environ() == {}
        assert [member.pid for member in launcher._groups()[replica.name]] == [leader.pid, hidden.pid]

        os.kill(leader.pid, signal.SIGKILL)
        successor = LocalLauncher(tmp_path, environ=dict(os.environ))
        while True:
            sighting = await successor.observe()
            assert isinstance(sighting, Seen)
            if not sighting.replicas[replica.name].alive:
                break
            await asyncio.sleep(0.02)
        refused = await successor.launch(spec)
        assert isinstance(refused, LaunchResult.Refused)
        assert str(hidden.pid) in refused.sentence

        await successor.kill(replica.name)
        assert await successor.observe() == Seen({})
        assert not hidden.is_running() or hidden.status() == psutil.STATUS_ZOMBIE
    finally:
        await launcher.kill(replica.name)


async def test_the_end_of_everything_takes_what_hides_along(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, environ=dict(os.environ))
    replica = make_replica(port=1)
    try:
        assert await launcher.launch(_spec(replica)) == LaunchResult.Accepted()
        hidden = await _child(launcher._groups()[replica.name][0].process)
        marked = marked_processes(site_mark(tmp_path))
        assert hidden.pid not in [process.pid for process in marked]
        _kill_groups(marked)
        hidden.wait(timeout=5)
    finally:
        await launcher.kill(replica.name)


def _spec(replica: Replica) -> LaunchSpec:
    return LaunchSpec(
        name=replica.name,
        node=replica.node,
        gpus=replica.gpus,
        gpu_model="b200",
        numa_domain=None,
        port=replica.port,
        template=replace(make_template(), argv=HIDING),
    )


async def _child(leader: psutil.Process) -> psutil.Process:
    for _ in range(200):
        for child in leader.children():
            if child.name() == "sleep":
                return child
        await asyncio.sleep(0.02)
    raise AssertionError("the shell started no child")
