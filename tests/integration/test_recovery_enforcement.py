"""Evidence and restores by hand, through the real workshop: what lies in the bucket is what the gate goes by."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.backup.restore_claims import CLAIM_LASTS, RestoreClaim
from controlplane.domain.dataset import Cadence, DatasetKind, DrillSpec, RecoverySpec
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Drill, Inventory, RiskyAction
from controlplane.kernel.errors import RetryableError
from controlplane.recovery.gate import Permission
from controlplane.recovery.ports import restoring_prefix
from controlplane.recovery.proofs import UNSEEN_MAX, WATCH_EVERY
from controlplane.recovery.standing import permission_now
from tests.integration.recovery_lab import BUCKET, DEADLINE_S, NAME, RecoveryLab, declare
from tests.integration.recovery_sources import fill

BY_HAND = DrillSpec(name="by hand", dataset=NAME, cadence=Cadence(every=timedelta(days=30)))


class ProvingLab(RecoveryLab):
    """Drills that are run by hand count as the declared one."""

    def declared(self) -> RecoverySpec:
        return replace(super().declared(), drills=(BY_HAND,))

    async def proven(self) -> Drill:
        await self.back_up()
        await self.look()
        return await self.drill()

    async def watch(self, after: timedelta = WATCH_EVERY) -> Inventory:
        self.fake_clock.jump(after)
        seen = await self.look()
        assert seen is not None
        return seen

    async def permission(self) -> Permission:
        async with self.rows.transaction() as tx:
            return await permission_now(tx, self.declared(), RiskyAction.DEPLOY, self.clock.now())

    async def told(self, reason: Reason) -> int:
        async with self.rows.transaction() as tx:
            return sum(one.event.reason is reason for one in await tx.events(limit=1000))


@pytest.fixture
def lab(tmp_path: Path) -> ProvingLab:
    path = tmp_path / "shop.sqlite3"
    fill(path, rows=20)
    return ProvingLab(tmp_path / "state", declare(DatasetKind.SQLITE, path))


async def test_evidence_is_verified_missed_and_found_again(lab: ProvingLab) -> None:
    drill = await lab.proven()
    assert drill.evidence_key is not None
    (seen,) = (await lab.watch()).evidence
    assert (seen.drill, seen.key, seen.problem) == (drill.drill, drill.evidence_key, "")
    assert seen.verified_at == lab.clock.now()
    assert (await lab.permission()).allowed

    bundle = lab.objects.peek(drill.evidence_key)
    lab.objects.delete(drill.evidence_key)
    assert (await lab.watch(WATCH_EVERY / 2)).evidence == (seen,), "not looked for so soon"
    (lost,) = (await lab.watch()).evidence
    assert lost.problem == f"{drill.evidence_key} is not in {BUCKET}"
    (reason,) = (await lab.permission()).reasons
    assert "is gone or does not verify" in reason
    await lab.watch()
    assert await lab.told(Reason.EVIDENCE_LOST) == 1

    lab.objects.put(drill.evidence_key, bundle)
    await lab.watch()
    assert (await lab.permission()).allowed
    assert await lab.told(Reason.EVIDENCE_FOUND) == 1


async def test_a_bucket_that_cannot_be_read_keeps_what_was_known_of_both(lab: ProvingLab) -> None:
    await lab.proven()
    known = await lab.watch()

    def silent(call: str) -> None:
        raise RetryableError(f"{call}: the bucket does not answer")

    lab.objects.trouble = silent
    seen = await lab.watch(UNSEEN_MAX)
    assert "does not answer" in seen.problem
    assert (seen.evidence, seen.watched_at, seen.points) == (known.evidence, known.watched_at, known.points)
    assert await lab.told(Reason.EVIDENCE_LOST) == 0
    assert "could not tell for more than" not in " ".join((await lab.permission()).reasons)
    lab.fake_clock.jump(timedelta(seconds=1))
    assert "could not tell for more than" in " ".join((await lab.permission()).reasons)


async def test_a_restore_elsewhere_is_seen_and_forgotten_when_it_is_killed(lab: ProvingLab) -> None:
    await lab.proven()
    await lab.watch()
    with RestoreClaim(lambda: lab.objects, NAME, now=lab.clock.now, on_problem=pytest.fail):
        give_up_at = time.monotonic() + DEADLINE_S
        while not list(lab.objects.objects(restoring_prefix(NAME))):
            assert time.monotonic() < give_up_at, "it does not announce itself"
            await asyncio.sleep(0.002)
        (seen,) = (await lab.watch()).restoring
        (reason,) = (await lab.permission()).reasons
        assert f"the restore {seen.name} is running" in reason
    assert (await lab.watch()).restoring == ()
    assert (await lab.permission()).allowed
    lab.objects.put(f"{restoring_prefix(NAME)}{seen.name}", b"{}")  # as of one that nobody ended
    assert (await lab.watch()).restoring == (replace(seen, until=lab.clock.now() - WATCH_EVERY + CLAIM_LASTS),)
    assert (await lab.watch(CLAIM_LASTS)).restoring == ()
    assert (await lab.permission()).allowed
    assert await lab.told(Reason.RESTORE_STARTED) == await lab.told(Reason.RESTORE_ENDED) == 2
