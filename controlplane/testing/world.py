"""A small fleet under fake time: store, launcher, engines, gateway and the replica loop, with faults and kills.

After every step the checkers look at the world itself, not at what was called. `broken` lists every rule broken so far.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from controlplane.domain.deployment import Deployment, DeploymentSpec, Intent, ServingPlan
from controlplane.domain.node import NodeSpec, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.store import Store
from controlplane.kernel.errors import RetryableError, StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId, ReplicaName
from controlplane.replicas.limits import DEFAULT_LIMITS, Limits
from controlplane.replicas.ports import LaunchSpec
from controlplane.replicas.reconciler import ReplicaReconciler
from controlplane.testing.effects import FakeClock, SeededRng
from controlplane.testing.engines import FakeEngines, FakeTelemetry
from controlplane.testing.killswitch import (
    ControlPlaneKilledError,
    KillableEngines,
    KillableLauncher,
    KillableStore,
    KillSwitch,
)
from controlplane.testing.launcher import WELL_BEHAVED, Behaviour, FakeLauncher, FakeProcess
from controlplane.testing.traffic import FakeTraffic

STEP: Final = timedelta(milliseconds=500)
_CLAIM: Final = timedelta(seconds=15)
_LAG_CHANCE: Final = 0.2
"""Steps in which the gateway loop does not get its turn."""
_REQUESTS_MAX: Final = 3
_RESTART_STEPS: Final = 4
"""A killed control plane is away for two seconds."""
_EXCUSED: Final = frozenset({Reason.DRAIN_TIMED_OUT, Reason.HUNG, Reason.UNHEALTHY, Reason.STOP_FORCED})
"""Ends of replicas that may have requests in flight."""
_LOST: Final = _EXCUSED | {Reason.PORT_LOST}
"""Why a replica is in service no longer although its process works."""


class NoHints:
    """Implements `controlplane.runtime.hints.Hints`: in this world every loop runs in every step anyway."""

    def hint(self, loop: str) -> None:
        del loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal that reached a living leader."""

    replica: ReplicaName
    kind: str
    in_flight: int
    was_up: bool


