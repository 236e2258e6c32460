"""Rates learned from drills, and the forecasts that they give: within 15 % at sizes that were never drilled."""

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import StorageClass
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes
from controlplane.kernel.units import GIB, MIB
from controlplane.recovery.forecast import Forecast, forecast_rto
from controlplane.recovery.lineage import Chain
from controlplane.recovery.rates import GUESSED_RATES, SAMPLES_MAX, learn_rates
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import DAY, make_drill, make_point

HOUR_S = 3600.0


def true_times(plain_bytes: int, log_bytes: int = 0, *, off: float = 1.0, wait_s: float = 0.0) -> DrillTimes:
    """A machine with its own fixed costs and rates, `off` times slower than usual."""
    return DrillTimes(
        retrieval_wait_s=wait_s,
        fetch_and_restore_s=off * (1.5 + plain_bytes / (330 * MIB)),
        start_and_replay_s=off * (0.9 + log_bytes / (75 * MIB)),
        verify_s=off * (0.6 + plain_bytes / (210 * MIB)),
    )


def drilled(*sizes: int, seed: int = 1, noise: float = 0.04, log_bytes: int = 0) -> list[Drill]:
    """One a day, in the order given, each some per cent off."""
    rng = random.Random(seed)
    return [
        make_drill(
            START + age * DAY,
            plain_bytes=size,
            log_bytes=log_bytes,
            times=true_times(size, log_bytes, off=1.0 + rng.uniform(-noise, noise)),
        )
        for age, size in enumerate(sizes)
    ]


