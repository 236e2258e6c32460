"""The node agent as it runs: its pages over HTTP, and its command as a process."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from controlplane.adapters.agent.server import AgentOptions, serve_agent
from controlplane.adapters.gpu.source import GpuReader
from controlplane.adapters.system import SystemClock
from controlplane.adapters.telemetry.direct import DirectNodes
from controlplane.cli.agent import app
from controlplane.domain.telemetry import GpuSample, Missing, NodeSample
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import NodeName
from controlplane.testing.builders import make_node_spec
from controlplane.testing.telemetry import make_gpu_sample

NODE = NodeName("node-1")


class PlayedGpus:
    def __init__(self, *gpus: GpuSample, error: str = "") -> None:
        self.gpus = gpus
        self.error = error

    def read(self) -> Sequence[GpuSample]:
        if self.error:
            raise TerminalError(self.error)
        return self.gpus


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_a_fit_node_on_every_page() -> None:
    source = PlayedGpus(make_gpu_sample(0, utilization=0.5), make_gpu_sample(1))
    options = AgentOptions(node=NODE, expected_gpus=2)
    async with serve_agent(GpuReader(source, SystemClock()), options, port=0) as port:
        assert await get(port, "/healthz") == (200, "node-1: 2 GPUs are fit\n")
        status, page = await get(port, "/metrics")
        assert status == 200
        assert 'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-0",pci_bus_id="",device="nvidia0"' in page
        status, body = await get(port, "/v1/gpus")
        assert status == 200
        assert '"utilization": 0.5' in body
        assert (await get(port, "/elsewhere"))[0] == 404

        nodes = DirectNodes(SystemClock())
        spec = replace(make_node_spec(NODE), agent_url=f"http://127.0.0.1:{port}/")
        sample = (await nodes.nodes([spec]))[NODE]
        await nodes.close()
    assert isinstance(sample, NodeSample)
    assert [gpu.utilization for gpu in sample.gpus] == [0.5, 0.0]


async def test_a_sick_node_says_why() -> None:
    sick = replace(make_gpu_sample(0), row_remap_failed=True)
    reader = GpuReader(PlayedGpus(sick), SystemClock())
    async with serve_agent(reader, AgentOptions(node=NODE, expected_gpus=8), port=0) as port:
        status, text = await get(port, "/healthz")
    assert status == 503
    assert "found 1 GPUs, expected 8" in text
    assert "a row remap failed" in text


async def test_a_node_without_a_driver_answers_with_the_reason() -> None:
    reader = GpuReader(PlayedGpus(error="no NVIDIA driver on this machine"), SystemClock())
    async with serve_agent(reader, AgentOptions(node=NODE), port=0) as port:
        for path in ("/metrics", "/healthz", "/v1/gpus"):
            status, text = await get(port, path)
            assert status == 503
            assert "no NVIDIA driver on this machine" in text


async def test_a_real_node_that_nobody_can_see_says_what_to_configure() -> None:
    nodes = DirectNodes(SystemClock(), local=GpuReader(PlayedGpus(make_gpu_sample()), SystemClock()))
    here = replace(make_node_spec(NODE), simulated=False)
    there = replace(here, name=NodeName("node-2"), address="10.0.0.2")
    played = make_node_spec("node-3")
    readings = await nodes.nodes([here, there, played])
    await nodes.close()
    assert isinstance(readings[NODE], NodeSample)
    hidden = readings[there.name]
    assert isinstance(hidden, Missing)
    assert "has no agent_url: run `quarterdeck agent` there and set it" in hidden.why
    assert readings[played.name] == Missing("no folder of simulated GPU states is configured")


def test_check_is_an_exit_code_and_a_sentence(tmp_path: Path) -> None:
    arguments = ["check", "--node", "n1", "--gpu-state-dir", str(tmp_path), "--simulate", "b200"]
    fit = CliRunner().invoke(app, arguments)
    assert (fit.exit_code, fit.stdout) == (0, "n1: 8 GPUs are fit\n")
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert as_json.exit_code == 0
    assert '"problems": []' in as_json.stdout


def test_check_without_a_driver_fails_with_a_sentence() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver; the test is about one that has none")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 1
    assert "install the driver, or play GPUs with --simulate" in result.stderr
    assert "Traceback" not in result.output


async def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from controlplane.cli.agent import app; app()"),
        *("--simulate", "h100", "--gpus", "2", "--node", "n1", "--port", "0", "--gpu-state-dir", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        assert line.startswith("n1: 2 GPUs on http://127.0.0.1:")
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        status, page = await get(port, "/metrics")
        assert status == 200
        assert 'modelName="NVIDIA H100 80GB HBM3",Hostname="n1"' in page
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
