"""A deployment: a model that should be served, how well, and within which bounds."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from controlplane.domain.scaling import AutoscalingSpec
from controlplane.domain.slo import Slo
from controlplane.kernel.ids import DeploymentName, ModelId, PoolName, RevisionId, ServedName


class IdleMode(StrEnum):
    """What happens to the last replica of a deployment that may go to zero."""

    STOP = "stop"
    """The process ends; the next request pays a cold start."""
    SLEEP = "sleep"
    """The engine sleeps (vLLM's sleep mode): its GPUs stay reserved, a wake takes seconds."""


class EngineKind(StrEnum):
    VLLM = "vllm"
    SIMULATED = "simulated"


class TaskKind(StrEnum):
    """Which family of OpenAI endpoints a model answers; decides the probe's request."""

    GENERATE = "generate"
    EMBED = "embed"
    TRANSCRIBE = "transcribe"
    SPEAK = "speak"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """What the site file says of one deployment, parsed and bounded."""

    name: DeploymentName
    model: ModelId
    served_names: tuple[ServedName, ...]
    """Values of the request's `model` field that route here: the deployment's names, then its adapters."""
    replicas_min: int
    replicas_max: int
    slo: Slo = field(default_factory=Slo)
    engine: str = "default"
    """Name of an entry of the site's `engines`."""
    pool: PoolName | None = None
    """Restrict placement to this pool; None: any pool whose GPU fits."""
    precision: str | None = None
    tensor_parallel: int | None = None
    """None: the smallest that fits."""
    context_tokens: int | None = None
    """Longest sequence to serve; None: the model's own limit if it fits, else the largest that does."""
    max_num_seqs: int | None = None
    engine_args: tuple[tuple[str, str], ...] = ()
    """Further engine arguments as (name, value), names as vLLM's long options without the dashes."""
    weights: str | None = None
    """What the engine loads instead of the catalog's repository: a folder or a repository, of the model's own shape."""
    adapters: tuple[tuple[str, str], ...] = ()
    """LoRA adapters as (served name, path or repository)."""
    idle_after: timedelta | None = None
    """Go to zero after so long without a request; None: never (then replicas_min >= 1)."""
    idle_mode: IdleMode = IdleMode.STOP
    accept_license: bool = False
    autoscaling: AutoscalingSpec = field(default_factory=AutoscalingSpec)
    """Who decides on the number of replicas, and whether it is acted upon."""

    def __post_init__(self) -> None:
        assert 0 <= self.replicas_min <= self.replicas_max, "0 <= replicas_min <= replicas_max"
        assert self.served_names, "a deployment is served under at least one name"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPrior:
    """What one replica is believed to do before it has served anything. Times in seconds.

    Decode step: `step_base_s + step_per_seq_s * B + step_per_context_token_s * B * ctx`; prefill of n tokens:
    `prefill_base_s + prefill_per_token_s * n + prefill_per_token2_s * n**2` (B: running sequences, ctx: their mean
    context in tokens). Source of the form and of known coefficients: NVIDIA aiconfigurator 0.12, vLLM tables.
    """

    step_base_s: float
    step_per_seq_s: float
    step_per_context_token_s: float
    prefill_base_s: float
    prefill_per_token_s: float
    prefill_per_token2_s: float
    kv_tokens: int
    """KV cache of one replica, in tokens; 0 for models without one."""
    max_num_seqs: int
    cold_start: timedelta
    """Expected time from launch to ready, until the site has measured its own."""
    wake: timedelta
    """Expected time from asleep to ready."""
    calibrated: bool
    """True: coefficients measured for this model and GPU; False: derived from the hardware's bandwidth and FLOP/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTemplate:
    """How one replica is started. `{name}`, `{port}`, `{host}` and `{gpus}` in argv and env values are filled in."""

    engine: EngineKind
    task: TaskKind
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    health_path: str
    metrics_path: str
    probe_model: ServedName
    """The served name that a probe request uses."""
    start_deadline: timedelta
    """A replica not ready after this is given up."""
    drain_deadline: timedelta
    """In-flight requests get at most this long after the replica left the gateway."""
    stop_deadline: timedelta
    """From the first SIGTERM to SIGKILL of the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """What the catalog made of a spec: everything placement and launch need, so that neither reads the catalog."""

    revision: RevisionId
    """Hash of all that needs a restart to change: 8 hex digits."""
    gpus_per_replica: int
    gpu_models: tuple[str, ...]
    """Catalog names of the GPUs on which this plan holds, best first."""
    memory_bytes_per_gpu: int
    launch: LaunchTemplate
    prior: CapacityPrior
    proof: tuple[str, ...] = ()
    """The fit's arithmetic, a line each, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What people asked for through API or CLI, over what the autoscaler thinks."""

    paused: bool = False
    """True: hold everything as it is; no launch, no drain, no scaling."""
    replicas_pinned: int | None = None
    """A fixed number that replaces the autoscaler's; None: automatic."""
    shadow: bool | None = None
    """Whether the autoscaler only shows what it would do; None: as the site file says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment's row. Writers: site apply (spec, plan, removed), API (intent), autoscaler (replicas_wanted)."""

    spec: DeploymentSpec
    plan: ServingPlan
    intent: Intent
    replicas_wanted: int
    generation: int
    created_at: datetime
    removed: bool = False
    """The site file no longer has it: drain to nothing, then delete the row."""

    @property
    def name(self) -> DeploymentName:
        return self.spec.name

    @property
    def in_shadow(self) -> bool:
        """The autoscaler decides and shows, and the number stays as it is."""
        return self.spec.autoscaling.shadow if self.intent.shadow is None else self.intent.shadow

    @property
    def replicas_target(self) -> int:
        """What the replica reconciler should work towards."""
        if self.removed:
            return 0
        if self.intent.replicas_pinned is not None:
            return self.intent.replicas_pinned
        return min(max(self.replicas_wanted, self.spec.replicas_min), self.spec.replicas_max)
