"""Storage classes against RTOs: what cannot be is refused, with the arithmetic and with what to change."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import (
    Cadence,
    DatasetKind,
    RetentionPeriod,
    RetentionRule,
    RetrievalTier,
    StorageClass,
    WalMode,
)
from controlplane.kernel.units import GIB, MIB
from controlplane.recovery.classes import CLASS_FACTS, guaranteed_tiers, retrieval_wait
from controlplane.recovery.feasibility import Feasibility, RuleFeasibility, judge_feasibility, rpo_problem
from controlplane.recovery.forecast import Load
from controlplane.recovery.rates import GUESSED_RATES, Line, Rates
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import DAY, make_dataset

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)

MEASURED = Rates(
    restore=Line(fixed_s=10.0, s_per_byte=1.0 / (200 * MIB), samples=5, sized=5),
    replay=Line(fixed_s=5.0, s_per_byte=1.0 / (50 * MIB), samples=5, sized=5),
    verify=Line(fixed_s=5.0, s_per_byte=1.0 / (400 * MIB), samples=5, sized=5),
    samples=5,
    scatter=0.1,
    sizes=(GIB, 100 * GIB),
)
"""100 GiB: 522 s + 5 s + 261 s = 13m08s; 1 TiB: 2h11m."""

FITS, REFUSED, UNPROVEN = Feasibility.FITS, Feasibility.REFUSED, Feasibility.UNPROVEN
BULK, STANDARD_TIER = RetrievalTier.BULK, RetrievalTier.STANDARD
INSTANT = (StorageClass.STANDARD, StorageClass.STANDARD_IA, StorageClass.GLACIER_IR)


def judge(storage_class: StorageClass, rto: timedelta, load: Load, rates: Rates = MEASURED) -> RuleFeasibility:
    rule = RetentionRule(period=RetentionPeriod.DAILY, keep=30 * DAY, storage_class=storage_class)
    (found,) = judge_feasibility(make_dataset(rto=rto, retention=(rule,)), load, rates)
    return found


@pytest.mark.parametrize("storage_class", INSTANT)
@pytest.mark.parametrize(
    ("gib", "log_gib", "rto", "verdict"),
    [
        (0, 0, MINUTE / 2, FITS),
        (0, 0, 19 * MINUTE / 60, REFUSED),
        (100, 0, 14 * MINUTE, FITS),
        (100, 0, 13 * MINUTE, REFUSED),
        (100, 100, 48 * MINUTE, FITS),
        (100, 100, 47 * MINUTE, REFUSED),
        (1024, 0, 4 * HOUR, FITS),
        (1024, 0, 2 * HOUR, REFUSED),
        (4096, 0, 4 * HOUR, REFUSED),
        (4096, 0, 9 * HOUR, FITS),
    ],
)
def test_classes_that_answer_at_once(
    storage_class: StorageClass, gib: int, log_gib: int, rto: timedelta, verdict: Feasibility
) -> None:
    found = judge(storage_class, rto, Load(plain_bytes=gib * GIB, log_bytes=log_gib * GIB))
    assert found.verdict is verdict
    assert found.tier is None


@pytest.mark.parametrize(
    ("storage_class", "gib", "rto", "verdict", "tier"),
    [
        (StorageClass.GLACIER, 0, MINUTE, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 0, 10 * MINUTE, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 0, 4 * HOUR, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 0, 5 * HOUR, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 0, 5 * HOUR + MINUTE, FITS, STANDARD_TIER),
        (StorageClass.GLACIER, 100, 5 * HOUR + 13 * MINUTE, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 100, 5 * HOUR + 14 * MINUTE, FITS, STANDARD_TIER),
        (StorageClass.GLACIER, 1024, 7 * HOUR, REFUSED, STANDARD_TIER),
        (StorageClass.GLACIER, 1024, 8 * HOUR, FITS, STANDARD_TIER),
        (StorageClass.GLACIER, 100, 12 * HOUR, FITS, STANDARD_TIER),
        (StorageClass.GLACIER, 100, 12 * HOUR + 14 * MINUTE, FITS, BULK),
        (StorageClass.GLACIER, 1024, 24 * HOUR, FITS, BULK),
        (StorageClass.DEEP_ARCHIVE, 0, 4 * HOUR, REFUSED, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 0, 12 * HOUR, REFUSED, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 0, 12 * HOUR + MINUTE, FITS, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 100, 12 * HOUR + 13 * MINUTE, REFUSED, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 100, 24 * HOUR, FITS, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 1024, 48 * HOUR, FITS, STANDARD_TIER),
        (StorageClass.DEEP_ARCHIVE, 1024, 51 * HOUR, FITS, BULK),
        (StorageClass.DEEP_ARCHIVE, 1024, 60 * HOUR, FITS, BULK),
    ],
)
def test_archives(
    storage_class: StorageClass, gib: int, rto: timedelta, verdict: Feasibility, tier: RetrievalTier
) -> None:
    found = judge(storage_class, rto, Load(plain_bytes=gib * GIB))
    assert (found.verdict, found.tier) == (verdict, tier)
    assert bool(found.problem) is (verdict is REFUSED)


@pytest.mark.parametrize(
    ("storage_class", "gib", "rto", "verdict"),
    [
        # The class alone decides: no drill has to measure anything.
        (StorageClass.GLACIER, 0, 4 * HOUR, REFUSED),
        (StorageClass.DEEP_ARCHIVE, 10, 12 * HOUR - MINUTE, REFUSED),
        # Only guesses say no.
        (StorageClass.STANDARD, 1024, HOUR, UNPROVEN),
        (StorageClass.GLACIER, 1024, 6 * HOUR, UNPROVEN),
        # Even the guesses, which are low, say yes.
        (StorageClass.STANDARD, 100, HOUR, FITS),
        (StorageClass.DEEP_ARCHIVE, 100, 13 * HOUR, FITS),
    ],
)
def test_before_the_first_drill(storage_class: StorageClass, gib: int, rto: timedelta, verdict: Feasibility) -> None:
    found = judge(storage_class, rto, Load(plain_bytes=gib * GIB), GUESSED_RATES)
    assert found.verdict is verdict
    assert ("quarterdeck drill run" in found.caution) is (verdict is UNPROVEN)


def test_a_rules_own_rto_counts_for_its_points() -> None:
    yearly = RetentionRule(
        period=RetentionPeriod.YEARLY, keep=10 * 365 * DAY, storage_class=StorageClass.DEEP_ARCHIVE, rto=24 * HOUR
    )
    spec = make_dataset(rto=4 * HOUR, retention=(yearly, replace(yearly, rto=None)))
    own, dataset = judge_feasibility(spec, Load(plain_bytes=GIB), MEASURED)
    assert (own.verdict, own.rto) == (FITS, 24 * HOUR)
    assert (dataset.verdict, dataset.rto) == (REFUSED, 4 * HOUR)


def test_a_refusal_says_the_arithmetic_and_what_to_change() -> None:
    found = judge(StorageClass.GLACIER, 4 * HOUR, Load(plain_bytes=100 * GIB))
    assert found.problem == (
        "orders, daily rule in GLACIER: retrieval from GLACIER 5h00m + fetch and restore 100.0 GiB 8m42s + start 5.0s "
        "+ verify 100.0 GiB 4m21s = 5h13m, more than the RTO of 4h00m. "
        "Keep it in STANDARD or STANDARD_IA or GLACIER_IR; or set rto of this rule to 5h15m or more"
    )
    assert found.lines[0] == "daily for 30 d in GLACIER"
    assert found.lines[-1] == "5h13m > RTO 4h00m: refused"
    assert len(found.lines) == 7


def test_where_no_class_helps_it_says_so() -> None:
    found = judge(StorageClass.STANDARD, MINUTE, Load(plain_bytes=100 * GIB))
    assert "no storage class holds this RTO" in found.problem
    assert "Set rto of this rule to 15m00s or more" in found.problem


def test_expedited_is_never_counted() -> None:
    for storage_class in StorageClass:
        assert RetrievalTier.EXPEDITED not in guaranteed_tiers(storage_class)
    assert retrieval_wait(StorageClass.GLACIER, RetrievalTier.EXPEDITED) == 5 * MINUTE
    assert retrieval_wait(StorageClass.DEEP_ARCHIVE, RetrievalTier.EXPEDITED) is None
    assert retrieval_wait(StorageClass.GLACIER_IR, RetrievalTier.STANDARD) == timedelta()


def test_colder_classes_wait_longer() -> None:
    ranks = [CLASS_FACTS[storage_class].rank for storage_class in StorageClass]
    assert ranks == sorted(ranks)
    for facts in CLASS_FACTS.values():
        waits = [wait for _, wait in facts.waits]
        assert waits == sorted(waits, reverse=True)


@pytest.mark.parametrize(
    ("cadence", "took", "says"),
    [
        (Cadence(every=6 * HOUR), timedelta(), None),
        (Cadence(every=23 * HOUR), 2 * HOUR, "up to 23h00m apart and take 2h00m, so 25h00m may be lost"),
        (Cadence(every=2 * DAY), timedelta(), "up to 48h00m apart"),
        (Cadence(cron="0 3 * * *"), timedelta(), None),
        (Cadence(cron="0 3 * * 1-5"), timedelta(), "up to 3 d apart"),
    ],
)
def test_snapshots_that_come_too_seldom_for_the_rpo(cadence: Cadence, took: timedelta, says: str | None) -> None:
    found = rpo_problem(make_dataset(rpo=DAY, cadence=cadence), START, backup_took=took)
    if says is None:
        assert found is None
    else:
        assert found is not None
        assert says in found
        assert "the RPO is 24h00m" in found


def test_a_log_holds_an_rpo_that_snapshots_cannot() -> None:
    seldom = make_dataset(rpo=MINUTE, cadence=Cadence(every=DAY))
    assert rpo_problem(seldom, START) is not None
    assert rpo_problem(replace(seldom, wal=WalMode.STREAMING), START) is None
    assert rpo_problem(replace(seldom, kind=DatasetKind.PGBACKREST), START) is None
