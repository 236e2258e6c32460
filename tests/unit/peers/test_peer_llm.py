"""AIBrix, WVA and llm-d: their formulas by hand, their guards, and what they make of missing data."""

import math

import numpy as np
import pytest

from controlplane.simulation.fleet.policy import Counter, Gauge, Latency
from controlplane.simulation.peers.aibrix import Reading, apa, kpa
from controlplane.simulation.peers.llmd import PUBLISHED_RUN, bucketed, law
from controlplane.simulation.peers.registry import make_peer
from controlplane.simulation.peers.wva import Shape, WvaV1Policy, WvaV2Policy, derived_capacity
from tests.unit.peers.steady import FACTS, QWEN_32B, Steady, first, look, run

# -- AIBrix -----------------------------------------------------------------------------------------------------------


def kv(*values: float) -> Steady:
    return Steady(gauges={Gauge.KV_USAGE: values})


def reading(stable: float, *, panic: float | None = None, replicas: int = 4, ready: int | None = None) -> Reading:
    return Reading(
        stable=stable,
        panic=stable if panic is None else panic,
        replicas=replicas,
        ready=replicas if ready is None else ready,
        target=0.5,
    )


@pytest.mark.parametrize(
    ("stable", "wanted"),
    [
        (0.54, 4),  # 1.08: within the tolerance
        (0.46, 4),
        (0.60, 5),
        (0.95, 8),
        (1.9, 8),  # at most twice
        (0.40, 4),  # 3.2 rounds up
        (0.30, 3),
        (0.05, 2),  # at least half
    ],
)
def test_apa_within_tolerance_and_rate(stable: float, wanted: int) -> None:
    assert apa(reading(stable)) == wanted


def test_apa_counts_those_that_start() -> None:
    assert apa(reading(0.9, replicas=4, ready=2)) == 4, "0.9 on two is 0.45 on four"
    assert apa(reading(0.9, replicas=3, ready=2)) == 4
    assert apa(reading(0.1, replicas=4, ready=2)) == 3, "(0.1 x 2 + 0.5 x 2) / 0.5 rounds up to 3"


def test_kpa_adds_pods_up_and_panics_on_a_doubling() -> None:
    assert kpa(reading(0.6)) == 5
    assert kpa(reading(0.2)) == 2
    assert kpa(reading(0.2, panic=0.41)) == 4, "panic: the larger, and not below what runs"
    assert kpa(reading(0.3, panic=0.9)) == 8


def test_aibrix_waits_for_its_cooldown_only_downwards() -> None:
    assert run(make_peer("aibrix-apa", FACTS), kv(0.9), wanted=1, until_s=100)[0] == (0.0, 2)
    policy = make_peer("aibrix-apa", FACTS, {"stable_window_s": 10})
    wanted, memory = policy.decide(look(kv(0.5, 0.5, 0.5, 0.5), wanted=4), policy.start())
    for at_s in range(10, 400, 10):
        wanted, memory = policy.decide(look(kv(0.1, 0.1, 0.1, 0.1), wanted=4, at_s=float(at_s)), memory)
        if wanted < 4:
            break
    assert (wanted, at_s) == (2, 300)
    hasty = make_peer("aibrix-apa", FACTS, {"cooldown_s": 0})
    assert first(hasty, look(kv(0.1, 0.1, 0.1, 0.1), wanted=4)) == 2


@pytest.mark.parametrize("name", ["aibrix-apa", "aibrix-kpa"])
def test_aibrix_holds_without_pods_to_read(name: str) -> None:
    assert run(make_peer(name, FACTS), Steady(), wanted=3, until_s=900) == []


# -- WVA --------------------------------------------------------------------------------------------------------------


def v2(**knobs: float) -> WvaV2Policy:
    policy = make_peer("wva-v2", FACTS, knobs)
    assert isinstance(policy, WvaV2Policy)
    return policy


