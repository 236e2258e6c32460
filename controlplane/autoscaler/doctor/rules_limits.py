"""Limits and targets of autoscalers: whether there is room to scale, from zero too, and only one who does."""

import difflib
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.model import Finding, Rule, Severity, number_text
from controlplane.autoscaler.doctor.recipe import Autoscaler, Scaler, Source, same_namespace

_KEDA_CHILD: Final = "keda-hpa-"
"""Names of the HPAs that KEDA makes for its ScaledObjects."""

_SLIP: Final = 0.85
"""difflib's ratio: one letter in seven. Below it chat-8b and chat-70b, of which one file is not given, would be one."""

MAX_BELOW_MIN: Final = Rule(
    id="max-below-min",
    severity=Severity.BROKEN,
    looks_for="a maximum below the minimum",
    why="The object is refused, or never scales.",
    source="Kubernetes HPA, validation; KEDA and Ray Serve check the same",
)
FIXED: Final = Rule(
    id="never-scales",
    severity=Severity.ADVICE,
    looks_for="a maximum equal to the minimum",
    why="There is nothing between the two limits.",
    source="Kubernetes HPA",
)
HPA_ZERO: Final = Rule(
    id="hpa-zero-never-wakes",
    severity=Severity.BROKEN,
    looks_for="an HPA with a minimum of 0 and metrics of the pods",
    why="Without pods there is no metric of pods, so nothing ever asks for the first one; the API refuses it as well.",
    source="Kubernetes HPA: minReplicas 0 needs the gate HPAScaleToZero and an Object or External metric",
)
ZERO_OWN: Final = Rule(
    id="zero-never-wakes",
    severity=Severity.BROKEN,
    looks_for="scale to zero on the engine's own metrics",
    why="The metrics live in the engine: with no replica there is no series, KEDA reads zero, and nothing wakes it.",
    source="KEDA, pkg/scalers/prometheus_scaler.go; vLLM 0.33: metrics are the engine's",
)
KEDA_MAX: Final = Rule(
    id="keda-max-default",
    severity=Severity.ADVICE,
    looks_for="a ScaledObject without maxReplicaCount",
    why="The default is 100 replicas, each with its GPUs.",
    source="KEDA, ScaledObject specification",
)
RAY_MAX: Final = Rule(
    id="ray-max-default",
    severity=Severity.BROKEN,
    looks_for="Ray Serve autoscaling without max_replicas",
    why="The default is 1, so it never scales.",
    source="Ray Serve, AutoscalingConfig",
)
KNATIVE_ZERO: Final = Rule(
    id="knative-zero-cold-start",
    severity=Severity.RISKY,
    looks_for="Knative scaling an engine to zero",
    why="The first request waits for the whole start of the engine, minutes, while its own time-out runs.",
    source="Knative: min-scale is 0 by default; starts of 59 to 277 s measured (vLLM #20264, #44881)",
)
NO_TRIGGERS: Final = Rule(
    id="keda-without-triggers",
    severity=Severity.BROKEN,
    looks_for="a ScaledObject whose triggers are no list, or an empty one",
    why="KEDA refuses an object without a list of triggers.",
    source="KEDA, ScaledObject specification; production-stack's values.yaml shows a mapping in that place",
)
TWO: Final = Rule(
    id="two-autoscalers",
    severity=Severity.BROKEN,
    looks_for="two autoscalers on one target",
    why="Each undoes what the other did.",
    source="Kubernetes HPA: one for each target; KEDA makes an HPA of its own; llm-d WVA #1044",
)
PINNED: Final = Rule(
    id="replicas-in-manifest",
    severity=Severity.ADVICE,
    looks_for="spec.replicas in the manifest of what is scaled",
    why="Each time the manifest is applied it sets the replicas back to that number.",
    source="Kubernetes, HPA: migrating Deployments to horizontal autoscaling",
)
MISSING: Final = Rule(
    id="target-misspelt",
    severity=Severity.RISKY,
    looks_for="a target that is not among the workloads given, beside one of nearly that name that nothing scales",
    why="If that is a slip of the pen the autoscaler finds nothing to scale.",
    source="Kubernetes HPA, KEDA: scaleTargetRef",
)
API_REMOVED: Final = Rule(
    id="api-removed",
    severity=Severity.BROKEN,
    looks_for="an API version that Kubernetes has removed",
    why="autoscaling/v2beta1 ended with Kubernetes 1.25, v2beta2 with 1.26: the object is refused.",
    source="Kubernetes, deprecated API migration guide",
)
UP_DISABLED: Final = Rule(
    id="scale-up-disabled",
    severity=Severity.BROKEN,
    looks_for="scaleUp with selectPolicy Disabled",
    why="Disabled is the word for never: replicas only go.",
    source="Kubernetes HPA, behavior",
)
KSERVE_BOTH: Final = Rule(
    id="kserve-replicas-and-scaling",
    severity=Severity.BROKEN,
    looks_for="LLMInferenceService with replicas and scaling",
    why="The two exclude each other: the object is refused.",
    source="KServe, v1alpha2 llm_inference_service_types.go, validation",
)
RULES: Final = (
    MAX_BELOW_MIN,
    FIXED,
    HPA_ZERO,
    ZERO_OWN,
    KEDA_MAX,
    RAY_MAX,
    KNATIVE_ZERO,
    NO_TRIGGERS,
    TWO,
    PINNED,
    MISSING,
    API_REMOVED,
    UP_DISABLED,
    KSERVE_BOTH,
)


