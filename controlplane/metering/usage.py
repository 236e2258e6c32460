"""GPU-hours from the times that replicas held GPUs: exact, not sampled."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, Event
from controlplane.domain.replica import Replica

_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A replica held `gpus` GPUs from `start` until `end`."""

    deployment: str
    gpus: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    gpu_hours: float
    gpu_hours_static_peak: float
    """Had every deployment held its own peak of the window all the time."""
    gpus_peak: int
    """Sum of the deployments' peaks."""
    by_deployment: Mapping[str, float]


def holdings(replicas: Iterable[Replica], events: Iterable[Event], now: datetime) -> list[Holding]:
    """From the rows that live and the events of those that are gone."""
    live = [
        Holding(deployment=replica.deployment, gpus=len(replica.gpus), start=replica.created_at, end=now)
        for replica in replicas
    ]
    gone = [holding for event in events if (holding := _holding_of(event)) is not None]
    return live + gone


def measure_usage(spans: Sequence[Holding], since: datetime, until: datetime) -> Usage:
    """GPU-hours inside [since, until], and what a static fleet at each deployment's peak would have used."""
    clipped: dict[str, list[Holding]] = defaultdict(list)
    for span in spans:
        start, end = max(span.start, since), min(span.end, until)
        if end > start:
            clipped[span.deployment].append(Holding(deployment=span.deployment, gpus=span.gpus, start=start, end=end))
    window_h = max(0.0, (until - since).total_seconds()) / _HOUR_S
    by_deployment = {name: sum(map(_gpu_hours, own)) for name, own in sorted(clipped.items())}
    peaks = {name: _peak(own) for name, own in clipped.items()}
    return Usage(
        gpu_hours=sum(by_deployment.values()),
        gpu_hours_static_peak=sum(peaks.values()) * window_h,
        gpus_peak=sum(peaks.values()),
        by_deployment=by_deployment,
    )


def _gpu_hours(span: Holding) -> float:
    return span.gpus * (span.end - span.start).total_seconds() / _HOUR_S


def _peak(spans: Sequence[Holding]) -> int:
    """Most GPUs held at one moment; at a shared moment an end counts before a start."""
    changes = sorted([(span.start, 1, span.gpus) for span in spans] + [(span.end, 0, -span.gpus) for span in spans])
    held = peak = 0
    for _, _, gpus in changes:
        held += gpus
        peak = max(peak, held)
    return peak


def _holding_of(event: Event) -> Holding | None:
    data = dict(event.event.data)
    since, gpus = data.get(HELD_SINCE_KEY), data.get(GPUS_KEY)
    if not isinstance(since, str) or not isinstance(gpus, int) or event.event.deployment is None:
        return None
    return Holding(
        deployment=event.event.deployment, gpus=gpus, start=datetime.fromisoformat(since), end=event.event.at
    )
