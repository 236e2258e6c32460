"""What rules look at: increases with resets and gaps, only of what was asked for."""

from collections.abc import Mapping
from dataclasses import replace

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.signals import Buckets, SignalMemory, Signals, look
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.domain.telemetry import (
    EMPTY_HISTOGRAM,
    Fresh,
    GatewaySample,
    Histogram,
    Missing,
    NodeSample,
    Reading,
    RouteTraffic,
    TelemetrySnapshot,
)
from controlplane.kernel.ids import DeploymentName, NodeName
from controlplane.testing.builders import make_replica
from controlplane.testing.effects import START
from controlplane.testing.telemetry import make_engine_sample

CHAT = DeploymentName("chat")
INF = float("inf")


def spec(*signals: Signal) -> AutoscalingSpec:
    rules = tuple(ScalingRule(signal=signal, above=0.5) for signal in signals)
    return AutoscalingSpec(policy=ScalingPolicy.RULES, rules=rules)


def histogram(*counts: float) -> Histogram:
    return Histogram(edges=(0.5, 1.0, INF), counts=counts, sum=counts[-1])


def snapshot(
    ttft: Mapping[Replica, Histogram],
    *,
    process_start_s: float = 5.0,
    gateway: Reading[GatewaySample] | None = None,
    cpus: Mapping[str, float | None] | None = None,
) -> TelemetrySnapshot:
    sample = replace(make_engine_sample(), process_start_s=process_start_s)
    return TelemetrySnapshot(
        at=START,
        engines={replica.name: Fresh(replace(sample, ttft=found)) for replica, found in ttft.items()},
        gateway=gateway or Missing("lost"),
        nodes={
            NodeName(name): Fresh(NodeSample(at=START, gpus=(), cpu_utilization=share))
            for name, share in (cpus or {}).items()
        },
    )


def gateway(requests: float, errors: float, *, epoch: str = "1") -> Reading[GatewaySample]:
    route = RouteTraffic(
        arrivals_total=requests, in_flight=0, queued=0, held=0, responses_5xx_total=errors, servers_up=1
    )
    return Fresh(GatewaySample(at=START, epoch=epoch, routes={CHAT: route}, servers={}))


FIRST, SECOND = make_replica(ordinal=0), make_replica(ordinal=1, gpus=(1,), port=20001)


def test_latencies_are_what_was_added_over_all_replicas() -> None:
    asked = spec(Signal.TTFT)
    both = [FIRST, SECOND]
    seen, memory = look(
        CHAT, asked, both, snapshot({FIRST: histogram(5, 6, 7), SECOND: histogram(0, 0, 0)}), SignalMemory()
    )
    assert seen.latencies[0].buckets == Buckets()
    assert not seen.latencies[0].complete
    seen, memory = look(CHAT, asked, both, snapshot({FIRST: histogram(7, 9, 10), SECOND: histogram(1, 1, 2)}), memory)
    assert seen.latencies[0].buckets == Buckets(edges=(0.5, 1.0), counts=(3.0, 4.0, 5.0))
    assert seen.latencies[0].complete
    assert decode(SignalMemory, encode(memory)) == memory
    assert decode(Signals, encode(seen)) == seen


def test_a_replica_that_cannot_be_read_is_missing_and_not_forgotten() -> None:
    asked, both = spec(Signal.TTFT), [FIRST, SECOND]
    _, memory = look(
        CHAT, asked, both, snapshot({FIRST: histogram(5, 5, 5), SECOND: histogram(5, 5, 5)}), SignalMemory()
    )
    seen, memory = look(CHAT, asked, both, snapshot({FIRST: histogram(6, 6, 6)}), memory)
    assert (seen.latencies[0].complete, seen.latencies[0].buckets.total) == (False, 1.0)
    seen, memory = look(CHAT, asked, both, snapshot({FIRST: histogram(6, 6, 6), SECOND: histogram(8, 8, 8)}), memory)
    assert (seen.latencies[0].complete, seen.latencies[0].buckets.total) == (True, 3.0)
    _, memory = look(CHAT, asked, [FIRST], snapshot({FIRST: histogram(6, 6, 6)}), memory)
    assert [mark.replica for mark in memory.engines] == [FIRST.name]


