"""The collector under fake time: what is asked, what is kept, how readings age."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.selfmetrics import SelfMetrics
from controlplane.adapters.telemetry.collector import NODE_PERIOD, TelemetryCollector
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.domain.node import NodeSpec
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.site import TelemetrySpec
from controlplane.domain.store import Transaction
from controlplane.domain.telemetry import EngineSample, Fresh, GatewaySample, Missing, NodeSample, Stale
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.testing.builders import make_deployment, make_node_spec, make_replica
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.telemetry import make_engine_sample, make_node_sample

SECOND = timedelta(seconds=1)
NODE = NodeName("node-1")


class PlayedEngines:
    """An EngineSource that answers from a table; who is not in it has no answer."""

    def __init__(self) -> None:
        self.answers: dict[ReplicaName, EngineSample | Missing] = {}
        self.asked: list[str] = []

    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        self.asked = [target.url for target in targets]
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
        self.metrics = SelfMetrics(version="1")
        self.collector = TelemetryCollector(
            store=self.store,
            engines=self.engines,
            nodes=self.nodes,
            gateway=self.sample_gateway,
            clock=self.clock,
            spec=TelemetrySpec(),
            metrics=self.metrics,
        )

    async def sample_gateway(self) -> GatewaySample:
        if self.gateway_error is not None:
            raise self.gateway_error
        return GatewaySample(at=self.clock.now(), epoch="1", routes={}, servers={})

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
    await world.collector.round()
    assert isinstance(world.collector.snapshot().gateway, Fresh)
    world.gateway_error = RetryableError("its socket is gone")
    world.clock.jump(6 * SECOND)
    await world.collector.round()
    assert isinstance(world.collector.snapshot().gateway, Stale)
    world.clock.jump(60 * SECOND)
    assert world.collector.snapshot().gateway == Missing("last seen 66 s ago: its socket is gone")


async def test_a_programmers_error_is_not_swallowed() -> None:
    world = World()
    world.gateway_error = TypeError("a bug")
    with pytest.raises(ExceptionGroup):
        await world.collector.round()


async def test_rounds_show_in_our_own_metrics() -> None:
    world = World()
    await world.put(REPLICA, make_replica(ordinal=1, gpus=(1,), port=20001))
    world.answer(REPLICA)
    world.fail(make_replica(ordinal=1))
    await world.collector.round()
    page = world.metrics.render().decode()
    assert 'quarterdeck_scrape_targets{kind="engines",result="missing"} 1.0' in page
    assert 'quarterdeck_scrape_targets{kind="gateway",result="fresh"} 1.0' in page
    assert 'quarterdeck_replicas{deployment="chat",phase="ready"} 2.0' in page
    assert 'quarterdeck_nodes{state="unknown"} 1.0' in page
