"""Engines and nodes through a site's Prometheus: the samples that a direct scrape gives, as old as Prometheus has them.

Two instant queries a round, both evaluated at one moment: the values, and the times at which they were scraped (a value
alone carries the moment of the query, so an age could not be told). One family dates a source: all of a target's series
come from one scrape. Empty, NaN and old results are Missing and Stale,
never zero.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from pydantic import BaseModel, TypeAdapter, ValidationError

from controlplane.adapters.gpu import exposition as gpu_exposition
from controlplane.adapters.gpu.fields import FIELDS
from controlplane.adapters.telemetry import engine_layout
from controlplane.adapters.telemetry.blocking import OneAtATime
from controlplane.adapters.telemetry.exposition import Series
from controlplane.adapters.telemetry.ports import EngineTarget
from controlplane.adapters.telemetry.remembering import Layout
from controlplane.domain.node import NodeSpec
from controlplane.domain.telemetry import EngineSample, Missing, NodeSample
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import QuarterdeckError, RetryableError
from controlplane.kernel.ids import NodeName, ReplicaName

DEADLINE: Final = timedelta(seconds=4)
"""Of one round's queries, which take 3-8 ms each on a small Prometheus; below the age at which samples go stale."""
_NO_RETRIES: Final = 0
"""The next round is the retry."""