def test_a_restart_counts_from_zero() -> None:
    asked = spec(Signal.TTFT)
    _, memory = look(CHAT, asked, [FIRST], snapshot({FIRST: histogram(5, 5, 5)}), SignalMemory())
    seen, _ = look(CHAT, asked, [FIRST], snapshot({FIRST: histogram(6, 6, 6)}, process_start_s=9.0), memory)
    assert seen.latencies[0].buckets.total == 6.0


def test_an_engine_that_does_not_tell_a_latency_makes_it_incomplete() -> None:
    asked = spec(Signal.TTFT)
    _, memory = look(CHAT, asked, [FIRST], snapshot({FIRST: EMPTY_HISTOGRAM}), SignalMemory())
    seen, _ = look(CHAT, asked, [FIRST], snapshot({FIRST: EMPTY_HISTOGRAM}), memory)
    assert not seen.latencies[0].complete


def test_a_rule_that_is_new_begins_to_be_measured() -> None:
    _, memory = look(CHAT, spec(Signal.TTFT), [FIRST], snapshot({FIRST: histogram(5, 5, 5)}), SignalMemory())
    both = spec(Signal.TTFT, Signal.END_TO_END)
    seen, _ = look(CHAT, both, [FIRST], snapshot({FIRST: histogram(6, 6, 6)}), memory)
    assert [(found.signal, found.complete) for found in seen.latencies] == [
        (Signal.END_TO_END, False),
        (Signal.TTFT, True),
    ]


def test_errors_are_the_gateways_since_the_last_look() -> None:
    asked = spec(Signal.ERROR_RATE)
    _, memory = look(CHAT, asked, [], snapshot({}, gateway=gateway(100, 3)), SignalMemory())
    seen, memory = look(CHAT, asked, [], snapshot({}, gateway=gateway(110, 5)), memory)
    assert (seen.gateway_requests, seen.gateway_errors) == (10.0, 2.0)
    seen, memory = look(CHAT, asked, [], snapshot({}), memory)
    assert (seen.gateway_requests, seen.gateway_errors) == (None, None)
    seen, memory = look(CHAT, asked, [], snapshot({}, gateway=gateway(130, 5)), memory)
    assert (seen.gateway_requests, seen.gateway_errors) == (20.0, 0.0)
    seen, _ = look(CHAT, asked, [], snapshot({}, gateway=gateway(4, 1, epoch="2")), memory)
    assert (seen.gateway_requests, seen.gateway_errors) == (None, None)


def test_the_cpu_is_the_mean_of_the_nodes_of_ready_replicas() -> None:
    asked = spec(Signal.CPU)
    here, there = make_replica(node="a"), make_replica(ordinal=1, node="b")
    starting = make_replica(ordinal=2, node="c", phase=ReplicaPhase.STARTING)
    seen, _ = look(CHAT, asked, [here, there, starting], snapshot({}, cpus={"a": 0.25, "b": 0.75}), SignalMemory())
    assert seen.cpu == 0.5
    for cpus in ({"a": 0.25}, {"a": 0.25, "b": None}):
        seen, _ = look(CHAT, asked, [here, there], snapshot({}, cpus=cpus), SignalMemory())
        assert seen.cpu is None


def test_what_no_rule_asks_for_is_not_read() -> None:
    full = snapshot({FIRST: histogram(5, 5, 5)}, gateway=gateway(1, 1), cpus={"node-1": 0.5})
    seen, memory = look(CHAT, spec(Signal.KV_CACHE), [FIRST], full, SignalMemory())
    assert (seen, memory) == (Signals(), SignalMemory())
