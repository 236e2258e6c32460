"""Queries: whether they say what they seem to."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.metrics import Kind
from controlplane.autoscaler.doctor.model import Change, Finding, Rule, Severity, in_seconds, number_text
from controlplane.autoscaler.doctor.promql import DERIVATIVES, RATES, Query, Unparsed
from controlplane.autoscaler.doctor.promql_syntax import Selector
from controlplane.autoscaler.doctor.recipe import Autoscaler, Expression, Scaler, Source

_SCRAPE_SHORTEST: Final = timedelta(seconds=15)
"""Where no monitor says one: the shortest interval in common use, so that nothing sound is called broken."""
_SCRAPES_IN_WINDOW: Final = 2
"""A rate needs two samples; a window of less than two intervals often holds one."""

REFUSED: Final = Rule(
    id="query-refused",
    severity=Severity.BROKEN,
    looks_for="PromQL that does not parse",
    why="Prometheus refuses the query, so the scaler gets an error each time.",
    source="Prometheus' grammar, as promql-parser has it",
)
WITHOUT_RATE: Final = Rule(
    id="counter-without-rate",
    severity=Severity.BROKEN,
    looks_for="a counter, or a histogram's parts, without rate()",
    why="It only grows until the process restarts: once over the threshold it stays there, whatever the load.",
    source="Prometheus, metric types: counter",
)
GAUGE_RATE: Final = Rule(
    id="gauge-with-rate",
    severity=Severity.BROKEN,
    looks_for="rate() of a gauge",
    why="rate() takes every fall of a gauge for a restart and adds it up: the number means nothing.",
    source="Prometheus, functions: rate() is for counters",
)
WINDOW_SHORT: Final = Rule(
    id="rate-window-too-short",
    severity=Severity.BROKEN,
    looks_for="a rate window shorter than two scrapes",
    why="A rate needs two samples in its window; with fewer it has no result, which KEDA reads as zero.",
    source="Prometheus, functions: rate()",
)
WITHOUT_LE: Final = Rule(
    id="quantile-without-le",
    severity=Severity.BROKEN,
    looks_for="histogram_quantile() over an aggregation that drops `le`",
    why="Without the label le there are no buckets left to take a quantile of: the result is empty.",
    source="Prometheus, functions: histogram_quantile()",
)
ALL_TIME: Final = Rule(
    id="quantile-of-all-time",
    severity=Severity.BROKEN,
    looks_for="histogram_quantile() without rate()",
    why="Buckets count since the process started: after a day of traffic the last minutes change nothing in them.",
    source="Prometheus, histograms and summaries",
)
NOT_AN_EDGE: Final = Rule(
    id="le-not-an-edge",
    severity=Severity.BROKEN,
    looks_for="`le` matched with a value that is no bucket's edge, or is written otherwise",
    why="Only the edges that vLLM has exist as series; le is text, and vLLM's Python client writes 1.0, not 1.",
    source="vLLM 0.33, vllm/v1/metrics/loggers.py: buckets",
)
MANY_SERIES: Final = Rule(
    id="many-series",
    severity=Severity.BROKEN,
    looks_for="a KEDA query that gives one series for each pod",
    why='KEDA refuses more than one series ("returned multiple elements"): it works with one pod and stops with two.',
    source="KEDA, pkg/scalers/prometheus_scaler.go",
)
RULES: Final = (
    REFUSED,
    WITHOUT_RATE,
    GAUGE_RATE,
    WINDOW_SHORT,
    WITHOUT_LE,
    ALL_TIME,
    NOT_AN_EDGE,
    MANY_SERIES,
)


def check(case: Case) -> Iterator[Finding]:
    for expression in case.recipe.expressions:
        if isinstance(expression.query, Unparsed):
            yield _refused(expression, expression.query)
    for expression, query in case.recipe.parsed:
        quantiled = {selector.name for quantile in query.quantiles for selector in quantile.selectors}
        for selector in query.selectors:
            if not expression.is_template or selector.within:
                yield from _kinds(expression, selector, in_quantile=selector.name in quantiled)
            yield from _window(case, expression, selector)
            yield from _edges(case, expression, selector)
        yield from _quantiles(expression, query)
    for scaler in case.recipe.autoscalers:
        yield from _many_series(scaler)


def _refused(expression: Expression, query: Unparsed) -> Finding:
    what = "nothing" if not query.text.strip() else query.text
    hint = "a query"
    if "{{" in query.text or "$" in query.text:
        hint = "plain PromQL: placeholders of Helm or Grafana are not filled in for a scaler"
    elif query.text.strip():
        hint = f"valid PromQL ({query.problem})"
    return Finding(rule=REFUSED, at=expression.at, at_key=expression.at_key, found=what, expected=hint)


def _kinds(expression: Expression, selector: Selector, *, in_quantile: bool) -> Iterator[Finding]:
    known = metrics.sample(selector.name)
    if known is None:
        return
    rated = bool(RATES & set(selector.within))
    changing = bool(DERIVATIVES & set(selector.within))
    presence = bool({"absent", "count", "group", "absent_over_time"} & set(selector.within))
    if known.accumulates and not rated and not presence and not (in_quantile and known.suffix == "_bucket"):
        fix = f"rate({selector.name}[1m])"
        yield _of(WITHOUT_RATE, expression, selector.name, f"its rate: {fix}", fix)
    if known.family.kind == Kind.GAUGE and rated:
        expected = f"{selector.name} itself, or avg_over_time({selector.name}[1m])"
        yield _of(GAUGE_RATE, expression, f"rate of {selector.name}", expected, f"avg_over_time({selector.name}[1m])")
    if known.accumulates and changing:
        yield _of(WITHOUT_RATE, expression, f"{selector.name} under a function for gauges", "rate() or increase()", "")


def _window(case: Case, expression: Expression, selector: Selector) -> Iterator[Finding]:
    interval = case.recipe.scrape_interval
    least = _SCRAPES_IN_WINDOW * (interval or _SCRAPE_SHORTEST)
    if selector.window is None or not RATES & set(selector.within) or selector.window >= least:
        return
    said = (
        f"scraped every {in_seconds(interval)}" if interval else f"scraped every {in_seconds(_SCRAPE_SHORTEST)} at best"
    )
    expected = f"at least [{in_seconds(least).replace(' ', '')}]: {said}; four intervals survive a missed scrape"
    yield _of(WINDOW_SHORT, expression, f"[{in_seconds(selector.window).replace(' ', '')}]", expected, "[2m]")


def _quantiles(expression: Expression, query: Query) -> Iterator[Finding]:
    for quantile in query.quantiles:
        if not quantile.keeps_le:
            fix = "sum by (le) (rate(..._bucket[2m]))"
            yield _of(WITHOUT_LE, expression, quantile.aggregation, "sum by (le)", fix)
        for selector in quantile.selectors:
            if selector.name.endswith("_bucket") and not RATES & set(selector.within):
                fix = f"sum by (le) (rate({selector.name}[2m]))"
                yield _of(ALL_TIME, expression, f"{selector.name} without a rate", "its rate over some minutes", fix)


def _edges(case: Case, expression: Expression, selector: Selector) -> Iterator[Finding]:
    known = metrics.sample(selector.name)
    if known is None or known.suffix != "_bucket":
        return
    edges = case.edges(known.family.name, known.family.edges)
    if not edges:
        return
    for match in selector.matches:
        if match.label != "le":
            continue
        for value in match.values:
            yield from _edge(expression, value, edges)


def _edge(expression: Expression, written: str, edges: tuple[float, ...]) -> Iterator[Finding]:
    try:
        value = float(written)
    except ValueError:
        return
    if value == float("inf") or written in {str(edge) for edge in edges}:
        return
    below, above = metrics.edges_beside(value, edges)
    if below == value:
        expected = f'le="{value}"'
    else:
        near = [number_text(edge) for edge in (below, above) if edge is not None]
        expected = f"one of the edges beside it: {' or '.join(near)}"
    chosen = below if below is not None else above
    yield _of(NOT_AN_EDGE, expression, f'le="{written}"', expected, f'le="{chosen}"')


def _many_series(scaler: Autoscaler) -> Iterator[Finding]:
    if scaler.scaler != Scaler.KEDA:
        return
    for signal in scaler.signals:
        query = signal.query
        if signal.source != Source.QUERY or query is None or signal.expression is None or query.varying == frozenset():
            continue
        if query.varying is None and not any(metrics.is_exported(name) for name in query.names):
            # What something else exports, or records, may well be one series.
            continue
        by = "each pod" if query.varying is None else f"each {', '.join(sorted(query.varying))}"
        yield Finding(
            rule=MANY_SERIES,
            at=signal.expression.at,
            at_key=signal.expression.at_key,
            found=f"a series for {by}",
            expected="one series: sum(...)",
            repair=signal.expression.repair(Change.SUM),
        )


def _of(rule: Rule, expression: Expression, found: str, expected: str, fix: str) -> Finding:
    at_key = expression.at_key
    return Finding(rule=rule, at=expression.at, at_key=at_key, found=found, expected=expected, fix=fix)
