"""The shell around the plan: what it remembers, tells, retries and refuses. On the in-memory store and fakes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.deployment import Intent
from controlplane.domain.event import Event
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.domain.store import Claim
from controlplane.kernel.errors import StaleClaimError
from controlplane.kernel.ids import ClaimToken, DeploymentName, InstanceId
from controlplane.replicas.limits import Limits
from controlplane.replicas.observation import FLEET_AGE_MAX, SIGHTING_AGE_MAX, FleetCache, ObservationCache
from controlplane.replicas.ports import Seen, Sighting, Unseen
from controlplane.replicas.reconciler import STRAYS, ReplicaReconciler
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import FakeClock
from controlplane.testing.launcher import Behaviour, FakeLauncher
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.world import NoHints, ReplicaWorld

CHAT, EMBED = DeploymentName("chat"), DeploymentName("embed")
CRASHING = Behaviour(crash_after=timedelta(seconds=1))


async def new_world(*, nodes: int = 1, gpus: int = 8, behaviour: Behaviour | None = None) -> ReplicaWorld:
    limits = Limits(breaker_pause=timedelta(seconds=20))
    world = ReplicaWorld(MemoryStore(), limits=limits, behave=lambda _: behaviour or Behaviour())
    specs = [make_spec(name, replicas_min=0, replicas_max=9) for name in ("chat", "embed")]
    fleet = [make_node_spec(f"node-{i}", gpus=gpus) for i in range(nodes)]
    await world.declare(fleet, [(spec, make_plan(spec.name)) for spec in specs])
    return world


async def events(world: ReplicaWorld, reason: Reason) -> list[Event]:
    async with world.store.transaction() as tx:
        return [event for event in await tx.events(limit=1000) if event.event.reason is reason]


def reconciler(world: ReplicaWorld, ports: Callable[[], tuple[int, int]] | None = None) -> ReplicaReconciler:
    return ReplicaReconciler(
        store=world.store,
        launcher=world.launcher,
        engines=world.engines,
        traffic=world.traffic,
        telemetry=world.telemetry,
        clock=world.clock,
        hints=NoHints(),
        ports=ports,
    )


async def claim_of(world: ReplicaWorld, resource: str, holder: str = "one") -> Claim:
    now = world.clock.now()
    async with world.store.transaction() as tx:
        claim = await tx.claim(
            f"replicas/{resource}",
            token=ClaimToken(f"{holder}-{resource}"),
            holder=InstanceId(holder),
            now=now,
            expires_at=now + timedelta(seconds=10),
        )
    assert claim is not None
    return claim


async def test_crash_loops_open_the_breaker_with_the_log_in_the_event_and_the_hold_told_once() -> None:
    world = await new_world(behaviour=CRASHING)
    await world.want(CHAT, 1)
    await world.steps(30)
    failed = await events(world, Reason.PROCESS_EXITED)
    assert len(failed) == 3
    assert "Traceback" in str(dict(failed[0].event.data)["log"])
    assert len(await events(world, Reason.BREAKER_OPEN)) == 1
    await world.steps(40)
    assert len(await events(world, Reason.PROCESS_EXITED)) == 4, "one trial after the pause"


async def test_an_open_breaker_survives_a_restart_and_a_persons_act_closes_it() -> None:
    world = await new_world(behaviour=CRASHING)
    await world.want(CHAT, 1)
    await world.steps(20)
    launches = len(await events(world, Reason.LAUNCHED))
    restarted = reconciler(world)
    await restarted.tick("chat", await claim_of(world, "chat", "sim"))
    assert len(await events(world, Reason.LAUNCHED)) == launches
    await world.intend(CHAT, Intent(paused=True))
    await world.intend(CHAT, Intent())
    await restarted.tick("chat", await claim_of(world, "chat", "sim"))
    assert len(await events(world, Reason.LAUNCHED)) == launches + 1


async def test_two_deployments_that_want_the_last_gpu_at_the_same_moment() -> None:
    world = await new_world(gpus=1)
    await world.want(CHAT, 1)
    await world.want(EMBED, 1)
    loop = reconciler(world)
    claims = [await claim_of(world, name) for name in ("chat", "embed")]
    reports = await asyncio.gather(loop.tick("chat", claims[0]), loop.tick("embed", claims[1]))
    assert len(await world.rows()) == 1
    assert len(await events(world, Reason.NO_CAPACITY)) == 1
    assert {report.changed for report in reports} == {True, False}


async def test_a_result_under_a_claim_that_passed_on_is_dropped() -> None:
    world = await new_world()
    await world.want(CHAT, 1)
    stale = await claim_of(world, "chat", "one")
    world.clock.jump(timedelta(seconds=11))
    await claim_of(world, "chat", "two")
    with pytest.raises(StaleClaimError):
        await reconciler(world).tick("chat", stale)
    assert await world.rows() == ()
    assert world.launcher.processes == {}


async def test_a_taken_port_is_avoided_at_the_next_try_and_is_no_failed_start() -> None:
    world = await new_world()
    world.launcher.foreign_ports = {20000, 20001}
    await world.want(CHAT, 1)
    await world.settle()
    (row,) = await world.rows()
    assert row.port == 20002
    refused = await events(world, Reason.LAUNCH_REFUSED)
    assert len(refused) == 2
    assert all("failed_start_revision" not in dict(event.event.data) for event in refused)


async def test_a_port_lost_while_the_engine_loads_is_told_and_the_next_start_takes_another() -> None:
    world = await new_world(behaviour=Behaviour(load=timedelta(seconds=5)))
    await world.want(CHAT, 1)
    await world.steps(4)
    world.launcher.foreign_ports = {20000}
    await world.settle()
    (row,) = await world.rows()
    assert row.port not in world.launcher.foreign_ports
    (lost,) = await events(world, Reason.PORT_LOST)
    assert "(stranger) listens on its port 20000" in lost.event.sentence
    assert await events(world, Reason.LAUNCH_REFUSED) == []
    assert world.broken == []


async def test_a_stranger_on_the_port_of_a_serving_replica_takes_it_out_of_service() -> None:
    world = await new_world()
    await world.want(CHAT, 2)
    await world.settle()
    world.launcher.foreign_ports = {20001}
    await world.steps(1)
    await world.settle()
    assert sorted(row.port for row in await world.rows()) == [20000, 20002]
    assert len(await events(world, Reason.PORT_LOST)) == 1
    assert world.broken == []


async def test_the_ports_of_the_present_site_are_used() -> None:
    world = await new_world()
    ports = (30000, 30009)
    await world.want(CHAT, 1)
    loop = reconciler(world, lambda: ports)
    await loop.tick("chat", await claim_of(world, "chat"))
    ports = (40000, 40009)
    await world.want(CHAT, 2)
    await loop.tick("chat", await claim_of(world, "chat"))
    assert sorted(row.port for row in await world.rows()) == [30000, 40000]


async def test_a_refused_launch_says_why_and_feeds_the_breaker() -> None:
    world = await new_world()
    world.launcher.refusal = "program 'vllm' was not found on PATH"
    await world.want(CHAT, 1)
    await world.steps(20)
    refused = await events(world, Reason.LAUNCH_REFUSED)
    assert len(refused) == 3
    assert "'vllm' was not found" in refused[0].event.sentence


async def test_a_cold_start_is_measured_from_the_launch() -> None:
    world = await new_world(behaviour=Behaviour(load=timedelta(seconds=5)))
    await world.want(CHAT, 1)
    await world.settle()
    (row,) = await world.rows()
    assert row.ready_at is not None
    assert row.launched_at is not None
    assert timedelta(seconds=5) <= row.ready_at - row.launched_at <= timedelta(seconds=6)


async def test_strays_are_stopped_after_a_grace_and_rows_keep_theirs() -> None:
    world = await new_world()
    await world.want(CHAT, 1)
    await world.settle()
    (row,) = await world.rows()
    async with world.store.transaction() as tx:
        await tx.delete_replica(row.name)
        await tx.set_replicas_wanted(CHAT, 0)
    await world.steps(20)
    assert row.name in world.launcher.processes
    await world.steps(20)
    assert world.launcher.processes == {}
    assert len(await events(world, Reason.STRAY)) == 1


async def test_resources_are_the_deployments_and_the_strays() -> None:
    world = await new_world()
    assert await reconciler(world).resources() == ["chat", "embed", STRAYS]


async def test_a_tick_reports_in_a_sentence_and_asks_to_come_again_while_something_is_on_its_way() -> None:
    world = await new_world()
    await world.want(CHAT, 1)
    loop = reconciler(world)
    report = await loop.tick("chat", await claim_of(world, "chat"))
    assert report.changed
    assert report.again_after is not None
    assert report.sentence.startswith(
        "0 of 1 ready; reserve 1 wanted, 0 there or on their way; launch started on node-0"
    )
    gone = await loop.tick("nobody", await claim_of(world, "nobody"))
    assert gone.sentence == "deployment nobody is gone"


async def test_an_idle_node_lost_and_found_changes_nothing() -> None:
    world = await new_world()
    await world.want(CHAT, 1)
    await world.settle()
    before = await world.rows()
    loop = reconciler(world)
    report = await loop.tick("chat", await claim_of(world, "chat", "sim"))
    assert (report.changed, report.again_after) == (False, None)
    assert await world.rows() == before


class CountingLauncher(FakeLauncher):
    looks = 0

    async def observe(self) -> Sighting:
        self.looks += 1
        return await super().observe()


async def test_a_look_is_shared_while_it_is_young_and_never_older_than_ones_own_act() -> None:
    clock = FakeClock()
    launcher = CountingLauncher(clock)
    cache = ObservationCache(launcher, clock)
    await asyncio.gather(*(cache.observe(not_before_s=float("-inf")) for _ in range(10)))
    assert launcher.looks == 1
    await cache.observe(not_before_s=clock.monotonic())
    assert launcher.looks == 2
    clock.jump(SIGHTING_AGE_MAX * 2)
    await cache.observe(not_before_s=float("-inf"))
    assert launcher.looks == 3


class StuckLauncher(FakeLauncher):
    async def observe(self) -> Sighting:
        await asyncio.Event().wait()
        return Seen({})


async def test_a_look_that_does_not_end_is_blindness() -> None:
    clock = FakeClock()
    cache = ObservationCache(StuckLauncher(clock), clock, deadline=timedelta(milliseconds=10))
    assert isinstance(await cache.observe(not_before_s=0.0), Unseen)


async def test_the_fleet_is_read_again_when_it_is_old_or_was_dropped() -> None:
    world = await new_world()
    cache = FleetCache(world.store, world.clock)
    first = await cache.fleet()
    assert await cache.fleet() is first
    async with world.store.transaction() as tx:
        await tx.put_replica(replace(make_replica(node="node-0"), phase=ReplicaPhase.PENDING))
    cache.drop()
    second = await cache.fleet()
    assert second.ledger.free_mask(make_node_spec("node-0").name) == 0b11111110
    world.clock.jump(FLEET_AGE_MAX * 2)
    assert await cache.fleet() is not second
