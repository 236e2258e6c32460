"""The shapes on the wire. Durations are seconds (`_s`), memory is bytes, times are UTC in ISO 8601."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

REPLICAS_PINNED_MAX = 10_000
"""A bound against typing errors; a site's own maximum is checked besides."""

REPLAYED_MAX = 10_000
"""Decisions that one request decides again: seconds of work."""


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteOut(Wire):
    name: str
    digest: str
    generation: int
    applied_at: datetime


class SiteDocument(Wire):
    document: Annotated[str, Field(max_length=1_048_576, description="The text of a site.yaml.")]


class SiteChangeOut(Wire):
    changed: bool
    dry_run: bool
    changes: list[str]


class GpuOut(Wire):
    node: str
    index: int
    model: str
    replica: str | None
    utilization: float | None = Field(description="0..1; null when not measured.")
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    temperature_c: float | None


class NodeOut(Wire):
    name: str
    pool: str
    state: str
    state_reason: str
    generation: int
    gpu_model: str
    gpus: int
    gpus_held: int
    simulated: bool
    seen_at: datetime | None


class SloLatency(Wire):
    percentile: float
    limit_s: float


class SloOut(Wire):
    ttft: SloLatency | None
    inter_token: SloLatency | None
    end_to_end: SloLatency | None


class TrafficOut(Wire):
    """None of it when the gateway's figures are stale or missing."""

    arrivals_total: float
    in_flight: int
    queued: int
    held: int
    responses_5xx_total: float


class SloNow(Wire):
    """The tightest latency objective over the last minute or so, from the engines' own histograms."""

    met_at_least: float = Field(description="0..1; below the truth where the limit is no bucket edge.")
    met_at_most: float
    objective: float = Field(description="The share that the objective asks for.")
    observations: float


class HeldUp(Wire):
    at: datetime
    reason: str
    sentence: str


class DeploymentOut(Wire):
    name: str
    model: str
    served_names: list[str]
    revision: str
    generation: int
    paused: bool
    replicas_pinned: int | None
    replicas_min: int
    replicas_max: int
    replicas_wanted: int
    replicas_target: int
    scaling_policy: str = Field(default="slo", description="slo or rules: what decides on the number.")
    shadow: bool = Field(default=False, description="The autoscaler decides and shows; nothing is done about it.")
    replicas_shadow: int | None = Field(default=None, description="In shadow: what it would want.")
    replicas_by_phase: dict[str, int]
    gpus_per_replica: int
    slo: SloOut
    removed: bool
    traffic: TrafficOut | None
    slo_now: SloNow | None = Field(description="null without an objective or without requests lately.")
    reason: str | None = Field(description="Why the wanted number is what it is: the last decision's reason.")
    sentence: str | None
    held_up: HeldUp | None = Field(
        default=None,
        description="While replicas are missing or must leave their node: the newest event of it or its replicas.",
    )


class DeploymentDetail(DeploymentOut):
    proof: list[str] = Field(description="The memory fit's arithmetic, line by line.")
    argv: list[str]


class EngineOut(Wire):
    running: int
    waiting: int
    kv_usage: float
    prompt_tokens: float
    generation_tokens: float
    preemptions: float


class ReplicaOut(Wire):
    name: str
    deployment: str
    revision: str
    phase: str
    phase_since: datetime
    node: str
    gpus: list[int]
    port: int
    created_at: datetime
    ready_at: datetime | None
    cold_start_s: float | None
    reason: str
    sentence: str
    engine: EngineOut | None
    engine_data: str = Field(description="fresh, stale or missing.")


class LogOut(Wire):
    replica: str
    lines: list[str]


class DecisionOut(Wire):
    sequence: int
    deployment: str
    at: datetime
    wanted_before: int
    wanted: int
    reason: str
    sentence: str
    policy: str
    shadow: bool = Field(default=False, description="It was shown, not acted upon: the numbers are the shadow's.")


class DecisionDetail(DecisionOut):
    """With everything needed to decide again."""

    observation: dict[str, object]
    state_before: dict[str, object]
    state_after: dict[str, object]
    params: dict[str, object]


class ReplayOut(Wire):
    replayed: int
    same: int
    differing: list[str]


class EventOut(Wire):
    sequence: int
    at: datetime
    kind: str
    subject: str
    deployment: str | None
    reason: str
    sentence: str
    data: dict[str, str | int | float | bool]


class ScaleIn(Wire):
    replicas: Annotated[
        int | None, Field(ge=0, le=REPLICAS_PINNED_MAX, description="A fixed number, or null for automatic again.")
    ]
    generation: Annotated[int | None, Field(description="Refuse unless the deployment still has it.")] = None


class ShadowIn(Wire):
    shadow: Annotated[
        bool | None, Field(description="Whether the autoscaler only shows; null for as the site file says.")
    ]
    generation: Annotated[int | None, Field(description="Refuse unless the deployment still has it.")] = None
    reason: Annotated[str, Field(max_length=500)] = ""


class IntentIn(Wire):
    generation: Annotated[int | None, Field(description="Refuse unless the row still has it.")] = None
    reason: Annotated[str, Field(max_length=500)] = ""


NO_INTENT = IntentIn()
"""What a request without a body means."""


class IntentOut(Wire):
    subject: str
    generation: int
    sentence: str


class LoopOut(Wire):
    loop: str
    resource: str
    outcome: str
    seconds_since_last_tick: float | None
    failures_in_a_row: int
    sentence: str


class UsageOut(Wire):
    since: datetime
    until: datetime
    gpu_hours: float
    gpu_hours_static_peak: float = Field(description="Had every deployment held its peak of the window throughout.")
    gpus_peak: int
    scale_events: int
    by_deployment: dict[str, float]


class StatusOut(Wire):
    site: str | None
    version: str
    now: datetime
    gateway_url: str
    gateway: str = Field(description="fresh, stale or missing: how current the gateway's figures are.")
    links: dict[str, str]
    nodes: list[NodeOut]
    deployments: list[DeploymentOut]
    gpus_total: int
    gpus_held: int
    loops: list[LoopOut]


class Health(Wire):
    status: str
    detail: str
