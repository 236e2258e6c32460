"""The live engine or Prometheus: whether what the recipe asks for is there now."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.live import Answer, Case, Showing
from controlplane.autoscaler.doctor.model import Change, Finding, Rule, Severity
from controlplane.autoscaler.doctor.promql import Query
from controlplane.autoscaler.doctor.promql_syntax import Selector
from controlplane.autoscaler.doctor.recipe import Expression, Scaler, Source

_SEEN: Final = "seen on what was given as --metrics or --prometheus"
_VALUES_SHOWN: Final = 5
"""More names than this tell nobody more."""

ABSENT: Final = Rule(
    id="live-metric-absent",
    severity=Severity.BROKEN,
    looks_for="a metric of vLLM that the live page or Prometheus does not have",
    why="The engine that runs exports no such sample.",
    source=_SEEN,
)
LABEL_ABSENT: Final = Rule(
    id="live-label-absent",
    severity=Severity.BROKEN,
    looks_for="a label that the live series do not have",
    why="A matcher on a label that no series has admits none.",
    source=_SEEN,
)
VALUE_ABSENT: Final = Rule(
    id="live-value-absent",
    severity=Severity.BROKEN,
    looks_for="a label's value that no live series has (a model's name misspelt)",
    why="The matcher admits no series: vLLM's model_name is the name given by --served-model-name, not the path.",
    source=_SEEN,
)
EMPTY: Final = Rule(
    id="live-query-empty",
    severity=Severity.BROKEN,
    looks_for="a query that has no result now",
    why="The scaler sees nothing, or zero.",
    source=_SEEN,
)
MANY: Final = Rule(
    id="live-query-many",
    severity=Severity.BROKEN,
    looks_for="a query of KEDA's that has several series now",
    why='KEDA refuses more than one series ("returned multiple elements").',
    source=f"KEDA, pkg/scalers/prometheus_scaler.go; {_SEEN}",
)
REFUSED: Final = Rule(
    id="live-query-refused",
    severity=Severity.BROKEN,
    looks_for="a query that Prometheus refuses",
    why="The scaler gets the same error.",
    source=_SEEN,
)
NOT_A_NUMBER: Final = Rule(
    id="live-query-not-a-number",
    severity=Severity.RISKY,
    looks_for="a query whose value is NaN or infinite now",
    why="A quantile or a ratio without traffic is NaN, which KEDA takes for zero.",
    source=f"KEDA, pkg/scalers/prometheus_scaler.go; {_SEEN}",
)
RULES: Final = (ABSENT, LABEL_ABSENT, VALUE_ABSENT, EMPTY, MANY, REFUSED, NOT_A_NUMBER)


def check(case: Case) -> Iterator[Finding]:
    for showing in case.showings:
        if showing.is_engine:
            for expression, query in case.recipe.parsed:
                yield from _selectors(case, showing, expression, query)
    yield from _answers(case)


def _selectors(case: Case, showing: Showing, expression: Expression, query: Query) -> Iterator[Finding]:
    for name in sorted(query.names):
        # What vLLM never had, or has no more, is said by other rules already.
        if metrics.sample(name) is not None and not case.shows(name) and name not in case.recipe.recorded:
            found = f"{name}, not among the {len(showing.labels)} names of {showing.source}"
            yield _of(ABSENT, expression, found, "a name that is there")
    if expression.is_template:
        return
    for selector in query.selectors:
        yield from _matches(showing, expression, selector)


def _matches(showing: Showing, expression: Expression, selector: Selector) -> Iterator[Finding]:
    labels = showing.labels.get(selector.name)
    known = metrics.sample(selector.name)
    if labels is None or known is None:
        return
    for match in selector.matches:
        is_ours = match.label in known.family.labels
        if match.op in {"!=", "!~"} or match.label == "le" or not (is_ours or showing.has_scrape_labels):
            continue
        if match.label not in labels and match.label not in metrics.LABEL_SLIPS:
            expected = f"one of {', '.join(sorted(labels))}"
            yield _of(LABEL_ABSENT, expression, f"label {match.label} of {selector.name}", expected)
        there = showing.values.get(match.label, frozenset())
        if there and match.values and not there & set(match.values):
            shown = ", ".join(sorted(there)[:_VALUES_SHOWN])
            fix = f'{match.label}="{next(iter(there))}"' if len(there) == 1 else ""
            found = f'{match.label}{match.op}"{match.value}"'
            yield _of(VALUE_ABSENT, expression, found, f"one of {shown}, as {showing.source} has it", fix)


def _answers(case: Case) -> Iterator[Finding]:
    for scaler in case.recipe.autoscalers:
        for signal in scaler.signals:
            if signal.source != Source.QUERY or signal.expression is None or signal.query is None:
                continue
            answer = case.answers.get(signal.query.text)
            if answer is not None:
                yield from _answer(signal.expression, answer, wants_one=scaler.scaler == Scaler.KEDA)


def _answer(expression: Expression, answer: Answer, *, wants_one: bool) -> Iterator[Finding]:
    if answer.refused:
        yield _of(REFUSED, expression, answer.refused, "an answer")
    elif answer.series == 0:
        yield _of(EMPTY, expression, "no series", "one series")
    elif answer.series > 1 and wants_one:
        many = _of(MANY, expression, f"{answer.series} series", "one series: sum(...)")
        yield replace(many, repair=expression.repair(Change.SUM))
    elif not answer.is_number:
        yield _of(NOT_A_NUMBER, expression, "NaN or infinite", "a number, or no series")


def _of(rule: Rule, expression: Expression, found: str, expected: str, fix: str = "") -> Finding:
    at, at_key = expression.at, expression.at_key
    return Finding(rule=rule, at=at, at_key=at_key, found=found, expected=expected, fix=fix)
