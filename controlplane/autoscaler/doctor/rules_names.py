"""Names and labels: whether what a query asks for exists."""

from collections.abc import Iterator
from typing import Final

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.metrics import Kind
from controlplane.autoscaler.doctor.model import Change, Field, Finding, Rule, Severity
from controlplane.autoscaler.doctor.promql import Query
from controlplane.autoscaler.doctor.promql_syntax import Selector
from controlplane.autoscaler.doctor.recipe import Expression, Scaler, Source

_VLLM: Final = "vLLM 0.33, vllm/v1/metrics/loggers.py"

VANISHED: Final = Rule(
    id="metric-vanished",
    severity=Severity.BROKEN,
    looks_for="a metric that vLLM no longer exports",
    why="vLLM exports this name no more, so the query has no series and the scaler sees nothing, or zero.",
    source=_VLLM,
)
VANISHES: Final = Rule(
    id="metric-vanishes-on-upgrade",
    severity=Severity.ADVICE,
    looks_for="a metric that the engine at hand still exports and newer ones do not",
    why="This engine still has the name, later ones do not: the recipe stops working with the next upgrade.",
    source=_VLLM,
)
UNKNOWN: Final = Rule(
    id="metric-unknown",
    severity=Severity.BROKEN,
    looks_for="a `vllm:` name that vLLM does not export",
    why="Neither vLLM nor production-stack's router exports this name, so the query has no series.",
    source=f"{_VLLM}; production-stack, vllm_router/services/metrics_service",
)
WITHOUT_TOTAL: Final = Rule(
    id="counter-without-total",
    severity=Severity.BROKEN,
    looks_for="a counter without `_total`",
    why="The Prometheus client gives every counter's sample the suffix _total; without it there is no series.",
    source=f"{_VLLM}; prometheus_client, OpenMetrics names",
)
WITHOUT_SUFFIX: Final = Rule(
    id="histogram-without-suffix",
    severity=Severity.BROKEN,
    looks_for="a histogram without `_bucket`, `_sum` or `_count`",
    why="A histogram has no sample of its own name, only _bucket, _sum and _count.",
    source="Prometheus, exposition formats",
)
LABEL_WRONG: Final = Rule(
    id="label-wrong",
    severity=Severity.BROKEN,
    looks_for="a label by another name than vLLM's (`model` for `model_name`)",
    why="vLLM has no such label, so the matcher admits no series (or the grouping throws all into one).",
    source=f"{_VLLM}: labels model_name and engine; production-stack's chart has this defect in its default trigger",
)
LABEL_UNKNOWN: Final = Rule(
    id="label-unknown",
    severity=Severity.RISKY,
    looks_for="a label that neither vLLM nor a usual scrape adds",
    why="Neither vLLM nor the monitors given here add this label: unless something else does, no series has it.",
    source=_VLLM,
)
ADAPTER_MISSING: Final = Rule(
    id="adapter-metric-missing",
    severity=Severity.BROKEN,
    looks_for="an HPA on a custom metric that the prometheus-adapter rules given do not offer",
    why="An HPA asks the metrics API by name; a name that no adapter rule makes is an error, and the HPA does nothing.",
    source="Kubernetes, HPA, custom metrics; prometheus-adapter, configuration",
)
RULES: Final = (
    VANISHED,
    VANISHES,
    UNKNOWN,
    WITHOUT_TOTAL,
    WITHOUT_SUFFIX,
    LABEL_WRONG,
    LABEL_UNKNOWN,
    ADAPTER_MISSING,
)


def check(case: Case) -> Iterator[Finding]:
    for expression, query in case.recipe.parsed:
        for name in sorted(query.names):
            yield from _name(case, expression, name)
        yield from _labels(case, expression, query)
    yield from _named_metrics(case)


def _name(case: Case, expression: Expression, name: str) -> Iterator[Finding]:
    wanted = metrics.canonical(name)
    if not wanted.startswith(metrics.PREFIX) or metrics.is_recorded(wanted) or name in case.recipe.recorded:
        return
    gone = metrics.vanished(wanted)
    if case.shows(name):
        if gone is not None:
            yield _renamed(VANISHES, expression, name, metrics.replacement(name, gone), gone.note)
    elif metrics.sample(name) is None:
        yield _absent(expression, name, wanted, gone)


