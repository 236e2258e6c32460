"""The collector under fake time: what is asked, what is kept, how readings age."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.telemetry.collector import GLANCE_PERIOD, NODE_PERIOD, TelemetryCollector
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.domain.node import NodeSpec
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.site import TelemetrySpec
from controlplane.domain.store import Transaction
from controlplane.domain.telemetry import (
    EngineSample,
    Fresh,
    GatewaySample,
    Missing,
    NodeSample,
    Reading,
    RouteTraffic,
    Stale,
)
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName, NodeName, ReplicaName
from controlplane.testing.builders import make_deployment, make_node_spec, make_replica
from controlplane.testing.effects import START, FakeClock, settle
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.telemetry import make_engine_sample, make_node_sample

SECOND = timedelta(seconds=1)
NODE = NodeName("node-1")
CHAT = DeploymentName("chat")


class PlayedEngines:
    """An EngineSource that answers from a table; who is not in it has no answer."""

    def __init__(self) -> None:
        self.answers: dict[ReplicaName, EngineSample | Missing] = {}
        self.asked: list[str] = []
        self.hang: asyncio.Event | None = None
        """Answers come once it is set."""

    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        self.asked = [target.url for target in targets]
        if self.hang is not None:
            await self.hang.wait()
        return {name: answer for name, answer in self.answers.items() if name in {one.replica for one in targets}}

    async def close(self) -> None:
        self.asked = []


class PlayedNodes:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rounds = 0

    async def nodes(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        self.rounds += 1
        return {spec.name: make_node_sample(self.clock.now()) for spec in specs}

    async def close(self) -> None: ...


class BrokenAtWill:
    """A store that refuses while it is told to."""

    def __init__(self) -> None:
        self.broken = False
        self._store = MemoryStore()

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        if self.broken:
            raise RetryableError("the database is locked")
        return self._store.transaction()

    async def close(self) -> None:
        await self._store.close()


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = BrokenAtWill()
        self.engines = PlayedEngines()
        self.nodes = PlayedNodes(self.clock)
        self.gateway_error: Exception | None = None
        self.arrivals = 0.0
        self.glances = 0
        self.told: list[Reading[GatewaySample]] = []
        self.metrics = SelfMetrics(version="1")
        self.collector = TelemetryCollector(
            store=self.store,
            engines=self.engines,
            nodes=self.nodes,
            gateway=self.sample_gateway,
            clock=self.clock,
            spec=TelemetrySpec(),
            metrics=self.metrics,
            arrivals=self.count_arrivals,
            on_gateway=lambda: self.told.append(self.collector.snapshot().gateway),
        )

    async def sample_gateway(self) -> GatewaySample:
        if self.gateway_error is not None:
            raise self.gateway_error
        return gateway_at(self.clock.now(), arrivals=self.arrivals)

    async def count_arrivals(self) -> Mapping[DeploymentName, float]:
        self.glances += 1
        if self.gateway_error is not None:
            raise self.gateway_error
        return {CHAT: self.arrivals}

    async def watch(self, seconds: float, *, arrivals: float) -> list[float]:
        """So many quarters of a second, with so many requests in each; seconds since the start of what was told."""
        told = []
        for _ in range(round(seconds * 4)):
            self.clock.jump(GLANCE_PERIOD)
            self.arrivals += arrivals
            before = len(self.told)
            await self.collector.watch_gateway()
            told += [self.clock.monotonic()] * (len(self.told) - before)
        return told

    async def put(self, *replicas: Replica) -> None:
        async with self.store.transaction() as tx:
            await tx.put_node_spec(make_node_spec())
            deployment = make_deployment()
            await tx.put_deployment_spec(deployment.spec, deployment.plan, START)
            for replica in replicas:
                await tx.put_replica(replica)

    async def drop(self, replica: Replica) -> None:
        async with self.store.transaction() as tx:
            await tx.delete_replica(replica.name)

    def answer(self, replica: Replica) -> None:
        self.engines.answers[replica.name] = make_engine_sample(self.clock.now())

    def fail(self, replica: Replica) -> None:
        self.engines.answers[replica.name] = Missing("refused")

    def reading(self, replica: Replica) -> object:
        return self.collector.snapshot().engines.get(replica.name)


REPLICA = make_replica()


def gateway_at(at: datetime, *, arrivals: float = 0.0) -> GatewaySample:
    route = RouteTraffic(arrivals_total=arrivals, in_flight=0, queued=0, held=0, responses_5xx_total=0.0, servers_up=1)
    return GatewaySample(at=at, epoch="1", routes={CHAT: route}, servers={})


async def test_only_engines_that_listen_are_asked_at_their_own_address() -> None:
    world = World()
    phases = list(ReplicaPhase)
    await world.put(
        *(make_replica(ordinal=at, phase=phase, gpus=(at,), port=20000 + at) for at, phase in enumerate(phases))
    )
    await world.collector.round()
    listening = {ReplicaPhase.READY, ReplicaPhase.DRAINING, ReplicaPhase.WAKING, ReplicaPhase.SLEEPING}
    expected = {f"http://127.0.0.1:{20000 + at}/metrics" for at, phase in enumerate(phases) if phase in listening}
    assert set(world.engines.asked) == expected


async def test_readings_age_by_the_clock_not_by_rounds() -> None:
    world = World()
    await world.put(REPLICA)
    world.answer(REPLICA)
    assert await world.collector.round() == "measured 1 of 1 engines and 1 of 1 nodes in 0ms"
    sample = make_engine_sample(START)
    assert world.reading(REPLICA) == Fresh(sample)
    world.clock.jump(5 * SECOND)
    assert world.reading(REPLICA) == Fresh(sample)
    world.clock.jump(SECOND)
    assert world.reading(REPLICA) == Stale(sample, 6 * SECOND)
    world.clock.jump(55 * SECOND)
    assert world.reading(REPLICA) == Missing("last seen 61 s ago")


async def test_a_failure_keeps_the_last_value_until_it_is_too_old() -> None:
    world = World()
    await world.put(REPLICA)
    world.answer(REPLICA)
    await world.collector.round()
    world.fail(REPLICA)
    world.clock.jump(2 * SECOND)
    assert "measured 0 of 1 engines" in await world.collector.round()
    assert isinstance(world.reading(REPLICA), Fresh)
    world.clock.jump(90 * SECOND)
    assert world.reading(REPLICA) == Missing("last seen 92 s ago: refused")


async def test_never_seen_is_missing_with_the_reason() -> None:
    world = World()
    await world.put(REPLICA)
    await world.collector.round()
    assert world.reading(REPLICA) == Missing("the source has no answer for it")
    world.fail(REPLICA)
    await world.collector.round()
    assert world.reading(REPLICA) == Missing("refused")


async def test_another_process_under_the_same_name_has_no_past() -> None:
    world = World()
    await world.put(REPLICA)
    world.answer(REPLICA)
    await world.collector.round()
    await world.put(replace(REPLICA, port=20500))
    world.fail(REPLICA)
    await world.collector.round()
    assert world.reading(REPLICA) == Missing("refused")


async def test_what_left_the_store_is_forgotten() -> None:
    world = World()
    await world.put(REPLICA)
    world.answer(REPLICA)
    await world.collector.round()
    await world.drop(REPLICA)
    await world.collector.round()
    assert world.reading(REPLICA) is None


async def test_a_store_that_fails_does_not_blind_the_loop() -> None:
    world = World()
    await world.put(REPLICA)
    world.answer(REPLICA)
    await world.collector.round()
    world.store.broken = True
    world.clock.jump(10 * SECOND)
    world.answer(REPLICA)
    sentence = await world.collector.round()
    assert "the store could not be read (the database is locked), so the targets are the last known" in sentence
    assert isinstance(world.reading(REPLICA), Fresh)


async def test_nodes_are_asked_at_their_own_pace() -> None:
    world = World()
    await world.put()
    for _ in range(4):
        await world.collector.round()
        world.clock.jump(NODE_PERIOD / 2)
    assert world.nodes.rounds == 2
    assert isinstance(world.collector.snapshot().nodes[NODE], Fresh)


async def test_the_gateway_is_a_reading_too() -> None:
    world = World()
    assert world.collector.snapshot().gateway == Missing("not asked yet")
    await world.collector.gateway_round()
    assert isinstance(world.collector.snapshot().gateway, Fresh)
    world.gateway_error = RetryableError("its socket is gone")
    world.clock.jump(6 * SECOND)
    await world.collector.gateway_round()
    assert isinstance(world.collector.snapshot().gateway, Stale)
    world.clock.jump(60 * SECOND)
    assert world.collector.snapshot().gateway == Missing("last seen 66 s ago: its socket is gone")


async def test_each_round_of_the_gateway_is_told_once_and_with_what_it_found() -> None:
    world = World()
    await world.collector.gateway_round()
    world.clock.jump(6 * SECOND)
    await world.collector.gateway_round()
    world.gateway_error = RetryableError("its socket is gone")
    world.clock.jump(6 * SECOND)
    await world.collector.gateway_round()
    await world.collector.round()
    first, second, third = world.told
    assert (first, second) == (Fresh(gateway_at(START)), Fresh(gateway_at(START + 6 * SECOND)))
    assert third == Stale(gateway_at(START + 6 * SECOND), 6 * SECOND), "no answer is news too"


async def test_an_engine_that_hangs_does_not_hold_up_the_gateway() -> None:
    world = World()
    await world.put(REPLICA)
    world.engines.hang = asyncio.Event()
    waiting = asyncio.create_task(world.collector.round())
    await settle()
    await world.collector.gateway_round()
    assert not waiting.done()
    assert world.told == [Fresh(gateway_at(START))]
    world.engines.hang.set()
    assert "measured 0 of 1 engines" in await waiting


async def test_a_calm_gateway_is_glanced_at_and_asked_once_an_interval() -> None:
    world = World()
    assert await world.watch(0.25, arrivals=5.0) == [0.25], "the first one at once"
    assert await world.watch(4.0, arrivals=5.0) == [1.25, 2.25, 3.25, 4.25]
    assert world.glances == 12


async def test_more_than_lately_is_told_at_once_and_rounds_go_on_as_before() -> None:
    world = World()
    await world.watch(4.25, arrivals=5.0)
    assert await world.watch(1.0, arrivals=20.0) == [4.5, 4.75, 5.25], "each time anew, as long as it is one"
    assert world.collector.snapshot().gateway == Fresh(
        gateway_at(START + timedelta(seconds=5.25), arrivals=world.arrivals)
    )


async def test_a_load_that_stays_is_soon_no_surprise() -> None:
    world = World()
    await world.watch(4.25, arrivals=5.0)
    await world.watch(20.0, arrivals=20.0)
    told = await world.watch(10.0, arrivals=20.0)
    assert len(told) == 10


async def test_a_gateway_that_does_not_answer_is_asked_again_in_the_next_round() -> None:
    world = World()
    await world.watch(2.25, arrivals=5.0)
    world.gateway_error = RetryableError("its socket is gone")
    assert await world.watch(2.0, arrivals=50.0) == [3.25, 4.25]


async def test_a_beat_that_is_a_little_early_or_very_late_misses_no_round() -> None:
    world = World()
    await world.collector.watch_gateway()
    for moment_s in (0.9, 2.1, 2.95, 7.5, 8.4):
        world.clock.jump(timedelta(seconds=moment_s - world.clock.monotonic()))
        await world.collector.watch_gateway()
    assert len(world.told) == 6


async def test_a_programmers_error_is_not_swallowed() -> None:
    world = World()
    world.gateway_error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        await world.collector.gateway_round()


async def test_rounds_show_in_our_own_metrics() -> None:
    world = World()
    await world.put(REPLICA, make_replica(ordinal=1, gpus=(1,), port=20001))
    world.answer(REPLICA)
    world.fail(make_replica(ordinal=1))
    await world.collector.round()
    await world.collector.gateway_round()
    page = world.metrics.render().decode()
    assert 'quarterdeck_scrape_targets{kind="engines",result="missing"} 1.0' in page
    assert 'quarterdeck_scrape_targets{kind="gateway",result="fresh"} 1.0' in page
    assert 'quarterdeck_replicas{deployment="chat",phase="ready"} 2.0' in page
    assert 'quarterdeck_nodes{state="unknown"} 1.0' in page
