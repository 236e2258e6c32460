"""Under the real drivers, killed on the way: nothing is deleted below a restore by hand that still renews its claim."""

from dataclasses import replace
from datetime import datetime
from typing import Final

import pytest

from controlplane.domain.reason import Reason
from controlplane.kernel.ids import DatasetName
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_world import RecoveryWorld
from tests.sim.test_recovery_loops import FAR, MAIN, MINUTE, NOTES, NOTES_SPEC, SECOND, declared

CLAIM: Final = (DatasetName(NOTES), "20260105T080000Z-db1-4711")
LASTS: Final = 5 * MINUTE
SEEN_WITHIN: Final = 90 * SECOND
"""Of a control plane that was killed as well: its claims have to run out first."""


async def deleted(world: RecoveryWorld) -> list[datetime]:
    return [event.at for event in await world.events() if event.reason is Reason.POINT_DELETED]


@pytest.mark.parametrize("bucket", [MAIN, FAR])
@pytest.mark.parametrize("killed", [False, True])
async def test_a_restore_holds_deletions_off_for_as_long_as_it_lives(bucket: str, *, killed: bool) -> None:
    short = replace(NOTES_SPEC, retention=tuple(replace(rule, keep=MINUTE) for rule in NOTES_SPEC.retention))
    world = RecoveryWorld(MemoryStore(), declared(short))
    name = await world.begin()
    await world.run(10 * MINUTE, step=5 * SECOND)
    before = await deleted(world)
    assert before, "copies come and go"

    begun_at, claims = world.clock.now(), world.site.buckets[bucket].claims
    for number in range(10):
        claims[CLAIM] = world.clock.now() + LASTS
        if killed and number % 3 == 1:
            await world.kill(name)
            name = await world.begin()
        await world.run(MINUTE, step=5 * SECOND)
    ended_at = world.clock.now()  # killed: it renews its claim no more, and nobody takes it away
    held = [at for at in await deleted(world) if begun_at + SEEN_WITHIN < at < ended_at]
    assert held == []

    await world.run(LASTS + 5 * MINUTE, step=5 * SECOND)
    assert any(at > ended_at + LASTS - MINUTE for at in await deleted(world)), "then they go on"
    told = [
        event.reason for event in await world.events() if event.reason in {Reason.RESTORE_STARTED, Reason.RESTORE_ENDED}
    ]
    assert told == [Reason.RESTORE_STARTED, Reason.RESTORE_ENDED]
    assert world.broken == []
    await world.stop()
