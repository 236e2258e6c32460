"""The site as declared: what `site.yaml` says, parsed. Other features add fields with the sections they own."""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from controlplane.domain.dataset import RecoverySpec
from controlplane.domain.deployment import DeploymentSpec, EngineKind
from controlplane.domain.node import NodeSpec
from controlplane.domain.secret import SecretRef
from controlplane.kernel.ids import TenantName


class TelemetrySource(StrEnum):
    DIRECT = "direct"
    PROMETHEUS = "prometheus"


class StoreKind(StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One entry of `engines`: how replicas of the deployments that name it are run."""

    name: str
    kind: EngineKind
    command: tuple[str, ...] = ()
    """Overrides the program (e.g. a vLLM in its own environment); empty: found on PATH, or our simulated engine."""
    env: tuple[tuple[str, str], ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    """Engine arguments for every deployment on it; a deployment's own come after and win."""
    speed: float = 1.0
    """Simulated engine only: how many times faster than the hardware it plays."""
    cold_start: timedelta | None = None
    """Simulated engine only: time from launch to healthy; None: the catalog's figure divided by speed."""
    wake: timedelta | None = None
    memory_utilization: float = 0.92
    """Share of a GPU's memory that the engine may take (vLLM's gpu_memory_utilization; 0.92 is vLLM 0.33's default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """A caller of models. Without any tenant the gateway asks nobody for a key."""

    name: TenantName
    keys: tuple[SecretRef, ...]
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySpec:
    host: str = "127.0.0.1"
    port: int = 8000
    hold_requests_max: int = 256
    """Requests held per deployment while a replica wakes; beyond: 503 with Retry-After."""
    hold_bytes_max: int = 64 * 1024 * 1024
    """Bodies held, all deployments together."""
    hold_timeout: timedelta = timedelta(seconds=180)
    queue_timeout: timedelta = timedelta(seconds=60)
    body_bytes_max: int = 32 * 1024 * 1024
    request_timeout: timedelta = timedelta(seconds=600)
    """Longest silence of a replica on an open request."""
    tenants: tuple[TenantSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySpec:
    source: TelemetrySource = TelemetrySource.DIRECT
    prometheus_url: str | None = None
    interval: timedelta = timedelta(seconds=1)
    stale_after: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    kind: StoreKind = StoreKind.SQLITE
    url: SecretRef | None = None
    """PostgreSQL's URL, by reference since it carries a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """The demo's own load: a day's shape, sped up. Absent from a real site."""

    deployment_weights: tuple[tuple[str, float], ...]
    peak_rps: float
    trough_rps: float
    day: timedelta = timedelta(minutes=10)
    """Wall time that one day of the shape takes."""
    duration: timedelta = timedelta(minutes=30)
    """The load ends by itself after this."""
    prompt_tokens_mean: int = 600
    output_tokens_mean: int = 120
    writes_per_s: float = 0.0
    """Rows a second into the embedded PostgreSQL, where a dataset is one."""
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    name: str
    nodes: tuple[NodeSpec, ...]
    engines: tuple[EngineSpec, ...]
    deployments: tuple[DeploymentSpec, ...]
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    telemetry: TelemetrySpec = field(default_factory=TelemetrySpec)
    store: StoreSpec = field(default_factory=StoreSpec)
    load: LoadSpec | None = None
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    replica_ports: tuple[int, int] = (20000, 20999)
    """First and last port that replicas may listen on."""
