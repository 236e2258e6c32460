"""The replica loop is killed between any two of its effects, and faults come at seeded moments: it must converge.

The checkers of the world run after every step: no GPU or port used twice, capacity kept, nothing stopped with requests
in flight; at the end no process without a row and no row without a process.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest

from controlplane.domain.deployment import DeploymentSpec, IdleMode, ServingPlan
from controlplane.domain.replica import ReplicaPhase
from controlplane.kernel.ids import DeploymentName
from controlplane.replicas.limits import Limits
from controlplane.replicas.ports import LaunchSpec
from controlplane.testing.builders import make_node_spec, make_plan, make_spec
from controlplane.testing.effects import SeededRng
from controlplane.testing.launcher import Behaviour
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.world import ReplicaWorld, with_revision

CHAT: Final = DeploymentName("chat")
EMBED: Final = DeploymentName("embed")
MOMENTS: Final = 110
"""At least as many as the scenario below has; checked by a test, so that no moment is left out."""
SHARDS: Final = 4


def chat() -> tuple[DeploymentSpec, ServingPlan]:
    spec = replace(make_spec("chat", replicas_min=0, replicas_max=8), idle_mode=IdleMode.SLEEP)
    return spec, make_plan("chat", gpus=2)


async def scenario(kill_at: int | None) -> ReplicaWorld:
    """Up, a roll, down to asleep, awake, down again, removed from the site: every kind of effect at least once."""
    world = ReplicaWorld(MemoryStore(), seed=5, kill_at=kill_at)
    spec, plan = chat()
    await world.declare([make_node_spec("node-1")], [(spec, plan)])
    await world.want(CHAT, 2)
    await world.settle()
    await world.roll(spec, with_revision(plan, "ffffffff"))
    await world.settle()
    await world.want(CHAT, 0)
    await world.settle()
    assert [row.phase for row in await world.rows()] == [ReplicaPhase.SLEEPING]
    await world.want(CHAT, 1)
    await world.settle()
    async with world.store.transaction() as tx:
        await tx.mark_deployment_removed(CHAT)
    for _ in range(60):
        await world.step()
        if not await world.deployments():
            break
    return world


async def test_the_scenario_without_a_kill_is_clean_and_no_longer_than_the_moments_tried() -> None:
    world = await scenario(None)
    assert world.broken == []
    assert await world.deployments() == ()
    assert world.launcher.processes == {}
    assert MOMENTS * 0.5 < world.switch.moments <= MOMENTS


@pytest.mark.parametrize("shard", range(SHARDS))
async def test_killed_between_any_two_effects_it_converges(shard: int) -> None:
    for kill_at in range(1 + shard, MOMENTS + 1, SHARDS):
        world = await scenario(kill_at)
        assert world.broken == [], f"killed at moment {kill_at}"
        assert await world.deployments() == (), f"killed at moment {kill_at}"
        assert world.launcher.processes == {}, f"killed at moment {kill_at}"


@pytest.mark.parametrize("seed", range(16))
async def test_random_wishes_faults_and_kills(seed: int) -> None:
    rng = SeededRng(seed)

    def behave(spec: LaunchSpec) -> Behaviour:
        del spec
        return rng.choice(
            [
                Behaviour(),
                Behaviour(load=timedelta(seconds=20)),
                Behaviour(sigterms_lost=1),
                Behaviour(sigterms_lost=9),
                Behaviour(leaves_orphans=True),
                Behaviour(crash_after=timedelta(seconds=2)),
                Behaviour(crash_after=timedelta(seconds=90)),
                Behaviour(refuses_sleep=True),
            ]
        )

    limits = Limits(breaker_pause=timedelta(seconds=5), breaker_pause_max=timedelta(seconds=20))
    world = ReplicaWorld(MemoryStore(), seed=seed, kill_at=int(rng.uniform(5, 400)), limits=limits, behave=behave)
    spec, plan = chat()
    embed = replace(make_spec("embed", replicas_min=0, replicas_max=6))
    await world.declare(
        [make_node_spec("node-1"), make_node_spec("node-2", gpus=4)],
        [(spec, plan), (embed, make_plan("embed"))],
    )
    for turn in range(25):
        await world.want(CHAT, int(rng.uniform(0, 5)))
        await world.want(EMBED, int(rng.uniform(0, 6)))
        await _one_fault(world, rng)
        if turn % 8 == 7:
            await world.roll(spec, with_revision(plan, f"{turn:08x}"))
        await world.steps(int(rng.uniform(1, 40)))
    world.launcher.blind = None
    world.launcher.refusal = None
    world.traffic.unseen = None
    world.telemetry.out = False
    await world.want(CHAT, 2)
    await world.want(EMBED, 3)
    calm = Behaviour()
    await world.steps(400)
    for process in world.launcher.processes.values():
        process.behaviour = replace(calm, sigterms_lost=process.behaviour.sigterms_lost)
    rng = SeededRng(0)
    await world.settle(steps_max=1500)
    assert world.broken == [], f"seed {seed}"


async def _one_fault(world: ReplicaWorld, rng: SeededRng) -> None:
    kind = rng.choice(["none", "crash", "hang", "blind", "see", "gateway", "telemetry", "heal", "port", "refuse"])
    world.launcher.refusal = "no such program" if kind == "refuse" else None
    names = sorted(world.launcher.processes)
    if kind == "crash" and names:
        world.launcher.crash(rng.choice(names))
    elif kind == "hang" and names:
        world.launcher.processes[rng.choice(names)].hung = True
    elif kind in ("blind", "see"):
        world.launcher.blind = "no answer" if kind == "blind" else None
    elif kind == "port":
        world.launcher.foreign_ports = {int(rng.uniform(20000, 20006))}
    elif kind in ("gateway", "telemetry"):
        world.traffic.unseen = "socket gone" if kind == "gateway" else None
        world.telemetry.out = kind == "telemetry"
    else:
        world.traffic.unseen = None
        world.telemetry.out = False