@pytest.mark.parametrize(
    ("demand", "ready", "starting", "change"),
    [
        (170_000, 2, 0, 0),  # 0.85 of 200,000 is just enough
        (171_000, 2, 0, 1),
        (340_000, 2, 0, 2),
        (340_000, 2, 2, 0),  # those that start count
        (140_000, 2, 0, 0),  # 0.70: nothing to spare
        (70_000, 2, 0, -1),
        (69_000, 4, 0, -3),
        (150_000, 2, 0, 0),  # between both
    ],
)
def test_v2_by_hand_at_100000_tokens_per_replica(demand: float, ready: int, starting: int, change: int) -> None:
    assert v2().change(demand=demand, capacity=100_000, ready=ready, starting=starting) == change


def test_v2_capacity_from_the_arguments() -> None:
    # B O / (I + O) = 8192 x 1000 / 5000 = 1638 sequences, but 63 at most: 63 x (4000 + 500).
    assert derived_capacity(QWEN_32B, Shape(prompt=4000, output=1000)) == 283_500
    assert derived_capacity(QWEN_32B, Shape(prompt=4000, output=0)) == 0


def load(*pairs: tuple[float, float]) -> Steady:
    """(KV use, waiting) by replica."""
    return Steady(gauges={Gauge.KV_USAGE: [use for use, _ in pairs], Gauge.WAITING: [wait for _, wait in pairs]})


def test_v2_learns_the_capacity_of_a_replica_with_a_queue() -> None:
    policy = v2(window_s=0)
    # k1 = 252,800; the arguments allow 283,500: 252,800 counts. 2 x 158,000 / 0.85 = 371,765 <= 505,600.
    assert first(policy, look(load((0.5, 0), (0.5, 0)), wanted=2)) == 2
    # With queues of 5 at 158,000 tokens that is the capacity: (316,000 + 10 x 4,000) / 0.85 - 316,000 asks for 1.
    wanted, memory = policy.decide(look(load((0.5, 5), (0.5, 5)), wanted=2), policy.start())
    assert (wanted, memory.observed) == (3, ((2, (158_000.0, 158_000.0)),))
    # And is remembered when the queues are gone.
    assert policy.decide(look(load((0.5, 0), (0.5, 0)), wanted=2, at_s=60), memory)[0] == 3


def test_v2_measures_the_request_and_counts_the_gateway() -> None:
    rates = {Counter.STARTED: 1.0, Counter.FINISHED: 1.0, Counter.PROMPT_TOKENS: 8000.0, Counter.OUTPUT_TOKENS: 50.0}
    held = Steady(gauges={Gauge.KV_USAGE: [0.5], Gauge.WAITING: [0]}, waiting_in_gateway=10, rates=rates)
    # N = min(8192 x 50 / 8050, 63) = 50.9 of 8,025 tokens is more than k1: (158,000 + 80,000) / 0.85 > 252,800.
    assert first(v2(window_s=0), look(held, wanted=1)) == 2


def test_v2_passes_through_an_hpa_of_four_minutes() -> None:
    assert run(v2(), load((0.9, 9), (0.9, 9)), wanted=2, until_s=600)[0][0] == 240.0
    assert run(v2(window_s=0), load((0.9, 9), (0.9, 9)), wanted=2, until_s=0)[0][0] == 0.0


@pytest.mark.parametrize("name", ["wva-v2", "wva-v1"])
def test_wva_keeps_the_number_without_metrics(name: str) -> None:
    assert run(make_peer(name, FACTS), Steady(), wanted=4, until_s=900) == []


