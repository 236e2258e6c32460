"""The surveyor sees restores by hand and missing evidence: told once each, and the gate goes by them."""

from dataclasses import replace
from datetime import timedelta

from controlplane.domain.reason import Reason
from controlplane.domain.recovery import Drill, DrillPhase, RiskyAction
from controlplane.testing.recovery_points import BUCKET, DATASET
from tests.unit.recovery.loops.bench import DAILY_DRILL, FAR, HOUR, MINUTE, ORDERS, SECOND, Bench, site_of

CLAIM = timedelta(minutes=5)
NAME = "20260105T080000Z-db1-4711"


async def proven() -> Bench:
    """A copy, and a declared drill that passed with evidence."""
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR)), drills=(DAILY_DRILL,)))
    await bench.copied()
    await bench.drilled()
    await bench.look()
    assert (await bench.permission()).allowed, await bench.permission()
    return bench


async def evidence_of(bench: Bench) -> tuple[Drill, str]:
    (drill,) = await bench.all_drills()
    assert drill.evidence_key is not None
    return drill, drill.evidence_key


def restore_begins(bench: Bench, bucket: str = BUCKET) -> None:
    bench.site.buckets[bucket].claims[DATASET, NAME] = bench.clock.now() + CLAIM


async def test_a_restore_is_told_refuses_risky_work_and_ends() -> None:
    bench = await proven()
    restore_begins(bench, FAR)
    await bench.look()
    await bench.look()
    for action in RiskyAction:
        permission = await bench.permission(action)
        assert permission.reasons == (f"orders: the restore {NAME} is running; wait for it, or stop it",)
    (told,) = await bench.events(Reason.RESTORE_STARTED)
    assert told.sentence == f"orders is being restored from far ({NAME})"
    del bench.site.buckets[FAR].claims[DATASET, NAME]
    await bench.look()
    await bench.look()
    assert (await bench.permission()).allowed
    assert len(await bench.events(Reason.RESTORE_ENDED)) == 1


async def test_nothing_is_deleted_below_a_restore() -> None:
    bench = await proven()
    old = (await bench.inventory()).points[0].point
    for _ in range(3):
        bench.clock.jump(3 * HOUR)
        await bench.copied()
    restore_begins(bench)
    await bench.look()
    reports = [await bench.tick(bench.pruner, after=SECOND) for _ in range(3)]
    assert (
        reports[-1].sentence
        == f"nothing is deleted while orders: the restore {NAME} is running; wait for it, or stop it"
    )
    assert (DATASET, old) in bench.site.buckets[BUCKET].points


async def test_one_that_was_killed_counts_until_its_claim_runs_out_even_unseen() -> None:
    bench = await proven()
    restore_begins(bench)
    await bench.look()
    bench.clock.jump(CLAIM - SECOND)
    assert not (await bench.permission()).allowed
    bench.clock.jump(SECOND)
    assert not [reason for reason in (await bench.permission()).reasons if "restore" in reason]
    assert await bench.events(Reason.RESTORE_ENDED) == []
    await bench.look()
    assert len(await bench.events(Reason.RESTORE_ENDED)) == 1


async def test_evidence_that_vanishes_is_told_once_and_refuses_until_a_drill_passes_anew() -> None:
    bench = await proven()
    drill, key = await evidence_of(bench)
    kept = bench.site.evidence.pop(key)
    await bench.look()
    await bench.look()
    (reason,) = (await bench.permission()).reasons
    assert reason.endswith(
        f"its evidence is missing ({key} is gone or does not verify); run `quarterdeck drill run orders-daily`"
    )
    (told,) = await bench.events(Reason.EVIDENCE_LOST)
    assert key in told.sentence
    again = replace(
        drill, drill="again", phase=DrillPhase.PENDING, asked_at=bench.clock.now(), evidence_key=None, point=None
    )
    await bench.put_drill(again)
    assert (await bench.drilled()).phase is DrillPhase.PASSED
    await bench.look()
    assert (await bench.permission()).allowed
    bench.site.evidence[key] = kept
    await bench.look()
    assert await bench.events(Reason.EVIDENCE_FOUND) == [], "it is no longer the one that counts"


async def test_evidence_that_comes_back_is_told_too() -> None:
    bench = await proven()
    _, key = await evidence_of(bench)
    kept = bench.site.evidence.pop(key)
    await bench.look()
    bench.site.evidence[key] = kept
    await bench.look()
    await bench.look()
    assert len(await bench.events(Reason.EVIDENCE_FOUND)) == 1
    assert (await bench.permission()).allowed


async def test_a_bucket_that_does_not_answer_loses_no_evidence_and_ends_no_restore() -> None:
    bench = await proven()
    restore_begins(bench)
    await bench.look()
    bench.site.buckets[BUCKET].problem = "the store does not answer"
    bench.site.evidence.clear()
    bench.clock.jump(MINUTE)
    await bench.look()
    assert await bench.events(Reason.EVIDENCE_LOST, Reason.RESTORE_ENDED) == []
    row = await bench.inventory()
    assert [one.problem for one in row.evidence] == [""]
    assert [one.name for one in row.restoring] == [NAME]
    bench.site.buckets[BUCKET].problem = ""
    await bench.look()
    assert len(await bench.events(Reason.EVIDENCE_LOST)) == 1
