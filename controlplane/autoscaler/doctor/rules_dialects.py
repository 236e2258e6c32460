"""Settings that one autoscaler has, or had: AIBrix, Knative, Ray Serve."""

from collections.abc import Iterator, Mapping
from typing import Final

from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.metrics import nearest_label
from controlplane.autoscaler.doctor.model import Field, Finding, Rule, Severity
from controlplane.autoscaler.doctor.recipe import Autoscaler, Scaler

_AIBRIX: Final = "autoscaling.aibrix.ai/"
_AIBRIX_READ: Final = frozenset(
    {
        *("max-scale-up-rate", "max-scale-down-rate", "scale-up-tolerance", "scale-down-tolerance"),
        *("panic-threshold", "scale-up-cooldown-window", "scale-down-cooldown-window", "scale-to-zero"),
        *("storm-service-mode", "window", "stable-window", "panic-window", "scale-down-delay"),
    }
)
"""What AIBrix reads, with prefixes like `kpa.` left out. Source: AIBrix, podautoscaler/types/annotations.go."""
_AIBRIX_RENAMED: Final[Mapping[str, str]] = {
    "up-fluctuation-tolerance": "scale-up-tolerance",
    "down-fluctuation-tolerance": "scale-down-tolerance",
}
_RAY_RENAMED: Final[Mapping[str, str]] = {"target_num_ongoing_requests_per_replica": "target_ongoing_requests"}
"""Smoothing factors have new names too, but the old ones are still read. Source: Ray Serve, config.py."""
_KNATIVE_METRIC: Final = "autoscaling.knative.dev/metric"
_KNATIVE_CLASS: Final = "autoscaling.knative.dev/class"
_KPA: Final = "kpa.autoscaling.knative.dev"
_KPA_METRICS: Final = frozenset({"concurrency", "rps"})

AIBRIX_DEAD: Final = Rule(
    id="aibrix-dead-annotation",
    severity=Severity.RISKY,
    looks_for="an AIBrix annotation that its parser no longer reads",
    why="The parser leaves it aside, so that the default stays in force (tolerance 0.1).",
    source="AIBrix, podautoscaler/types/annotations.go and context_test.go: legacy tolerance keys are ignored",
)
AIBRIX_LABEL: Final = Rule(
    id="aibrix-setting-as-label",
    severity=Severity.RISKY,
    looks_for="an AIBrix setting among the labels",
    why="AIBrix reads its settings from annotations, not from labels.",
    source="AIBrix, podautoscaler/types/annotations.go",
)
KNATIVE_METRIC: Final = Rule(
    id="knative-metric-of-other-class",
    severity=Severity.BROKEN,
    looks_for="a Knative metric that the autoscaler's class does not have",
    why="The class KPA (the default) scales on concurrency and rps; cpu and memory are metrics of the HPA class.",
    source="Knative, autoscaling: metrics",
)
RAY_RENAMED: Final = Rule(
    id="ray-setting-renamed",
    severity=Severity.RISKY,
    looks_for="a Ray Serve setting by its former name",
    why="The field has another name now and the old one is left aside: the default of 2 requests stays in force.",
    source="Ray Serve, config.py: AutoscalingConfig",
)
RULES: Final = (AIBRIX_DEAD, AIBRIX_LABEL, KNATIVE_METRIC, RAY_RENAMED)


def check(case: Case) -> Iterator[Finding]:
    for scaler in case.recipe.autoscalers:
        match scaler.scaler:
            case Scaler.AIBRIX:
                yield from _aibrix(scaler)
            case Scaler.KNATIVE:
                yield from _knative(scaler)
            case Scaler.RAY:
                yield from _ray(scaler)
            case _:
                continue


def _aibrix(scaler: Autoscaler) -> Iterator[Finding]:
    metadata = scaler.spec.document.root["metadata"]
    for key, field in metadata["annotations"].entries():
        prefix, is_ours, setting = key.partition(_AIBRIX)
        if is_ours and setting not in _AIBRIX_READ:
            near = _AIBRIX_RENAMED.get(setting) or nearest_label(setting, _AIBRIX_READ)
            expected = (
                f"{_AIBRIX if near in _AIBRIX_RENAMED.values() else prefix + _AIBRIX}{near}" if near else "nothing"
            )
            fix = f'{expected}: "{field.text}"' if near else "delete the line"
            yield Finding(rule=AIBRIX_DEAD, at=field, found=key, expected=expected, fix=fix, at_key=True)
    for key, field in metadata["labels"].entries():
        if _AIBRIX in key:
            expected = "the same under metadata.annotations"
            fix = f'annotations: {{{key}: "{field.text}"}}'
            yield Finding(rule=AIBRIX_LABEL, at=field, found=key, expected=expected, fix=fix, at_key=True)


def _knative(scaler: Autoscaler) -> Iterator[Finding]:
    notes: Field = scaler.spec.at("metadata", "annotations")
    metric, kind = notes[_KNATIVE_METRIC], notes[_KNATIVE_CLASS].text or _KPA
    if not metric.there:
        return
    if kind == _KPA and metric.text not in _KPA_METRICS:
        expected = "concurrency or rps"
        yield Finding(rule=KNATIVE_METRIC, at=metric, found=metric.text, expected=expected, fix='"concurrency"')
    elif kind != _KPA and metric.text in _KPA_METRICS:
        expected = f"the class {_KPA}"
        fix = f"{_KNATIVE_CLASS}: {_KPA}"
        yield Finding(rule=KNATIVE_METRIC, at=metric, found=f"{metric.text} with {kind}", expected=expected, fix=fix)


def _ray(scaler: Autoscaler) -> Iterator[Finding]:
    for key, field in scaler.spec.entries():
        new = _RAY_RENAMED.get(key)
        if new is not None:
            yield Finding(rule=RAY_RENAMED, at=field, found=key, expected=new, fix=f"{new}: {field.text}", at_key=True)