def check(case: Case) -> Iterator[Finding]:
    for scaler in case.recipe.autoscalers:
        yield from _room(scaler)
        yield from _zero(scaler)
        yield from _defaults(scaler)
        yield from _object(scaler)
        yield from _target(case, scaler)
    yield from _fights(case)


def _room(scaler: Autoscaler) -> Iterator[Finding]:
    low, high = scaler.replicas_min, scaler.replicas_max
    if low is None or high is None or (scaler.scaler == Scaler.RAY and not scaler.max_at.there):
        return
    at = scaler.max_at if scaler.max_at.there else scaler.min_at
    found = f"{number_text(low)} to {number_text(high)}"
    if high < low:
        fix = f"{scaler.max_at.path[-1]}: {number_text(max(low, 1.0))}"
        yield Finding(rule=MAX_BELOW_MIN, at=at, found=found, expected=f"a maximum of {low:g} or more", fix=fix)
    elif high == low:
        yield Finding(rule=FIXED, at=at, found=found, expected="a maximum above the minimum")


def _zero(scaler: Autoscaler) -> Iterator[Finding]:
    if scaler.scaler == Scaler.HPA and scaler.replicas_min == 0.0:
        if any(signal.source == Source.RESOURCE or signal.is_pod_mean for signal in scaler.signals):
            yield _one(HPA_ZERO, scaler, "0, with metrics of the pods")
    elif scaler.scaler == Scaler.KEDA and _goes_to_zero(scaler) and _is_own_metrics(scaler):
        found = "0" if scaler.min_at.there else "nothing, which is 0"
        yield _one(ZERO_OWN, scaler, f"{found}, with only metrics of the engine")
    elif scaler.scaler == Scaler.KNATIVE and scaler.replicas_min == 0.0 and _runs_gpus(scaler):
        yield _one(KNATIVE_ZERO, scaler, "0" if scaler.min_at.there else "nothing, which is 0")


def _one(rule: Rule, scaler: Autoscaler, found: str) -> Finding:
    key = str(scaler.min_at.path[-1])
    value = '"1"' if scaler.scaler == Scaler.KNATIVE else "1"
    expected = "at least 1, or a signal of the router, which is there without replicas"
    return Finding(rule=rule, at=scaler.min_at, found=found, expected=expected, fix=f"{key}: {value}", at_key=True)


def _goes_to_zero(scaler: Autoscaler) -> bool:
    return scaler.replicas_min == 0.0 or scaler.spec["idleReplicaCount"].number == 0.0


def _is_own_metrics(scaler: Autoscaler) -> bool:
    """Nothing that it looks at is there without replicas."""
    triggers = list(scaler.spec["triggers"].items())
    if any(trigger["type"].text not in {"prometheus", "cpu", "memory"} for trigger in triggers):
        return False
    queries = [signal for signal in scaler.signals if signal.source == Source.QUERY]
    return bool(queries) and all(_is_engine(name) for signal in queries for name in signal.names or {""})


def _is_engine(name: str) -> bool:
    known = metrics.sample(name)
    return metrics.vanished(name) is not None if known is None else known.family.of_engine


