"""The end of everything that serves: requests first, then signals that grow firmer, then the rows with their usage."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from controlplane.bootstrap.shutdown import end_replicas
from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, Event
from controlplane.domain.reason import Reason
from controlplane.domain.telemetry import GatewaySample, RouteTraffic
from controlplane.kernel.errors import RetryableError
from controlplane.kernel.ids import DeploymentName, ReplicaName
from controlplane.metering.usage import holdings
from controlplane.replicas.ports import LaunchSpec
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec, make_template
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.launcher import Behaviour, FakeLauncher, FakeProcess
from controlplane.testing.memory_store import MemoryStore

STUBBORN = Behaviour(sigterms_lost=99)
DEAF_ONCE = Behaviour(sigterms_lost=1)


class HurryingClock(FakeClock):
    """Sleeping is moving on."""

    async def sleep(self, duration: timedelta) -> None:
        self.jump(duration)


@dataclass
class Requests:
    """The gateway's view: requests that are open until a moment."""

    clock: FakeClock
    until_s: float = 0.0
    silent: bool = False

    async def sample(self) -> GatewaySample:
        if self.silent:
            raise RetryableError("HAProxy does not answer")
        in_flight = 3 if self.clock.monotonic() < self.until_s else 0
        route = RouteTraffic(
            arrivals_total=9.0, in_flight=in_flight, queued=0, held=0, responses_5xx_total=0.0, servers_up=1
        )
        return GatewaySample(at=self.clock.now(), epoch="1", routes={DeploymentName("chat"): route}, servers={})


@dataclass
class World:
    """Two replicas behind a gateway."""

    clock: HurryingClock = field(default_factory=HurryingClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    signals: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.launcher = FakeLauncher(self.clock)
        self.launcher.on_signal = self._note
        self.gateway = Requests(self.clock)

    def _note(self, process: FakeProcess, signal: str) -> None:
        del process
        self.signals.append((signal, round(self.clock.monotonic(), 1)))

    async def begin(self) -> None:
        async with self.store.transaction() as tx:
            await tx.put_node_spec(make_node_spec())
            await tx.put_deployment_spec(make_spec(), make_plan(), START)
            for ordinal in (0, 1):
                await tx.put_replica(make_replica(ordinal=ordinal, gpus=(ordinal,), port=20000 + ordinal))
        for ordinal in (0, 1):
            replica = make_replica(ordinal=ordinal, gpus=(ordinal,), port=20000 + ordinal)
            await self.launcher.launch(
                LaunchSpec(
                    name=replica.name,
                    node=replica.node,
                    gpus=replica.gpus,
                    gpu_model="b200",
                    numa_domain=0,
                    port=replica.port,
                    template=make_template(),
                )
            )

    async def rows(self) -> list[ReplicaName]:
        async with self.store.transaction() as tx:
            return [replica.name for replica in await tx.replicas()]

    async def events(self) -> list[Event]:
        async with self.store.transaction() as tx:
            return list(await tx.events())


@pytest.fixture
async def world() -> World:
    world = World()
    await world.begin()
    return world


async def test_requests_in_flight_finish_first(world: World) -> None:
    world.gateway.until_s = 4.0
    await end_replicas(world)
    assert [signal for signal, _ in world.signals] == ["SIGTERM", "SIGTERM"]
    assert min(at_s for _, at_s in world.signals) >= 4.0
    assert world.launcher.processes == {}


async def test_requests_that_never_end_are_cut_after_the_grace(world: World) -> None:
    world.gateway.until_s = 10_000.0
    await end_replicas(world)
    assert all(10.0 <= at_s < 10.5 for _, at_s in world.signals)
    assert await world.rows() == []


async def test_a_gateway_that_is_silent_holds_nothing_up(world: World) -> None:
    world.gateway.silent = True
    await end_replicas(world)
    assert {at_s for _, at_s in world.signals} == {0.0}
    assert await world.rows() == []


async def test_a_lost_sigterm_is_sent_again(world: World) -> None:
    for process in world.launcher.processes.values():
        process.behaviour = DEAF_ONCE
    await end_replicas(world)
    assert [signal for signal, _ in world.signals] == ["SIGTERM"] * 4
    assert world.launcher.processes == {}
    assert world.clock.monotonic() < 10.0


async def test_what_ignores_sigterm_is_killed(world: World) -> None:
    for process in world.launcher.processes.values():
        process.behaviour = STUBBORN
    await end_replicas(world)
    assert [signal for signal, _ in world.signals][-2:] == ["SIGKILL", "SIGKILL"]
    assert world.launcher.processes == {}
    assert await world.rows() == []


async def test_the_rows_go_with_an_event_from_which_usage_is_computed(world: World) -> None:
    world.clock.jump(timedelta(hours=1))
    await end_replicas(world)
    assert await world.rows() == []
    events = await world.events()
    assert [event.event.reason for event in events] == [Reason.STOPPED] * 2
    assert all({key for key, _ in event.event.data} == {GPUS_KEY, HELD_SINCE_KEY} for event in events)
    spans = holdings((), events, world.clock.now())
    assert [(span.gpus, span.end - span.start >= timedelta(hours=1)) for span in spans] == [(1, True)] * 2


async def test_what_cannot_be_seen_is_signalled_all_the_same_and_its_row_stays(world: World) -> None:
    world.launcher.blind = "the list of processes could not be read"
    await end_replicas(world)
    assert {signal for signal, _ in world.signals} == {"SIGTERM"}
    assert world.launcher.processes == {}
    assert len(await world.rows()) == 2
    assert await world.events() == []
