"""AIBrix, Knative and Ray Serve, read as autoscalers."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.doctor.metrics import PREFIX
from controlplane.autoscaler.doctor.model import Document, Field
from controlplane.autoscaler.doctor.recipe import Autoscaler, Division, Hold, Scaler, Signal, Source, Target

_AIBRIX_HOLD: Final = timedelta(seconds=300)
"""Cool-down before scaling down. Source: AIBrix, `podautoscaler/types`, default."""
_AIBRIX_COOLDOWN: Final = "autoscaling.aibrix.ai/scale-down-cooldown-window"
_KNATIVE: Final = "autoscaling.knative.dev/"
_KNATIVE_WINDOW: Final = timedelta(seconds=60)
"""The stable window. Source: Knative, autoscaler defaults; `scale-down-delay` is 0 by default."""
_RAY_HOLD: Final = timedelta(seconds=600)
"""`downscale_delay_s`. Source: Ray Serve, AutoscalingConfig."""
_RAY_MAX: Final = 1.0
"""`max_replicas` where none is given. Source: Ray Serve, AutoscalingConfig."""
_AIBRIX_DIVISIONS: Final[Mapping[str, Division]] = {"KPA": Division.BY_TARGET, "APA": Division.BY_RATIO}


def pod_autoscalers(document: Document) -> Iterator[Autoscaler]:
    """AIBrix. KPA divides the mean over pods by the target; APA multiplies that by the number of replicas."""
    if document.kind != "PodAutoscaler" or "aibrix" not in document.api_version:
        return
    spec = document.root["spec"]
    division = _AIBRIX_DIVISIONS.get(spec["scalingStrategy"].text)
    cooldown = document.root.at("metadata", "annotations", _AIBRIX_COOLDOWN)
    reference = spec["scaleTargetRef"]
    yield Autoscaler(
        scaler=Scaler.AIBRIX,
        spec=spec,
        target=Target(
            kind=reference["kind"].text,
            name=reference["name"].text,
            namespace=document.namespace,
            at=reference["name"],
        ),
        replicas_min=spec["minReplicas"].number,
        min_at=spec["minReplicas"],
        replicas_max=spec["maxReplicas"].number,
        max_at=spec["maxReplicas"],
        hold=Hold(span=cooldown.duration if cooldown.there else _AIBRIX_HOLD, at=cooldown),
        signals=tuple(_aibrix_signal(source, division) for source in spec["metricsSources"].items()),
    )


def _aibrix_signal(source: Field, division: Division | None) -> Signal:
    name, target = source["targetMetric"], source["targetValue"]
    if source["metricSourceType"].text == "resource":
        return Signal(source=Source.RESOURCE, name=name.text, at=name)
    return Signal(
        source=Source.PAGE,
        # AIBrix knows engines' names without their prefix and puts it before them.
        name=PREFIX + name.text.removeprefix(PREFIX),
        at=name,
        division=division,
        is_pod_mean=True,
        target=target.number,
        target_at=target,
    )


def knative(document: Document) -> Iterator[Autoscaler]:
    if document.kind != "Service" or not document.api_version.startswith("serving.knative.dev"):
        return
    template = document.root.at("spec", "template")
    notes = template.at("metadata", "annotations")
    minimum, maximum = _either(notes, "min-scale", "minScale"), _either(notes, "max-scale", "maxScale")
    window, delay = notes[f"{_KNATIVE}window"], notes[f"{_KNATIVE}scale-down-delay"]
    spans = [window.duration if window.there else _KNATIVE_WINDOW, delay.duration]
    yield Autoscaler(
        scaler=Scaler.KNATIVE,
        spec=template,
        target=Target(kind="Service", name=document.name, namespace=document.namespace, at=document.root["metadata"]),
        replicas_min=minimum.number if minimum.there else 0.0,
        min_at=minimum,
        # 0 is Knative's word for no limit.
        replicas_max=maximum.number or None,
        max_at=maximum,
        hold=Hold(span=max((span for span in spans if span is not None), default=None), at=delay),
        signals=tuple(
            Signal(source=Source.RESOURCE, name=metric.text, at=metric)
            for metric in (notes[f"{_KNATIVE}metric"],)
            if metric.text in {"cpu", "memory"}
        ),
    )


def _either(notes: Field, *names: str) -> Field:
    """The first of an annotation's spellings that is there."""
    fields = [notes[_KNATIVE + name] for name in names]
    return next((field for field in fields if field.there), fields[0])


def ray_serve(document: Document) -> Iterator[Autoscaler]:
    """A Serve config, which RayService carries as text in `serveConfigV2`; there it comes as a document of its own."""
    for application in document.root["applications"].items():
        for deployment in application["deployments"].items():
            yield from _ray_deployment(deployment["autoscaling_config"], deployment["name"])
        for config in application.at("args", "llm_configs").items():
            name = config.at("model_loading_config", "model_id")
            yield from _ray_deployment(config.at("deployment_config", "autoscaling_config"), name)


def _ray_deployment(config: Field, name: Field) -> Iterator[Autoscaler]:
    if not config.there:
        return
    minimum, maximum, delay = config["min_replicas"], config["max_replicas"], config["downscale_delay_s"]
    yield Autoscaler(
        scaler=Scaler.RAY,
        spec=config,
        target=Target(kind="Ray Serve deployment", name=name.text, namespace="", at=name),
        replicas_min=minimum.number if minimum.there else 1.0,
        min_at=minimum,
        replicas_max=maximum.number if maximum.there else _RAY_MAX,
        max_at=maximum,
        hold=Hold(span=delay.duration if delay.there else _RAY_HOLD, at=delay),
    )
