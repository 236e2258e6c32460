"""HPA, KEDA, KServe and production-stack's Helm values, read as autoscalers."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.doctor.model import Document, Field
from controlplane.autoscaler.doctor.promql import parse
from controlplane.autoscaler.doctor.recipe import (
    AdapterMetric,
    Autoscaler,
    Division,
    Expression,
    Hold,
    Scaler,
    Signal,
    Source,
    Target,
)

HPA_HOLD: Final = timedelta(seconds=300)
"""`scaleDown.stabilizationWindowSeconds` where none is given. Source: Kubernetes, HPA, default behaviour."""
_KEDA_MAX: Final = 100.0
"""`maxReplicaCount` where none is given. Source: KEDA, ScaledObject specification."""
_DIVISIONS: Final[Mapping[str, Division]] = {"AverageValue": Division.BY_TARGET, "Value": Division.BY_RATIO}


def hpas(document: Document, adapter: Mapping[str, AdapterMetric]) -> Iterator[Autoscaler]:
    """`adapter`: by the names under which prometheus-adapter offers metrics."""
    if document.kind != "HorizontalPodAutoscaler":
        return
    spec = document.root["spec"]
    yield Autoscaler(
        scaler=Scaler.HPA,
        spec=spec,
        target=_target(spec["scaleTargetRef"], document.namespace, default_kind=""),
        replicas_min=_or_default(spec["minReplicas"], 1.0),
        min_at=spec["minReplicas"],
        replicas_max=spec["maxReplicas"].number,
        max_at=spec["maxReplicas"],
        behavior=spec["behavior"],
        hold=_hold(spec["behavior"]),
        signals=tuple(_hpa_signals(spec, adapter)),
    )


def scaled_objects(document: Document) -> Iterator[Autoscaler]:
    if document.kind != "ScaledObject":
        return
    spec = document.root["spec"]
    target = _target(spec["scaleTargetRef"], document.namespace, default_kind="Deployment")
    yield _keda(spec, target, tuple(keda_signals(spec)))


def helm_values(document: Document) -> Iterator[Autoscaler]:
    """`servingEngineSpec.modelSpec[].keda` of vLLM's production-stack, with the trigger that its chart adds."""
    for model in document.root.at("servingEngineSpec", "modelSpec").items():
        keda = model["keda"]
        if keda["enabled"].flag and model["enabled"].flag is not False:
            name = model["name"].text
            signals = tuple(keda_signals(keda)) if keda["triggers"].there else (_chart_default(keda, name),)
            target = Target(kind="Deployment", name=f"{name} (chart)", namespace="", at=model["name"])
            yield _keda(keda, target, signals)


def kserve(document: Document) -> Iterator[Autoscaler]:
    if document.kind != "LLMInferenceService":
        return
    spec = document.root["spec"]
    for workload, suffix in ((spec, ""), (spec["prefill"], "-prefill")):
        scaling = workload["scaling"]
        if not scaling.there:
            continue
        actuator = scaling["wva"]
        behavior = actuator.at("hpa", "behavior")
        if actuator["keda"].there:
            behavior = actuator.at("keda", "advanced", "horizontalPodAutoscalerConfig", "behavior")
        yield Autoscaler(
            scaler=Scaler.KSERVE,
            spec=scaling,
            target=Target(kind=document.kind, name=document.name + suffix, namespace=document.namespace, at=scaling),
            replicas_min=_or_default(scaling["minReplicas"], 1.0),
            min_at=scaling["minReplicas"],
            replicas_max=scaling["maxReplicas"].number,
            max_at=scaling["maxReplicas"],
            behavior=behavior,
            hold=_hold(behavior),
        )


def keda_signals(spec: Field) -> Iterator[Signal]:
    combined = spec.at("advanced", "scalingModifiers", "formula").there
    for trigger in spec["triggers"].items():
        metadata = trigger["metadata"]
        if trigger["type"].text in {"cpu", "memory"}:
            at = trigger["type"]
            yield Signal(source=Source.RESOURCE, name=at.text, at=at)
        if trigger["type"].text != "prometheus":
            continue
        query = metadata["query"]
        yield Signal(
            source=Source.QUERY,
            name="",
            at=query,
            expression=Expression(query=parse(query.text), at=query),
            # A formula over all triggers replaces what each of them asks for.
            division=None if combined else _DIVISIONS.get(trigger["metricType"].text or "AverageValue"),
            target=None if combined else metadata["threshold"].number,
            target_at=metadata["threshold"],
        )


def _keda(spec: Field, target: Target | None, signals: tuple[Signal, ...]) -> Autoscaler:
    behavior = spec.at("advanced", "horizontalPodAutoscalerConfig", "behavior")
    return Autoscaler(
        scaler=Scaler.KEDA,
        spec=spec,
        target=target,
        replicas_min=_or_default(spec["minReplicaCount"], 0.0),
        min_at=spec["minReplicaCount"],
        replicas_max=_or_default(spec["maxReplicaCount"], _KEDA_MAX),
        max_at=spec["maxReplicaCount"],
        behavior=behavior,
        hold=_hold(behavior),
        signals=signals,
    )


def _chart_default(keda: Field, model: str) -> Signal:
    """Source: production-stack, helm/templates/scaledobject-vllm.yaml."""
    query = f'vllm:num_requests_waiting{{model="{model}"}}'
    return Signal(
        source=Source.QUERY,
        name="",
        at=keda,
        expression=Expression(query=parse(query), at=keda, at_key=True),
        division=Division.BY_TARGET,
        target=5.0,
        target_at=keda,
    )


def _hpa_signals(spec: Field, adapter: Mapping[str, AdapterMetric]) -> Iterator[Signal]:
    utilization = spec["targetCPUUtilizationPercentage"]
    if utilization.there:
        yield Signal(source=Source.RESOURCE, name="cpu", at=utilization)
    for metric in spec["metrics"].items():
        kind = metric["type"].text
        if kind in {"Resource", "ContainerResource"}:
            name = metric["resource" if kind == "Resource" else "containerResource"]["name"]
            yield Signal(source=Source.RESOURCE, name=name.text, at=name)
        elif kind in {"Pods", "Object", "External"}:
            yield _hpa_metric(metric[kind.lower()], adapter, is_pod_mean=kind == "Pods")


def _hpa_metric(metric: Field, adapter: Mapping[str, AdapterMetric], *, is_pod_mean: bool) -> Signal:
    name = metric.at("metric", "name")
    target = metric["target"]
    key = {"Value": "value", "AverageValue": "averageValue"}.get(target["type"].text, "averageValue")
    offered = adapter.get(name.text)
    return Signal(
        source=Source.CUSTOM,
        name=name.text,
        at=name,
        expression=None if offered is None else offered.query,
        division=Division.BY_RATIO if is_pod_mean else _DIVISIONS.get(target["type"].text),
        is_pod_mean=is_pod_mean,
        target=target[key].number,
        target_at=target[key],
    )


def _target(reference: Field, namespace: str, *, default_kind: str) -> Target | None:
    name = reference["name"]
    if not name.there:
        return None
    return Target(kind=reference["kind"].text or default_kind, name=name.text, namespace=namespace, at=name)


def _or_default(field: Field, default: float) -> float | None:
    return field.number if field.there else default


def _hold(behavior: Field) -> Hold:
    window = behavior.at("scaleDown", "stabilizationWindowSeconds")
    span = window.duration if window.there else HPA_HOLD
    return Hold(span=span, at=window)