_ENGINE_NAMES: Final = tuple(sorted(engine_layout.WANTED))
_ENGINE_DATED_BY: Final = (engine_layout.RUNNING,)
_GPU_NAMES: Final = tuple(spelling.name for field in FIELDS for spelling in field.spellings)
_GPU_DATED_BY: Final = tuple(
    spelling.name for field in FIELDS if field.attribute == "temperature_c" for spelling in field.spellings
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapping:
    """How this site's Prometheus names replicas and nodes.

    Values are templates over {address}, {port}, {replica}, {deployment} and {node}; for nodes over {address}, {node}.
    The defaults are what an unrelabelled scrape of the replicas and dcgm-exporter give.
    """

    replica_label: str = "instance"
    replica_value: str = "{address}:{port}"
    node_label: str = "Hostname"
    node_value: str = "{node}"
    matchers: tuple[tuple[str, str], ...] = ()
    """Further labels that every series must have, e.g. `(("cluster", "west"),)`."""

    def of_replica(self, target: EngineTarget) -> str:
        return self.replica_value.format(
            address=target.address,
            port=target.port,
            replica=target.replica,
            deployment=target.deployment,
            node=target.node,
        )

    def of_node(self, spec: NodeSpec) -> str:
        return self.node_value.format(address=spec.address, node=spec.name)


class _Vector(BaseModel):
    """One element of an instant query's result."""

    metric: dict[str, str]
    value: tuple[float, str]


_VECTORS: Final = TypeAdapter(list[_Vector])


@dataclass(frozen=True, slots=True)
class _Measured:
    """What Prometheus has of one source."""

    series: tuple[Series, ...]
    at: datetime


class _Queries:
    """Prometheus's query API, one round at a time, in a thread."""

    def __init__(self, url: str, clock: Clock, deadline: timedelta) -> None:
        self._url = url
        self._clock = clock
        self._deadline = deadline
        self._thread = OneAtATime(f"Prometheus at {url}", clock)
        self._client = PrometheusConnect(url=url, retry=_NO_RETRIES, timeout=math.ceil(deadline.total_seconds()))

    async def measured(
        self, names: Sequence[str], dated_by: Sequence[str], mapping: LabelMapping, label: str
    ) -> Mapping[str, _Measured]:
        """By the value of `label`; `dated_by`: families of which one is there. RetryableError: it cannot be asked."""
        now = self._clock.now()
        selector = _selector(names, mapping.matchers)
        # timestamp() drops the name, so series of two families would collide: one at a time, joined by `or`.
        dates = " or ".join(f"timestamp({_selector((name,), mapping.matchers)})" for name in dated_by)

        def ask() -> Mapping[str, _Measured]:
            moment = {"time": f"{now.timestamp():.3f}"}
            values = _vectors(self._client.custom_query(selector, params=moment))
            times = _vectors(self._client.custom_query(dates, params=moment))
            return _join(values, times, label)

        try:
            return await self._thread.call(ask, deadline=self._deadline)
        except (OSError, PrometheusApiClientException, ValidationError, KeyError, ValueError) as error:
            raise RetryableError(f"Prometheus at {self._url} cannot be asked: {error}") from error


def _selector(names: Sequence[str], matchers: Iterable[tuple[str, str]]) -> str:
    """Family names hold only letters, digits, `_` and `:`, so they need no escaping in the regular expression."""
    quoted = [(label, value.replace("\\", "\\\\").replace('"', '\\"')) for label, value in matchers]
    terms = [f'__name__=~"{"|".join(sorted(names))}"', *(f'{label}="{value}"' for label, value in quoted)]
    return f"{{{','.join(terms)}}}"


def _vectors(result: object) -> list[_Vector]:
    return _VECTORS.validate_python(result)


def _join(values: Iterable[_Vector], times: Iterable[_Vector], label: str) -> Mapping[str, _Measured]:
    """The oldest series of a source dates the whole of it: a sample is never shown fresher than its parts."""
    oldest: dict[str, float] = {}
    for vector in times:
        source = vector.metric.get(label, "")
        scraped_s = float(vector.value[1])
        oldest[source] = min(oldest.get(source, scraped_s), scraped_s)
    series: dict[str, list[Series]] = {}
    for vector in values:
        name = vector.metric.get("__name__", "")
        one = Series(
            name, {key: text for key, text in vector.metric.items() if key != "__name__"}, float(vector.value[1])
        )
        series.setdefault(vector.metric.get(label, ""), []).append(one)
    return {
        source: _Measured(tuple(found), datetime.fromtimestamp(oldest[source], UTC))
        for source, found in series.items()
        if source in oldest
    }


class PrometheusEngines:
    """Implements EngineSource."""

    def __init__(
        self, url: str, clock: Clock, *, mapping: LabelMapping | None = None, deadline: timedelta = DEADLINE
    ) -> None:
        self._mapping = mapping or LabelMapping()
        self._queries = _Queries(url, clock, deadline)

    async def engines(self, targets: Sequence[EngineTarget]) -> Mapping[ReplicaName, EngineSample | Missing]:
        if not targets:
            return {}
        mapping = self._mapping
        wanted = {target.replica: mapping.of_replica(target) for target in targets}
        try:
            found = await self._queries.measured(_ENGINE_NAMES, _ENGINE_DATED_BY, mapping, mapping.replica_label)
        except QuarterdeckError as error:
            return dict.fromkeys(wanted, Missing(str(error)))
        return {
            name: _sample(found.get(value), engine_layout.build_layout, f'{mapping.replica_label}="{value}"')
            for name, value in wanted.items()
        }

    async def close(self) -> None:
        """Nothing is held open."""


class PrometheusNodes:
    """Implements NodeSource for nodes whose dcgm-exporter or node agent the site's Prometheus scrapes."""

    def __init__(
        self, url: str, clock: Clock, *, mapping: LabelMapping | None = None, deadline: timedelta = DEADLINE
    ) -> None:
        self._mapping = mapping or LabelMapping()
        self._queries = _Queries(url, clock, deadline)

    async def nodes(self, specs: Sequence[NodeSpec]) -> Mapping[NodeName, NodeSample | Missing]:
        if not specs:
            return {}
        mapping = self._mapping
        wanted = {spec.name: mapping.of_node(spec) for spec in specs}
        try:
            found = await self._queries.measured(_GPU_NAMES, _GPU_DATED_BY, mapping, mapping.node_label)
        except QuarterdeckError as error:
            return dict.fromkeys(wanted, Missing(str(error)))
        return {
            name: _sample(found.get(value), gpu_exposition.build_layout, f'{mapping.node_label}="{value}"')
            for name, value in wanted.items()
        }

    async def close(self) -> None:
        """Nothing is held open."""


def _sample[T](
    measured: _Measured | None, build: Callable[[Sequence[Series]], Layout[T] | Missing], where: str
) -> T | Missing:
    if measured is None:
        return Missing(f"Prometheus has no series with {where}: is it scraped, and does the label mapping fit?")
    layout = build(measured.series)
    if isinstance(layout, Missing):
        return layout
    return layout.sample([measured.series[position].value for position in layout.order], measured.at)
