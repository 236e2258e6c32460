"""How the latency objectives are met lately, from the engines' own histograms: bounds, not interpolation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.replica import Replica
from controlplane.domain.series import EngineIncrease, HistogramWindow, attainment_bounds, engine_increase
from controlplane.domain.slo import Slo
from controlplane.domain.telemetry import EngineSample, TelemetrySnapshot, value_if_fresh
from controlplane.kernel.ids import DeploymentName, ReplicaName

WINDOW: Final = timedelta(seconds=60)
"""What `lately` means: long enough for some hundred requests at a handful a second, short enough to follow a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloStanding:
    """The latency objective with the least margin."""

    met_at_least: float
    """0..1. Below the truth where the limit lies between two bucket edges."""
    met_at_most: float
    objective: float
    observations: float
    """Requests in the window."""


def _window() -> HistogramWindow:
    return HistogramWindow(span=WINDOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    ttft: HistogramWindow = field(default_factory=_window)
    inter_token: HistogramWindow = field(default_factory=_window)
    end_to_end: HistogramWindow = field(default_factory=_window)

    def seen(self, at: datetime, step: EngineIncrease) -> "_Windows":
        return _Windows(
            ttft=self.ttft.seen(at, step.ttft),
            inter_token=self.inter_token.seen(at, step.time_per_output_token),
            end_to_end=self.end_to_end.seen(at, step.end_to_end),
        )


class SloMeter:
    """Fed with each round of telemetry; asked by the API. State in memory only: a restart begins a new window."""

    def __init__(self) -> None:
        self._last: dict[ReplicaName, EngineSample] = {}
        self._windows: dict[DeploymentName, _Windows] = {}

    def observe(self, snapshot: TelemetrySnapshot, replicas: Iterable[Replica]) -> None:
        """Add what each replica served since it was last seen; replicas without a row are forgotten."""
        last: dict[ReplicaName, EngineSample] = {}
        for replica in replicas:
            reading = snapshot.engines.get(replica.name)
            sample = value_if_fresh(reading) if reading is not None else None
            before = self._last.get(replica.name)
            if sample is None:
                if before is not None:
                    last[replica.name] = before
                continue
            last[replica.name] = sample
            if before is not None and sample.at > before.at:
                windows = self._windows.get(replica.deployment, _Windows())
                self._windows[replica.deployment] = windows.seen(snapshot.at, engine_increase(before, sample))
        self._last = last

    def standing(self, deployment: DeploymentName, slo: Slo, now: datetime) -> SloStanding | None:
        """None without an objective, or without an observation in the window."""
        windows = self._windows.get(deployment)
        if windows is None:
            return None
        standings: list[SloStanding] = []
        for target, window in (
            (slo.ttft, windows.ttft),
            (slo.inter_token, windows.inter_token),
            (slo.end_to_end, windows.end_to_end),
        ):
            if target is None:
                continue
            histogram = window.over(now, over=WINDOW)
            bounds = attainment_bounds(histogram, target.limit.total_seconds())
            if bounds is not None:
                standings.append(
                    SloStanding(
                        met_at_least=bounds.lower,
                        met_at_most=bounds.upper,
                        objective=target.percentile,
                        observations=histogram.count,
                    )
                )
        return min(standings, key=lambda standing: standing.met_at_most - standing.objective, default=None)