def _runs_gpus(scaler: Autoscaler) -> bool:
    containers = scaler.spec.at("spec", "containers").items()
    return any("nvidia.com/gpu" in one.at("resources", "limits").texts() for one in containers)


def _defaults(scaler: Autoscaler) -> Iterator[Finding]:
    if scaler.max_at.there:
        return
    if scaler.scaler == Scaler.KEDA:
        expected = "as many as there are GPUs for"
        yield Finding(
            rule=KEDA_MAX, at=scaler.max_at, found="nothing, which is 100", expected=expected, fix="maxReplicaCount: 8"
        )
    elif scaler.scaler == Scaler.RAY:
        expected = "more than min_replicas"
        yield Finding(
            rule=RAY_MAX, at=scaler.max_at, found="nothing, which is 1", expected=expected, fix="max_replicas: 8"
        )


def _object(scaler: Autoscaler) -> Iterator[Finding]:
    document = scaler.spec.document
    triggers = scaler.spec["triggers"]
    if scaler.scaler == Scaler.KEDA and not scaler.signals and not any(True for _ in triggers.items()):
        found = "no list" if triggers.there else "nothing"
        fix = "triggers: [{type: prometheus, metadata: {...}}]"
        yield Finding(rule=NO_TRIGGERS, at=triggers, found=found, expected="a list", fix=fix, at_key=True)
    version = document.root["apiVersion"]
    if scaler.scaler == Scaler.HPA and version.text.startswith("autoscaling/v2beta"):
        fix = "apiVersion: autoscaling/v2"
        yield Finding(rule=API_REMOVED, at=version, found=version.text, expected="autoscaling/v2", fix=fix)
    if scaler.behavior is not None:
        policy = scaler.behavior.at("scaleUp", "selectPolicy")
        if policy.text == "Disabled":
            yield Finding(rule=UP_DISABLED, at=policy, found="Disabled", expected="Max", fix="selectPolicy: Max")
    if scaler.scaler == Scaler.KSERVE:
        # `scaling` and `replicas` stand beside each other, in spec or in spec.prefill.
        beside = document.root.at(*scaler.spec.path[:-1])["replicas"]
        if beside.there:
            yield Finding(
                rule=KSERVE_BOTH, at=beside, found="replicas beside scaling", expected="one of them", fix="delete it"
            )


def _target(case: Case, scaler: Autoscaler) -> Iterator[Finding]:
    workload, target = case.recipe.workload_of(scaler), scaler.target
    if workload is not None:
        replicas = workload.root.at("spec", "replicas")
        if replicas.there:
            expected = "no number, so that the autoscaler's stays"
            yield Finding(
                rule=PINNED, at=replicas, found=replicas.text, expected=expected, fix="delete the line", at_key=True
            )
        return
    if target is None:
        return
    scaled = {(one.target.kind, one.target.name) for one in case.recipe.autoscalers if one.target is not None}
    names = [
        one.name
        for one in case.recipe.workloads
        if one.kind == target.kind
        and same_namespace(one.namespace, target.namespace)
        and (one.kind, one.name) not in scaled
    ]
    near = difflib.get_close_matches(target.name, names, n=1, cutoff=_SLIP)
    if near:
        found = f"{target.kind} {target.name}"
        yield Finding(rule=MISSING, at=target.at, found=found, expected=near[0], fix=f"name: {near[0]}")


def _fights(case: Case) -> Iterator[Finding]:
    by_target: dict[tuple[str, str, str], list[Autoscaler]] = defaultdict(list)
    for scaler in case.recipe.autoscalers:
        target = scaler.target
        if target is not None and not scaler.spec.document.name.startswith(_KEDA_CHILD):
            by_target[target.kind, target.name, target.namespace].append(scaler)
    for (kind, name, _), scalers in by_target.items():
        if len(scalers) > 1:
            first, *others = scalers
            names = " and ".join(f"{one.scaler} {one.spec.document.name}" for one in scalers)
            assert others[0].target is not None, "grouped by their targets"
            yield Finding(
                rule=TWO,
                at=others[0].target.at,
                found=f"{kind} {name} scaled by {names}",
                expected="one autoscaler",
                fix=f"keep {first.scaler} {first.spec.document.name} and delete the other"
                if first.scaler == Scaler.KEDA
                else "keep one, with the signals of both in it",
            )
