"""The loop: what it reads, what it tells, what it does when the gateway fails."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from controlplane.domain.event import NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.site import GatewaySpec
from controlplane.domain.store import Claim
from controlplane.gateway.reconciler import GatewayReconciler
from controlplane.kernel.errors import RetryableError, StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId
from controlplane.runtime.reconciler import TickReport
from controlplane.testing.builders import make_deployment, make_node_spec, make_replica
from controlplane.testing.effects import FakeClock
from controlplane.testing.gateway import FakeGateway
from controlplane.testing.memory_store import MemoryStore

CHAT = DeploymentName("chat")


@dataclass
class World:
    """A store with one deployment, a gateway, a loop."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    spec: GatewaySpec | None = field(default_factory=GatewaySpec)

    def __post_init__(self) -> None:
        self.gateway = FakeGateway(self.clock)
        self.loop = GatewayReconciler(self.store, self.gateway, self.clock, self._spec)

    async def _spec(self) -> GatewaySpec | None:
        return self.spec

    async def prepare(self) -> None:
        deployment = make_deployment()
        async with self.store.transaction() as tx:
            await tx.put_node_spec(make_node_spec("node-1"))
            await tx.put_deployment_spec(deployment.spec, deployment.plan, self.clock.now())

    async def put(self, ordinal: int, phase: ReplicaPhase) -> None:
        async with self.store.transaction() as tx:
            await tx.put_replica(make_replica(ordinal=ordinal, phase=phase, port=20000 + ordinal, gpus=(ordinal,)))

    async def claim(self) -> Claim:
        async with self.store.transaction() as tx:
            claim = await tx.claim(
                "gateway/site",
                token=ClaimToken("token"),
                holder=InstanceId("me"),
                now=self.clock.now(),
                expires_at=self.clock.now() + timedelta(seconds=15),
            )
        assert claim is not None
        return claim

    async def tick(self) -> TickReport:
        return await self.loop.tick("site", await self.claim())

    async def events(self) -> list[NewEvent]:
        async with self.store.transaction() as tx:
            return [event.event for event in await tx.events()]

    async def reasons(self) -> list[Reason]:
        return [event.reason for event in await self.events()]


@pytest.fixture
async def world() -> World:
    world = World()
    await world.prepare()
    return world


async def test_one_resource(world: World) -> None:
    assert world.loop.name == "gateway"
    assert await world.loop.resources() == ["site"]


async def test_starts_then_rests(world: World) -> None:
    first = await world.tick()
    assert first.changed
    assert first.sentence == "started; serves 1 deployment on 127.0.0.1:8000 with 0 replicas"
    second = await world.tick()
    assert not second.changed
    assert second.sentence == "nothing to do; serves 1 deployment on 127.0.0.1:8000 with 0 replicas"
    assert await world.reasons() == [Reason.GATEWAY_STARTED]


async def test_routes_follow_the_rows_without_events(world: World) -> None:
    await world.tick()
    await world.put(0, ReplicaPhase.READY)
    await world.put(1, ReplicaPhase.STARTING)
    report = await world.tick()
    assert report.sentence == "1 change; serves 1 deployment on 127.0.0.1:8000 with 1 replica"
    await world.put(0, ReplicaPhase.DRAINING)
    await world.put(1, ReplicaPhase.READY)
    await world.tick()
    report = await world.tick()
    assert report.sentence.endswith("with 1 replica, 1 draining")
    assert {e: s.state for e, s in (await world.gateway.sample()).servers.items()} == {
        "127.0.0.1:20000": "DRAIN",
        "127.0.0.1:20001": "UP",
    }
    assert await world.reasons() == [Reason.GATEWAY_STARTED]


async def test_looks_again_soon_while_a_drain_waits(world: World) -> None:
    await world.tick()
    await world.put(0, ReplicaPhase.READY)
    await world.tick()
    world.gateway.unhealthy.add("127.0.0.1:20001")
    await world.put(0, ReplicaPhase.DRAINING)
    await world.put(1, ReplicaPhase.READY)
    assert (await world.tick()).again_after == timedelta(milliseconds=250)
    world.gateway.unhealthy.clear()
    assert (await world.tick()).again_after is None


async def test_a_new_structure_is_told(world: World) -> None:
    await world.tick()
    world.spec = GatewaySpec(port=8001)
    report = await world.tick()
    assert report.sentence.startswith("reloaded without a dropped connection; ")
    assert await world.reasons() == [Reason.GATEWAY_STARTED, Reason.GATEWAY_RELOADED]


async def test_down_is_told_once_and_again_after_it_was_up(world: World) -> None:
    world.gateway.starts_refused = 2
    for _ in range(2):
        with pytest.raises(RetryableError):
            await world.tick()
    await world.tick()
    world.gateway.unreachable = True
    with pytest.raises(RetryableError):
        await world.tick()
    assert await world.reasons() == [Reason.GATEWAY_DOWN, Reason.GATEWAY_STARTED, Reason.GATEWAY_DOWN]
    assert "its port is taken" in (await world.events())[0].sentence


async def test_a_crash_is_followed_by_a_start(world: World) -> None:
    await world.tick()
    await world.put(0, ReplicaPhase.READY)
    await world.tick()
    world.gateway.crash()
    await world.tick()
    assert await world.reasons() == [Reason.GATEWAY_STARTED, Reason.GATEWAY_STARTED]
    assert set((await world.gateway.sample()).servers) == {"127.0.0.1:20000"}


async def test_no_site_yet(world: World) -> None:
    world.spec = None
    assert (await world.tick()).sentence == "no site is applied yet"


async def test_a_lost_claim_writes_nothing(world: World) -> None:
    claim = await world.claim()
    async with world.store.transaction() as tx:
        await tx.release_claim(claim.resource, claim.token)
    with pytest.raises(StaleClaimError):
        await world.loop.tick("site", claim)
    assert await world.events() == []
