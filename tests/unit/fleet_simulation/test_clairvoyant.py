"""The cheapest schedule, against every schedule there is on small loads."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.clairvoyant import Prices, Schedule, cheapest, needs, static_peak
from controlplane.simulation.fleet.compiled import Ints
from controlplane.simulation.fleet.ramps import LLM_D
from controlplane.simulation.fleet.workload import Workload, workload_of

BIN_S = 10.0


def least_of_all(needed: list[int], prices: Prices, replicas_min: int = 0) -> float:
    """The least GPU time over all schedules that change at the edges of bins, by dynamic programming.

    A state is how many are ready and how many asleep in a bin. A start costs its cold start and a wake-up its wake
    time more than a sleeper's, wherever they lie before the bin: what no schedule can do cheaper.
    """
    most = max([*needed, replicas_min])
    beds = 0 if prices.wake_s is None else most if prices.asleep_most is None else min(prices.asleep_most, most)
    states = [(ready, asleep) for ready in range(most + 1) for asleep in range(beds + 1)]
    least = dict.fromkeys(states, 0.0)
    for need in needed:
        after = {}
        for ready, asleep in states:
            if ready < max(need, replicas_min):
                continue
            held = BIN_S * (ready + prices.asleep_share * asleep)
            after[ready, asleep] = held + min(
                least[before] + cost for before in least for cost in moves(before, (ready, asleep), prices)
            )
        least = after
    return min(least.values())


def moves(before: tuple[int, int], after: tuple[int, int], prices: Prices) -> Iterator[float]:
    """What each way from one state to another costs: so many wake up, so many fall asleep, the rest starts or goes."""
    for woken, slept in product(range(before[1] + 1), range(before[0] + 1)):
        started = after[0] - (before[0] - slept + woken)
        if after[1] <= before[1] - woken + slept:
            waking = (prices.wake_s or 0.0) * (1.0 - prices.asleep_share)
            yield max(started, 0) * prices.cold_start_s + woken * waking


bins = st.lists(st.integers(0, 3), min_size=1, max_size=8)
times_s = st.sampled_from([0.0, 5.0, 10.0, 15.0, 20.0, 35.0, 60.0])


@settings(max_examples=150, deadline=None)
@given(needed=bins, cold_start_s=times_s, replicas_min=st.integers(0, 2))
def test_no_schedule_is_cheaper(needed: list[int], cold_start_s: float, replicas_min: int) -> None:
    prices = Prices(cold_start_s=cold_start_s)
    schedule = cheapest(np.array(needed), BIN_S, prices, replicas_min=replicas_min)
    assert schedule.replica_s == pytest.approx(least_of_all(needed, prices, replicas_min))
    holds(schedule, needed, prices, replicas_min)


@settings(max_examples=80, deadline=None)
@given(
    needed=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    cold_start_s=times_s,
    wake_s=times_s,
    asleep_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    asleep_most=st.sampled_from([None, 0, 1, 2]),
)
def test_no_schedule_is_cheaper_where_replicas_sleep(
    needed: list[int], cold_start_s: float, wake_s: float, asleep_share: float, asleep_most: int | None
) -> None:
    prices = Prices(cold_start_s=cold_start_s, wake_s=wake_s, asleep_share=asleep_share, asleep_most=asleep_most)
    schedule = cheapest(np.array(needed), BIN_S, prices)
    assert asleep_most is None or schedule.asleep.max() <= asleep_most
    assert schedule.replica_s == pytest.approx(least_of_all(needed, prices))
    holds(schedule, needed, prices, 0)


def holds(schedule: Schedule, needed: list[int], prices: Prices, replicas_min: int) -> None:
    """Followed as it is written, the schedule has enough ready replicas, and costs what it says."""
    edges_s = np.append(schedule.at_s, schedule.duration_s)
    lasting_s = np.diff(edges_s)
    cost_s = float(lasting_s @ schedule.wanted + prices.asleep_share * (lasting_s @ schedule.asleep))
    assert cost_s == pytest.approx(schedule.replica_s)
    assert schedule.at_s[0] == 0.0
    assert (lasting_s > 0.0).all()
    assert (schedule.wanted >= 0).all()
    assert (schedule.asleep >= 0).all()
    awake_for_s = min(prices.cold_start_s, prices.cold_start_s if prices.wake_s is None else prices.wake_s)
    for number, need in enumerate(needed):
        begin_s = number * BIN_S
        least = max(need, replicas_min)
        assert lowest(schedule, schedule.wanted, begin_s - awake_for_s, begin_s) >= least
        assert lowest(schedule, schedule.wanted + schedule.asleep, begin_s - prices.cold_start_s, begin_s) >= least
        assert lowest(schedule, schedule.wanted, begin_s, np.nextafter(begin_s + BIN_S, 0.0)) >= least


def lowest(schedule: Schedule, counts: Ints, from_s: float, to_s: float) -> int:
    """So many replicas are there all the time: before 0, those of 0."""
    first, last = np.searchsorted(schedule.at_s, [from_s, to_s], side="right")
    return int(counts[max(first - 1, 0) : last].min())


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_gap_shorter_than_a_start_is_kept_and_a_longer_one_is_not() -> None:
    needed = np.array([2, 1, 1, 2, 1, 1, 1, 1, 2])
    schedule = cheapest(needed, BIN_S, Prices(cold_start_s=25.0))
    assert schedule.at_s.tolist() == [0.0, 40.0, 55.0]
    assert schedule.wanted.tolist() == [2, 1, 2]
    assert schedule.starts == 1
    assert schedule.replica_s == 90.0 + 40.0 + 25.0 + 10.0


def test_a_start_is_ordered_a_cold_start_before_its_bin() -> None:
    schedule = cheapest(np.array([1, 1, 1, 3]), BIN_S, Prices(cold_start_s=12.0))
    assert schedule.at_s.tolist() == [0.0, 18.0]
    assert schedule.wanted.tolist() == [1, 3]
    assert [schedule.wanted_at(at_s) for at_s in (0.0, 17.9, 18.0, 39.0)] == [1, 1, 3, 3]


def test_sleep_is_the_middle_tier() -> None:
    """Gaps of 10 s, 50 s and 300 s: kept, asleep, and started anew."""
    needed = np.array([1, *[0] * 1, 1, *[0] * 5, 1, *[0] * 30, 1])
    prices = Prices(cold_start_s=100.0, wake_s=15.0, asleep_share=0.4)
    schedule = cheapest(needed, BIN_S, prices)
    assert schedule.at_s.tolist() == [0.0, 30.0, 65.0, 90.0, 290.0]
    assert schedule.wanted.tolist() == [1, 0, 1, 0, 1]
    assert schedule.asleep.tolist() == [0, 1, 0, 0, 0]
    assert (schedule.starts, schedule.wakes) == (1, 1)


def test_bounds() -> None:
    needed = np.array([0, 5, 0])
    schedule = cheapest(needed, BIN_S, Prices(cold_start_s=100.0), replicas_min=1, replicas_max=3)
    assert schedule.wanted.tolist() == [3, 1]
    assert schedule.unmet_replica_s == 20.0
    assert schedule.replica_s == 30.0 + 2 * 20.0
    nothing = cheapest(np.array([0, 0]), BIN_S, Prices(cold_start_s=5.0))
    assert (nothing.wanted.tolist(), nothing.replica_s, nothing.mean_replicas) == ([0], 0.0, 0.0)


def test_the_last_bin_may_be_cut_short() -> None:
    schedule = cheapest(np.array([1, 2]), BIN_S, Prices(cold_start_s=4.0), duration_s=13.0)
    assert schedule.replica_s == 13.0 + 4.0 + 3.0
    assert schedule.mean_replicas == pytest.approx(20.0 / 13.0)


def test_never_dearer_than_the_static_peak() -> None:
    needed = np.random.default_rng(1).integers(0, 40, 500)
    peak_s = static_peak(needed) * len(needed) * BIN_S
    for cold_start_s in (0.0, 5.0, 100.0, 1e9):
        schedule = cheapest(needed, BIN_S, Prices(cold_start_s=cold_start_s))
        assert needed.sum() * BIN_S <= schedule.replica_s <= peak_s
    assert cheapest(needed, BIN_S, Prices(cold_start_s=0.0)).replica_s == needed.sum() * BIN_S


# -- needs -------------------------------------------------------------------------------------------------------------


def load_of(*arrivals: float, duration_s: float) -> Workload:
    ones = np.ones(len(arrivals), dtype=np.int64)
    return workload_of("few", np.array(arrivals), ones, ones, duration_s=duration_s)


def test_a_bin_needs_what_arrives_in_it() -> None:
    load = load_of(0.0, 1.0, 2.0, 10.0, 29.0, 30.0, duration_s=30.0)
    assert needs(load, 0.1, BIN_S).tolist() == [3, 1, 2]
    assert needs(load, 0.2, BIN_S).tolist() == [2, 1, 1]
    assert needs(load, 10.0, BIN_S, replicas_min=2).tolist() == [2, 2, 2]


def test_a_heavy_request_weighs_more() -> None:
    load = load_of(0.0, 10.0, 11.0, duration_s=20.0)
    assert needs(load, 0.1, BIN_S, work=np.array([2.5, 0.5, 0.5])).tolist() == [3, 1]


def test_the_instant_that_ends_a_load_is_no_rush() -> None:
    assert needs(load_of(0.0, 10.0, 10.001, duration_s=10.001), 0.5, BIN_S).tolist() == [1, 1]


def test_llm_ds_ramp_at_its_knee() -> None:
    """The reference's own figure for this ramp, 4.48 replicas at 1.35 rps each with at least 3 and no lead."""
    steps = LLM_D.steps
    needed = np.concatenate(
        [np.full(int(step.duration_s // BIN_S), max(int(np.ceil(step.rate_rps / 1.35)), 3)) for step in steps]
    )
    assert needed.mean() == pytest.approx(4.48, abs=0.005)
    assert static_peak(needed) == 8
    schedule = cheapest(needed, BIN_S, Prices(cold_start_s=100.0), replicas_min=3)
    assert schedule.wanted.tolist() == [3, 5, 6, 8, 3]
    assert schedule.mean_replicas == pytest.approx(4.48 + 5 * 100.0 / 2430.0, abs=0.005)