class ReplicaWorld:
    """One deployment or several; `step` moves it on by half a second."""

    def __init__(
        self,
        store: Store,
        *,
        seed: int = 0,
        kill_at: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        behave: Callable[[LaunchSpec], Behaviour] = lambda _: WELL_BEHAVED,
    ) -> None:
        self.store = store
        self.clock = FakeClock()
        self.rng = SeededRng(seed)
        self.launcher = FakeLauncher(self.clock, behave)
        self.engines = FakeEngines(self.launcher, self.clock)
        self.telemetry = FakeTelemetry(self.launcher, self.clock)
        self.traffic = FakeTraffic()
        self.switch = KillSwitch(kill_at)
        self.broken: list[str] = []
        self.kills = 0
        self._limits = limits
        self._away_steps = 0
        self._signals: list[Signal] = []
        self.launcher.on_signal = self._record_signal
        self._reconciler = self._start()

    # -- what people and other loops do

    async def declare(
        self, nodes: Sequence[NodeSpec], deployments: Sequence[tuple[DeploymentSpec, ServingPlan]]
    ) -> None:
        async with self.store.transaction() as tx:
            for node in nodes:
                await tx.put_node_spec(node)
                await tx.set_node_state(node.name, NodeState.READY, "declared")
            for spec, plan in deployments:
                await tx.put_deployment_spec(spec, plan, self.clock.now())

    async def want(self, name: DeploymentName, replicas: int) -> None:
        async with self.store.transaction() as tx:
            await tx.set_replicas_wanted(name, replicas)

    async def intend(self, name: DeploymentName, intent: Intent) -> None:
        async with self.store.transaction() as tx:
            await tx.set_intent(name, intent)

    async def roll(self, spec: DeploymentSpec, plan: ServingPlan) -> None:
        async with self.store.transaction() as tx:
            await tx.put_deployment_spec(spec, plan, self.clock.now())

    async def rows(self, name: DeploymentName | None = None) -> tuple[Replica, ...]:
        async with self.store.transaction() as tx:
            return tuple(await tx.replicas(name))

    async def deployments(self) -> tuple[Deployment, ...]:
        async with self.store.transaction() as tx:
            return tuple(await tx.deployments())

    # -- time

    async def step(self) -> None:
        """Half a second: processes, gateway, requests, then the loop, then the checkers."""
        self.clock.jump(STEP)
        self.launcher.settle()
        before = await self.rows()
        await self._gateway_pass(before)
        in_service = self._in_service(before)
        await self._run_loop()
        await self._check(in_service)
        self._check_answers(before, await self.rows())

    async def steps(self, count: int) -> None:
        for _ in range(count):
            await self.step()

    async def settle(self, *, steps_max: int = 400) -> int:
        """Steps until nothing is on its way and every target is met; the limit is a broken rule."""
        for taken in range(steps_max):
            await self.step()
            if await self.is_settled():
                return taken + 1
        self.broken.append(
            f"not settled after {steps_max} steps: {[(r.name, r.phase.value) for r in await self.rows()]}"
        )
        return steps_max

    async def is_settled(self) -> bool:
        rows = await self.rows()
        ready = Counter(row.deployment for row in rows if row.phase is ReplicaPhase.READY)
        still = all(row.phase in (ReplicaPhase.READY, ReplicaPhase.SLEEPING) for row in rows)
        met = all(ready[d.name] == d.replicas_target for d in await self.deployments())
        current = {d.name: d.plan.revision for d in await self.deployments()}
        fresh = all(row.revision == current.get(row.deployment) for row in rows)
        matched = self.launcher.processes.keys() == {row.name for row in rows}
        return still and met and fresh and matched and self._away_steps == 0 and self._all_answer(rows)

    def _all_answer(self, rows: Sequence[Replica]) -> bool:
        ready = [row.name for row in rows if row.phase is ReplicaPhase.READY]
        return all(self.launcher.processes[name].up(self.clock.now()) for name in ready)

    # -- inside

    def _start(self) -> ReplicaReconciler:
        return ReplicaReconciler(
            store=KillableStore(self.store, self.switch),
            launcher=KillableLauncher(self.launcher, self.switch),
            engines=KillableEngines(self.engines, self.switch),
            traffic=self.traffic,
            telemetry=self.telemetry,
            clock=self.clock,
            hints=NoHints(),
            limits=self._limits,
        )

    async def _run_loop(self) -> None:
        if self._away_steps > 0:
            self._away_steps -= 1
            return
        try:
            for resource in await self._reconciler.resources():
                await self._tick(resource)
        except* ControlPlaneKilledError:
            self.kills += 1
            self._away_steps = _RESTART_STEPS
            self.switch = KillSwitch()
            self._reconciler = self._start()

    async def _tick(self, resource: str) -> None:
        now = self.clock.now()
        token = ClaimToken(f"token-{self.kills}-{now.isoformat()}")
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                f"replicas/{resource}", token=token, holder=InstanceId("sim"), now=now, expires_at=now + _CLAIM
            )
        assert claim is not None, "the only instance of this world always gets its claim"
        try:
            await self._reconciler.tick(resource, claim)
        except (RetryableError, StaleClaimError):
            return

    async def _gateway_pass(self, rows: Sequence[Replica]) -> None:
        if self.rng.uniform(0.0, 1.0) >= _LAG_CHANCE:
            async with self.store.transaction() as tx:
                nodes = {node.name: node for node in await tx.nodes()}
            self.traffic.follow(rows, nodes)
        for row in rows:
            endpoint = f"127.0.0.1:{row.port}"
            server = self.traffic.servers_by_endpoint.get(endpoint)
            if server is None:
                continue
            process = self.launcher.processes.get(row.name)
            in_flight = server.in_flight
            if process is None:
                in_flight = 0
            elif server.state == "UP":
                in_flight = min(_REQUESTS_MAX, in_flight + int(self.rng.uniform(0.0, 2.0)))
            if process is not None and not process.hung and self.rng.uniform(0.0, 1.0) < 1 / 2:
                in_flight = max(0, in_flight - 1)
            self.traffic.set_in_flight(endpoint, in_flight)
            self.telemetry.busy[row.name] = in_flight

    def _in_service(self, rows: Sequence[Replica]) -> set[ReplicaName]:
        """READY, routed, and able to answer as far as anybody can tell yet."""
        now = self.clock.now()
        served: set[ReplicaName] = set()
        for row in rows:
            process = self.launcher.processes.get(row.name)
            server = self.traffic.servers_by_endpoint.get(f"127.0.0.1:{row.port}")
            routed = server is not None and server.state == "UP"
            if row.phase is ReplicaPhase.READY and routed and process is not None and process.looks_up(now):
                served.add(row.name)
        return served

    def _record_signal(self, process: FakeProcess, kind: str) -> None:
        server = self.traffic.servers_by_endpoint.get(f"127.0.0.1:{process.spec.port}")
        up = process.up(self.clock.now())
        in_flight = server.in_flight if server is not None else 0
        self._signals.append(Signal(replica=process.spec.name, kind=kind, in_flight=in_flight, was_up=up))

    async def _check(self, in_service_before: set[ReplicaName]) -> None:
        rows = {row.name: row for row in await self.rows()}
        self._check_places()
        self._check_signals(rows)
        for deployment in await self.deployments():
            mine = {name for name in in_service_before if name.startswith(f"qd-{deployment.name}-")}
            working = {name for name in mine if self._works_on(name, rows.get(name))}
            kept = {name for name in working if name in rows and rows[name].phase is ReplicaPhase.READY}
            floor = min(deployment.replicas_target, len(working))
            if len(kept) < floor:
                self._break(f"{deployment.name}: {len(kept)} of {len(working)} stay in service, promised {floor}")

    def _works_on(self, name: ReplicaName, row: Replica | None) -> bool:
        """Neither dead nor just found out to hang or to share its port: whoever takes it away now does so by choice."""
        process = self.launcher.processes.get(name)
        found_out = row is not None and row.reason in _LOST
        return process is not None and process.looks_up(self.clock.now()) and not found_out

    def _check_answers(self, before: Sequence[Replica], after: Sequence[Replica]) -> None:
        """Nothing comes into service on a port where somebody else may answer."""
        served = {row.name for row in before if row.phase is ReplicaPhase.READY}
        for row in after:
            comes = row.phase is ReplicaPhase.READY and row.name not in served
            if comes and row.port in self.launcher.foreign_ports:
                self._break(f"{row.name} serves on port {row.port}, which is somebody else's")

    def _check_places(self) -> None:
        held: Counter[tuple[str, int]] = Counter()
        for process in self.launcher.processes.values():
            held.update((process.spec.node, gpu) for gpu in process.spec.gpus)
            if process.alive:
                held[("port", process.spec.port)] += 1
        for place, times in held.items():
            if times > 1:
                self._break(f"{place} is used by {times} processes")

    def _check_signals(self, rows: dict[ReplicaName, Replica]) -> None:
        for signal in self._signals:
            row = rows.get(signal.replica)
            excused = row is not None and row.reason in _EXCUSED
            if signal.was_up and signal.in_flight > 0 and not excused:
                self._break(f"{signal.replica} got {signal.kind} with {signal.in_flight} requests in flight")
        self._signals.clear()

    def _break(self, sentence: str) -> None:
        self.broken.append(f"{self.clock.now():%H:%M:%S.%f}: {sentence}")


def with_revision(plan: ServingPlan, revision: str) -> ServingPlan:
    """The same plan as another revision."""
    return replace(plan, revision=type(plan.revision)(revision))
