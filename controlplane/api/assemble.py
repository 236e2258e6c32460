"""Rows and readings into wire shapes. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from controlplane.api.wire import (
    DecisionDetail,
    DecisionOut,
    DeploymentDetail,
    DeploymentOut,
    EngineOut,
    EventOut,
    GpuOut,
    HeldUp,
    NodeOut,
    ReplicaOut,
    SloLatency,
    SloNow,
    SloOut,
    TrafficOut,
)
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.deployment import Deployment
from controlplane.domain.event import Event
from controlplane.domain.node import Node, NodeState
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.slo import LatencyTarget
from controlplane.domain.telemetry import (
    EngineSample,
    Fresh,
    Missing,
    Reading,
    Stale,
    TelemetrySnapshot,
    value_if_fresh,
)
from controlplane.kernel.ids import NodeName
from controlplane.metering.slo import SloStanding


def freshness[T](reading: Reading[T]) -> str:
    match reading:
        case Fresh():
            return "fresh"
        case Stale():
            return "stale"
        case Missing():
            return "missing"
        case _:
            assert_never(reading)


def node_out(node: Node, replicas: Iterable[Replica]) -> NodeOut:
    return NodeOut(
        name=node.name,
        pool=node.spec.pool,
        state=node.state,
        state_reason=node.state_reason,
        generation=node.generation,
        gpu_model=node.spec.gpu_model,
        gpus=node.spec.gpus,
        gpus_held=sum(len(replica.gpus) for replica in replicas if replica.node == node.name),
        simulated=node.spec.simulated,
        seen_at=node.seen_at,
    )


def gpus_out(nodes: Sequence[Node], replicas: Sequence[Replica], snapshot: TelemetrySnapshot) -> list[GpuOut]:
    """Every declared GPU, with what holds it and what was last measured of it."""
    holder = {(replica.node, gpu): replica.name for replica in replicas for gpu in replica.gpus}
    rows: list[GpuOut] = []
    for node in nodes:
        sample = value_if_fresh(snapshot.nodes.get(node.name, Missing("not asked for")))
        measured = {gpu.index: gpu for gpu in sample.gpus} if sample is not None else {}
        for index in range(node.spec.gpus):
            gpu = measured.get(index)
            rows.append(
                GpuOut(
                    node=node.name,
                    index=index,
                    model=node.spec.gpu_model,
                    replica=holder.get((node.name, index)),
                    utilization=gpu.utilization if gpu else None,
                    memory_used_bytes=gpu.memory_used_bytes if gpu else None,
                    memory_total_bytes=gpu.memory_total_bytes if gpu else None,
                    power_w=gpu.power_w if gpu else None,
                    temperature_c=gpu.temperature_c if gpu else None,
                )
            )
    return rows


def deployment_out(
    deployment: Deployment,
    replicas: Iterable[Replica],
    snapshot: TelemetrySnapshot,
    last: Mapping[str, DecisionRecord],
    standing: SloStanding | None,
    held_up: Event | None = None,
) -> DeploymentOut:
    spec, decision = deployment.spec, last.get(deployment.name)
    phases = Counter(str(replica.phase) for replica in replicas if replica.deployment == deployment.name)
    return DeploymentOut(
        name=deployment.name,
        model=spec.model,
        served_names=list(spec.served_names),
        revision=deployment.plan.revision,
        generation=deployment.generation,
        paused=deployment.intent.paused,
        replicas_pinned=deployment.intent.replicas_pinned,
        replicas_min=spec.replicas_min,
        replicas_max=spec.replicas_max,
        replicas_wanted=deployment.replicas_wanted,
        replicas_target=deployment.replicas_target,
        scaling_policy=spec.autoscaling.policy,
        shadow=deployment.in_shadow,
        replicas_shadow=decision.wanted if decision and decision.in_shadow and deployment.in_shadow else None,
        replicas_by_phase=dict(sorted(phases.items())),
        gpus_per_replica=deployment.plan.gpus_per_replica,
        slo=SloOut(
            ttft=_latency(spec.slo.ttft),
            inter_token=_latency(spec.slo.inter_token),
            end_to_end=_latency(spec.slo.end_to_end),
        ),
        removed=deployment.removed,
        traffic=_traffic(deployment, snapshot),
        slo_now=_slo_now(standing),
        reason=decision.reason if decision else None,
        sentence=decision.sentence if decision else None,
        held_up=_held_up(held_up),
    )


def is_held_up(deployment: Deployment, replicas: Iterable[Replica], nodes: Mapping[NodeName, Node]) -> bool:
    """Fewer replicas serve than are wanted, or some stand on a node that is being drained."""
    own = [replica for replica in replicas if replica.deployment == deployment.name]
    leaving = any(node.state is NodeState.DRAINING for replica in own if (node := nodes.get(replica.node)) is not None)
    served = sum(replica.phase is ReplicaPhase.READY for replica in own)
    return leaving or served < deployment.replicas_target


def _held_up(newest: Event | None) -> HeldUp | None:
    if newest is None:
        return None
    return HeldUp(at=newest.event.at, reason=newest.event.reason, sentence=newest.event.sentence)


def deployment_detail(out: DeploymentOut, deployment: Deployment) -> DeploymentDetail:
    return DeploymentDetail(
        **out.model_dump(), proof=list(deployment.plan.proof), argv=list(deployment.plan.launch.argv)
    )


def replica_out(replica: Replica, snapshot: TelemetrySnapshot) -> ReplicaOut:
    reading: Reading[EngineSample] = snapshot.engines.get(replica.name, Missing("not asked for"))
    sample = value_if_fresh(reading)
    served = replica.ready_at is not None and replica.launched_at is not None
    return ReplicaOut(
        name=replica.name,
        deployment=replica.deployment,
        revision=replica.revision,
        phase=replica.phase,
        phase_since=replica.phase_since,
        node=replica.node,
        gpus=list(replica.gpus),
        port=replica.port,
        created_at=replica.created_at,
        ready_at=replica.ready_at,
        cold_start_s=(replica.ready_at - replica.launched_at).total_seconds()
        if served and replica.ready_at and replica.launched_at
        else None,
        reason=replica.reason,
        sentence=replica.sentence,
        engine=_engine(sample) if sample is not None else None,
        engine_data=freshness(reading),
    )


def decision_out(record: DecisionRecord) -> DecisionOut:
    return DecisionOut(
        sequence=record.sequence,
        deployment=record.deployment,
        at=record.at,
        wanted_before=record.wanted_before,
        wanted=record.wanted,
        reason=record.reason,
        sentence=record.sentence,
        policy=record.policy,
        shadow=record.in_shadow,
    )


def decision_detail(record: DecisionRecord) -> DecisionDetail:
    return DecisionDetail(
        **decision_out(record).model_dump(),
        observation=json.loads(record.observation_json),
        state_before=json.loads(record.state_before_json or "{}"),
        state_after=json.loads(record.state_after_json),
        params=json.loads(record.params_json),
    )


def event_out(event: Event) -> EventOut:
    happened = event.event
    return EventOut(
        sequence=event.sequence,
        at=happened.at,
        kind=happened.kind,
        subject=happened.subject,
        deployment=happened.deployment,
        reason=happened.reason,
        sentence=happened.sentence,
        data=dict(happened.data),
    )


def last_decisions(newest_first: Iterable[DecisionRecord]) -> dict[str, DecisionRecord]:
    """The newest of each deployment."""
    last: dict[str, DecisionRecord] = {}
    for record in newest_first:
        last.setdefault(record.deployment, record)
    return last


def _latency(target: LatencyTarget | None) -> SloLatency | None:
    if target is None:
        return None
    return SloLatency(percentile=target.percentile, limit_s=target.limit.total_seconds())


def _slo_now(standing: SloStanding | None) -> SloNow | None:
    if standing is None:
        return None
    return SloNow(
        met_at_least=standing.met_at_least,
        met_at_most=standing.met_at_most,
        objective=standing.objective,
        observations=standing.observations,
    )


def _traffic(deployment: Deployment, snapshot: TelemetrySnapshot) -> TrafficOut | None:
    gateway = value_if_fresh(snapshot.gateway)
    route = gateway.routes.get(deployment.name) if gateway is not None else None
    if route is None:
        return None
    return TrafficOut(
        arrivals_total=route.arrivals_total,
        in_flight=route.in_flight,
        queued=route.queued,
        held=route.held,
        responses_5xx_total=route.responses_5xx_total,
    )


def _engine(sample: EngineSample) -> EngineOut:
    return EngineOut(
        running=sample.running,
        waiting=sample.waiting,
        kv_usage=sample.kv_usage,
        prompt_tokens=sample.prompt_tokens,
        generation_tokens=sample.generation_tokens,
        preemptions=sample.preemptions,
    )
