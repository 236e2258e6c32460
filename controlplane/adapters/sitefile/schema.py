"""The one schema of `site.yaml`, as people write it. What a field means is its docstring: editors show it.

Every section takes part in `load_site`, in the JSON Schema for editors and in docs/site-file.md. To add a section: a
`Section` here, a field of `SiteDocument`, its conversion in `convert.py`, rules that span fields in `rules.py`, a line
for each field in docs/site-file.md, then `quarterdeck site schema --out schemas/site.schema.json`.
"""

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag

from controlplane.adapters.sitefile.quantities import DurationBetween, SizeBetween
from controlplane.adapters.sitefile.schema_recovery import Recovery
from controlplane.adapters.sitefile.section import Section
from controlplane.adapters.sitefile.values import (
    Address,
    ArgumentName,
    ArgumentValue,
    EnvironmentName,
    FilledText,
    GpuModel,
    HttpUrl,
    ModelName,
    Name,
    PercentileKey,
    Port,
    SecretReference,
    ServedModelName,
    SignalValue,
    Weights,
    expected,
)
from controlplane.kernel.units import GIB, KIB, MIB

_MS: Final = timedelta(milliseconds=1)
_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)

NODES_MAX: Final = 2048
"""Of one pool. Twice the design size of a site (1,000 nodes)."""

GPUS_PER_NODE_MAX: Final = 16
"""The largest single machines: NVIDIA's HGX-2."""

TOKENS_MAX: Final = 16 * 1024 * 1024
"""Longest context: beyond what any catalogued model can do by far; catches bytes given for tokens."""

REPLICAS_MAX: Final = 2048
"""Of one deployment: the design size of a whole site."""

SECTIONS_MAX: Final = 512
"""Engines, pools, deployments: more than a team can own, few enough for a page."""

RULES_MAX: Final = 16
"""Of one deployment: more than anybody can hold in mind when asked why."""

LatencyLimit = Annotated[timedelta, DurationBetween(_MS, 60 * _MINUTE, usual_unit="ms")]
Latency = Annotated[
    dict[PercentileKey, LatencyLimit],
    Field(
        min_length=1,
        max_length=1,
        examples=[{"p95": "500ms"}],
        json_schema_extra=expected("one percentile and its limit, for example {p95: 500ms}"),
    ),
]
"""The share of requests that must be as fast, and how fast: `p50` is the median."""


class SiteSection(Section):
    name: Name = Field(examples=["demo"])
    """Name of the site; marks everything that belongs to it (processes, gateway, metrics)."""


class NodeDeclaration(Section):
    """A node by name, with what differs from its pool."""

    name: Name = Field(examples=["gpu-1"])
    """Name of the node; unique in the site."""
    address: Address = "127.0.0.1"
    """Where its replicas listen: host name or IP address."""
    agent_url: HttpUrl | None = None
    """Where its node agent (`quarterdeck agent`) answers."""


def _nodes_shape(found: object) -> str | None:
    if isinstance(found, int) and not isinstance(found, bool):
        return "<count>"
    return "<names>" if isinstance(found, list) else None


def _node_shape(found: object) -> str | None:
    if isinstance(found, str):
        return "<name>"
    return "<node>" if isinstance(found, dict) else None


NodeEntry = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[NodeDeclaration, Tag("<node>")], Discriminator(_node_shape)
]
NodeCount = Annotated[int, Field(ge=1, le=NODES_MAX)]
NodeList = Annotated[list[NodeEntry], Field(min_length=1, max_length=NODES_MAX)]


class NodePool(Section):
    """Machines of one kind."""

    name: Name = Field(examples=["b200"])
    """Name of the pool; deployments name it to stay in it."""
    gpu: GpuModel = Field(examples=["b200"])
    """Which GPU its nodes have: a name of the hardware catalog."""
    nodes: Annotated[
        Annotated[NodeCount, Tag("<count>")] | Annotated[NodeList, Tag("<names>")], Discriminator(_nodes_shape)
    ] = Field(examples=[2], json_schema_extra=expected("a number of nodes, or a list of names or of {name, address}"))
    """How many (named `<pool>-1`, `<pool>-2`, ...), or which: names, or `{name, address, agent_url}`."""
    gpus_per_node: int = Field(ge=1, le=GPUS_PER_NODE_MAX, examples=[8])
    """GPUs in each node."""
    numa: list[Annotated[int, Field(ge=0, le=63)]] | None = Field(
        default=None, json_schema_extra=expected("a list with the NUMA domain of each GPU, for example [0, 0, 1, 1]")
    )
    """NUMA domain of each GPU by index; left out, 8 GPUs are taken as an HGX board: 4 and 4."""
    simulated: bool = False
    """Nodes and GPUs that exist only in this control plane: no machine is needed."""


