"""One real vLLM: adopted from a launcher that was killed, probed, measured, hung and woken, stopped.

One start for the whole file (some 25 s). It is launched by a process that is killed with SIGKILL while vLLM is still
importing its modules; what the tests see is the engine as the next launcher finds it.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.adapters.system import SystemClock
from controlplane.adapters.telemetry import engine_layout
from controlplane.adapters.telemetry.direct import DirectEngines
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.domain.deployment import LaunchTemplate
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.replica import Replica
from controlplane.domain.telemetry import EngineSample, Histogram
from controlplane.kernel.ids import ServedName
from controlplane.replicas.ports import LaunchResult, LaunchSpec, Seen
from controlplane.testing.builders import make_replica
from tests.vllm.vllm_lab import (
    CHAT,
    COMES_UP_S,
    ENDS_S,
    end_all,
    engine_core_of,
    find_vllm,
    free_port,
    processes_of,
    resume,
    stop,
    vllm_template,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

OWNER: Final = """
import asyncio, os, pickle, sys
from pathlib import Path
from controlplane.adapters.launchers.local.launcher import LocalLauncher

async def main():
    spec = pickle.loads(bytes.fromhex(sys.argv[2]))
    print(await LocalLauncher(Path(sys.argv[1]), environ=dict(os.environ)).launch(spec), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
SIMULATED: Final = (
    *("{python}", "-m", "controlplane.simulation.engine", "demo", "--host", "{host}", "--port", "{port}"),
    *("--served-model-name", CHAT, "--max-model-len", "1024"),
)
WRONG_REQUESTS: Final[tuple[dict[str, object], ...]] = (
    {"model": "another", "prompt": "a"},
    {"model": CHAT, "prompt": "a", "max_tokens": 9999},
)

type Families = dict[str, tuple[str, frozenset[tuple[str, ...]], tuple[str, ...]]]
"""By name: type, the label names of its series, and of a histogram the edges as they are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running vLLM, and what was seen while it came up."""

    launcher: LocalLauncher
    spec: LaunchSpec
    replica: Replica
    template: LaunchTemplate
    pid_before: int
    """Its leader when its first owner was killed."""
    verdicts: tuple[ProbeVerdict, ...]
    """Of every probe until the first that passed."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.replica.port}"

    @property
    def core(self) -> psutil.Process:
        core = engine_core_of(self.pid_before)
        assert core is not None, "vLLM runs its model in a process of its own"
        return core

    async def probe(self) -> ProbeResult:
        async with HttpEngines() as engines:
            return await engines.probe(self.replica, self.template)

    async def sample(self) -> EngineSample:
        source = DirectEngines(SystemClock())
        target = EngineTarget(
            replica=self.replica.name,
            deployment=self.replica.deployment,
            node=self.replica.node,
            address="127.0.0.1",
            port=self.replica.port,
            metrics_path=self.template.metrics_path,
        )
        try:
            sample = (await source.engines([target]))[self.replica.name]
        finally:
            await source.close()
        assert isinstance(sample, EngineSample), sample
        return sample


def spec_of(replica: Replica, template: LaunchTemplate) -> LaunchSpec:
    return LaunchSpec(
        name=replica.name,
        node=replica.node,
        gpus=replica.gpus,
        gpu_model="b200",
        numa_domain=None,
        port=replica.port,
        template=template,
    )


def launch_and_be_killed(state_dir: Path, spec: LaunchSpec) -> None:
    """A launcher in a process of its own, which SIGKILL ends as soon as the replica is there."""
    import pickle  # noqa: PLC0415 - only to hand a value to a process of ours

    command = [sys.executable, "-c", OWNER, str(state_dir), pickle.dumps(spec).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert b"Accepted" in owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)
        assert owner.wait() == -signal.SIGKILL


async def come_up(replica: Replica, template: LaunchTemplate) -> tuple[ProbeVerdict, ...]:
    verdicts: list[ProbeVerdict] = []
    deadline_s = time.monotonic() + COMES_UP_S
    async with HttpEngines() as engines:
        while not verdicts or verdicts[-1] is not ProbeVerdict.PASSED:
            assert time.monotonic() < deadline_s, f"not up within {COMES_UP_S:g} s: {verdicts[-1:]}"
            await asyncio.sleep(0.2)
            verdicts.append((await engines.probe(replica, template)).verdict)
    return tuple(verdicts)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    vllm = find_vllm()
    state_dir = Path(tempfile.mkdtemp(prefix="qd-vllm-"))
    template = vllm_template(vllm)
    replica = make_replica(port=free_port())
    spec = spec_of(replica, template)
    launcher = LocalLauncher(state_dir, environ=dict(os.environ))
    try:
        launch_and_be_killed(state_dir, spec)
        (leader,) = launcher._groups()[replica.name]
        verdicts = asyncio.run(come_up(replica, template))
        yield Engine(
            launcher=launcher,
            spec=spec,
            replica=replica,
            template=template,
            pid_before=leader.pid,
            verdicts=verdicts,
        )
    finally:
        end_all(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)


async def test_a_launcher_finds_what_a_killed_one_started(engine: Engine) -> None:
    sighting = await engine.launcher.observe()
    assert isinstance(sighting, Seen)
    seen = sighting.replicas[engine.replica.name]
    assert (seen.alive, seen.port, seen.gpus) == (True, engine.replica.port, engine.replica.gpus)

    assert await engine.launcher.launch(engine.spec) == LaunchResult.Accepted()
    members = engine.launcher._groups()[engine.replica.name]
    assert [member.pid for member in members if member.is_leader] == [engine.pid_before], "adopted, not started again"
    assert engine.core.pid in [member.pid for member in members], "its engine process carries the mark too"


async def test_a_probe_says_starting_until_a_token_comes(engine: Engine) -> None:
    *before, last = engine.verdicts
    assert last is ProbeVerdict.PASSED
    assert set(before) == {ProbeVerdict.STARTING}, "a start looks like no failure"
    assert (await engine.probe()).detail == "one token"

    other = replace(engine.template, probe_model=ServedName("another"))
    async with HttpEngines() as engines:
        failed = await engines.probe(engine.replica, other)
    assert failed.verdict is ProbeVerdict.FAILED
    assert "404" in failed.detail


async def test_health_of_a_stopped_engine_proves_nothing(engine: Engine) -> None:
    core = engine.core
    before = await engine.sample()
    stop(core.pid)
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/health") as health:
            assert health.status == 200, "vLLM's own word"
        probe = await engine.probe()
        assert probe == ProbeResult(verdict=ProbeVerdict.FAILED, detail="no answer within 4s")
        hung = await engine.sample()
        assert progress(hung) == progress(before), "a probe that was given up must not look like progress"
    finally:
        resume(core.pid)
    assert (await engine.probe()).verdict is ProbeVerdict.PASSED, "nothing of the hang is left"


async def test_counters_move_by_what_was_asked(engine: Engine) -> None:
    tokens, requests = 32, 5
    before = await engine.sample()
    async with aiohttp.ClientSession() as session:
        body = {"model": CHAT, "prompt": list(range(100, 120)), "max_tokens": tokens, "ignore_eos": True}
        for _ in range(requests):
            async with session.post(f"{engine.url}/v1/completions", json=body) as response:
                assert response.status == 200
    after = await engine.sample()

    assert after.generation_tokens - before.generation_tokens == tokens * requests
    assert after.prompt_tokens - before.prompt_tokens == 20 * requests
    assert after.requests_succeeded - before.requests_succeeded == requests
    assert after.requests_failed == before.requests_failed
    assert (after.running, after.waiting, after.sleeping) == (0, 0, False)
    assert grown(before.ttft, after.ttft) == grown(before.end_to_end, after.end_to_end) == requests
    assert grown(before.inter_token, after.inter_token) == (tokens - 1) * requests
    assert grown(before.time_per_output_token, after.time_per_output_token) == requests
    assert 0 < after.end_to_end.sum - before.end_to_end.sum < 30
    leader = psutil.Process(engine.pid_before)
    assert after.process_start_s == pytest.approx(leader.create_time(), abs=1.0)


async def test_running_and_waiting_are_seen_while_they_are(engine: Engine) -> None:
    """16 sequences run at once; the others queue in the engine."""
    body = {"model": CHAT, "prompt": "ping", "max_tokens": 900, "ignore_eos": True}

    async def ask(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{engine.url}/v1/completions", json=body) as response:
            await response.read()
            return response.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asked = [asyncio.create_task(ask(session)) for _ in range(20)]
        busy = await engine.sample()
        for _ in range(100):
            if busy.waiting:
                break
            await asyncio.sleep(0.05)
            busy = await engine.sample()
        assert (busy.running, busy.waiting) == (16, 4)
        assert 0 < busy.kv_usage < 1
        # The callers leave: what vLLM does not finish, it aborts.
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    deadline_s = time.monotonic() + ENDS_S
    while (idle := await engine.sample()).running + idle.waiting:
        assert time.monotonic() < deadline_s, f"callers left, still {idle.running} running, {idle.waiting} waiting"
        await asyncio.sleep(0.05)


async def test_the_simulated_engine_shows_the_same_metrics(engine: Engine, tmp_path: Path) -> None:
    """Names, types, labels and bucket edges: what is tested on the simulated engine holds on the real one."""
    simulated = make_replica(port=free_port())
    template = replace(engine.template, argv=SIMULATED)
    launcher = LocalLauncher(tmp_path, environ=dict(os.environ))
    assert await launcher.launch(spec_of(simulated, template)) == LaunchResult.Accepted()
    try:
        await come_up(simulated, template)
        async with aiohttp.ClientSession() as session:
            real = families(await page(session, engine.url))
            fake = families(await page(session, f"http://127.0.0.1:{simulated.port}"))
            for path in ("/v1/models", "/health", "/is_sleeping", "/nothing"):
                expected = await status(session, f"{engine.url}{path}")
                assert await status(session, f"http://127.0.0.1:{simulated.port}{path}") == expected, path
            for wrong in WRONG_REQUESTS:
                expected_error = await refusal(session, engine.url, wrong)
                assert await refusal(session, f"http://127.0.0.1:{simulated.port}", wrong) == expected_error
    finally:
        await launcher.kill(simulated.name)
    wanted = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_total") for name in engine_layout.WANTED
    } - {"vllm:gpu_cache_usage_perc", "vllm:time_per_output_token_seconds"}
    assert wanted <= real.keys(), "everything that telemetry reads"
    assert fake.keys() == real.keys()
    assert {name: fake[name] for name in real if fake[name] != real[name]} == {}


async def test_sigterm_ends_all_of_it(engine: Engine) -> None:
    """Last in the file: the engine is gone afterwards."""
    group = [member.process for member in engine.launcher._groups()[engine.replica.name]]
    assert len(group) >= 2
    await engine.launcher.terminate(engine.replica.name)
    deadline_s = time.monotonic() + ENDS_S
    while engine.launcher._groups():
        assert time.monotonic() < deadline_s, f"still there {ENDS_S:g} s after SIGTERM: {engine.launcher._groups()}"
        await asyncio.sleep(0.05)
    assert processes_of(engine.launcher.log_path(engine.replica.name).parents[2]) == []


def progress(sample: EngineSample) -> tuple[float, ...]:
    """What the replica loop takes as a sign of life."""
    return (sample.generation_tokens, sample.prompt_tokens, sample.requests_succeeded, sample.requests_failed)


def grown(before: Histogram, after: Histogram) -> float:
    return after.count - before.count


async def page(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/metrics") as response:
        return await response.text()


async def status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as response:
        return response.status


async def refusal(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[int, set[str], object]:
    """Status, keys and type of an error: the words are each engine's own."""
    async with session.post(f"{url}/v1/completions", json=body) as response:
        error = (await response.json())["error"]
        return response.status, set(error), error["type"]


def families(text: str) -> Families:
    """Without what names or counts the two programs: requests by path, versions, sizes."""
    found: Families = {}
    for family in text_string_to_metric_families(text):
        labels = frozenset(tuple(sorted(sample.labels)) for sample in family.samples)
        edges = tuple(sorted({sample.labels["le"] for sample in family.samples if "le" in sample.labels}))
        found[family.name] = (family.type, labels, edges)
    return found