def _absent(expression: Expression, name: str, wanted: str, gone: metrics.Vanished | None) -> Finding:
    family = metrics.FAMILIES.get(wanted)
    if metrics.sample(wanted) is not None:
        return _renamed(UNKNOWN, expression, name, wanted, "the prefix ends in a colon")
    if family is not None and family.kind == Kind.COUNTER:
        return _renamed(WITHOUT_TOTAL, expression, name, f"{wanted}_total", "")
    if family is not None:
        return _renamed(WITHOUT_SUFFIX, expression, name, f"{wanted}_bucket", "or its _sum and _count")
    if gone is not None:
        return _renamed(VANISHED, expression, name, metrics.replacement(wanted, gone), gone.note)
    return _renamed(UNKNOWN, expression, name, metrics.nearest_sample(wanted) or "", "")


def _renamed(rule: Rule, expression: Expression, name: str, to: str, note: str) -> Finding:
    expected = f"{to}{f' ({note})' if note else ''}" if to else "a name of vLLM's /metrics page"
    return Finding(
        rule=rule,
        at=expression.at,
        at_key=expression.at_key,
        found=name,
        expected=expected,
        repair=expression.repair(Change.METRIC, name, to) if to else None,
    )


def _labels(case: Case, expression: Expression, query: Query) -> Iterator[Finding]:
    wrong: dict[str, Finding] = {}
    for selector in query.selectors:
        known = metrics.sample(selector.name) or _once(selector)
        if known is None:
            continue
        written = {match.label for match in selector.matches} | query.grouping
        for label in sorted(written - known.family.labels - metrics.TARGET_LABELS - case.recipe.added_labels):
            if "*" not in case.recipe.added_labels and not _shows_label(case, selector.name, label):
                wrong.setdefault(label, _label(expression, label, known.family.labels))
    yield from wrong.values()


def _once(selector: Selector) -> metrics.Sample | None:
    """A vanished metric's labels are its successor's."""
    gone = metrics.vanished(selector.name)
    return None if gone is None else metrics.sample(metrics.replacement(selector.name, gone))


def _shows_label(case: Case, name: str, label: str) -> bool:
    return any(label in showing.labels.get(name, ()) for showing in case.showings)


def _label(expression: Expression, label: str, labels: frozenset[str]) -> Finding:
    meant = metrics.LABEL_SLIPS.get(label)
    rule = LABEL_UNKNOWN if meant is None else LABEL_WRONG
    meant = meant or metrics.nearest_label(label, labels | metrics.TARGET_LABELS)
    named = ", ".join(sorted(labels))
    return Finding(
        rule=rule,
        at=expression.at,
        at_key=expression.at_key,
        found=f"label {label}",
        expected=meant or f"one of {named}, or a label of the scrape",
        repair=expression.repair(Change.LABEL, label, meant) if meant else None,
    )


def _named_metrics(case: Case) -> Iterator[Finding]:
    """Names that an HPA or AIBrix gives without a query."""
    recipe = case.recipe
    offered = sorted(metric.name for metric in recipe.adapter if metric.name)
    open_ended = any(not metric.name for metric in recipe.adapter)
    for scaler in recipe.autoscalers:
        for signal in scaler.signals:
            if signal.source == Source.PAGE:
                yield from _page_metric(case, signal.name, signal.at)
            if signal.source != Source.CUSTOM or signal.name in offered:
                continue
            if offered and not open_ended and scaler.scaler == Scaler.HPA:
                near = metrics.nearest_label(signal.name, offered)
                expected = near or f"one of {', '.join(offered)}"
                fix = f"name: {near}" if near else ""
                yield Finding(rule=ADAPTER_MISSING, at=signal.at, found=signal.name, expected=expected, fix=fix)
            else:
                yield from _custom_metric(signal.name, signal.at)


def _page_metric(case: Case, name: str, at: Field) -> Iterator[Finding]:
    """AIBrix takes names without prefix, histograms by their family."""
    if metrics.sample(name) is not None or name in metrics.FAMILIES or case.shows(name):
        return
    gone = metrics.vanished(name)
    near = metrics.replacement(name, gone) if gone is not None else metrics.nearest_sample(name)
    bare = (near or "").removeprefix(metrics.PREFIX)
    yield Finding(
        rule=UNKNOWN if gone is None else VANISHED,
        at=at,
        found=at.text,
        expected=bare or "a name of vLLM's /metrics page, without its prefix",
        fix=f"targetMetric: {bare}" if bare else "",
    )


def _custom_metric(name: str, at: Field) -> Iterator[Finding]:
    """What an adapter makes of names is its own; but one that says a vanished name reads a vanished metric."""
    gone = metrics.vanished(metrics.canonical(name)) or metrics.vanished(metrics.PREFIX + name)
    if gone is not None:
        yield Finding(
            rule=VANISHED,
            at=at,
            found=name,
            expected=f"{gone.successor}, through an adapter rule that reads it",
            fix=f"name: {gone.successor.replace(':', '_')}",
        )