class Engine(Section):
    """A way to run replicas, named by deployments."""

    name: Name = Field(examples=["default"])
    """Name of the engine."""
    kind: Literal["vllm", "simulated"] = Field(examples=["simulated"])
    """`vllm`: real vLLM servers. `simulated`: processes that speak vLLM's API and metrics, without a GPU."""
    command: list[FilledText] = Field(default=[], max_length=64)
    """Program and first arguments instead of the one found on PATH, e.g. a vLLM in its own environment."""
    env: dict[EnvironmentName, str] = Field(default={}, max_length=256)
    """Environment variables for its replicas; no secrets."""
    args: dict[ArgumentName, ArgumentValue] = Field(default={}, max_length=256)
    """Engine arguments for every deployment on it: vLLM's long options without the dashes."""
    speed: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    """Simulated only: how many times faster than the hardware it plays."""
    cold_start: Annotated[timedelta, DurationBetween(0 * _MS, 60 * _MINUTE)] | None = None
    """Simulated only: time from launch to ready; left out, the catalog's figure divided by `speed`."""
    wake: Annotated[timedelta, DurationBetween(0 * _MS, 60 * _MINUTE)] | None = None
    """Simulated only: time from asleep to ready; left out, the catalog's figure divided by `speed`."""
    memory_utilization: float = Field(default=0.92, ge=0.1, le=0.98, allow_inf_nan=False)
    """Share of each GPU's memory that the engine may take (vLLM's gpu-memory-utilization)."""


class Replicas(Section):
    min: int = Field(ge=0, le=REPLICAS_MAX, examples=[1])
    """Replicas that are always there; 0 lets the deployment go to zero after `idle_after`."""
    max: int = Field(ge=1, le=REPLICAS_MAX, examples=[4])
    """Replicas that there are at most."""


class Objectives(Section):
    """What the deployment promises; each at one percentile."""

    ttft: Latency | None = None
    """Time to first token, from the request's arrival at the gateway."""
    inter_token: Latency | None = None
    """Mean time per output token after the first, of one request."""
    end_to_end: Latency | None = None
    """From the request's arrival at the gateway to the last byte of its answer."""


class Adapter(Section):
    """A LoRA adapter, served beside its base model."""

    name: ServedModelName = Field(examples=["chat-legal"])
    """The `model` of a request that wants it."""
    path: FilledText = Field(examples=["/models/adapters/legal"])
    """Folder or repository of its weights, as vLLM reads it."""


class Cooldown(Section):
    """Waiting after a change."""

    up: Annotated[timedelta, DurationBetween(0 * _MS, 60 * _MINUTE)] = 0 * _SECOND
    """After any change, no more replicas for so long."""
    down: Annotated[timedelta, DurationBetween(0 * _MS, _DAY)] = 5 * _MINUTE
    """Fewer only when nothing was changed, and no rule asked for more, for so long."""


class Rule(Section):
    """One signal and what to make of it: a target, thresholds, or a target that acts beyond thresholds."""

    signal: Literal[
        "cpu", "gpu_memory", "kv_cache", "queue_depth", "running", "in_flight", "requests_per_second", "ttft",
        "inter_token", "end_to_end", "error_rate",
    ] = Field(examples=["kv_cache"])  # fmt: skip
    """What it looks at; `gpu_memory` is read as `kv_cache`."""
    target: SignalValue | None = None
    """What a replica should have: replicas in proportion, as the Kubernetes HPA does."""
    above: SignalValue | None = None
    """More replicas only above it; without `target`: `up` more."""
    below: SignalValue | None = None
    """Fewer replicas only below it; without `target`: `down` fewer."""
    up: int = Field(default=1, ge=1, le=REPLICAS_MAX)
    """Replicas to add above `above`, where there is no `target`."""
    down: int = Field(default=1, ge=1, le=REPLICAS_MAX)
    """Replicas to give back below `below`, where there is no `target`."""
    percentile: PercentileKey = Field(
        default="p99", json_schema_extra=expected("a percentile, for example p50, p95 or p99.9")
    )
    """Which percentile of a latency (`ttft`, `inter_token`, `end_to_end`)."""
    window: Annotated[timedelta, DurationBetween(5 * _SECOND, 60 * _MINUTE)] = 30 * _SECOND
    """Over which the signal is taken: its mean, or its percentile."""