@pytest.mark.parametrize(
    ("usage", "waiting", "starting", "change"),
    [
        ([0.75, 0.72], [0, 0], 0, 1),  # 0.065 of KV to spare
        ([0.75, 0.72], [0, 0], 1, 0),  # one starts
        ([0.5, 0.5], [3, 3], 0, 1),  # two places to spare
        ([0.9, 0.9], [0, 0], 0, 1),  # all saturated
        ([0.9, 0.4], [0, 0], 0, 0),  # one free: never fewer
        ([0.3, 0.3, 0.3], [0, 0, 0], 0, -1),  # 0.45 each on two
        ([0.5, 0.5], [0, 0], 0, 0),  # 1.0 on one
    ],
)
def test_v1_by_hand(usage: list[float], waiting: list[float], starting: int, change: int) -> None:
    policy = make_peer("wva-v1", FACTS)
    assert isinstance(policy, WvaV1Policy)
    assert policy.change(np.array(usage), np.array(waiting, dtype=float), starting=starting) == change


# -- llm-d ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "n", "r", "wanted"),
    [
        (0.50, 3, 3, 3),  # in the band
        (0.55, 3, 3, 3),
        (0.60, 3, 3, 4),
        (1.10, 3, 3, 6),
        (2.00, 4, 4, 15),  # 4 + ceil(4 x 2.636)
        (1.10, 6, 3, 6),  # credit 1/2: those that start are enough
        (1.65, 6, 4, 12),  # credit 2/3: 6 + ceil(6 x 1)
        (1.10, 6, 0, 12),  # none ready: no credit
        (0.60, 8, 2, 3),  # the credit may turn the formula round, as written
        (0.40, 8, 8, 8),
        (0.30, 8, 8, 6),
        (0.0, 8, 8, 0),
        (0.39, 8, 8, 8),  # floor(0.2)
    ],
)
def test_the_law(signal: float, n: int, r: int, wanted: int) -> None:
    assert law(signal, n=n, r=r, up=0.55, down=0.40) == wanted


def latency(ttft_s: float, per_token_s: float) -> Steady:
    return Steady(latencies={Latency.ROUTER_TTFT: ttft_s, Latency.ROUTER_PER_OUTPUT_TOKEN: per_token_s})


MEASURED = {"predicted": 0.0}


def test_the_worse_of_both_latencies_counts_after_thirty_seconds() -> None:
    slow_first = run(make_peer("llmd-slo", FACTS, MEASURED), latency(3.3, 0.01), wanted=3, until_s=30, high=8)
    slow_next = run(make_peer("llmd-slo", FACTS, MEASURED), latency(0.3, 0.11), wanted=3, until_s=30, high=8)
    assert slow_first == slow_next == [(30.0, 6)]


def test_a_spike_is_capped_before_it_is_averaged() -> None:
    policy = make_peer("llmd-slo", FACTS, {**MEASURED, "up_window_s": 0})
    wanted, memory = policy.decide(look(latency(0.3, 0.01), wanted=3), policy.start())
    for at_s, ttft_s in ((15.0, 0.3), (30.0, 300.0)):
        wanted, memory = policy.decide(look(latency(ttft_s, 0.01), wanted=3, at_s=at_s), memory)
    assert [value for _, value in memory.signals] == pytest.approx([0.1, 0.1, 2.0])
    assert wanted == 4, "3 + ceil(3 x (0.733 / 0.55 - 1))"


@pytest.mark.parametrize("knobs", [MEASURED, {}])
def test_a_lost_scrape_looks_idle_and_drains_one_pod_in_two_minutes(knobs: dict[str, float]) -> None:
    assert run(make_peer("llmd-slo", FACTS, knobs), Steady(), wanted=8, until_s=440, low=3) == [
        (180.0, 7),
        (300.0, 6),
        (420.0, 5),
    ]


def test_old_defaults_wait_for_a_mean_of_085() -> None:
    late = latency(0.8 * 3, 0.01)
    assert run(make_peer("llmd-old", FACTS, MEASURED), late, wanted=3, until_s=300) == []
    assert run(make_peer("llmd-slo", FACTS, MEASURED), late, wanted=3, until_s=30) == [(30.0, 5)]


