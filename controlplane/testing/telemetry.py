"""A Telemetry whose readings a test sets, and samples to set them to."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final

from controlplane.domain.telemetry import (
    EngineSample,
    GatewaySample,
    GpuSample,
    Histogram,
    Missing,
    NodeSample,
    Reading,
    TelemetrySnapshot,
)
from controlplane.kernel.effects import Clock
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.testing.effects import START

_INF: Final = float("inf")


class FakeTelemetry:
    """Implements Telemetry. A reading stays as set until it is set again; ages are the test's to state."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._snapshot = TelemetrySnapshot(at=clock.now())

    def snapshot(self) -> TelemetrySnapshot:
        return replace(self._snapshot, at=self._clock.now())

    def set_engine(self, replica: ReplicaName, reading: Reading[EngineSample]) -> None:
        self._snapshot = replace(self._snapshot, engines={**self._snapshot.engines, replica: reading})

    def set_node(self, node: NodeName, reading: Reading[NodeSample]) -> None:
        self._snapshot = replace(self._snapshot, nodes={**self._snapshot.nodes, node: reading})

    def set_gateway(self, reading: Reading[GatewaySample]) -> None:
        self._snapshot = replace(self._snapshot, gateway=reading)

    def forget(self, *, replicas: Iterable[ReplicaName] = (), nodes: Iterable[NodeName] = ()) -> None:
        """As if they were not asked for any more."""
        gone_replicas, gone_nodes = set(replicas), set(nodes)
        snapshot = self._snapshot
        self._snapshot = replace(
            snapshot,
            engines={name: reading for name, reading in snapshot.engines.items() if name not in gone_replicas},
            nodes={name: reading for name, reading in snapshot.nodes.items() if name not in gone_nodes},
        )

    def go_blind(self, why: str = "the network is down") -> None:
        """Everything that was ever set is Missing."""
        missing = Missing(why)
        self._snapshot = TelemetrySnapshot(
            at=self._clock.now(),
            engines=dict.fromkeys(self._snapshot.engines, missing),
            gateway=missing,
            nodes=dict.fromkeys(self._snapshot.nodes, missing),
        )


def make_histogram(*buckets: tuple[float, float], sum_: float = 0.0) -> Histogram:
    """From (edge, cumulative count) pairs; +inf is added with the last count when it is not given."""
    edges = tuple(edge for edge, _ in buckets)
    counts = tuple(float(count) for _, count in buckets)
    if not edges or edges[-1] != _INF:
        edges, counts = (*edges, _INF), (*counts, counts[-1] if counts else 0.0)
    return Histogram(edges=edges, counts=counts, sum=sum_)


def make_engine_sample(
    at: datetime = START,
    *,
    running: int = 0,
    waiting: int = 0,
    kv_usage: float = 0.0,
    sleeping: bool = False,
    prompt_tokens: float = 0.0,
    generation_tokens: float = 0.0,
    succeeded: float = 0.0,
    failed: float = 0.0,
    preemptions: float = 0.0,
    process_start_s: float = 1_767_600_000.0,
) -> EngineSample:
    """An engine that has observed no latency yet."""
    empty = make_histogram((1.0, 0.0))
    return EngineSample(
        at=at,
        process_start_s=process_start_s,
        running=running,
        waiting=waiting,
        kv_usage=kv_usage,
        sleeping=sleeping,
        prompt_tokens=prompt_tokens,
        generation_tokens=generation_tokens,
        requests_succeeded=succeeded,
        requests_failed=failed,
        preemptions=preemptions,
        ttft=empty,
        inter_token=empty,
        end_to_end=empty,
        time_per_output_token=empty,
    )


def make_gpu_sample(index: int = 0, *, utilization: float | None = 0.0) -> GpuSample:
    return GpuSample(
        index=index,
        uuid=f"GPU-{index}",
        model="NVIDIA B200",
        utilization=utilization,
        memory_used_bytes=0,
        memory_total_bytes=192_265_846_784,
        power_w=140.0,
        temperature_c=30.0,
        xid_last=0,
    )


def make_node_sample(at: datetime = START, *, gpus: int = 8) -> NodeSample:
    return NodeSample(at=at, gpus=tuple(make_gpu_sample(index) for index in range(gpus)))
