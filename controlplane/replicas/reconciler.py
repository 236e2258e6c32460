"""The loop that makes running replicas out of wanted ones: observe, decide, lint, act, apply. See docs/replicas.md."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.deployment import Deployment
from controlplane.domain.event import EventKind
from controlplane.domain.health import ProbeResult, ProbeVerdict
from controlplane.domain.ports import Telemetry
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.store import Claim, Store
from controlplane.domain.telemetry import Fresh
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import ConflictError, NotFoundError, RetryableError, StaleClaimError, TerminalError
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.attention import PROBES_PER_TICK, needs_traffic, replicas_to_probe, vitals_of
from controlplane.replicas.executor import Answer, Executor
from controlplane.replicas.limits import DEFAULT_LIMITS, Limits
from controlplane.replicas.lint import lint_plan
from controlplane.replicas.memory import (
    Memory,
    begin_tick,
    breaker_from_history,
    feel_pulses,
    note_failed_start,
    note_probes,
    note_refused_port,
    note_sleep_refused,
)
from controlplane.replicas.observation import Fleet, FleetCache, ObservationCache
from controlplane.replicas.plan import plan_replicas
from controlplane.replicas.ports import (
    Engines,
    Launcher,
    LaunchResult,
    Traffic,
    TrafficSighting,
    TrafficUnseen,
)
from controlplane.replicas.standing import Situation
from controlplane.replicas.steps import Drain, Forget, Kill, Launch, Release, ReplicaPlan, Reserve, Sleep, Terminate
from controlplane.replicas.stray_watch import StrayWatch
from controlplane.runtime.hints import Hints
from controlplane.runtime.reconciler import TickReport

STRAYS: Final = "@strays"
"""The resource that looks for processes without a row; no deployment can have that name."""
TRAFFIC_DEADLINE: Final = timedelta(seconds=2)
"""The gateway's runtime socket answers in milliseconds."""
PROBE_DEADLINE: Final = timedelta(seconds=6)
"""Outer bound of one probe, all its requests together; below a tick's deadline."""
BUSY_PAUSE: Final = timedelta(milliseconds=500)
"""While something is on its way, look again so soon: part of every cold start and drain."""
RESERVE_ATTEMPTS: Final = 3
"""Plans made anew after another deployment took the GPU first, before the next tick tries."""
HISTORY_EVENTS: Final = 50
"""Of a deployment, read once per instance to refill its breaker."""
_IN_MOTION: Final = frozenset(ReplicaPhase) - {ReplicaPhase.READY, ReplicaPhase.SLEEPING}


