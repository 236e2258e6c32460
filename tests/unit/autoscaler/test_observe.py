"""From raw samples to an observation: increases, resets, gaps, partial views."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.model import ArrivalSource, Observation, Trust
from controlplane.autoscaler.observe import ObserverMemory, observe
from controlplane.domain.deployment import Deployment, Intent
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.domain.telemetry import (
    EMPTY_HISTOGRAM,
    EngineSample,
    Fresh,
    GatewaySample,
    Histogram,
    Missing,
    Reading,
    RouteTraffic,
    Stale,
    TelemetrySnapshot,
)
from controlplane.testing.builders import make_deployment, make_replica
from controlplane.testing.effects import START

INF = float("inf")


def histogram(*counts: float, total: float = 0.0, edges: tuple[float, ...] = (0.5, 1.0, 2.5, INF)) -> Histogram:
    return Histogram(edges=edges, counts=counts, sum=total)


def engine(second: float, **changes: object) -> EngineSample:
    sample = EngineSample(
        at=START + timedelta(seconds=second),
        process_start_s=1.0,
        running=0,
        waiting=0,
        kv_usage=0.0,
        sleeping=False,
        prompt_tokens=0.0,
        generation_tokens=0.0,
        requests_succeeded=0.0,
        requests_failed=0.0,
        preemptions=0.0,
        ttft=EMPTY_HISTOGRAM,
        inter_token=EMPTY_HISTOGRAM,
        end_to_end=EMPTY_HISTOGRAM,
    )
    return replace(sample, **changes)  # type: ignore[arg-type]  # a builder's keywords are checked when it runs


def gateway(second: float, arrivals: float, *, epoch: str = "1", held: int = 0, in_flight: int = 0) -> GatewaySample:
    route = RouteTraffic(
        arrivals_total=arrivals, in_flight=in_flight, queued=0, held=held, responses_5xx_total=0.0, servers_up=1
    )
    at = START + timedelta(seconds=second)
    return GatewaySample(at=at, epoch=epoch, routes={make_deployment().name: route}, servers={})


def look(
    second: float,
    memory: ObserverMemory,
    *,
    engines: dict[Replica, Reading[EngineSample]] | None = None,
    at_gateway: Reading[GatewaySample] | None = None,
    replicas: list[Replica] | None = None,
    deployment: Deployment | None = None,
) -> tuple[Observation, ObserverMemory]:
    seen = engines or {}
    now = START + timedelta(seconds=second)
    snapshot = TelemetrySnapshot(
        at=now,
        engines={replica.name: reading for replica, reading in seen.items()},
        gateway=at_gateway or Missing("not asked"),
    )
    rows = list(seen) if replicas is None else replicas
    return observe(deployment or make_deployment(), rows, snapshot, memory, now)


def after(*looks: dict[str, object]) -> Observation:
    """The last of several looks, a second apart."""
    memory = ObserverMemory()
    observation: Observation | None = None
    for second, arguments in enumerate(looks):
        observation, memory = look(float(second), memory, **arguments)  # type: ignore[arg-type]
        assert decode(ObserverMemory, encode(memory)) == memory
    assert observation is not None
    return observation


# -- arrivals


def test_the_first_look_knows_no_arrivals() -> None:
    seen = after({"at_gateway": Fresh(gateway(0, 100.0))})
    assert seen.arrivals is None
    assert not seen.arrivals_complete


def test_arrivals_are_the_counters_growth_over_its_own_time() -> None:
    seen = after({"at_gateway": Fresh(gateway(0, 100.0))}, {"at_gateway": Fresh(gateway(0.9, 107.0))})
    assert seen.arrivals == 7.0
    assert seen.arrivals_seconds == pytest.approx(0.9)
    assert seen.arrivals_complete
    assert seen.arrivals_source is ArrivalSource.GATEWAY


def test_the_same_sample_again_adds_neither_arrivals_nor_time() -> None:
    sample = Fresh(gateway(0, 100.0))
    seen = after({"at_gateway": sample}, {"at_gateway": sample})
    assert (seen.arrivals, seen.arrivals_seconds, seen.arrivals_complete) == (0.0, 0.0, True)


@pytest.mark.parametrize("sample", [gateway(1, 3.0, epoch="2"), gateway(1, 3.0)], ids=["epoch", "fell"])
def test_a_counter_that_began_anew_is_a_lower_bound(sample: GatewaySample) -> None:
    seen = after({"at_gateway": Fresh(gateway(0, 100.0))}, {"at_gateway": Fresh(sample)})
    assert seen.arrivals == 3.0
    assert not seen.arrivals_complete


def test_a_gap_is_covered_when_the_gateway_is_back() -> None:
    seen = after(
        {"at_gateway": Fresh(gateway(0, 100.0))},
        {"at_gateway": Missing("lost")},
        {"at_gateway": Fresh(gateway(2, 130.0))},
    )
    assert (seen.arrivals, seen.arrivals_seconds) == (30.0, 2.0)
    assert seen.arrivals_complete


def test_without_a_gateway_the_engines_tell() -> None:
    replica = make_replica()
    seen = after(
        {"engines": {replica: Fresh(engine(0, running=4, waiting=1, requests_succeeded=10.0))}},
        {"engines": {replica: Fresh(engine(1, running=6, waiting=0, requests_succeeded=13.0))}},
    )
    assert seen.arrivals == 4.0
    assert seen.arrivals_source is ArrivalSource.ENGINES
    assert seen.arrivals_complete
    assert seen.gateway is Trust.MISSING


def test_without_a_gateway_and_with_a_replica_unseen_it_is_a_lower_bound() -> None:
    one, two = make_replica(ordinal=0), make_replica(ordinal=1)
    seen = after(
        {"engines": {one: Fresh(engine(0)), two: Fresh(engine(0))}},
        {"engines": {one: Fresh(engine(1, running=2)), two: Missing("lost")}},
    )
    assert seen.arrivals == 2.0
    assert not seen.arrivals_complete


def test_a_gateway_without_the_route_knows_nothing() -> None:
    other = GatewaySample(at=START, epoch="1", routes={}, servers={})
    seen = after({"at_gateway": Fresh(other)})
    assert seen.arrivals is None
    assert seen.arrivals_source is ArrivalSource.NONE


# -- engines


def test_counters_are_increases_over_all_replicas() -> None:
    one, two = make_replica(ordinal=0), make_replica(ordinal=1, phase=ReplicaPhase.DRAINING)
    seen = after(
        {"engines": {one: Fresh(engine(0, prompt_tokens=50.0)), two: Fresh(engine(0, generation_tokens=5.0))}},
        {
            "engines": {
                one: Fresh(engine(1, prompt_tokens=80.0, kv_usage=0.2, running=1)),
                two: Fresh(engine(1, generation_tokens=9.0, kv_usage=0.4, running=2, waiting=1)),
            }
        },
    )
    assert (seen.prompt_tokens, seen.generation_tokens) == (30.0, 4.0)
    assert (seen.running, seen.waiting) == (3, 1)
    assert seen.kv_usage == pytest.approx(0.3)
    assert (seen.ready, seen.draining, seen.engines_fresh, seen.engine_deltas) == (1, 1, 1, 2)
    assert seen.engine_seconds == 1.0


@pytest.mark.parametrize("changes", [{"process_start_s": 2.0}, {}], ids=["process start", "fell"])
def test_a_restarted_engine_counts_from_zero(changes: dict[str, float]) -> None:
    replica = make_replica()
    seen = after(
        {"engines": {replica: Fresh(engine(0, requests_succeeded=100.0, prompt_tokens=1.0))}},
        {"engines": {replica: Fresh(engine(1, requests_succeeded=4.0, prompt_tokens=7.0, **changes))}},
    )
    assert (seen.finished, seen.prompt_tokens) == (4.0, 7.0)


@pytest.mark.parametrize(
    ("limit_s", "low", "high"), [(1.0, 6.0, 6.0), (2.0, 6.0, 9.0), (0.2, 0.0, 2.0), (9.0, 9.0, 10.0)]
)
def test_a_limit_inside_a_bucket_gives_two_counts(limit_s: float, low: float, high: float) -> None:
    deployment = make_deployment()
    target = LatencyTarget(percentile=0.95, limit=timedelta(seconds=limit_s))
    deployment = replace(deployment, spec=replace(deployment.spec, slo=Slo(ttft=target)))
    replica = make_replica()
    seen = after(
        {"deployment": deployment, "engines": {replica: Fresh(engine(0, ttft=histogram(0, 0, 0, 0)))}},
        {
            "deployment": deployment,
            "engines": {replica: Fresh(engine(1, ttft=histogram(2.0, 6.0, 9.0, 10.0, total=12.0)))},
        },
    )
    assert (seen.ttft.count, seen.ttft.sum_s) == (10.0, 12.0)
    assert (seen.ttft.within_low, seen.ttft.within_high) == (low, high)


def test_another_slo_makes_the_old_counts_useless() -> None:
    deployment, replica = make_deployment(), make_replica()
    other = replace(deployment, spec=replace(deployment.spec, slo=Slo()))
    seen = after(
        {"deployment": deployment, "engines": {replica: Fresh(engine(0, ttft=histogram(2.0, 6.0, 9.0, 10.0)))}},
        {"deployment": other, "engines": {replica: Fresh(engine(1, ttft=histogram(2.0, 6.0, 9.0, 11.0)))}},
    )
    assert seen.engine_deltas == 0
    assert seen.ttft.count == 0.0


@pytest.mark.parametrize(
    ("reading", "trust"),
    [(Stale(engine(0), timedelta(seconds=9)), Trust.STALE), (Missing("gone"), Trust.MISSING)],
)
def test_the_worst_ready_replica_decides_the_trust(reading: Reading[EngineSample], trust: Trust) -> None:
    one, two = make_replica(ordinal=0), make_replica(ordinal=1)
    seen = after({"engines": {one: Fresh(engine(0)), two: reading}})
    assert seen.engines is trust
    assert (seen.ready, seen.engines_fresh) == (2, 1)


def test_replicas_that_start_or_sleep_have_nothing_to_tell() -> None:
    starting = make_replica(ordinal=0, phase=ReplicaPhase.STARTING)
    asleep = make_replica(ordinal=1, phase=ReplicaPhase.SLEEPING)
    seen = after({"engines": {starting: Missing("refused"), asleep: Fresh(engine(0, running=9))}})
    assert (seen.engines, seen.running) == (Trust.FRESH, 0)
    assert (seen.starting, seen.sleeping) == (1, 1)


def test_a_snapshot_that_stopped_is_blindness() -> None:
    old = TelemetrySnapshot(at=START, gateway=Fresh(gateway(0, 5.0)))
    seen, _ = observe(make_deployment(), [], old, ObserverMemory(), START + timedelta(seconds=60))
    assert seen.gateway is Trust.MISSING
    assert seen.at_s == (START + timedelta(seconds=60)).timestamp()


# -- replicas and limits


def test_each_cold_start_is_told_once() -> None:
    replica = replace(make_replica(), launched_at=START, ready_at=START + timedelta(seconds=7))
    first, memory = look(8, ObserverMemory(), replicas=[replica])
    second, memory = look(9, memory, replicas=[replica])
    gone, memory = look(10, memory, replicas=[])
    assert (first.cold_starts_s, second.cold_starts_s, gone.cold_starts_s) == ((7.0,), (), ())
    assert memory.started == ()


def test_an_adopted_replica_tells_no_cold_start() -> None:
    replica = replace(make_replica(), launched_at=None)
    assert look(1, ObserverMemory(), replicas=[replica])[0].cold_starts_s == ()


def test_limits_and_intent_are_part_of_it() -> None:
    deployment = make_deployment(replicas_min=1, replicas_max=7, wanted=3)
    deployment = replace(deployment, intent=Intent(paused=True, replicas_pinned=2))
    seen = after({"deployment": deployment})
    assert (seen.replicas_min, seen.replicas_max, seen.wanted, seen.pinned, seen.paused) == (1, 7, 3, 2, True)


def test_the_oldest_start_has_its_age() -> None:
    launched = replace(
        make_replica(phase=ReplicaPhase.STARTING), launched_at=START, phase_since=START + timedelta(seconds=3)
    )
    pending = make_replica(ordinal=1, phase=ReplicaPhase.PENDING)
    seen, _ = look(10, ObserverMemory(), replicas=[launched, replace(pending, phase_since=START)])
    assert seen.starting_age_s == 10.0
