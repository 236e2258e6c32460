"""Cost per month: what lies there, and what will lie there once the retention is filled."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.dataset import Cadence, RetentionPeriod, RetentionRule, StorageClass
from controlplane.kernel.ids import BucketName
from controlplane.kernel.units import GIB, KIB, MIB
from controlplane.recovery.cost import (
    AWS_US_EAST_1,
    Cost,
    PriceTable,
    Volume,
    inventory_cost,
    restore_fee,
    steady_cost,
    steady_points,
)
from controlplane.recovery.retention import plan_retention
from controlplane.recovery.tiering import strictest
from controlplane.testing.recovery_points import BUCKET, DAILY, DAY, QUARTERLY, make_dataset, make_point

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
PRICES = AWS_US_EAST_1.classes


def line(cost: Cost, starts: str) -> float:
    (found,) = [one.per_month for one in cost.lines if one.what.startswith(starts)]
    return found


def test_storage_is_gibibytes_times_the_price_of_the_class() -> None:
    points = [make_point(NOW - age * DAY, plain_bytes=200 * GIB) for age in range(3)]
    cost = inventory_cost(
        [*points, make_point(NOW - 9 * DAY, plain_bytes=2 * GIB, storage_class=StorageClass.GLACIER_IR)]
    )
    assert line(cost, "3 points in STANDARD: 300.0 GiB") == pytest.approx(300 * 0.023)
    assert line(cost, "1 point in GLACIER_IR: 1.0 GiB") == pytest.approx(0.004)
    assert cost.sentence == "6.90 USD a month at us-east-1 prices of 2025-10-28"


def test_archives_add_forty_kib_an_object() -> None:
    point = make_point(plain_bytes=2 * GIB, storage_class=StorageClass.DEEP_ARCHIVE)
    cost = inventory_cost([point], pack_bytes=MIB)
    archived = (GIB + 1024 * 32 * KIB) * 0.00099 + 1024 * 8 * KIB * 0.023
    assert cost.per_month == pytest.approx(archived / GIB)
    assert "40.0 MiB of overhead" in cost.lines[0].what


@pytest.mark.parametrize("storage_class", [StorageClass.STANDARD_IA, StorageClass.GLACIER_IR])
def test_small_objects_are_billed_as_128_kib(storage_class: StorageClass) -> None:
    cost = inventory_cost([make_point(plain_bytes=2 * KIB, storage_class=storage_class)])
    assert cost.per_month == pytest.approx(128 * KIB / GIB * PRICES[storage_class].gib_month)


def test_a_point_on_its_way_between_classes_counts_as_the_dearer() -> None:
    moving = replace(make_point(), storage_classes=frozenset({StorageClass.GLACIER, StorageClass.STANDARD}))
    assert inventory_cost([moving]) == inventory_cost([make_point()])


def test_an_empty_bucket_costs_nothing() -> None:
    assert inventory_cost([]).per_month == 0.0


def test_restoring_has_its_fee() -> None:
    assert restore_fee(StorageClass.STANDARD, 100 * GIB) == 0.0
    assert restore_fee(StorageClass.GLACIER_IR, 100 * GIB) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("cadence", "rules"),
    [
        (Cadence(every=DAY), (DAILY, QUARTERLY)),
        (Cadence(cron="0 3 * * *"), (DAILY, QUARTERLY)),
        (Cadence(cron="0 3 * * 1-5"), (DAILY, QUARTERLY)),
        (Cadence(every=6 * HOUR), (DAILY, RetentionRule(period=RetentionPeriod.WEEKLY, keep=90 * DAY))),
        (Cadence(every=7 * DAY), (DAILY, RetentionRule(period=RetentionPeriod.YEARLY, keep=5 * 365 * DAY))),
        (Cadence(every=40 * DAY), (replace(DAILY, keep=200 * DAY), QUARTERLY)),
    ],
)
def test_the_steady_state_is_what_retention_leaves_of_a_full_history(
    cadence: Cadence, rules: tuple[RetentionRule, ...]
) -> None:
    """Against the plan itself, run over every occurrence of eight years."""
    spec = make_dataset(cadence=cadence, retention=rules)
    points = []
    moment = NOW
    for _ in range(8 * 366 * 4):
        taken_at = _last(cadence, moment)
        points.append(make_point(taken_at))
        moment = taken_at - timedelta(seconds=1)
        if NOW - moment > 8 * 366 * DAY:
            break
    expected: dict[StorageClass, int] = {}
    for kept in plan_retention(points, rules, NOW).kept:
        rule = strictest([keep.rule for keep in kept.reasons if keep.rule is not None], spec)
        assert rule is not None
        expected[rule.storage_class] = expected.get(rule.storage_class, 0) + 1
    assert steady_points(spec, NOW) == expected


def _last(cadence: Cadence, moment: datetime) -> datetime:
    """The occurrence at or before, by stepping rather than by the code under test."""
    if cadence.every is not None:
        steps = int(moment.timestamp() // cadence.every.total_seconds())
        return datetime.fromtimestamp(steps * cadence.every.total_seconds(), UTC)
    at = moment.replace(hour=3, minute=0, second=0, microsecond=0)
    if at > moment:
        at -= DAY
    while cadence.cron == "0 3 * * 1-5" and at.weekday() > 4:
        at -= DAY
    return at


def test_a_filled_retention_costs_its_parts() -> None:
    spec = make_dataset(retention=(DAILY, QUARTERLY))
    cost = steady_cost(spec, Volume(stored_bytes=100 * GIB, log_bytes_a_day=GIB), NOW)
    counts = steady_points(spec, NOW)
    assert counts[StorageClass.STANDARD] == 31
    assert line(cost, "31 points in STANDARD") == pytest.approx(31 * 100 * 0.023)
    assert line(cost, "28 points in GLACIER_IR") == pytest.approx(28 * 100 * 0.004)
    assert line(cost, "log of 30 d") == pytest.approx(30 * 0.023)
    assert line(cost, "requests of 30 backups") == pytest.approx(30.44 * 1601 / 1000 * 0.005, rel=0.01)
    assert line(cost, "moves into GLACIER_IR") == pytest.approx(1 / 3 * 1600 / 1000 * 0.02, rel=0.01)
    assert cost.notes == ()
    assert cost.per_month == pytest.approx(sum(one.per_month for one in cost.lines))


def test_what_is_deleted_before_its_minimum_is_billed_and_noted() -> None:
    cold = replace(DAILY, storage_class=StorageClass.GLACIER_IR)
    cost = steady_cost(make_dataset(retention=(cold,)), Volume(stored_bytes=GIB), NOW)
    # 30.44 points a month, each billed for 60 days that it does not stay.
    assert line(cost, "GLACIER_IR billed for at least 90 d") == pytest.approx(60 * 0.004, rel=0.01)
    assert cost.notes == ("the daily rule: 30 d in GLACIER_IR, billed for 90 d",)


def test_points_that_are_replaced_within_the_day_are_noted_too() -> None:
    cold = replace(DAILY, storage_class=StorageClass.STANDARD_IA)
    cost = steady_cost(make_dataset(cadence=Cadence(every=6 * HOUR), retention=(cold,)), Volume(stored_bytes=GIB), NOW)
    # Three of four a day, each billed for 30 days.
    assert line(cost, "STANDARD_IA billed for at least 30 d") == pytest.approx(3 * 30 * 0.0125, rel=0.01)


def test_each_bucket_costs_the_same_again() -> None:
    one = make_dataset()
    two = replace(one, buckets=(BUCKET, BucketName("far")))
    volume = Volume(stored_bytes=GIB)
    assert steady_cost(two, volume, NOW).per_month == pytest.approx(2 * steady_cost(one, volume, NOW).per_month)
    assert steady_cost(two, volume, NOW).notes[-1] == "times 2: one copy in each bucket"


def test_a_site_gives_its_own_prices() -> None:
    own = PriceTable(
        currency="EUR",
        region="cellar",
        as_of=AWS_US_EAST_1.as_of,
        source="our contract",
        classes={name: replace(price, gib_month=1.0) for name, price in PRICES.items()},
    )
    cost = inventory_cost([make_point(plain_bytes=2 * GIB)], prices=own)
    assert cost.sentence == "1.00 EUR a month at cellar prices of 2025-10-28"


def test_without_rules_there_is_no_steady_state() -> None:
    assert steady_points(make_dataset(retention=()), NOW) == {}
