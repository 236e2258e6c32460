"""The replica loop over real processes: start, adoption after kill -9, a hang, a stop that leaves nothing behind.

Real time passes here, some seconds in all: simulated engines with a cold start of 0.2 s, and limits shortened to match.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from controlplane.adapters.engines.http import HttpEngines
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.adapters.system import SystemClock
from controlplane.domain.deployment import ServingPlan
from controlplane.domain.node import NodeState
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.telemetry import TelemetrySnapshot
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, ReplicaName, ServedName
from controlplane.replicas.limits import Limits
from controlplane.replicas.ports import Seen
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.testing.builders import make_node_spec, make_plan, make_spec
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.traffic import FakeTraffic
from controlplane.testing.world import NoHints

CHAT = DeploymentName("chat")
OWNER = """
import asyncio, os, sys
from pathlib import Path
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.replicas.ports import LaunchSpec
from controlplane.testing.builders import make_template
from dataclasses import replace

async def main():
    launcher = LocalLauncher(Path(sys.argv[1]), environ=dict(os.environ))
    template = replace(make_template(), argv=(sys.executable, "-c", "import time; time.sleep(60)"))
    spec = LaunchSpec(name=ReplicaName("qd-chat-0a1b2c3d-0"), node=NodeName("node-1"), gpus=(0,), gpu_model="b200",
                      numa_domain=None, port=int(sys.argv[2]), template=template)
    print(await launcher.launch(spec), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def plan() -> ServingPlan:
    made = make_plan("chat")
    argv = (
        *("{python}", "-m", "controlplane.simulation.engine", "demo", "--host", "{host}", "--port", "{port}"),
        *("--served-model-name", "chat", "--sim-cold-start", "0.2"),
    )
    launch = replace(made.launch, argv=argv, probe_model=ServedName("chat"), stop_deadline=timedelta(seconds=5))
    return replace(made, launch=launch)


def free_ports() -> tuple[int, int]:
    """A range that is free now: where a listener of ours just was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first: int = listener.getsockname()[1]
    return first, min(first + 50, 65535)


class NoTelemetry:
    """Nothing is measured: every READY replica is then probed."""

    def snapshot(self) -> TelemetrySnapshot:
        return TelemetrySnapshot(at=SystemClock().now())


class Site:
    """One control plane over a state folder; several in a row share store and folder."""

    def __init__(self, store: MemoryStore, state_dir: Path, engines: HttpEngines, ports: tuple[int, int]) -> None:
        self.store = store
        self.launcher = LocalLauncher(state_dir, environ=dict(os.environ))
        self.traffic = FakeTraffic()
        self.clock = SystemClock()
        self.reconciler = ReplicaReconciler(
            store=store,
            launcher=self.launcher,
            engines=engines,
            traffic=self.traffic,
            telemetry=NoTelemetry(),
            clock=self.clock,
            hints=NoHints(),
            limits=Limits(
                ports=ports,
                hang_after=timedelta(seconds=2),
                probe_every=timedelta(milliseconds=200),
                drain_settle=timedelta(milliseconds=200),
                hung_drain=timedelta(milliseconds=500),
                resend_after=timedelta(seconds=1),
            ),
        )

    async def rows(self) -> tuple[Replica, ...]:
        async with self.store.transaction() as tx:
            return tuple(await tx.replicas(CHAT))

    async def want(self, replicas: int) -> None:
        async with self.store.transaction() as tx:
            await tx.set_replicas_wanted(CHAT, replicas)

    async def tick(self) -> None:
        now = self.clock.now()
        async with self.store.transaction() as tx:
            nodes = {node.name: node for node in await tx.nodes()}
            self.traffic.follow(await tx.replicas(CHAT), nodes)
            claim = await tx.claim(
                "replicas/chat",
                token=ClaimToken(now.isoformat()),
                holder=InstanceId("test"),
                now=now,
                expires_at=now + timedelta(seconds=15),
            )
        assert claim is not None
        await self.reconciler.tick("chat", claim)

    async def until(self, reached: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(300):
            await self.tick()
            if await reached():
                return
            await asyncio.sleep(0.05)
        raise AssertionError([(row.name, row.phase.value, row.sentence) for row in await self.rows()])

    async def until_ready(self, count: int) -> dict[ReplicaName, int]:
        """Names and leaders' process ids of exactly so many READY replicas and nothing else."""

        async def reached() -> bool:
            rows = await self.rows()
            return len(rows) == count and all(row.phase is ReplicaPhase.READY for row in rows)

        await self.until(reached)
        return self.leaders()

    def leaders(self) -> dict[ReplicaName, int]:
        return {name: members[0].pid for name, members in self.launcher._table.scan().items()}

    async def end_all(self) -> None:
        for name in self.launcher._table.scan():
            await self.launcher.kill(name)


@asynccontextmanager
async def new_site(tmp_path: Path) -> AsyncIterator[tuple[Site, HttpEngines]]:
    store = MemoryStore()
    async with store.transaction() as tx:
        await tx.put_node_spec(make_node_spec("node-1"))
        await tx.set_node_state(make_node_spec("node-1").name, NodeState.READY, "declared")
        await tx.put_deployment_spec(make_spec("chat", replicas_min=0, replicas_max=8), plan(), SystemClock().now())
    async with HttpEngines() as engines:
        site = Site(store, tmp_path, engines, free_ports())
        try:
            yield site, engines
        finally:
            await site.end_all()


async def test_start_restart_hang_and_stop(tmp_path: Path) -> None:
    async with new_site(tmp_path) as (site, engines):
        await site.want(2)
        before = await site.until_ready(2)

        restarted = Site(site.store, tmp_path, engines, (0, 0))
        await restarted.tick()
        assert await restarted.until_ready(2) == before, "adopted, not started again"

        victim = min(before)
        os.kill(before[victim], signal.SIGSTOP)

        async def replaced() -> bool:
            rows = await site.rows()
            return before[victim] not in site.leaders().values() and len(rows) == 2

        await site.until(replaced)
        after = await site.until_ready(2)
        assert before[victim] not in after.values()

        await site.want(0)

        async def gone() -> bool:
            return await site.rows() == ()

        await site.until(gone)
        assert site.leaders() == {}


async def test_a_crash_is_told_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    async with new_site(tmp_path) as (site, _):
        crashing = plan()
        argv = (sys.executable, "-c", "raise RuntimeError('CUDA out of memory, says this test')")
        crashing = replace(crashing, launch=replace(crashing.launch, argv=argv))
        async with site.store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat", replicas_min=0, replicas_max=8), crashing, site.clock.now())
        await site.want(1)

        async def told() -> bool:
            async with site.store.transaction() as tx:
                events = await tx.events(deployment="chat")
            return any("CUDA out of memory" in str(dict(e.event.data).get("log")) for e in events)

        await site.until(told)


async def test_replicas_survive_the_kill_of_the_process_that_started_them(tmp_path: Path) -> None:
    port = free_ports()[0]
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(tmp_path), str(port), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    name = ReplicaName("qd-chat-0a1b2c3d-0")
    successor = LocalLauncher(tmp_path, environ=dict(os.environ))
    try:
        async with asyncio.timeout(20):
            assert b"Accepted" in await owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)
        await owner.wait()
        sighting = await successor.observe()
        assert isinstance(sighting, Seen)
        found = sighting.replicas[name]
        assert (found.alive, found.port, found.gpus) == (True, port, (0,))
        await successor.terminate(name)
        for _ in range(100):
            sighting = await successor.observe()
            assert isinstance(sighting, Seen)
            if name not in sighting.replicas:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the adopted replica did not end")
    finally:
        await successor.kill(name)
