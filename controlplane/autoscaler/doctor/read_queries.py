"""PrometheusRule and prometheus-adapter: queries that stand between the engine's metrics and a scaler."""

import re
from collections.abc import Iterator
from typing import Final

from controlplane.autoscaler.doctor.model import Document, Field
from controlplane.autoscaler.doctor.promql import Query, parse
from controlplane.autoscaler.doctor.recipe import AdapterMetric, Expression

_SERIES_NAME: Final = re.compile(r'__name__\s*=~?\s*"\^?([\w:]+)\$?"|^\s*([a-zA-Z_:][\w:]*)')
_TEMPLATE: Final = "<<"


def recording_rules(document: Document) -> Iterator[tuple[str, Expression]]:
    """By the name that each rule records. Alerts are left alone: nothing scales on them."""
    if document.kind != "PrometheusRule":
        return
    for group in document.root.at("spec", "groups").items():
        for rule in group["rules"].items():
            if rule["record"].there:
                yield rule["record"].text, Expression(query=parse(rule["expr"].text), at=rule["expr"])


def adapter_metrics(document: Document) -> Iterator[AdapterMetric]:
    """From the chart's values (`rules.custom`, `rules.external`) or the adapter's own file (`rules`)."""
    root = document.root
    sections = (root.at("rules", "custom"), root.at("rules", "external"), root["rules"], root["externalRules"])
    for section in sections:
        for rule in section.items():
            if rule["seriesQuery"].there:
                yield _adapter_metric(rule)


def _adapter_metric(rule: Field) -> AdapterMetric:
    series, query = rule["seriesQuery"], rule["metricsQuery"]
    match = _SERIES_NAME.search(series.text)
    name = "" if match is None else match[1] or match[2]
    return AdapterMetric(
        # The name alone, since the matchers of a seriesQuery say what to discover, not what to read.
        series=Expression(query=parse(name or series.text), at=series, is_template=True),
        query=_filled_in(query, name) if query.there else None,
        name=_offered_name(rule["name"], name),
        rule=rule,
    )


def _filled_in(query: Field, series: str) -> Expression | None:
    """The query as the adapter sends it for one pod; None where its series is not known by name."""
    if _TEMPLATE in query.text and not series:
        return None
    filled = query.text.replace("<<.Series>>", series)
    filled = filled.replace("<<.LabelMatchers>>", 'namespace="n",pod="p"').replace("<<.GroupBy>>", "pod")
    parsed = parse(filled)
    is_template = _TEMPLATE in query.text
    if is_template and not isinstance(parsed, Query):
        return None
    return Expression(query=parsed, at=query, is_template=is_template)


def _offered_name(name: Field, series: str) -> str:
    alias, pattern = name["as"].text, name["matches"].text
    if not alias:
        return series
    if "$" not in alias:
        return alias
    try:
        found = re.search(pattern or "(.*)", series)
    except re.error:
        return ""
    if found is None:
        return ""
    named = re.sub(r"\$\{?(\d)\}?", lambda one: _group(found, int(one[1])), alias)
    return "" if "$" in named else named


def _group(match: re.Match[str], number: int) -> str:
    return (match[number] or "") if number <= len(match.groups()) else ""
