"""Valid values with sensible defaults, to be varied where a test means something by it."""

from dataclasses import replace
from datetime import timedelta
from typing import Final

from controlplane.domain.deployment import (
    CapacityPrior,
    Deployment,
    DeploymentSpec,
    EngineKind,
    Intent,
    LaunchTemplate,
    ServingPlan,
    TaskKind,
)
from controlplane.domain.node import Node, NodeSpec, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.ids import DeploymentName, ModelId, NodeName, PoolName, RevisionId, ServedName, replica_name
from controlplane.kernel.units import GIB
from controlplane.testing.effects import START

REVISION: Final = RevisionId("0a1b2c3d")

PRIOR_8B_B200: Final = CapacityPrior(
    step_base_s=3.39e-3,
    step_per_seq_s=4.0e-6,
    step_per_context_token_s=1.81e-8,
    prefill_base_s=2.98e-3,
    prefill_per_token_s=8.48e-6,
    prefill_per_token2_s=3.30e-10,
    kv_tokens=1_189_000,
    max_num_seqs=256,
    cold_start=timedelta(seconds=60),
    wake=timedelta(seconds=5),
    calibrated=True,
)
"""Llama-3 8B, bf16, TP1 on a B200: NVIDIA aiconfigurator 0.12.0, vLLM tables."""


def make_slo() -> Slo:
    return Slo(
        ttft=LatencyTarget(percentile=0.95, limit=timedelta(seconds=1)),
        inter_token=LatencyTarget(percentile=0.95, limit=timedelta(milliseconds=50)),
    )


def make_spec(name: str = "chat", *, replicas_min: int = 1, replicas_max: int = 4) -> DeploymentSpec:
    return DeploymentSpec(
        name=DeploymentName(name),
        model=ModelId("llama-3-8b"),
        served_names=(ServedName(name),),
        replicas_min=replicas_min,
        replicas_max=replicas_max,
        slo=make_slo(),
        idle_after=timedelta(minutes=5) if replicas_min == 0 else None,
    )


def make_template(name: str = "chat") -> LaunchTemplate:
    return LaunchTemplate(
        engine=EngineKind.SIMULATED,
        task=TaskKind.GENERATE,
        argv=("sim-engine", "--port", "{port}"),
        env=(("CUDA_VISIBLE_DEVICES", "{gpus}"),),
        health_path="/health",
        metrics_path="/metrics",
        probe_model=ServedName(name),
        start_deadline=timedelta(seconds=300),
        drain_deadline=timedelta(seconds=60),
        stop_deadline=timedelta(seconds=30),
    )


def make_plan(name: str = "chat", *, gpus: int = 1, revision: RevisionId = REVISION) -> ServingPlan:
    return ServingPlan(
        revision=revision,
        gpus_per_replica=gpus,
        gpu_models=("b200",),
        memory_bytes_per_gpu=100 * GIB,
        launch=make_template(name),
        prior=PRIOR_8B_B200,
    )


def make_deployment(
    name: str = "chat", *, wanted: int = 1, replicas_min: int = 1, replicas_max: int = 4, gpus: int = 1
) -> Deployment:
    return Deployment(
        spec=make_spec(name, replicas_min=replicas_min, replicas_max=replicas_max),
        plan=make_plan(name, gpus=gpus),
        intent=Intent(),
        replicas_wanted=wanted,
        generation=1,
        created_at=START,
    )


def make_node_spec(name: str = "node-1", *, gpus: int = 8, gpu_model: str = "b200") -> NodeSpec:
    return NodeSpec(
        name=NodeName(name),
        pool=PoolName("b200"),
        gpu_model=gpu_model,
        gpus=gpus,
        numa_of_gpu=tuple(0 if index < gpus // 2 else 1 for index in range(gpus)),
        simulated=True,
    )


def make_node(name: str = "node-1", *, gpus: int = 8, state: NodeState = NodeState.READY) -> Node:
    return Node(spec=make_node_spec(name, gpus=gpus), state=state, state_reason="", generation=1, seen_at=START)


def make_replica(
    deployment: str = "chat",
    ordinal: int = 0,
    *,
    phase: ReplicaPhase = ReplicaPhase.READY,
    node: str = "node-1",
    gpus: tuple[int, ...] = (0,),
    port: int = 20000,
    revision: RevisionId = REVISION,
) -> Replica:
    served = phase not in (ReplicaPhase.PENDING, ReplicaPhase.STARTING)
    return Replica(
        name=replica_name(DeploymentName(deployment), revision, ordinal),
        deployment=DeploymentName(deployment),
        revision=revision,
        ordinal=ordinal,
        phase=phase,
        phase_since=START,
        node=NodeName(node),
        gpus=gpus,
        port=port,
        created_at=START,
        reason=Reason.WANTED,
        sentence="built by a test",
        launched_at=None if phase is ReplicaPhase.PENDING else START,
        ready_at=START if served else None,
    )


def paused(deployment: Deployment) -> Deployment:
    return replace(deployment, intent=replace(deployment.intent, paused=True))
