"""A person deletes a recovery point: judged by rows and bucket, marked, taken away, told; and retention goes on."""

from dataclasses import replace

import pytest

from controlplane.domain.reason import Reason
from controlplane.domain.recovery import BackupPhase, DrillPhase, RiskyAction
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, RetryableError
from controlplane.kernel.ids import PointId
from controlplane.recovery.deletions import Deletions, Stays
from controlplane.recovery.removals import Removals, RemovalWish
from controlplane.testing.recovery_points import BUCKET, DATASET, make_drill, make_point
from tests.unit.recovery.loops.bench import FAR, HOUR, MINUTE, ORDERS, Bench, site_of

UNSEEN = "what is not seen cannot be judged"
ROTTEN = "orders/points/x/manifest.json: is no JSON"


def removals(bench: Bench) -> Removals:
    return Removals(store=bench.store, workshop=bench.workshop, clock=bench.clock, declared=lambda: bench.site.declared)


async def rotten(bench: Bench) -> tuple[PointId, PointId, PointId]:
    """One beyond every rule, one that cannot be read, and the newest."""
    now = bench.clock.now()
    rows = [make_point(now - age) for age in (5 * HOUR, HOUR, MINUTE)]
    for row in rows:
        bench.site.put(ORDERS, BUCKET, row)
    bench.site.buckets[BUCKET].points[DATASET, rows[1].point].unreadable = ROTTEN
    await bench.look()
    return rows[0].point, rows[1].point, rows[2].point


def there(bench: Bench, bucket: str = BUCKET) -> list[PointId]:
    return [row.point for row in bench.site.rows(DATASET, bucket)]


async def test_what_holds_retention_is_deleted_and_retention_goes_on() -> None:
    bench = Bench()
    old, bad, newest = await rotten(bench)
    await bench.tick(bench.pruner)
    report = await bench.tick(bench.pruner)
    assert report.sentence == f"nothing is deleted: main: the inventory is not whole ({ROTTEN}): {UNSEEN}"
    assert there(bench) == [old, bad, newest]

    plan = await removals(bench).plan(RemovalWish(point=bad))
    assert (plan.allowed, plan.state) == (True, f"unreadable: {ROTTEN}")
    assert there(bench) == [old, bad, newest], "a plan deletes nothing"
    await removals(bench).remove(RemovalWish(point=bad), by="ada", reason="bit rot")

    assert there(bench) == [old, newest]
    (event,) = await bench.events(Reason.POINT_DELETED)
    assert event.sentence.startswith(f"main: {bad} deleted by ada: bit rot (it was unreadable: {ROTTEN}; ")
    assert [row.point for row in (await bench.inventory()).points] == [old, newest]
    await bench.look()
    assert not [one for one in await bench.events(Reason.POINT_DAMAGED) if "gone from" in one.sentence]
    await bench.tick(bench.pruner)
    await bench.tick(bench.pruner)
    assert there(bench) == [newest]


async def test_one_that_no_list_shows_is_found_in_the_bucket_of_its_dataset() -> None:
    bench = Bench()
    await rotten(bench)
    foreign = PointId("not-ours")
    bench.site.put(ORDERS, BUCKET, replace(make_point(bench.clock.now()), point=foreign))
    with pytest.raises(NotFoundError, match=r"there is no recovery point 'not-ours'.*add --dataset NAME"):
        await removals(bench).plan(RemovalWish(point=foreign))
    await removals(bench).remove(RemovalWish(point=foreign, dataset=DATASET), by="ada", reason="not ours")
    assert foreign not in there(bench)
    (event,) = await bench.events(Reason.POINT_DELETED)
    assert event.sentence.startswith(f"main: {foreign} deleted by ada: not ours"), "told, although no row was there"


async def test_what_a_drill_reads_or_a_copy_writes_stays() -> None:
    bench = Bench()
    old, bad, _ = await rotten(bench)
    await bench.put_drill(replace(make_drill(bench.clock.now(), phase=DrillPhase.RESTORING), point=old))
    with pytest.raises(ConflictError, match=r"stays in main: a drill restores it"):
        await removals(bench).remove(RemovalWish(point=old), by="ada", reason="x")
    run = await bench.ask_backup()
    async with bench.store.transaction() as tx:
        await tx.put_backup_run(replace(run, phase=BackupPhase.COPYING, point=bad))
    with pytest.raises(ConflictError, match=r"it is being written"):
        await removals(bench).remove(RemovalWish(point=bad), by="ada", reason="x")
    assert {old, bad} <= set(there(bench))