class ReplicaReconciler:
    """Implements `controlplane.runtime.reconciler.Reconciler`: one resource per deployment, and the strays."""

    name: Final = "replicas"

    def __init__(
        self,
        *,
        store: Store,
        launcher: Launcher,
        engines: Engines,
        traffic: Traffic,
        telemetry: Telemetry,
        clock: Clock,
        hints: Hints,
        limits: Limits = DEFAULT_LIMITS,
        ports: Callable[[], tuple[int, int]] | None = None,
        hint_loops: tuple[str, ...] = ("gateway",),
    ) -> None:
        """`ports`: first and last of the present site, asked at each tick; None: as in `limits`.

        `hint_loops` are woken when a row changed in a way that routing must follow.
        """
        self._store = store
        self._launcher = launcher
        self._engines = engines
        self._traffic = traffic
        self._telemetry = telemetry
        self._clock = clock
        self._hints = hints
        self._limits = limits
        self._ports = ports or (lambda: limits.ports)
        self._hint_loops = hint_loops
        self._executor = Executor(store=store, launcher=launcher, engines=engines, clock=clock)
        self._sightings = ObservationCache(launcher, clock)
        self._fleets = FleetCache(store, clock)
        self._memories: dict[DeploymentName, Memory] = {}
        self._acted_at_s: dict[str, float] = {}
        self._strays = StrayWatch(store=store, launcher=launcher, sightings=self._sightings, clock=clock)
        self._refused_ports: Mapping[tuple[str, int], datetime] = {}
        """Found by any deployment, spared to all of them."""

    async def resources(self) -> Sequence[str]:
        async with self._store.transaction() as tx:
            names = [deployment.name for deployment in await tx.deployments()]
        self._memories = {name: memory for name, memory in self._memories.items() if name in names}
        return [*names, STRAYS]

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        """TerminalError when the linter refuses the plan; RetryableError when places were taken meanwhile."""
        if resource == STRAYS:
            return await self._strays.tick(claim)
        try:
            situation = await self._observe(DeploymentName(resource))
        except NotFoundError:
            return TickReport(sentence=f"deployment {resource} is gone")
        plan = await self._decide_and_reserve(situation, claim)
        answers = await self._executor.act(plan)
        if answers:
            self._acted_at_s[resource] = self._clock.monotonic()
        self._remember(situation, plan, answers)
        await self._executor.write_results(plan, answers, claim)
        if plan.changes:
            for loop in self._hint_loops:
                self._hints.hint(loop)
        return _report(situation, plan, answers)

    async def _observe(self, name: DeploymentName) -> Situation:
        deployment, replicas, remembered = await self._rows(name)
        fleet = await self._fleets.fleet()
        sighting = await self._sightings.observe(not_before_s=self._acted_at_s.get(name, float("-inf")))
        telemetry, now = self._telemetry.snapshot(), self._clock.now()
        memory = begin_tick(
            replace(remembered, refused_ports=self._refused_ports),
            replicas=replicas,
            revision=deployment.plan.revision,
            generation=deployment.generation,
            limits=self._limits,
            now=now,
        )
        situation = Situation(
            deployment=deployment,
            replicas=replicas,
            sighting=sighting,
            traffic=TrafficUnseen("not asked"),
            nodes=fleet.nodes,
            ledger=fleet.ledger,
            memory=memory,
            now=now,
            probes={},
            engines=telemetry.engines,
            gateway_servers=telemetry.gateway.value.servers if isinstance(telemetry.gateway, Fresh) else {},
            limits=replace(self._limits, ports=self._ports()),
        )
        memory = feel_pulses(memory, replicas, vitals_of(situation), now)
        return await self._ask(replace(situation, memory=memory))

    async def _rows(self, name: DeploymentName) -> tuple[Deployment, tuple[Replica, ...], Memory]:
        """Deployment, its replicas, and what is remembered: from the history when we have not watched it lately."""
        memory = self._memories.get(name)
        async with self._store.transaction() as tx:
            deployment = await tx.deployment(name)
            replicas = tuple(await tx.replicas(name))
            if memory is None or memory.is_old(self._clock.now()):
                events = await tx.events(
                    kind=EventKind.REPLICA, deployment=name, limit=HISTORY_EVENTS, newest_first=True
                )
                breaker = breaker_from_history(events, deployment.plan.revision, deployment.generation)
                memory = Memory(breaker=breaker)
        return deployment, replicas, memory

    async def _ask(self, situation: Situation) -> Situation:
        """Probes and the gateway's live word, where they matter, all at the same time. A quiet tick asks nothing."""
        due, asks_gateway = replicas_to_probe(situation), needs_traffic(situation)
        assert len(due) <= PROBES_PER_TICK, "the pure part bounds them"
        if not due and not asks_gateway:
            return situation
        async with asyncio.TaskGroup() as group:
            traffic = group.create_task(self._ask_gateway(), name="ask-gateway") if asks_gateway else None
            probes = {
                replica.name: group.create_task(self._probe(situation, replica), name=f"probe-{replica.name}")
                for replica in due
            }
        now = self._clock.now()
        results = {name: probe.result() for name, probe in probes.items()}
        return replace(
            situation,
            traffic=traffic.result() if traffic is not None else situation.traffic,
            probes=results,
            memory=note_probes(situation.memory, results, now),
            now=now,
        )

    async def _ask_gateway(self) -> TrafficSighting:
        try:
            async with asyncio.timeout(TRAFFIC_DEADLINE.total_seconds()):
                return await self._traffic.servers()
        except TimeoutError:
            return TrafficUnseen(f"no answer within {TRAFFIC_DEADLINE.total_seconds():.0f}s")

    async def _probe(self, situation: Situation, replica: Replica) -> ProbeResult:
        try:
            async with asyncio.timeout(PROBE_DEADLINE.total_seconds()):
                return await self._engines.probe(replica, situation.deployment.plan.launch)
        except TimeoutError:
            detail = f"no answer to the probe within {PROBE_DEADLINE.total_seconds():.0f}s"
            return ProbeResult(verdict=ProbeVerdict.FAILED, detail=detail)

    async def _decide_and_reserve(self, situation: Situation, claim: Claim) -> ReplicaPlan:
        """Plan, lint and commit the rows that come first; again with a fresh ledger when a place was just taken."""
        told = situation.memory.holding
        conflict: ConflictError | None = None
        for _ in range(RESERVE_ATTEMPTS):
            plan = plan_replicas(situation)
            problems = lint_plan(situation, plan)
            if problems:
                message = f"the plan for {plan.deployment} breaks its own rules and is not carried out: "
                raise TerminalError(message + "; ".join(problems))
            try:
                await self._executor.write_ahead(plan, claim, told=told)
            except StaleClaimError:
                raise
            except ConflictError as error:
                conflict = error
            else:
                if any(isinstance(step, Reserve | Forget) for step in plan.steps):
                    self._fleets.drop()
                return plan
            self._fleets.drop()
            situation = _on_fleet(situation, await self._fleets.fleet())
        message = (
            f"GPUs or ports for {situation.deployment.name} were taken by others {RESERVE_ATTEMPTS} times: {conflict}"
        )
        raise RetryableError(message, after=BUSY_PAUSE)

    def _remember(self, situation: Situation, plan: ReplicaPlan, answers: Sequence[Answer]) -> None:
        memory, now = situation.memory, situation.now
        for step in plan.steps:
            if isinstance(step, Release | Terminate | Kill) and step.failed_start:
                memory = note_failed_start(memory, step.row, self._limits, now)
            if isinstance(step, Drain | Terminate) and step.reason is Reason.PORT_LOST:
                memory = self._note_lost_port(memory, step.row, situation)
        for answer in answers:
            memory = self._learn(memory, answer, situation, now)
        known = {**self._refused_ports, **memory.refused_ports}
        self._refused_ports = {place: until for place, until in known.items() if until > now}
        holding = frozenset(hold.reason for hold in plan.holds)
        self._memories[plan.deployment] = replace(memory, holding=holding, at=now)

    def _learn(self, memory: Memory, answer: Answer, situation: Situation, now: datetime) -> Memory:
        match answer.step:
            case Launch(pending_row=row) if isinstance(answer.launch, LaunchResult.Refused):
                if answer.launch.port_taken:
                    return self._note_lost_port(memory, row, situation)
                return note_failed_start(memory, row, self._limits, now)
            case Sleep(draining_row=row) if not answer.asleep:
                return note_sleep_refused(memory, row.name, now)
            case _:
                return memory

    def _note_lost_port(self, memory: Memory, row: Replica, situation: Situation) -> Memory:
        """A node that left the site has no ports to spare."""
        node = situation.nodes.get(row.node)
        if node is None:
            return memory
        return note_refused_port(memory, node.spec.address, row.port, self._limits, situation.now)


def _on_fleet(situation: Situation, fleet: Fleet) -> Situation:
    return replace(situation, nodes=fleet.nodes, ledger=fleet.ledger)


def _report(situation: Situation, plan: ReplicaPlan, answers: Sequence[Answer]) -> TickReport:
    troubles = [f"{answer.step.reason}: {answer.trouble}" for answer in answers if answer.trouble]
    moves = [f"{type(step).__name__.lower()} {step.sentence}" for step in plan.steps]
    port_taken = any(isinstance(a.launch, LaunchResult.Refused) and a.launch.port_taken for a in answers)
    in_motion = plan.changes or any(replica.phase in _IN_MOTION for replica in situation.replicas)
    return TickReport(
        sentence="; ".join([plan.sentence, *moves, *troubles]),
        changed=plan.changes,
        again_after=timedelta(0) if port_taken else BUSY_PAUSE if in_motion else None,
    )
