"""Kubernetes' HPA and KEDA: the documented examples, the behaviour block, missing metrics."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.simulation.fleet.policy import Gauge
from controlplane.simulation.peers.behavior import DEFAULT_DOWN, DEFAULT_UP, Behavior, Direction, History, settle
from controlplane.simulation.peers.hpa import desired_for_pods, desired_for_total
from controlplane.simulation.peers.registry import make_peer
from tests.unit.peers.steady import FACTS, Steady, first, look, run, running

DEFAULT = Behavior(up=DEFAULT_UP, down=DEFAULT_DOWN)


@pytest.mark.parametrize(
    ("values", "missing", "current", "desired"),
    [
        ([200, 200, 200], 0, 3, 6),  # the documentation's example: 200 against 100 doubles
        ([50, 50, 50, 50], 0, 4, 2),  # 50 against 100 halves
        ([105, 105, 105], 0, 3, 3),  # within 10 %
        ([109, 109, 109], 0, 3, 3),
        ([111, 111, 111], 0, 3, 4),
        ([200, 200], 2, 4, 4),  # those that start count as idle: 400 over 4 is the target
        ([300, 300], 2, 4, 6),
        ([50, 50], 2, 4, 3),  # and as at the target before fewer are wanted: 300 over 4
        ([95, 95], 2, 4, 4),
        ([130, 130], 2, 4, 4),  # counted in, the ratio turns round: nothing is done
    ],
)
def test_from_the_pods_own_metrics(values: list[float], missing: int, current: int, desired: int) -> None:
    found = desired_for_pods(np.array(values, dtype=float), missing=missing, current=current, target=100, tolerance=0.1)
    assert found == desired


@pytest.mark.parametrize(("total", "current", "desired"), [(10.9, 2, 2), (12, 2, 3), (0, 2, 0), (9, 0, 2), (26, 2, 6)])
def test_from_a_total_by_average_value(total: float, current: int, desired: int) -> None:
    assert desired_for_total(total, current=current, target=5) == desired


def test_growth_is_limited_to_four_pods_or_double_within_a_period() -> None:
    assert settle(DEFAULT, History(), desired=50, seen=look(Steady(), wanted=2))[0] == 6
    assert settle(DEFAULT, History(), desired=50, seen=look(Steady(), wanted=10))[0] == 20
    wanted, history = settle(DEFAULT, History(), desired=50, seen=look(Steady(), wanted=10))
    assert settle(DEFAULT, history, desired=50, seen=look(Steady(), wanted=wanted, at_s=14))[0] == 20
    assert settle(DEFAULT, history, desired=50, seen=look(Steady(), wanted=wanted, at_s=15))[0] == 40


def test_down_waits_for_the_window_and_takes_the_most_within_it() -> None:
    wanted, history, fell = 8, History(), []
    for at_s in range(0, 400, 15):
        desired = 5 if at_s == 60 else 3
        now, history = settle(DEFAULT, history, desired=desired, seen=look(Steady(), wanted=wanted, at_s=float(at_s)))
        if now < wanted:
            fell.append((at_s, now))
        wanted = now
    assert fell == [(300, 5), (360, 3)]


def test_one_pod_in_two_minutes() -> None:
    behavior = Behavior(up=DEFAULT_UP, down=Direction(window_s=0, period_s=120, pods=1))
    wanted, history, fell = 8, History(), []
    for at_s in range(0, 480, 15):
        now, history = settle(behavior, history, desired=1, seen=look(Steady(), wanted=wanted, at_s=float(at_s)))
        if now < wanted:
            fell.append(at_s)
        wanted = now
    assert fell == [0, 120, 240, 360]


@given(
    wanted=st.integers(1, 200),
    asked=st.lists(st.integers(0, 1000), min_size=1, max_size=20),
    low=st.integers(0, 5),
    high=st.integers(5, 300),
)
def test_settling_stays_within_the_bounds_and_the_limits(wanted: int, asked: list[int], low: int, high: int) -> None:
    wanted, history = max(low, min(high, wanted)), History()
    for step, desired in enumerate(asked):
        seen = look(Steady(), wanted=wanted, at_s=15.0 * step, low=low, high=high)
        now, history = settle(DEFAULT, history, desired=desired, seen=seen)
        assert low <= now <= high
        assert now <= max(wanted + 4, 2 * wanted)
        assert len(history.recommendations) <= 21
        wanted = now


def test_on_running_requests() -> None:
    hpa = make_peer("hpa", FACTS)  # 80 % of 40 is 32 a pod
    assert first(hpa, look(running(64, 64, 64))) == 6
    assert first(hpa, look(running(33, 33, 33))) == 3
    assert first(hpa, look(running(64, 64), wanted=3, ready=2)) == 4
    counting = make_peer("hpa", FACTS, {"count_waiting": 1})
    queue = Steady(gauges={Gauge.RUNNING: [32, 32], Gauge.WAITING: [16, 16]})
    assert (first(hpa, look(queue, wanted=2)), first(counting, look(queue, wanted=2))) == (2, 3)


def test_on_kv_use() -> None:
    kv = make_peer("hpa-kv", FACTS)
    assert first(kv, look(Steady(gauges={Gauge.KV_USAGE: [0.95, 0.97]}), wanted=2)) == 3
    share = make_peer("hpa-kv", FACTS, {"target_share": 0.5})  # 40 x 4,500 of 316,000 tokens is 0.57; half is 0.285
    assert first(share, look(Steady(gauges={Gauge.KV_USAGE: [0.56, 0.56]}), wanted=2)) == 4


@pytest.mark.parametrize("metrics", [Steady(), running(math.nan, math.nan)])
def test_without_metrics_it_holds(metrics: Steady) -> None:
    assert run(make_peer("hpa", FACTS), metrics, wanted=5, until_s=900) == []


# -- KEDA -------------------------------------------------------------------------------------------------------------


def queue(*waiting: float) -> Steady:
    return Steady(gauges={Gauge.WAITING: waiting, Gauge.RUNNING: [10.0] * len(waiting)})


def test_keda_asks_for_a_pod_per_five_waiting() -> None:
    keda = make_peer("keda-queue", FACTS)
    assert first(keda, look(queue(12, 12), wanted=2)) == 5
    assert first(keda, look(queue(5, 5), wanted=2)) == 2


@pytest.mark.parametrize("metrics", [queue(0, 0, 0, 0), Steady()])
def test_keda_reads_no_queue_and_no_metrics_alike_and_sheds_after_the_window(metrics: Steady) -> None:
    changes = run(make_peer("keda-queue", FACTS), metrics, wanted=4, until_s=600)
    assert changes == [(300.0, 1)]


def test_keda_second_trigger_keeps_what_runs() -> None:
    keda = make_peer("keda-queue", FACTS, {"running_share": 0.75})
    assert run(keda, queue(0, 0, 0), wanted=3, until_s=600) == [(300.0, 1)]
    busy = Steady(gauges={Gauge.WAITING: [0, 0, 0], Gauge.RUNNING: [40, 40, 40]})
    assert first(keda, look(busy, wanted=3)) == 4


def test_keda_leaves_and_returns_to_zero() -> None:
    keda = make_peer("keda-queue", FACTS)
    idle = Steady(gauges={Gauge.WAITING: [0.0], Gauge.RUNNING: [0.0]})
    assert run(keda, idle, wanted=1, until_s=400, low=0) == [(300.0, 0)]
    assert first(keda, look(Steady(waiting_in_gateway=1), wanted=0, low=0)) == 1
    assert first(keda, look(Steady(waiting_in_gateway=0), wanted=0, low=0)) == 0
    _, memory = keda.decide(look(Steady(waiting_in_gateway=0), wanted=0, low=0), keda.start())
    soon = replace(look(Steady(waiting_in_gateway=1), wanted=0, low=0), at_s=15.0)
    assert keda.decide(soon, memory)[0] == 0, "it looks only every 30 s"
