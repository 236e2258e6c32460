"""Recovery on /metrics. Ages are computed when the page is asked for: between two looks into a bucket time goes on."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.kernel.effects import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetGauges:
    """What is shown of one dataset."""

    dataset: str
    covered_at: datetime | None
    """The newest moment that surely can be restored; None: nothing can."""
    rpo_s: float
    rto_s: float
    breached: bool
    """The RPO is blown, or nobody knows."""
    points: int
    stored_bytes: int
    drill_passed_at: datetime | None
    """When the last drill passed; None: none has."""
    drill_failing: bool
    """The last one that ended did not pass."""
    achieved_rto_s: float | None


class RecoveryCollector(Collector):
    """Holds what was told last; registered once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rows: tuple[DatasetGauges, ...] = ()

    def told(self, rows: Iterable[DatasetGauges]) -> None:
        self._rows = tuple(rows)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The names, before there is anything to show."""
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = list(self._families())
        now = self._clock.now()
        for row in self._rows:
            age_s = math.inf if row.covered_at is None else max(0.0, (now - row.covered_at).total_seconds())
            drilled_s = 0.0 if row.drill_passed_at is None else row.drill_passed_at.timestamp()
            values = (
                age_s,
                row.rpo_s,
                float(row.breached),
                float(row.points),
                float(row.stored_bytes),
                row.rto_s,
                math.nan if row.achieved_rto_s is None else row.achieved_rto_s,
                drilled_s,
                float(row.drill_failing),
            )
            for family, value in zip(families, values, strict=True):
                family.add_metric([row.dataset], value)
        yield from families

    @staticmethod
    def _families() -> Iterator[GaugeMetricFamily]:
        for name, words in (
            ("recovery_point_age_seconds", "What would be lost now, by what is in the bucket; +Inf: everything."),
            ("recovery_point_objective_seconds", "The RPO."),
            ("recovery_point_objective_breached", "1: the age is over the RPO, or nobody knows it."),
            ("recovery_points", "Recovery points in the first bucket."),
            ("recovery_stored_bytes", "Bytes of recovery points and log in the first bucket."),
            ("recovery_time_objective_seconds", "The RTO."),
            ("recovery_time_achieved_seconds", "How long the last passed drill took; NaN: none has."),
            ("drill_last_passed_timestamp_seconds", "When the last drill passed; 0: none has."),
            ("drill_failing", "1: the last drill that ended did not pass."),
        ):
            yield GaugeMetricFamily(f"quarterdeck_{name}", words, labels=["dataset"])