def engines(count: int, *, running: float = 20, waiting: float = 0, queued: float = 0, rps: float = 1.0) -> Steady:
    return Steady(
        gauges={
            Gauge.RUNNING: [running] * count,
            Gauge.WAITING: [waiting] * count,
            Gauge.KV_USAGE: [running * 4500 / QWEN_32B.kv_tokens] * count,
            Gauge.QUEUED_PROMPT_TOKENS: [queued] * count,
        },
        rates={Counter.ARRIVED: rps * count},
    )


def test_the_predicted_latency_sees_a_queue_before_it_is_measured() -> None:
    policy = make_peer("llmd-slo", FACTS, {"up_window_s": 0})
    # 40,000 queued tokens and 4,000 more are 2.75 s of prefill and six steps: 0.95 of the SLO.
    assert first(policy, look(engines(3, queued=40_000), wanted=3)) == 6
    assert first(policy, look(engines(3, running=63, waiting=10), wanted=3)) > 6, "all 63 places are taken"
    assert run(policy, engines(3), wanted=3, until_s=60) == []


def test_the_larger_of_measured_and_foretold_counts() -> None:
    calm = engines(3)
    late = Steady(gauges=calm.gauges, rates=calm.rates, latencies=latency(3.3, 0.02).latencies)
    policy = make_peer("llmd-slo", FACTS, {"up_window_s": 0})
    assert (first(policy, look(calm)), first(policy, look(late))) == (3, 6)


def test_a_coarse_bucket_is_read_as_its_upper_end() -> None:
    """The published healthy signal of 0.38: every request between 20 and 40 ms a token, nine tenths into the bucket."""
    values = np.array([0.021, 0.022, 0.0215])
    assert bucketed(0.9, values, Latency.ROUTER_PER_OUTPUT_TOKEN) == pytest.approx(0.038)
    assert bucketed(0.9, np.array([3.2, 3.3]), Latency.ROUTER_TTFT) == pytest.approx(3.9), "3 s is an edge of its own"


def test_the_published_run_looks_once_a_minute_and_forgets_slowly() -> None:
    policy = make_peer("llmd-slo", FACTS, {**MEASURED, **PUBLISHED_RUN})
    memory, signals = policy.start(), []
    for at_s in range(0, 195, 15):
        late = latency(3.3 if at_s >= 60 else 0.3, 0.01)
        _, memory = policy.decide(look(late, wanted=8, at_s=float(at_s)), memory)
        signals.append(memory.signals[-1])
    # 0.1, then 0.6 x 1.1 + 0.4 x 0.1, and so on.
    assert [at_s for at_s, _ in signals[::4]] == [0.0, 60.0, 120.0, 180.0]
    assert [value for _, value in signals[::4]] == pytest.approx([0.1, 0.7, 0.94, 1.036])
    assert signals[5:8] == [signals[4]] * 3, "in between nothing is read anew"


def test_the_old_settings_grant_one_pod_a_minute() -> None:
    late = latency(30.0, 0.01)
    assert run(make_peer("llmd-old", FACTS, MEASURED), late, wanted=3, until_s=200, high=8) == [
        (30.0, 4),
        (90.0, 5),
        (150.0, 6),
    ]


def test_no_traffic_is_idle_whatever_an_empty_engine_would_take() -> None:
    policy = make_peer("llmd-slo", FACTS)
    _, memory = policy.decide(look(engines(3, running=0, rps=0.0)), policy.start())
    assert memory.signals == ((0.0, 0.0),)


def test_all_gauges_must_be_there_to_predict() -> None:
    partly = Steady(gauges={Gauge.RUNNING: [1, 2], Gauge.WAITING: [0, 0], Gauge.KV_USAGE: [0.1, math.nan]})
    policy = make_peer("llmd-slo", FACTS)
    assert policy.decide(look(partly), policy.start())[1].predictions == ()
