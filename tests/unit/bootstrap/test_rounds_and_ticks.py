"""Beats, telemetry and the autoscaler's driver in fake time: each round of the gateway is followed by one tick."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.telemetry.collector import GLANCE_PERIOD, TelemetryCollector
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.autoscaler.reconciler import LOOP, AutoscalerReconciler
from controlplane.bootstrap.loops import AUTOSCALER_PACE, Beat, autoscaler_pace, gateway_after
from controlplane.domain.event import EventKind
from controlplane.domain.node import NodeSpec
from controlplane.domain.site import TelemetrySpec
from controlplane.domain.store import Claim
from controlplane.domain.telemetry import EngineSample, GatewaySample, Missing, NodeSample, RouteTraffic
from controlplane.kernel.ids import DeploymentName, InstanceId, NodeName, ReplicaName
from controlplane.runtime.driver import Driver
from controlplane.runtime.hints import HintBoard
from controlplane.runtime.reconciler import TickReport
from controlplane.testing.builders import make_deployment, make_node_spec, make_replica
from controlplane.testing.effects import START, CountingIds, FakeClock, SeededRng, settle
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.telemetry import make_engine_sample

SECOND = timedelta(seconds=1)
INTERVAL = SECOND
NAMES = ("chat", "code")
CALM_RPS, STEPPED_RPS = 20.0, 400.0
"""A replica of the builders' deployments carries somewhat more than the first, several are needed for the second."""


class Site:
    """One store, a gateway whose counters grow, an engine of each deployment that answers."""

    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), MemoryStore()
        self.step_at_s = float("inf")
        self.gateway_asked: list[float] = []
        self.ticked: list[tuple[str, float]] = []

    async def put(self) -> None:
        async with self.store.transaction() as tx:
            await tx.put_node_spec(make_node_spec())
            for number, name in enumerate(NAMES):
                made = make_deployment(name, replicas_max=8)
                await tx.put_deployment_spec(made.spec, made.plan, START)
                await tx.set_replicas_wanted(made.name, 1)
                await tx.put_replica(make_replica(name, gpus=(number,), port=20000 + number))

    async def arrivals(self) -> Mapping[DeploymentName, float]:
        now_s = self.clock.monotonic()
        stepped_s = max(now_s - self.step_at_s, 0.0)
        total = float(int(CALM_RPS * (now_s - stepped_s) + STEPPED_RPS * stepped_s))
        return dict.fromkeys(map(DeploymentName, NAMES), total)

    async def sample(self) -> GatewaySample:
        self.gateway_asked.append(self.clock.monotonic())
        routes = {
            name: RouteTraffic(
                arrivals_total=total, in_flight=1, queued=0, held=0, responses_5xx_total=0.0, servers_up=1
            )
            for name, total in (await self.arrivals()).items()
        }
        return GatewaySample(at=self.clock.now(), epoch="1", routes=routes, servers={})

    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        return {target.replica: make_engine_sample(self.clock.now()) for target in targets}

    async def nodes(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        return {spec.name: Missing("not asked here") for spec in specs}

    async def close(self) -> None: ...

    @asynccontextmanager
    async def control_plane(self, instance: str = "one", *, measures: bool = True) -> AsyncIterator[None]:
        """What `put_together` makes of these parts, without the rest of it."""
        hints = HintBoard(frozenset({LOOP, "replicas"}))
        telemetry = TelemetryCollector(
            store=self.store,
            engines=self,
            nodes=self,
            gateway=self.sample,
            clock=self.clock,
            spec=TelemetrySpec(interval=INTERVAL),
            arrivals=self.arrivals,
            on_gateway=lambda: hints.hint(LOOP),
        )
        driver = Driver(
            reconciler=Watched(self, telemetry, hints),
            pace=autoscaler_pace(INTERVAL),
            store=self.store,
            clock=self.clock,
            rng=SeededRng(1),
            ids=CountingIds(instance),
            instance=InstanceId(instance),
        )
        hints.subscribe(LOOP, driver.hint)
        beats = [
            Beat(body=telemetry.round, period=INTERVAL, clock=self.clock),
            Beat(
                body=telemetry.watch_gateway, period=GLANCE_PERIOD, clock=self.clock, after=gateway_after(INTERVAL)
            ),
        ]  # fmt: skip
        running = [driver.run(), *(beat.run() for beat in (beats if measures else ()))]
        tasks = [asyncio.create_task(each) for each in running]
        await settle()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def ticks_of(self, name: str, since_s: float = 0.0) -> list[float]:
        return [at_s for ticked, at_s in self.ticked if ticked == name and at_s >= since_s]


class Watched(AutoscalerReconciler):
    """Writes down when it was called."""

    def __init__(self, site: Site, telemetry: TelemetryCollector, hints: HintBoard) -> None:
        super().__init__(store=site.store, telemetry=telemetry, clock=site.clock, hints=hints)
        self._site = site

    async def tick(self, resource: str, claim: Claim) -> TickReport:
        self._site.ticked.append((resource, self._site.clock.monotonic()))
        return await super().tick(resource, claim)


async def test_a_round_is_followed_by_one_tick_at_once() -> None:
    site = Site()
    await site.put()
    async with site.control_plane():
        await site.clock.advance(30 * SECOND)
    rounds = [at_s for at_s in site.gateway_asked if at_s >= 1.0]
    assert len(rounds) == 29
    for name in NAMES:
        assert site.ticks_of(name, since_s=1.0) == rounds


async def test_without_rounds_it_ticks_by_itself() -> None:
    site = Site()
    await site.put()
    async with site.control_plane(measures=False):
        await site.clock.advance(10 * SECOND)
    assert site.ticks_of("chat") == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


async def test_two_control_planes_tick_no_more_than_one() -> None:
    site = Site()
    await site.put()
    async with site.control_plane("one"):
        await site.clock.advance(SECOND / 2)
        async with site.control_plane("two"):
            await site.clock.advance(30 * SECOND)
    for name in NAMES:
        ticks = site.ticks_of(name, since_s=10.0)
        assert 20 <= len(ticks) <= 21, "each is followed by one of them, at the pace of its own rounds"
        assert all(after - before == pytest.approx(1.0) for before, after in pairwise(ticks))


@pytest.mark.parametrize("phase_s", [0.0, 0.2, 0.3, 0.5, 0.7, 0.9])
async def test_a_step_is_decided_before_a_round_would_have_seen_it(phase_s: float) -> None:
    site = Site()
    await site.put()
    site.step_at_s = 60.0 + phase_s
    async with site.control_plane():
        await site.clock.advance(65 * SECOND)
    async with site.store.transaction() as tx:
        events = await tx.events(kind=EventKind.DECISION, deployment=DeploymentName("chat"))
    raised = [
        (event.event.at - START).total_seconds()
        for event in events
        if dict(event.event.data)["to"] > dict(event.event.data)["from"]  # type: ignore[operator]  # both are numbers
    ]
    after = [at_s for at_s in raised if at_s >= site.step_at_s]
    assert after, "it was decided"
    assert after[0] - site.step_at_s <= GLANCE_PERIOD.total_seconds() + AUTOSCALER_PACE.floor.total_seconds()


@given(st.timedeltas(timedelta(milliseconds=100), timedelta(minutes=5)))
def test_no_period_ends_before_the_next_round(interval: timedelta) -> None:
    assert autoscaler_pace(interval).period >= max(2 * interval, AUTOSCALER_PACE.period)
    assert timedelta(0) < gateway_after(interval) <= interval / 4
