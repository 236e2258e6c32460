"""The fleet loop on the store in memory: rows, events, claims, and changes by others in between."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.node import LEFT_SITE, Node, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.store import Claim
from controlplane.domain.telemetry import Fresh, Missing
from controlplane.fleet.reconciler import FleetReconciler
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, InstanceId, NodeName, PoolName
from controlplane.testing.builders import make_deployment, make_node_spec, make_replica
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.telemetry import FakeTelemetry, make_node_sample

NODE = NodeName("node-1")
HOLDER = InstanceId("one")


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.telemetry = FakeTelemetry(self.clock)
        self.loop = FleetReconciler(store=self.store, telemetry=self.telemetry, clock=self.clock)

    async def begin(self) -> Claim:
        async with self.store.transaction() as tx:
            await tx.put_node_spec(make_node_spec())
            claim = await tx.claim(
                "fleet/site",
                token=ClaimToken("token"),
                holder=HOLDER,
                now=START,
                expires_at=START + timedelta(hours=1),
            )
        assert claim is not None
        return claim

    async def node(self) -> Node | None:
        async with self.store.transaction() as tx:
            return next(iter(await tx.nodes()), None)

    async def reasons(self) -> list[Reason]:
        async with self.store.transaction() as tx:
            return [event.event.reason for event in await tx.events()]


async def test_seen_then_lost_then_seen_again() -> None:
    world = World()
    claim = await world.begin()
    assert await world.loop.resources() == ["site"]
    assert not (await world.loop.tick("site", claim)).changed

    world.telemetry.set_node(NODE, Fresh(make_node_sample()))
    report = await world.loop.tick("site", claim)
    assert report.changed
    assert report.sentence == "node-1 is in sight with 8 of 8 GPUs"
    node = await world.node()
    assert node is not None
    assert (node.state, node.seen_at) == (NodeState.READY, START)
    assert (await world.loop.tick("site", claim)).sentence == "every node is as it was"

    world.telemetry.set_node(NODE, Missing("refused"))
    world.clock.jump(timedelta(seconds=31))
    assert (await world.loop.tick("site", claim)).changed
    lost = await world.node()
    assert lost is not None
    assert lost.state is NodeState.UNKNOWN

    world.telemetry.set_node(NODE, Fresh(make_node_sample(world.clock.now())))
    await world.loop.tick("site", claim)
    assert await world.reasons() == [Reason.NODE_SEEN, Reason.NODE_LOST, Reason.NODE_SEEN]


async def test_without_the_claim_nothing_is_written() -> None:
    world = World()
    claim = await world.begin()
    world.telemetry.set_node(NODE, Fresh(make_node_sample()))
    with pytest.raises(StaleClaimError):
        await world.loop.tick("site", replace(claim, token=ClaimToken("another")))
    node = await world.node()
    assert node is not None
    assert node.state is NodeState.UNKNOWN


async def test_a_node_that_left_is_forgotten_once_empty() -> None:
    world = World()
    claim = await world.begin()
    deployment, replica = make_deployment(), make_replica()
    async with world.store.transaction() as tx:
        await tx.put_deployment_spec(deployment.spec, deployment.plan, START)
        await tx.put_replica(replica)
        await tx.set_node_state(NODE, NodeState.DRAINING, LEFT_SITE)
    assert not (await world.loop.tick("site", claim)).changed
    async with world.store.transaction() as tx:
        await tx.delete_replica(replica.name)
    assert (await world.loop.tick("site", claim)).changed
    assert await world.node() is None
    assert await world.reasons() == [Reason.REMOVED_FROM_SITE]


async def test_a_thousand_nodes_are_one_quiet_tick() -> None:
    world = World()
    claim = await world.begin()
    async with world.store.transaction() as tx:
        for number in range(1000):
            await tx.put_node_spec(replace(make_node_spec(f"n{number}"), pool=PoolName("b200")))
    for number in range(1000):
        world.telemetry.set_node(NodeName(f"n{number}"), Fresh(make_node_sample()))
    assert (await world.loop.tick("site", claim)).changed
    assert not (await world.loop.tick("site", claim)).changed