class Autoscaling(Section):
    """Who decides on the number of replicas, between `replicas.min` and `replicas.max`."""

    policy: Literal["slo", "rules"] = "slo"
    """`slo`: replicas for the SLO, by demand and a capacity that is learned. `rules`: by `rules`."""
    shadow: bool = False
    """Decide, record and show, but leave the number as it is."""
    rules: list[Rule] = Field(default=[], max_length=RULES_MAX, examples=[[{"signal": "kv_cache", "target": "75%"}]])
    """With `policy: rules`: what to look at; the largest answer wins."""
    max_up_per_minute: int | None = Field(default=None, ge=1, le=REPLICAS_MAX)
    """With `policy: rules`: most replicas added within a minute; left out: no limit."""
    max_down_per_minute: int | None = Field(default=None, ge=1, le=REPLICAS_MAX)
    """With `policy: rules`: most replicas given back within a minute; left out: no limit."""
    cooldown: Cooldown = Cooldown()
    """With `policy: rules`: waiting after a change."""
    lookahead: Annotated[timedelta, DurationBetween(_SECOND, 60 * _MINUTE)] | None = None
    """With `policy: rules`: act on the load that is forecast for so far ahead; left out: on what is measured."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999, allow_inf_nan=False)
    """With `lookahead`: how surely the load stays below what is forecast."""


class DeploymentSection(Section):
    """A model that should be served, how well, and within which bounds."""

    name: Name = Field(examples=["chat-8b"])
    """Name of the deployment; also its first served name."""
    model: ModelName = Field(examples=["llama-3.1-8b"])
    """Which model: a name of the model catalog."""
    weights: Weights | None = Field(default=None, examples=["/models/llama-3.1-8b-mine"])
    """What the engine loads, of the shape of `model`: a folder, or a repository of the hub; left out: the catalog's."""
    revision: FilledText | None = None
    """Commit or tag of the repository; left out, the newest."""
    served_names: list[ServedModelName] | None = Field(default=None, min_length=1, max_length=64)
    """Values of a request's `model` that come here; left out: the name, and the model's where no other has it."""
    replicas: Replicas = Field(examples=[{"min": 1, "max": 4}])
    """How many copies, from `min` to `max`."""
    idle_after: Annotated[timedelta, DurationBetween(5 * _SECOND, 30 * _DAY)] | None = None
    """With `replicas.min: 0`: go to zero after so long without a request."""
    idle_mode: Literal["stop", "sleep"] = "stop"
    """At zero: `stop` frees the GPUs, `sleep` keeps them reserved and wakes within seconds."""
    engine: Name | None = None
    """Which of `engines`; left out: the only one, or the one called `default`."""
    pool: Name | None = None
    """Which of `node_pools`; left out: any whose GPU fits."""
    precision: Name | None = None
    """Weight format, e.g. `bf16`, `fp8`, `awq`; left out: the model's own."""
    tensor_parallel: int | None = Field(default=None, ge=1, le=64)
    """GPUs per replica; left out: the smallest number that fits."""
    context: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    """Longest sequence in tokens; left out: the model's own limit, or the largest that fits."""
    max_num_seqs: int | None = Field(default=None, ge=1, le=65536)
    """Sequences that one replica works on at the same time; left out: the engine's default."""
    engine_args: dict[ArgumentName, ArgumentValue] = Field(default={}, max_length=256)
    """Further engine arguments: vLLM's long options without the dashes; they win over the engine's `args`."""
    adapters: list[Adapter] = Field(default=[], max_length=256)
    """LoRA adapters served beside the base model."""
    accept_license: bool = False
    """Says yes to the model's licence where it asks for that, e.g. non-commercial ones."""
    slo: Objectives = Objectives()
    """Latencies promised."""
    autoscaling: Autoscaling = Autoscaling()
    """Who decides on the number of replicas; left out: it follows the SLO."""


class Hold(Section):
    """Requests that wait while a deployment wakes from zero; beyond a bound they get 503 with Retry-After."""

    requests: int = Field(default=256, ge=0, le=100_000)
    """Requests held per deployment."""
    bytes: Annotated[int, SizeBetween(KIB, 64 * GIB)] = 64 * MIB
    """Bodies held, all deployments together; long bodies that only pass through count as well."""
    timeout: Annotated[timedelta, DurationBetween(_SECOND, 60 * _MINUTE)] = 180 * _SECOND
    """Longest time that a request is held."""


