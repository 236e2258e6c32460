"""Probe, sleep and wake against real simulated engines, one per task, started by the real local launcher."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.domain.deployment import LaunchTemplate, TaskKind
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.replica import Replica
from controlplane.kernel.ids import ServedName
from controlplane.replicas.ports import LaunchResult, LaunchSpec
from controlplane.testing.builders import make_replica, make_template

ARGV = (
    *("{python}", "-m", "controlplane.simulation.engine", "demo-model", "--host", "{host}", "--port", "{port}"),
    *("--served-model-name", "demo", "--enable-sleep-mode", "--sim-cold-start", "0.2", "--sim-wake", "0.1"),
)


def template(task: TaskKind, *more: str) -> LaunchTemplate:
    argv = (*ARGV, "--sim-task", task.value, *more)
    return replace(make_template("demo"), task=task, probe_model=ServedName("demo"), argv=argv)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def engine(state_dir: Path, launch: LaunchTemplate) -> AsyncIterator[tuple[HttpEngines, Replica, int]]:
    """A running engine's replica, and the process id of its leader."""
    launcher = LocalLauncher(state_dir, environ=dict(os.environ))
    replica = make_replica(port=free_port())
    spec = LaunchSpec(
        name=replica.name,
        node=replica.node,
        gpus=replica.gpus,
        gpu_model="b200",
        numa_domain=None,
        port=replica.port,
        template=launch,
    )
    assert await launcher.launch(spec) == LaunchResult.Accepted()
    try:
        async with HttpEngines() as engines:
            yield engines, replica, launcher._table.scan()[replica.name][0].pid
    finally:
        await launcher.kill(replica.name)


async def until(engines: HttpEngines, replica: Replica, launch: LaunchTemplate, verdict: ProbeVerdict) -> ProbeResult:
    result = await engines.probe(replica, launch)
    for _ in range(200):
        if result.verdict is verdict:
            return result
        await asyncio.sleep(0.05)
        result = await engines.probe(replica, launch)
    raise AssertionError(f"still {result}, expected {verdict}")


@pytest.mark.parametrize("task", list(TaskKind))
async def test_a_probe_passes_for_every_task(tmp_path: Path, task: TaskKind) -> None:
    launch = template(task)
    async with engine(tmp_path, launch) as (engines, replica, _):
        assert (await engines.probe(replica, launch)).verdict is ProbeVerdict.STARTING
        await until(engines, replica, launch, ProbeVerdict.PASSED)


async def test_sleep_and_wake(tmp_path: Path) -> None:
    launch = template(TaskKind.GENERATE)
    async with engine(tmp_path, launch) as (engines, replica, _):
        await until(engines, replica, launch, ProbeVerdict.PASSED)
        assert await engines.sleep(replica)
        assert (await engines.probe(replica, launch)).verdict is ProbeVerdict.ASLEEP
        assert await engines.wake(replica)
        await until(engines, replica, launch, ProbeVerdict.PASSED)


async def test_an_engine_that_stands_still_fails_the_probe_and_refuses_sleep_within_the_deadline(
    tmp_path: Path,
) -> None:
    launch = template(TaskKind.GENERATE)
    async with engine(tmp_path, launch) as (engines, replica, pid):
        await until(engines, replica, launch, ProbeVerdict.PASSED)
        os.kill(pid, signal.SIGSTOP)
        assert (await engines.probe(replica, launch)).verdict is ProbeVerdict.FAILED


async def test_health_200_with_requests_that_hang_fails_the_probe(tmp_path: Path) -> None:
    """As vLLM with a stopped engine process: /health answers 200, requests never do."""
    launch = template(TaskKind.GENERATE, "--sim-fault", "hang")
    async with engine(tmp_path, launch) as (engines, replica, _):
        result = await until(engines, replica, launch, ProbeVerdict.FAILED)
        assert "no answer" in result.detail


async def test_nobody_there_is_starting_and_refuses_to_sleep_or_wake() -> None:
    replica = make_replica(port=free_port())
    async with HttpEngines() as engines:
        assert (await engines.probe(replica, template(TaskKind.GENERATE))).verdict is ProbeVerdict.STARTING
        assert not await engines.sleep(replica)
        assert not await engines.wake(replica)