def forecast(drills: list[Drill], plain_bytes: int, *, log_bytes: int = 0) -> Forecast:
    chain = Chain(links=(make_point(plain_bytes=plain_bytes),))
    return forecast_rto(chain, learn_rates(drills), log_bytes=log_bytes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("plain_bytes", [128 * MIB, 2 * GIB, 40 * GIB])
def test_within_fifteen_per_cent_at_three_sizes(plain_bytes: int, seed: int) -> None:
    """Three sizes, none of them drilled; two or three drills of others."""
    found = forecast(drilled(64 * MIB, 8 * GIB, 512 * MIB, seed=seed), plain_bytes)
    truth_s = true_times(plain_bytes).rto_s
    assert abs(found.total_s / truth_s - 1.0) <= 0.15
    assert found.low_s <= truth_s <= found.high_s
    assert not found.guessed


@pytest.mark.parametrize("plain_bytes", [64 * MIB, 2 * GIB, 40 * GIB])
def test_one_drill_forecasts_its_own_size(plain_bytes: int) -> None:
    found = forecast(drilled(plain_bytes, noise=0.0), plain_bytes)
    assert found.total_s == pytest.approx(true_times(plain_bytes).rto_s, rel=0.02)


def test_one_drill_does_not_make_another_size_certain() -> None:
    found = forecast(drilled(2 * GIB), 64 * GIB)
    truth_s = true_times(64 * GIB).rto_s
    assert found.low_s <= truth_s <= found.high_s
    near = forecast(drilled(2 * GIB), 2 * GIB)
    assert found.high_s / found.low_s > near.high_s / near.low_s


def test_more_drills_narrow_the_band() -> None:
    few, many = drilled(GIB, 4 * GIB), drilled(*[GIB, 4 * GIB] * 8)
    wide, narrow = forecast(few, 2 * GIB), forecast(many, 2 * GIB)
    assert narrow.high_s / narrow.low_s < wide.high_s / wide.low_s < 2.0


def test_one_odd_drill_bends_nothing() -> None:
    good = drilled(GIB, 8 * GIB, 2 * GIB, 6 * GIB, GIB, 4 * GIB)
    odd = make_drill(START + 10 * DAY, plain_bytes=3 * GIB, times=true_times(3 * GIB, off=8.0))
    found = forecast([*good, odd], 5 * GIB)
    assert found.total_s == pytest.approx(true_times(5 * GIB).rto_s, rel=0.15)


def test_a_new_machine_is_learned_within_a_week() -> None:
    old = drilled(*[2 * GIB, 5 * GIB] * 8)
    now = [
        make_drill(START + (20 + age) * DAY, plain_bytes=size, times=true_times(size, off=0.5))
        for age, size in enumerate([2 * GIB, 5 * GIB] * 3)
    ]
    found = forecast([*old, *now], 4 * GIB)
    assert found.total_s == pytest.approx(true_times(4 * GIB, off=0.5).rto_s, rel=0.15)


def test_replay_is_learned_by_the_bytes_of_the_log() -> None:
    points, drills = [], []
    for age, log in enumerate((0, GIB, 256 * MIB)):
        point = make_point(START + age * DAY, plain_bytes=4 * GIB)
        points.append(point)
        drills.append(
            make_drill(
                START + age * DAY,
                plain_bytes=4 * GIB,
                log_bytes=log,
                point=point.point,
                times=true_times(4 * GIB, log),
            )
        )
    chain = Chain(links=(points[0],))
    found = forecast_rto(chain, learn_rates(drills, points), log_bytes=2 * GIB)
    assert found.total_s == pytest.approx(true_times(4 * GIB, 2 * GIB).rto_s, rel=0.1)
    assert "replay 2.0 GiB of log" in found.lines[1]


def test_a_log_that_no_drill_has_replayed_is_a_guess() -> None:
    drills = drilled(GIB, 4 * GIB)
    assert not forecast(drills, 2 * GIB).guessed
    with_log = forecast(drills, 2 * GIB, log_bytes=GIB)
    assert [part.guessed for part in with_log.parts] == [False, True, False]
    assert "a guess until a drill measures it" in with_log.lines[1]


def test_an_increment_costs_its_whole_chain() -> None:
    full = make_point(plain_bytes=8 * GIB)
    increment = make_point(START + DAY, parent=full.point, plain_bytes=GIB)
    rates = learn_rates(drilled(GIB, 9 * GIB))
    both = forecast_rto(Chain(links=(full, increment)), rates)
    assert both.total_s == pytest.approx(true_times(9 * GIB).rto_s, rel=0.1)


def test_waits_are_the_class_at_worst_until_a_drill_has_waited() -> None:
    frozen = Chain(links=(make_point(storage_class=StorageClass.GLACIER),))
    drills = drilled(2 * GIB, 4 * GIB)
    before = forecast_rto(frozen, learn_rates(drills))
    assert before.parts[0].duration_s == 5 * HOUR_S
    waited = make_drill(
        START + 9 * DAY, storage_class=StorageClass.GLACIER, times=true_times(2 * GIB, wait_s=3.7 * HOUR_S)
    )
    after = forecast_rto(frozen, learn_rates([*drills, waited]))
    assert after.parts[0].duration_s == 3.7 * HOUR_S
    assert after.total_s == pytest.approx(waited.times.rto_s, rel=0.1)
    elsewhere = forecast_rto(Chain(links=(make_point(storage_class=StorageClass.DEEP_ARCHIVE),)), learn_rates([waited]))
    assert elsewhere.parts[0].duration_s == 12 * HOUR_S


def test_a_chain_waits_for_its_coldest_link() -> None:
    full = make_point(storage_class=StorageClass.DEEP_ARCHIVE)
    increment = make_point(START + DAY, parent=full.point)
    assert forecast_rto(Chain(links=(full, increment)), GUESSED_RATES).parts[0].name == "retrieval from DEEP_ARCHIVE"


def test_before_the_first_drill_it_is_a_guess_and_says_so() -> None:
    failed = replace(make_drill(), phase=DrillPhase.FAILED)
    assert learn_rates([failed]) == GUESSED_RATES
    found = forecast([failed], GIB)
    assert found.guessed
    assert "partly guessed" in found.sentence
    assert all("a guess until a drill measures it" in line for line in found.lines[:-1])
    assert found.high_s / found.total_s == pytest.approx(3.0)


def test_drills_of_nothing_and_of_no_time_are_no_trouble() -> None:
    empty = [make_drill(START + age * DAY, plain_bytes=0, times=DrillTimes()) for age in range(3)]
    assert forecast(empty, 0).total_s < 1.0
    assert forecast(empty, GIB).total_s >= 0.0


def test_only_the_newest_count() -> None:
    many = drilled(*[2 * GIB] * (SAMPLES_MAX + 30))
    assert learn_rates(many).samples == SAMPLES_MAX
    ancient = make_drill(START - 9 * DAY, plain_bytes=2 * GIB, times=true_times(2 * GIB, off=99.0))
    assert learn_rates([ancient, *many]) == learn_rates(many)


def test_the_arithmetic_reads_like_arithmetic() -> None:
    lines = forecast(drilled(GIB, 4 * GIB, noise=0.0), 2 * GIB).lines
    assert [line[:34].rstrip() for line in lines] == [
        "fetch and restore 2.0 GiB",
        "start",
        "verify 2.0 GiB",
        "together",
    ]
    assert "measured by 2 drills" in lines[0]
    assert timedelta(seconds=forecast(drilled(GIB), 2 * GIB).total_s) > timedelta()
