"""The loop that keeps logs flowing: it tells each turn once, through restarts and hand-overs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import DatasetKind, DatasetSpec
from controlplane.domain.reason import Reason
from controlplane.recovery.standing import judge_inventory
from controlplane.testing.recovery_points import BUCKET, DATASET
from tests.unit.recovery.loops.bench import FAR, ORDERS, SECOND, STREAMED, Bench, site_of

TOLD = (Reason.LOG_STREAMING, Reason.LOG_STALLED)


async def ticks(bench: Bench, count: int = 3) -> None:
    for _ in range(count):
        await bench.tick(bench.streams, after=2 * SECOND)


async def told(bench: Bench) -> list[Reason]:
    return [event.reason for event in await bench.events(*TOLD)]


async def test_flowing_stalled_flowing() -> None:
    bench = Bench(site_of(STREAMED))
    assert await bench.streams.resources() == ["orders"]
    await ticks(bench)
    assert await told(bench) == [Reason.LOG_STREAMING]
    bench.source.flows = False
    await ticks(bench)
    bench.source.flows = True
    await ticks(bench)
    assert await told(bench) == [Reason.LOG_STREAMING, Reason.LOG_STALLED, Reason.LOG_STREAMING]


async def test_a_restart_tells_nothing_that_was_told() -> None:
    bench = Bench(site_of(STREAMED))
    await ticks(bench)
    bench.restart()
    await ticks(bench)
    assert await told(bench) == [Reason.LOG_STREAMING]
    bench.restart()
    bench.source.flows = False
    await ticks(bench)
    assert await told(bench) == [Reason.LOG_STREAMING, Reason.LOG_STALLED]


async def test_the_newest_moment_that_the_log_covers_is_the_recovery_point() -> None:
    bench = Bench(site_of(STREAMED))
    await bench.copied()
    await ticks(bench, 30)
    await bench.look()
    coverage = (await bench.inventory()).coverage
    assert coverage is not None
    assert bench.clock.now() - coverage.covered_at <= 2 * SECOND
    bench.source.flows = False
    for _ in range(20):
        await ticks(bench, 15)
        await bench.look()
    assert [event.reason for event in await bench.events(Reason.RPO_AT_RISK)] == [Reason.RPO_AT_RISK]


async def test_nobody_asks_any_more_and_the_stream_ends() -> None:
    bench = Bench(site_of(STREAMED))
    await bench.copied()
    await ticks(bench)
    bench.clock.jump(timedelta(minutes=2))
    await bench.look()
    coverage = (await bench.inventory()).coverage
    assert coverage is not None
    assert bench.clock.now() - coverage.covered_at == pytest.approx(timedelta(seconds=105), abs=timedelta(seconds=2))


@pytest.mark.parametrize("dataset", [ORDERS, replace(STREAMED, kind=DatasetKind.PGBACKREST)])
async def test_a_dataset_without_a_log_of_ours_has_no_stream(dataset: DatasetSpec) -> None:
    bench = Bench(site_of(dataset))
    assert await bench.streams.resources() == []
    assert (await bench.tick(bench.streams)).sentence == "no longer declared"
    await bench.copied()
    assert (await bench.inventory(BUCKET)).coverage is None
    assert bench.site.logs.get(DATASET) is None


async def test_a_further_bucket_has_turns_of_its_own() -> None:
    bench = Bench(site_of(replace(STREAMED, buckets=(BUCKET, FAR))))
    further = (Reason.LOG_REPLICATED, Reason.LOG_NOT_REPLICATED)
    await ticks(bench)
    bench.source.follows = False
    await ticks(bench)
    bench.restart()
    await ticks(bench)
    bench.source.follows = True
    await ticks(bench)
    events = await bench.events(*further)
    assert [event.reason for event in events] == [
        Reason.LOG_REPLICATED, Reason.LOG_NOT_REPLICATED, Reason.LOG_REPLICATED,
    ]  # fmt: skip
    assert [event.sentence for event in events[:2]] == ["orders: far follows", "orders: far is away"]
    assert await told(bench) == [Reason.LOG_STREAMING], "the first bucket's stream has not turned"


async def test_each_bucket_has_the_age_of_its_own_log() -> None:
    bench = Bench(site_of(replace(STREAMED, buckets=(BUCKET, FAR))))
    await bench.copied()
    await ticks(bench, 10)
    bench.source.follows = False
    behind = bench.clock.now()
    await ticks(bench, 10)
    await bench.look()
    near, far = (await bench.inventory(BUCKET)).coverage, (await bench.inventory(FAR)).coverage
    assert near is not None
    assert far is not None
    assert near.covered_at > behind >= far.covered_at
    verdict = judge_inventory(STREAMED, await bench.inventory(FAR), bench.clock.now())
    assert verdict.bucket == FAR
    assert verdict.covered_at == far.covered_at
