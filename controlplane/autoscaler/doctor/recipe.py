"""What a set of documents amounts to: autoscalers with their signals, workloads, monitors, queries."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import cached_property

from controlplane.autoscaler.doctor.model import Change, Field, Repair
from controlplane.autoscaler.doctor.promql import Query, Unparsed
from controlplane.autoscaler.doctor.promql_result import Gist


class Scaler(StrEnum):
    """Who scales, by the name of the object that says so."""

    HPA = "HorizontalPodAutoscaler"
    KEDA = "ScaledObject"
    AIBRIX = "PodAutoscaler"
    KNATIVE = "Knative Service"
    RAY = "Ray Serve deployment"
    KSERVE = "LLMInferenceService"


class Source(StrEnum):
    """Where a scaler takes a signal from."""

    QUERY = "query"
    """PromQL that the scaler sends."""
    CUSTOM = "custom metric"
    """A name in the custom or external metrics API, behind which an adapter stands."""
    RESOURCE = "resource"
    """CPU or memory of the pods."""
    PAGE = "metrics page"
    """A sample that the scaler reads off the pods' pages itself."""


class Division(StrEnum):
    """What a scaler makes of a value: the two formulas that all of them share."""

    BY_TARGET = "ceil(value / target)"
    """The number of replicas plays no part, so the value has to be a total. HPA's and KEDA's AverageValue."""
    BY_RATIO = "ceil(replicas * value / target)"
    """The value has to be one that falls when replicas are added. HPA's Value, and the mean over pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A PromQL text and where it stands."""

    query: Query | Unparsed
    at: Field
    at_key: bool = False
    is_template: bool = False
    """Some of it is filled in later, so that how many series it gives is not known."""

    def repair(self, change: Change, old: str = "", new: str = "") -> Repair | None:
        """A change to it; None for a template, whose text is not what was parsed."""
        if self.is_template:
            return None
        key = "query" if self.at_key or not self.at.path else str(self.at.path[-1])
        return Repair(change=change, query=self.query.text, key=key, old=old, new=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One thing that an autoscaler looks at."""

    source: Source
    name: str
    """Of the metric or resource; a query's text is in `expression`."""
    at: Field
    expression: Expression | None = None
    division: Division | None = None
    """None: not known, or none of the two."""
    is_pod_mean: bool = False
    """The scaler averages over the pods before anything else."""
    target: float | None = None
    target_at: Field | None = None

    @property
    def query(self) -> Query | None:
        found = None if self.expression is None else self.expression.query
        return found if isinstance(found, Query) else None

    @property
    def gist(self) -> Gist:
        if self.is_pod_mean:
            return Gist.PER_REPLICA
        return Gist.UNKNOWN if self.query is None else self.query.gist

    @property
    def names(self) -> frozenset[str]:
        """Metric names that it depends on."""
        if self.query is not None:
            return self.query.names
        return frozenset() if self.source in {Source.RESOURCE, Source.QUERY} else frozenset({self.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is scaled."""

    kind: str
    name: str
    namespace: str
    at: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """How long a lower number must have been enough before replicas go."""

    span: timedelta | None
    """None: what stands there is no duration."""
    at: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """One autoscaler, whatever its kind."""

    scaler: Scaler
    spec: Field
    """Where its settings are: `spec` of an object, `keda` of Helm values."""
    target: Target | None
    replicas_min: float | None
    min_at: Field
    replicas_max: float | None
    max_at: Field
    hold: Hold | None = None
    """None: not known."""
    behavior: Field | None = None
    """HPA's `behavior`, where the scaler goes through an HPA."""
    signals: Sequence[Signal] = ()

    @property
    def is_router(self) -> bool:
        return self.target is not None and "router" in self.target.name.lower()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Pods and how many."""

    kind: str
    name: str
    namespace: str
    root: Field
    pod: Field
    """The pod's template, with `metadata` and `spec`."""

    @cached_property
    def labels(self) -> Mapping[str, str]:
        return self.pod.at("metadata", "labels").texts()

    @cached_property
    def containers(self) -> Sequence[Field]:
        return tuple(self.pod.at("spec", "containers").items())

    @cached_property
    def engine(self) -> Field | None:
        """The container that runs vLLM."""
        return next((container for container in self.containers if _runs_vllm(container)), None)

    @cached_property
    def engine_arguments(self) -> Sequence[str]:
        return () if self.engine is None else words_of(self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    namespace: str
    root: Field
    labels: Mapping[str, str]
    selector: Mapping[str, str]
    port_names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """A ServiceMonitor or PodMonitor."""

    kind: str
    name: str
    namespace: str
    root: Field
    match_labels: Mapping[str, str]
    has_expressions: bool
    """It selects by `matchExpressions` too."""
    namespaces: frozenset[str] | None
    """In which it looks; None: in all."""
    endpoints: Sequence[Field]

    @property
    def intervals(self) -> Iterator[timedelta]:
        for endpoint in self.endpoints:
            interval = endpoint["interval"].duration
            if interval is not None:
                yield interval

    @property
    def added_labels(self) -> Iterator[str]:
        """Labels that its relabelling gives to series."""
        for endpoint in self.endpoints:
            for rules in ("relabelings", "metricRelabelings"):
                for rule in endpoint[rules].items():
                    yield rule["targetLabel"].text
                    if rule["action"].text.lower() == "labelmap":
                        yield "*"
        for key in ("targetLabels", "podTargetLabels"):
            yield from (label.text for label in self.root.at("spec", key).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetric:
    """One rule of prometheus-adapter."""

    series: Expression
    query: Expression | None
    name: str
    """Under which HPAs find it; empty where a pattern makes it."""
    rule: Field


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All documents together."""

    autoscalers: Sequence[Autoscaler] = ()
    workloads: Sequence[Workload] = ()
    services: Sequence[Service] = ()
    monitors: Sequence[Monitor] = ()
    adapter: Sequence[AdapterMetric] = ()
    recorded: Mapping[str, Expression] = field(default_factory=dict)

    @cached_property
    def expressions(self) -> Sequence[Expression]:
        """Every PromQL text, each once."""
        found = [one.expression for scaler in self.autoscalers for one in scaler.signals if one.source == Source.QUERY]
        found += list(self.recorded.values())
        for metric in self.adapter:
            found += [metric.series, metric.query]
        return tuple(expression for expression in found if expression is not None)

    @cached_property
    def parsed(self) -> Sequence[tuple[Expression, Query]]:
        return tuple((one, one.query) for one in self.expressions if isinstance(one.query, Query))

    @cached_property
    def scrape_interval(self) -> timedelta | None:
        """The shortest that a monitor declares: others may be of something else."""
        return min((interval for monitor in self.monitors for interval in monitor.intervals), default=None)

    @cached_property
    def added_labels(self) -> frozenset[str]:
        """Labels that relabelling adds to series; `*` where any may be among them."""
        return frozenset(label for monitor in self.monitors for label in monitor.added_labels)

    def workload_of(self, scaler: Autoscaler) -> Workload | None:
        """What the autoscaler scales, where it is among the documents."""
        target = scaler.target
        if target is None:
            return None
        return next(
            (
                one
                for one in self.workloads
                if (one.kind, one.name) == (target.kind, target.name)
                and same_namespace(one.namespace, target.namespace)
            ),
            None,
        )


def same_namespace(one: str, other: str) -> bool:
    """A namespace that is not said may be any."""
    return not one or not other or one == other


def words_of(container: Field) -> Sequence[str]:
    """Command and arguments, those of a shell's one line split too."""
    words: list[str] = []
    for part in ("command", "args"):
        for word in container[part].items():
            words += word.text.split()
        words += container[part].text.split()
    return words


def _runs_vllm(container: Field) -> bool:
    image = container["image"].text.lower()
    words = " ".join(words_of(container)).lower()
    if "router" in image or "router" in words:
        return False
    return "vllm" in image or "vllm" in words
