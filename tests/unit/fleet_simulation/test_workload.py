"""More or fewer of the same requests, and a part of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.kernel.errors import InvalidError
from controlplane.simulation.fleet.workload import JITTER_S, Workload, scaled, window, workload_of

HOUR_S = 3600.0


def bursty(seed: int, hours: int = 6, rate_rps: float = 3.0, burst_s: float = 30.0) -> Workload:
    """A rate that is drawn anew from an exponential every burst_s: an index of dispersion far above 1."""
    rng = np.random.default_rng(seed)
    blocks = int(hours * HOUR_S / burst_s)
    counts = rng.poisson(rng.exponential(rate_rps, blocks) * burst_s)
    arrival_s = np.repeat(np.arange(blocks) * burst_s, counts) + rng.random(counts.sum()) * burst_s
    lengths = rng.integers(1, 1000, len(arrival_s))
    return workload_of("bursty", arrival_s, lengths, lengths + 1, duration_s=hours * HOUR_S)


def counts(load: Workload, window_s: float) -> np.ndarray[Any, Any]:
    return np.histogram(load.arrival_s, np.arange(0.0, load.duration_s + window_s / 2.0, window_s))[0]


def dispersion(load: Workload, window_s: float) -> float:
    counted = counts(load, window_s)
    return float(counted.var() / counted.mean())


def variation(load: Workload, window_s: float) -> float:
    counted = counts(load, window_s)
    return float(counted.std() / counted.mean())


@pytest.mark.parametrize("factor", [1.0, 1.7, 4.0, 10.5])
def test_more_requests_keep_the_minutes_bursts(factor: float) -> None:
    load = bursty(1)
    more = scaled(load, factor, seed=2)
    assert more.requests == pytest.approx(factor * load.requests, rel=0.01)
    assert variation(more, 60.0) == pytest.approx(variation(load, 60.0), rel=0.03)
    assert dispersion(more, 60.0) == pytest.approx(factor * dispersion(load, 60.0), rel=0.06)
    assert np.corrcoef(counts(more, 60.0), counts(load, 60.0))[0, 1] > 0.97
    assert more.duration_s == load.duration_s


@pytest.mark.parametrize("factor", [0.05, 0.3, 0.8])
def test_fewer_requests_keep_the_rates_bursts(factor: float) -> None:
    """Thinning: the index of dispersion I becomes 1 + factor (I - 1)."""
    load = bursty(1)
    fewer = scaled(load, factor, seed=2)
    assert fewer.requests == pytest.approx(factor * load.requests, rel=0.05)
    assert dispersion(fewer, 60.0) == pytest.approx(1.0 + factor * (dispersion(load, 60.0) - 1.0), rel=0.15)


def test_a_request_keeps_its_pair_of_lengths() -> None:
    more = scaled(bursty(3), 2.5, seed=0)
    assert (more.output == more.prompt + 1).all()


def test_the_recorded_requests_stay_as_they_are_among_the_copies() -> None:
    load = bursty(4, hours=1)
    assert np.isin(load.arrival_s, scaled(load, 3.0, seed=9).arrival_s).all()


def test_copies_stay_near_their_request() -> None:
    load = workload_of("two", np.array([0.0, 500.0, 1000.0]), np.arange(1, 4), np.arange(1, 4), duration_s=1000.0)
    more = scaled(load, 50.0, seed=1)
    for request in range(3):
        mine = more.arrival_s[more.prompt == request + 1]
        assert len(mine) == 50
        assert np.abs(mine - load.arrival_s[request]).max() <= JITTER_S


def test_the_same_seed_scales_the_same_way() -> None:
    load = bursty(5, hours=1)
    for factor in (0.4, 3.3):
        one, same, other = scaled(load, factor, 1), scaled(load, factor, 1), scaled(load, factor, 2)
        assert one.arrival_s.tobytes() == same.arrival_s.tobytes()
        assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


def test_once_is_the_same_load() -> None:
    load = bursty(6, hours=1)
    same = scaled(load, 1.0, seed=3)
    assert same.name == load.name
    assert same.arrival_s.tobytes() == load.arrival_s.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40),
    factor=st.floats(1.0, 6.0),
    seed=st.integers(0, 5),
)
def test_whatever_grows_is_a_load(arrivals: list[float], factor: float, seed: int) -> None:
    """The load itself asserts order and bounds."""
    at_s = np.array(arrivals)
    ones = np.ones(len(at_s), dtype=np.int64)
    load = workload_of("any", at_s, ones, ones, duration_s=max(float(at_s.max()), 1.0))
    assert int(factor) * len(arrivals) <= scaled(load, factor, seed).requests <= (int(factor) + 1) * len(arrivals)


def test_nothing_left_is_told() -> None:
    ones = np.ones(1, dtype=np.int64)
    with pytest.raises(InvalidError, match="expected at least one"):
        scaled(workload_of("one", np.zeros(1), ones, ones, duration_s=1.0), 1e-9, seed=1)


def test_a_window_counts_from_its_start() -> None:
    load = workload_of("few", np.array([0.0, 1.0, 2.0, 3.0]), np.arange(1, 5), np.arange(1, 5), duration_s=3.0)
    part = window(load, 1.0, 2.5)
    assert part.arrival_s.tolist() == [0.0, 1.0]
    assert part.prompt.tolist() == [2, 3]
    assert part.duration_s == 1.5
    assert window(load, 1.0, float("inf")).prompt.tolist() == [2, 3, 4]


def test_windows_beside_each_other_share_nothing_and_miss_nothing() -> None:
    load = bursty(7, hours=1)
    parts = [window(load, start_s, start_s + 600.0) for start_s in np.arange(0.0, HOUR_S, 600.0)]
    assert sum(part.requests for part in parts) == load.requests


def test_a_load_out_of_order_is_a_programmers_error() -> None:
    ones = np.ones(2, dtype=np.int64)
    with pytest.raises(AssertionError, match="in order"):
        Workload(name="x", arrival_s=np.array([1.0, 0.0]), prompt=ones, output=ones, duration_s=2.0)
    with pytest.raises(AssertionError, match="end of the load"):
        Workload(name="x", arrival_s=np.array([0.0, 3.0]), prompt=ones, output=ones, duration_s=2.0)
