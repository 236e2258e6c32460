"""The validated document as the domain's `Site`: defaults that depend on other fields are filled in here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from controlplane.adapters.sitefile.convert_recovery import to_recovery
from controlplane.adapters.sitefile.schema import (
    Autoscaling,
    DeploymentSection,
    Engine,
    Gateway,
    Latency,
    Load,
    NodeDeclaration,
    NodePool,
    Objectives,
    Rule,
    SiteDocument,
)
from controlplane.adapters.sitefile.values import RuleValue
from controlplane.domain.deployment import DeploymentSpec, EngineKind, IdleMode
from controlplane.domain.node import NodeSpec
from controlplane.domain.scaling import AutoscalingSpec, ScalingPolicy, ScalingRule, Signal
from controlplane.domain.site import (
    EngineSpec,
    GatewaySpec,
    LoadSpec,
    Site,
    StoreKind,
    StoreSpec,
    TelemetrySource,
    TelemetrySpec,
    TenantSpec,
)
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.ids import DeploymentName, ModelId, NodeName, PoolName, ServedName, TenantName

DEFAULT_ENGINE: Final = "default"

_HGX_GPUS: Final = 8
"""GPUs of an HGX board: two CPU sockets with four each (NVIDIA's HGX and DGX B200 / H100 topology)."""


def to_site(document: SiteDocument) -> Site:
    """The document must have passed schema, references and rules: nothing is checked again here."""
    engines = tuple(_engine(engine) for engine in document.engines)
    explicit = Counter(name for section in document.deployments for name in _explicit_names(section))
    models = Counter(section.model for section in document.deployments)
    taken = frozenset(explicit) | {model for model, count in models.items() if count > 1}
    return Site(
        name=document.site.name,
        nodes=tuple(node for pool in document.node_pools for node in _nodes(pool)),
        engines=engines,
        deployments=tuple(_deployment(section, engines, taken) for section in document.deployments),
        gateway=_gateway(document.gateway),
        telemetry=TelemetrySpec(
            source=TelemetrySource(document.telemetry.source),
            prometheus_url=document.telemetry.prometheus_url,
            interval=document.telemetry.interval,
            stale_after=document.telemetry.stale_after,
        ),
        store=StoreSpec(kind=StoreKind(document.store.kind), url=document.store.url),
        load=None if document.load is None else _load(document.load),
        recovery=to_recovery(document.recovery, StoreKind(document.store.kind), site_name=document.site.name),
        replica_ports=(document.replica_ports.first, document.replica_ports.last),
    )


def _nodes(pool: NodePool) -> Iterator[NodeSpec]:
    numa = tuple(pool.numa) if pool.numa is not None else _board_numa(pool.gpus_per_node)
    for node in _declared(pool):
        yield NodeSpec(
            name=NodeName(node.name),
            pool=PoolName(pool.name),
            gpu_model=pool.gpu,
            gpus=pool.gpus_per_node,
            numa_of_gpu=numa,
            address=node.address,
            agent_url=node.agent_url,
            simulated=pool.simulated,
        )


def _declared(pool: NodePool) -> Iterator[NodeDeclaration]:
    if isinstance(pool.nodes, int):
        yield from (NodeDeclaration(name=f"{pool.name}-{number}") for number in range(1, pool.nodes + 1))
    else:
        yield from (NodeDeclaration(name=node) if isinstance(node, str) else node for node in pool.nodes)


def _board_numa(gpus: int) -> tuple[int, ...]:
    if gpus != _HGX_GPUS:
        return ()
    return tuple(0 if index < _HGX_GPUS // 2 else 1 for index in range(_HGX_GPUS))


def _engine(engine: Engine) -> EngineSpec:
    return EngineSpec(
        name=engine.name,
        kind=EngineKind(engine.kind),
        command=tuple(engine.command),
        env=tuple(engine.env.items()),
        args=_arguments(engine.args),
        speed=engine.speed,
        cold_start=engine.cold_start,
        wake=engine.wake,
        memory_utilization=engine.memory_utilization,
    )


def _deployment(section: DeploymentSection, engines: Sequence[EngineSpec], taken: frozenset[str]) -> DeploymentSpec:
    revision = () if section.revision is None else (("revision", section.revision),)
    return DeploymentSpec(
        name=DeploymentName(section.name),
        model=ModelId(section.model),
        weights=section.weights,
        served_names=tuple(ServedName(name) for name in _served_names(section, taken)),
        replicas_min=section.replicas.min,
        replicas_max=section.replicas.max,
        slo=_slo(section.slo),
        engine=section.engine or (engines[0].name if len(engines) == 1 else DEFAULT_ENGINE),
        pool=None if section.pool is None else PoolName(section.pool),
        precision=section.precision,
        tensor_parallel=section.tensor_parallel,
        context_tokens=section.context,
        max_num_seqs=section.max_num_seqs,
        engine_args=(*revision, *_arguments(section.engine_args)),
        adapters=tuple((adapter.name, adapter.path) for adapter in section.adapters),
        idle_after=section.idle_after,
        idle_mode=IdleMode(section.idle_mode),
        accept_license=section.accept_license,
        autoscaling=_autoscaling(section.autoscaling),
    )


def _served_names(section: DeploymentSection, taken: frozenset[str]) -> Iterator[str]:
    """As listed, else the deployment's name and, where nobody else goes by it, the model's; then the adapters'."""
    if section.served_names is not None:
        yield from section.served_names
    else:
        yield section.name
        if section.model not in taken:
            yield section.model
    yield from (adapter.name for adapter in section.adapters)


def _explicit_names(section: DeploymentSection) -> Iterator[str]:
    yield from section.served_names or (section.name,)
    yield from (adapter.name for adapter in section.adapters)


def _arguments(arguments: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", "-"), value) for name, value in arguments.items())


def _slo(objectives: Objectives) -> Slo:
    return Slo(
        ttft=_target(objectives.ttft),
        inter_token=_target(objectives.inter_token),
        end_to_end=_target(objectives.end_to_end),
    )


def _target(latency: Latency | None) -> LatencyTarget | None:
    """`{p95: 500ms}`: the schema lets exactly one percentile pass."""
    for key, limit in (latency or {}).items():
        return LatencyTarget(percentile=_percentile(key), limit=limit)
    return None


def _percentile(key: str) -> float:
    """`p99.9` as 0.999."""
    return round(float(key.removeprefix("p")) / 100, 6)


def _autoscaling(section: Autoscaling) -> AutoscalingSpec:
    return AutoscalingSpec(
        policy=ScalingPolicy(section.policy),
        shadow=section.shadow,
        rules=tuple(_rule(rule) for rule in section.rules),
        up_per_minute_max=section.max_up_per_minute,
        down_per_minute_max=section.max_down_per_minute,
        cooldown_up=section.cooldown.up,
        cooldown_down=section.cooldown.down,
        lookahead=section.lookahead,
        confidence=section.confidence,
    )


def _rule(rule: Rule) -> ScalingRule:
    return ScalingRule(
        signal=Signal(rule.signal),
        target=_value(rule.target),
        above=_value(rule.above),
        below=_value(rule.below),
        step_up=rule.up,
        step_down=rule.down,
        percentile=_percentile(rule.percentile),
        window=rule.window,
    )


def _value(found: RuleValue | None) -> float | None:
    return None if found is None else found.value


def _gateway(gateway: Gateway) -> GatewaySpec:
    return GatewaySpec(
        host=gateway.host,
        port=gateway.port,
        hold_requests_max=gateway.hold.requests,
        hold_bytes_max=gateway.hold.bytes,
        hold_timeout=gateway.hold.timeout,
        queue_timeout=gateway.queue_timeout,
        body_bytes_max=gateway.body_max,
        request_timeout=gateway.request_timeout,
        tenants=tuple(
            TenantSpec(
                name=TenantName(tenant.name),
                keys=tuple(tenant.keys),
                requests_per_minute=tenant.requests_per_minute,
            )
            for tenant in gateway.tenants
        ),
    )


def _load(load: Load) -> LoadSpec:
    return LoadSpec(
        deployment_weights=tuple(load.deployments.items()),
        peak_rps=load.peak_rps,
        trough_rps=load.trough_rps,
        day=load.day,
        duration=load.duration,
        prompt_tokens_mean=load.prompt_tokens_mean,
        output_tokens_mean=load.output_tokens_mean,
        writes_per_s=load.writes_per_second,
        seed=load.seed,
    )
