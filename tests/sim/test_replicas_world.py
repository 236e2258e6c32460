"""The replica loop in a simulated world: scaling, rolling, idling and waking, each without a fault first."""

from dataclasses import replace

import pytest

from controlplane.domain.deployment import DeploymentSpec, IdleMode, Intent
from controlplane.domain.node import NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import ReplicaPhase
from controlplane.kernel.ids import DeploymentName, NodeName
from controlplane.testing.builders import make_node_spec, make_plan, make_spec
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.world import ReplicaWorld, with_revision

CHAT = DeploymentName("chat")


def chat_spec(*, sleeps: bool = False) -> DeploymentSpec:
    spec = make_spec("chat", replicas_min=0, replicas_max=12)
    return replace(spec, idle_mode=IdleMode.SLEEP if sleeps else IdleMode.STOP)


async def make_world(*, seed: int = 1, sleeps: bool = False) -> ReplicaWorld:
    world = ReplicaWorld(MemoryStore(), seed=seed)
    nodes = [make_node_spec("node-1"), make_node_spec("node-2")]
    await world.declare(nodes, [(chat_spec(sleeps=sleeps), make_plan("chat"))])
    return world


async def test_scales_up_spread_over_nodes_and_down_to_nothing() -> None:
    world = await make_world()
    await world.want(CHAT, 4)
    await world.settle()
    nodes = [row.node for row in await world.rows()]
    assert sorted(nodes) == ["node-1", "node-1", "node-2", "node-2"]
    await world.want(CHAT, 0)
    await world.settle()
    assert await world.rows() == ()
    assert world.launcher.processes == {}
    assert world.broken == []


async def test_a_roll_adds_before_it_removes() -> None:
    world = await make_world()
    await world.want(CHAT, 3)
    await world.settle()
    await world.roll(chat_spec(), with_revision(make_plan("chat"), "ffffffff"))
    await world.settle()
    assert {row.revision for row in await world.rows()} == {"ffffffff"}
    assert world.broken == []


async def test_the_last_replica_sleeps_and_is_woken_before_anything_is_launched() -> None:
    world = await make_world(sleeps=True)
    await world.want(CHAT, 2)
    await world.settle()
    await world.want(CHAT, 0)
    await world.settle()
    (sleeper,) = await world.rows()
    assert sleeper.phase is ReplicaPhase.SLEEPING
    assert world.launcher.processes[sleeper.name].asleep
    await world.want(CHAT, 1)
    await world.settle(steps_max=10)
    (woken,) = await world.rows()
    assert (woken.name, woken.phase) == (sleeper.name, ReplicaPhase.READY)
    assert world.broken == []


async def test_demand_that_returns_undrains_instead_of_launching() -> None:
    world = await make_world()
    await world.want(CHAT, 3)
    await world.settle()
    await world.steps(4)
    started = {name: process.started_at for name, process in world.launcher.processes.items()}
    for row in await world.rows():
        world.traffic.set_in_flight(f"127.0.0.1:{row.port}", 3)
    await world.want(CHAT, 1)
    await world.step()
    assert any(row.phase is ReplicaPhase.DRAINING for row in await world.rows())
    await world.want(CHAT, 3)
    await world.settle()
    assert {name: process.started_at for name, process in world.launcher.processes.items()} == started
    assert world.broken == []


@pytest.mark.parametrize("fault", ["crash", "hang", "orphans"])
async def test_a_lost_replica_is_replaced(fault: str) -> None:
    world = await make_world()
    await world.want(CHAT, 2)
    await world.settle()
    victim = world.launcher.processes[(await world.rows())[0].name]
    if fault == "hang":
        victim.hung = True
    else:
        victim.behaviour = replace(victim.behaviour, leaves_orphans=fault == "orphans")
        world.launcher.crash(victim.spec.name)
    await world.steps(2)
    await world.settle()
    assert all(process is not victim for process in world.launcher.processes.values())
    assert world.broken == []


async def test_paused_holds_even_what_died_and_resumes() -> None:
    world = await make_world()
    await world.want(CHAT, 2)
    await world.settle()
    await world.intend(CHAT, Intent(paused=True))
    world.launcher.crash((await world.rows())[0].name)
    await world.want(CHAT, 5)
    await world.steps(20)
    assert [row.phase for row in await world.rows()] == [ReplicaPhase.READY]
    await world.intend(CHAT, Intent())
    await world.settle()
    assert len(await world.rows()) == 5
    assert world.broken == []


async def test_blind_holds() -> None:
    world = await make_world()
    await world.want(CHAT, 2)
    await world.settle()
    world.launcher.blind = "squeue failed"
    await world.want(CHAT, 6)
    before = await world.rows()
    await world.steps(20)
    assert await world.rows() == before
    world.launcher.blind = None
    await world.settle()
    assert world.broken == []


async def test_a_draining_node_is_left_one_by_one_without_a_hold_that_means_nothing() -> None:
    world = await make_world()
    await world.want(CHAT, 4)
    await world.settle()
    async with world.store.transaction() as tx:
        (before,) = await tx.events(limit=1, newest_first=True)
        await tx.set_node_state(NodeName("node-1"), NodeState.DRAINING, "a person")
    await world.steps(200)
    assert [row.node for row in await world.rows()] == ["node-2"] * 4
    assert world.broken == []
    async with world.store.transaction() as tx:
        reasons = {event.event.reason for event in await tx.events(after=before.sequence)}
    assert Reason.NODE_DRAINED in reasons
    assert Reason.HOLD_MISSING_DATA not in reasons
