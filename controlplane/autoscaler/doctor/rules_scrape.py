"""Monitors: whether what they select is there to be scraped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.metrics import nearest_label
from controlplane.autoscaler.doctor.model import Document, Field, Finding, Rule, Severity
from controlplane.autoscaler.doctor.recipe import Monitor, Recipe, Scaler, Service, Workload

_OPERATOR: Final = "Prometheus Operator, API reference"

SELECTS_NOTHING: Final = Rule(
    id="monitor-selects-nothing",
    severity=Severity.BROKEN,
    looks_for="a monitor whose labels no Service (or pod) here has",
    why="A ServiceMonitor selects by the labels of the Service itself, not of its pods; what it misses is not scraped.",
    source=f"{_OPERATOR}: ServiceMonitor selector",
)
PORT_MISSING: Final = Rule(
    id="monitor-port-missing",
    severity=Severity.BROKEN,
    looks_for="a monitor's port that the Service (or container) does not name",
    why="`port` is the name of a port; a number, or another name, gives no target.",
    source=f"{_OPERATOR}: Endpoint port",
)
OTHER_NAMESPACE: Final = Rule(
    id="monitor-other-namespace",
    severity=Severity.BROKEN,
    looks_for="a monitor in another namespace than what it selects, without namespaceSelector",
    why="Without a namespaceSelector a monitor looks only into its own namespace.",
    source=f"{_OPERATOR}: NamespaceSelector",
)
CHART_UNMONITORED: Final = Rule(
    id="chart-without-monitor",
    severity=Severity.RISKY,
    looks_for="production-stack's KEDA without its ServiceMonitor",
    why="The chart makes no ServiceMonitor unless it is told to: without one of your own no engine is scraped.",
    source="production-stack, helm/templates/servicemonitor-engine.yaml",
)
RULES: Final = (SELECTS_NOTHING, PORT_MISSING, OTHER_NAMESPACE, CHART_UNMONITORED)


def check(case: Case) -> Iterator[Finding]:
    recipe = case.recipe
    for monitor in recipe.monitors:
        yield from _monitor(monitor, recipe)
    yield from _charts(recipe)


def _monitor(monitor: Monitor, recipe: Recipe) -> Iterator[Finding]:
    selects_services = monitor.kind == "ServiceMonitor"
    candidates: Sequence[Service | Workload] = recipe.services if selects_services else recipe.workloads
    if not candidates or monitor.has_expressions:
        return
    fitting = [one for one in candidates if monitor.match_labels.items() <= one.labels.items()]
    at = monitor.root.at("spec", "selector", "matchLabels")
    if not fitting:
        yield _selects_nothing(at, monitor, candidates)
        return
    reached = [one for one in fitting if _looks_into(monitor, one.namespace)]
    if not reached:
        namespace = fitting[0].namespace
        fix = f"namespaceSelector: {{matchNames: [{namespace}]}}"
        expected = f"a namespaceSelector that names {namespace}, where {fitting[0].name} is"
        at = monitor.root.at("spec", "namespaceSelector")
        found = f"namespace {monitor.namespace} alone"
        yield Finding(rule=OTHER_NAMESPACE, at=at, found=found, expected=expected, fix=fix)
        return
    for endpoint in monitor.endpoints:
        yield from _port(endpoint, reached)


def _selects_nothing(at: Field, monitor: Monitor, candidates: Sequence[Service | Workload]) -> Finding:
    near = max(candidates, key=lambda one: len(monitor.match_labels.items() & one.labels.items()))
    what = "Service" if monitor.kind == "ServiceMonitor" else "pod of"
    expected = f"labels of {what} {near.name}: {_shown(near.labels) or 'it has none'}"
    fix = f"matchLabels: {{{_shown(near.labels)}}}" if near.labels else ""
    if isinstance(near, Service) and not near.labels:
        fix = f"give Service {near.name} metadata.labels: {{{_shown(monitor.match_labels)}}}"
    return Finding(rule=SELECTS_NOTHING, at=at, found=_shown(monitor.match_labels), expected=expected, fix=fix)


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())


def _looks_into(monitor: Monitor, namespace: str) -> bool:
    return monitor.namespaces is None or not namespace or namespace in monitor.namespaces or "" in monitor.namespaces


def _port(endpoint: Field, reached: Sequence[Service | Workload]) -> Iterator[Finding]:
    port = endpoint["port"]
    if not port.there:
        return
    names = sorted({name for one in reached for name in _port_names(one)})
    if port.text in names:
        return
    near = nearest_label(port.text, names) or (names[0] if len(names) == 1 else "")
    expected = (
        f"the name of a port: {', '.join(names)}" if names else f"a port that {reached[0].name} names; it names none"
    )
    fix = f"port: {near}" if near else ""
    yield Finding(rule=PORT_MISSING, at=port, found=port.text, expected=expected, fix=fix)


def _port_names(one: Service | Workload) -> Iterator[str]:
    match one:
        case Service():
            yield from one.port_names
        case Workload():
            for container in one.containers:
                yield from (port["name"].text for port in container["ports"].items() if port["name"].there)


def _charts(recipe: Recipe) -> Iterator[Finding]:
    seen: set[int] = set()
    for scaler in recipe.autoscalers:
        document: Document = scaler.spec.document
        engine = document.root["servingEngineSpec"]
        if scaler.scaler != Scaler.KEDA or not engine.there or document.index in seen or recipe.monitors:
            continue
        seen.add(document.index)
        enabled = engine.at("serviceMonitor", "enabled")
        if enabled.flag is not True:
            found = enabled.text if enabled.there else "nothing, which is false"
            yield Finding(
                rule=CHART_UNMONITORED,
                at=enabled,
                found=found,
                expected="true, or a ServiceMonitor of your own beside it",
                fix="serviceMonitor: {enabled: true}",
            )