async def test_a_drill_that_chooses_it_at_the_last_moment_has_it() -> None:
    bench = Bench()
    old, _, _ = await rotten(bench)
    drill = replace(make_drill(bench.clock.now(), phase=DrillPhase.RESERVING), point=old)
    await bench.put_drill(drill)
    deletions = Deletions(store=bench.store, workshop=bench.workshop, clock=bench.clock)
    place = ORDERS, bench.site.declared.buckets[0]
    assert await deletions.delete(*place, old, "goes", claim=None) == Stays(why="")
    assert old in there(bench)
    assert not (await bench.inventory()).points[0].problems


async def test_a_promise_goes_with_a_name_to_it() -> None:
    bench = Bench()
    now = bench.clock.now()
    for age in (1.5 * HOUR, MINUTE):
        bench.site.put(ORDERS, BUCKET, make_point(now - age))
    await bench.look()
    promised = there(bench)[0]
    with pytest.raises(ConflictError, match=r"retention promises it: hourly rule.*recovery override retention"):
        await removals(bench).remove(RemovalWish(point=promised), by="ada", reason="x")
    await bench.override(RiskyAction.RETENTION, HOUR)
    plan = await removals(bench).remove(RemovalWish(point=promised), by="ada", reason="x")
    assert plan.situation.override is not None
    assert promised not in there(bench)
    (event,) = await bench.events(Reason.POINT_DELETED)
    assert "deleted by ada, over 1 objection: x (" in event.sentence


async def test_a_bucket_that_breaks_off_is_tried_again_with_the_same_command() -> None:
    bench = Bench()
    _, bad, _ = await rotten(bench)
    bench.site.buckets[BUCKET].problem = "503"
    with pytest.raises(RetryableError):
        await removals(bench).remove(RemovalWish(point=bad), by="ada", reason="x")
    bench.site.buckets[BUCKET].problem = ""
    assert await bench.events(Reason.POINT_DELETED) == []
    await removals(bench).remove(RemovalWish(point=bad), by="ada", reason="x")
    with pytest.raises(NotFoundError, match=r"there is no recovery point"):
        await removals(bench).remove(RemovalWish(point=bad), by="ada", reason="x")
    assert len(await bench.events(Reason.POINT_DELETED)) == 1


async def test_killed_between_manifest_and_packs_the_same_command_takes_the_rest() -> None:
    bench = Bench()
    _, bad, _ = await rotten(bench)
    bench.site.buckets[BUCKET].points[DATASET, bad].manifest = False
    await bench.look()
    plan = await removals(bench).remove(RemovalWish(point=bad, dataset=DATASET), by="ada", reason="x")
    assert plan.state == "unreadable: it has no manifest"
    assert bench.site.scraps() == []


async def test_of_two_buckets_one_is_named() -> None:
    bench = Bench(site_of(replace(ORDERS, buckets=(BUCKET, FAR))))
    old, _, _ = await rotten(bench)
    for age in (5 * HOUR, MINUTE):
        bench.site.put(ORDERS, FAR, make_point(bench.clock.now() - age, bucket=FAR))
    await bench.look()
    with pytest.raises(InvalidError, match=r"in 2 places: orders in far, orders in main|orders in main, orders in far"):
        await removals(bench).plan(RemovalWish(point=old))
    await removals(bench).remove(RemovalWish(point=old, bucket=FAR), by="ada", reason="x")
    assert old not in there(bench, FAR)
    assert old in there(bench)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (RemovalWish(point="x", dataset="order"), "did you mean 'orders'"),
        (RemovalWish(point="x", bucket="mian"), "did you mean 'main'"),
        (RemovalWish(point="x", dataset="orders"), "nothing of a recovery point x of orders lies in main"),
    ],
)
async def test_a_slip_is_answered_with_what_would_be_right(wish: RemovalWish, said: str) -> None:
    bench = Bench()
    await rotten(bench)
    with pytest.raises(NotFoundError, match=said):
        await removals(bench).plan(wish)


@pytest.mark.parametrize("point", ["", "a/b", "../x"])
async def test_a_name_that_would_be_another_place_is_none(point: str) -> None:
    with pytest.raises(InvalidError, match="a recovery point's name, without a slash"):
        await removals(Bench()).plan(RemovalWish(point=point, dataset=DATASET))
