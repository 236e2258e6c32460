"""The recovery loops are killed between any two of their effects, and faults come at seeded moments: they converge.

Real drivers under fake time. The checkers of the world run after every step: one copy of a dataset at a time, no
recovery point half visible, nothing deleted that must stay, every turn told once; at the end every drill has ended,
nothing is left in scratch and every RPO is met.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest

from controlplane.domain.dataset import (
    BucketSpec,
    Cadence,
    DatasetKind,
    DatasetSpec,
    DrillSelection,
    DrillSpec,
    RecoverySpec,
    RetentionPeriod,
    RetentionRule,
    WalMode,
)
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupPhase, DrillPhase
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.kernel.units import GIB
from controlplane.recovery.workshop import Broken
from controlplane.testing.effects import SeededRng
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_world import RecoveryWorld

SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
MAIN, FAR = BucketName("main"), BucketName("far")
NOTES, ORDERS = DatasetName("notes"), DatasetName("orders")
MOMENTS: Final = 160
"""At least as many as the scenario below has; checked by a test, so that no moment is left out."""
SHARDS: Final = 4
CONTROL_PLANES_MAX: Final = 3

HOURLY: Final = RetentionRule(period=RetentionPeriod.HOURLY, keep=timedelta(hours=2))
NOTES_SPEC: Final = DatasetSpec(
    name=NOTES,
    kind=DatasetKind.SQLITE,
    rpo=5 * MINUTE,
    rto=5 * MINUTE,
    cadence=Cadence(every=MINUTE),
    retention=(HOURLY,),
    buckets=(MAIN, FAR),
)
ORDERS_SPEC: Final = replace(NOTES_SPEC, name=ORDERS, kind=DatasetKind.POSTGRESQL, wal=WalMode.STREAMING)


def declared(*datasets: DatasetSpec, selection: DrillSelection = DrillSelection.LATEST) -> RecoverySpec:
    return RecoverySpec(
        buckets=(BucketSpec(name=MAIN, bucket="main"), BucketSpec(name=FAR, bucket="far")),
        datasets=datasets,
        drills=tuple(
            DrillSpec(
                name=f"{one.name}-often", dataset=one.name, cadence=Cadence(every=2 * MINUTE), selection=selection
            )
            for one in datasets
        ),
    )


async def scenario(kill_at: int | None) -> RecoveryWorld:
    """Copies into two buckets, a drill, deletions: every kind of effect at least once."""
    world = RecoveryWorld(MemoryStore(), declared(ORDERS_SPEC), seed=3, kill_at=kill_at)
    await world.begin()
    await world.run(150 * SECOND)
    await world.run_until_well()
    await world.stop()
    return world


async def test_the_scenario_without_a_kill_is_clean_and_no_longer_than_the_moments_tried() -> None:
    world = await scenario(None)
    assert world.broken == []
    reasons = {event.reason for event in await world.events()}
    assert reasons >= {
        Reason.BACKUP_STARTED, Reason.BACKUP_DONE, Reason.DRILL_STARTED, Reason.DRILL_PASSED,
        Reason.POINT_DELETED, Reason.LOG_STREAMING, Reason.LOG_REPLICATED,
    }  # fmt: skip
    assert {drill.phase for drill in await world.drills()} == {DrillPhase.PASSED}
    assert MOMENTS * 0.9 < world.moments <= MOMENTS


@pytest.mark.parametrize("shard", range(SHARDS))
async def test_killed_between_any_two_effects_it_converges(shard: int) -> None:
    for kill_at in range(1 + shard, MOMENTS + 1, SHARDS):
        world = await scenario(kill_at)
        assert world.broken == [], f"killed at moment {kill_at}"
        assert world.kills == 1 or kill_at > MOMENTS * 0.9
        assert world.site.scratch == {}, f"killed at moment {kill_at}"


@pytest.mark.parametrize("seed", range(16))
async def test_random_faults_kills_and_a_second_control_plane(seed: int) -> None:
    rng = SeededRng(seed)
    selection = rng.choice([DrillSelection.LATEST, DrillSelection.OLDEST, DrillSelection.RANDOM])
    world = RecoveryWorld(MemoryStore(), declared(NOTES_SPEC, ORDERS_SPEC, selection=selection), seed=seed)
    world.site.sources[ORDERS].increments = True
    living = [await world.begin()]
    for _ in range(30):
        await _one_fault(world, rng, living)
        await world.run(int(rng.uniform(1, 60)) * SECOND)
    _heal(world)
    await world.run_until_well()
    assert world.broken == [], f"seed {seed}"
    assert {run.phase for run in await world.runs()} >= {BackupPhase.DONE}
    assert world.kills > 0
    await world.stop()


async def test_work_that_is_handed_over_is_never_done_twice_at_once() -> None:
    """Another control plane joins while everything is under way: some of it changes hands."""
    names = [DatasetName(f"notes-{number}") for number in range(6)]
    world = RecoveryWorld(MemoryStore(), declared(*(replace(NOTES_SPEC, name=name) for name in names)))
    await world.begin()
    await world.run(90 * SECOND)
    for name in names:
        world.site.sources[name].copy_takes = world.site.sources[name].drill_takes = 2 * MINUTE
    await world.run(70 * SECOND)
    assert len(world.site.living_copies()) == len(names)
    await world.begin()
    await world.run(2 * MINUTE)
    lost = {event.subject for event in await world.events() if event.reason is Reason.BACKUP_LOST}
    assert 0 < len(lost) < len(names)
    _heal(world)
    await world.run_until_well()
    assert world.broken == []
    await world.stop()


async def _one_fault(world: RecoveryWorld, rng: SeededRng, living: list[str]) -> None:
    what = rng.choice(["kill", "kill", "join", "world", "world", "world", "world", "heal"])
    if what == "heal":
        _heal(world)
    elif what == "world":
        _misfortune(world, rng)
    elif what == "join" and len(living) < CONTROL_PLANES_MAX:
        living.append(await world.begin())
    else:
        name = rng.choice(living)
        living.remove(name)
        await world.kill(name)
        if not living:
            living.append(await world.begin())


def _misfortune(world: RecoveryWorld, rng: SeededRng) -> None:
    source, bucket = world.site.sources[rng.choice([NOTES, ORDERS])], world.site.buckets[rng.choice([MAIN, FAR])]
    match rng.choice(["copy", "bucket", "red", "restore", "stubborn", "log", "room", "slow", "slow"]):
        case "copy":
            source.refusal = "the source does not answer"
        case "bucket":
            bucket.problem = "the store does not answer"
        case "red":
            source.red = "found 3 rows, expected 4"
        case "restore":
            source.restore_breaks = Broken(sentence="the store answers 503", hopeless=rng.choice([True, False]))
        case "stubborn":
            source.stubborn = 5
        case "log":
            source.flows = source.follows = False
        case "room":
            world.site.scratch_room_bytes = 0
        case "slow":
            source.copy_takes = source.drill_takes = MINUTE


def _heal(world: RecoveryWorld) -> None:
    world.site.scratch_room_bytes = 1000 * GIB
    for bucket in world.site.buckets.values():
        bucket.problem = ""
    for source in world.site.sources.values():
        source.refusal, source.red, source.restore_breaks, source.stubborn, source.flows = "", "", None, 0, True
        source.follows = True
        source.copy_takes, source.drill_takes = 3 * SECOND, 4 * SECOND