class Tenant(Section):
    """A caller of models."""

    name: Name = Field(examples=["team-a"])
    """Name of the tenant, as in metrics and limits."""
    keys: list[SecretReference] = Field(
        min_length=1,
        max_length=16,
        examples=[[{"env": "TEAM_A_KEY"}]],
        json_schema_extra=expected("a list of references to secrets, for example [{env: TEAM_A_KEY}]"),
    )
    """References to its API keys; several, so that one can be replaced without a gap."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    """Requests it may send per minute; left out: no limit."""


class Gateway(Section):
    host: Address = "127.0.0.1"
    """Address that the gateway listens on; `0.0.0.0` opens it to the network."""
    port: Port = 8000
    """Port of the OpenAI API (8000 is vLLM's own, so clients need no change)."""
    hold: Hold = Hold()
    """Bounds of waiting while a deployment wakes."""
    queue_timeout: Annotated[timedelta, DurationBetween(_SECOND, 60 * _MINUTE)] = 60 * _SECOND
    """Longest wait for a free replica."""
    body_max: Annotated[int, SizeBetween(KIB, GIB)] = 32 * MIB
    """Largest request body."""
    request_timeout: Annotated[timedelta, DurationBetween(_SECOND, _DAY)] = 600 * _SECOND
    """Longest silence of a replica on an open request."""
    tenants: list[Tenant] = Field(default=[], max_length=SECTIONS_MAX)
    """Who may call; left out: everybody who reaches the gateway, without a key."""


class Telemetry(Section):
    source: Literal["direct", "prometheus"] = "direct"
    """`direct`: the control plane scrapes replicas and agents itself. `prometheus`: it asks a Prometheus."""
    prometheus_url: HttpUrl | None = None
    """With `source: prometheus`: where that answers."""
    interval: Annotated[timedelta, DurationBetween(100 * _MS, 5 * _MINUTE)] = _SECOND
    """Time between two scrapes."""
    stale_after: Annotated[timedelta, DurationBetween(200 * _MS, 60 * _MINUTE)] = 5 * _SECOND
    """A measurement older than this is no longer acted upon; longer than `interval`."""


class Store(Section):
    kind: Literal["sqlite", "postgresql"] = "sqlite"
    """`sqlite`: a file in the state folder, one control plane. `postgresql`: several may share the work."""
    url: SecretReference | None = None
    """With `kind: postgresql`: reference to its URL, since that carries a password."""


class ReplicaPorts(Section):
    first: int = Field(default=20000, ge=1024, le=65535)
    """First port that replicas may listen on."""
    last: int = Field(default=20999, ge=1024, le=65535)
    """Last one."""


class Load(Section):
    """A load of its own for demonstrations: a day's shape, sped up. A real site has none."""

    deployments: dict[Name, Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]] = Field(
        min_length=1, max_length=SECTIONS_MAX, examples=[{"chat-8b": 1}]
    )
    """Which deployments, each with its share of the requests as a weight."""
    peak_rps: float = Field(gt=0, le=100_000, allow_inf_nan=False, examples=[10])
    """Requests per second at the day's peak."""
    trough_rps: float = Field(ge=0, le=100_000, allow_inf_nan=False, examples=[1])
    """Requests per second at night."""
    day: Annotated[timedelta, DurationBetween(10 * _SECOND, _DAY)] = 10 * _MINUTE
    """Wall time that one day of the shape takes."""
    duration: Annotated[timedelta, DurationBetween(_SECOND, 30 * _DAY)] = 30 * _MINUTE
    """The load ends by itself after this."""
    prompt_tokens_mean: int = Field(default=600, ge=1, le=1_000_000)
    """Mean length of a prompt in tokens."""
    output_tokens_mean: int = Field(default=120, ge=1, le=1_000_000)
    """Mean length of an answer in tokens."""
    writes_per_second: float = Field(default=0, ge=0, le=1000, allow_inf_nan=False)
    """Rows a second into the embedded PostgreSQL, so that there is something to lose."""
    seed: int = Field(default=7, ge=0, le=2**32 - 1)
    """Seed of its randomness: the same seed sends the same requests."""


class SiteDocument(Section):
    """Quarterdeck's site file: what the fleet is and what it should serve."""

    site: SiteSection = Field(examples=[{"name": "demo"}])
    """The site itself."""
    node_pools: list[NodePool] = Field(min_length=1, max_length=SECTIONS_MAX)
    """The machines, in pools of one kind."""
    engines: list[Engine] = Field(min_length=1, max_length=SECTIONS_MAX)
    """Ways to run replicas."""
    deployments: list[DeploymentSection] = Field(default=[], max_length=SECTIONS_MAX)
    """The models to serve."""
    gateway: Gateway = Gateway()
    """The one door for requests."""
    telemetry: Telemetry = Telemetry()
    """How measurements come in."""
    store: Store = Store()
    """Where the control plane keeps its state."""
    replica_ports: ReplicaPorts = ReplicaPorts()
    """Ports for replicas on each address."""
    load: Load | None = None
    """A load of its own, for demonstrations."""
    recovery: Recovery | None = None
    """What must survive: backups within their RPO, drills within their RTO."""
