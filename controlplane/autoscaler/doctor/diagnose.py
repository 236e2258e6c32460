"""The whole diagnosis: documents to a recipe, a recipe and what is live to findings."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from controlplane.autoscaler.doctor import (
    rules_dialects,
    rules_limits,
    rules_live,
    rules_names,
    rules_outage,
    rules_pods,
    rules_queries,
    rules_scrape,
    rules_targets,
)
from controlplane.autoscaler.doctor.live import Answer, Case, Showing
from controlplane.autoscaler.doctor.model import Document, Finding, Path, Repair, Rule
from controlplane.autoscaler.doctor.promql import repaired
from controlplane.autoscaler.doctor.read_others import knative, pod_autoscalers, ray_serve
from controlplane.autoscaler.doctor.read_queries import adapter_metrics, recording_rules
from controlplane.autoscaler.doctor.read_scalers import helm_values, hpas, kserve, scaled_objects
from controlplane.autoscaler.doctor.read_workloads import monitors, services, workloads
from controlplane.autoscaler.doctor.recipe import Autoscaler, Recipe, Source

_FAMILIES: Final[Sequence[tuple[str, Sequence[Rule], Callable[[Case], Iterator[Finding]]]]] = (
    ("Names and labels", rules_names.RULES, rules_names.check),
    ("Queries", rules_queries.RULES, rules_queries.check),
    ("Signals and targets", rules_targets.RULES, rules_targets.check),
    ("Limits", rules_limits.RULES, rules_limits.check),
    ("Outages and scale-down", rules_outage.RULES, rules_outage.check),
    ("Pods", rules_pods.RULES, rules_pods.check),
    ("Monitors", rules_scrape.RULES, rules_scrape.check),
    ("AIBrix, Knative, Ray Serve", rules_dialects.RULES, rules_dialects.check),
    ("Live", rules_live.RULES, rules_live.check),
)

RULES: Final[Mapping[str, Sequence[Rule]]] = {title: rules for title, rules, _ in _FAMILIES}
"""Every rule, by the family that docs/doctor.md shows it under."""


def understand(documents: Sequence[Document]) -> Recipe:
    """What the documents amount to; those of other kinds are left aside."""
    adapter = tuple(metric for document in documents for metric in adapter_metrics(document))
    offered = {metric.name: metric for metric in adapter if metric.name}

    def autoscalers(document: Document) -> Iterator[Autoscaler]:
        yield from hpas(document, offered)
        for read in (scaled_objects, helm_values, kserve, pod_autoscalers, knative, ray_serve):
            yield from read(document)

    return Recipe(
        autoscalers=tuple(scaler for document in documents for scaler in autoscalers(document)),
        workloads=tuple(one for document in documents for one in workloads(document)),
        services=tuple(one for document in documents for one in services(document)),
        monitors=tuple(one for document in documents for one in monitors(document)),
        adapter=adapter,
        recorded=dict(entry for document in documents for entry in recording_rules(document)),
    )


def queries(recipe: Recipe) -> Sequence[str]:
    """What the scalers would send to Prometheus, each once."""
    texts = (
        signal.query.text
        for scaler in recipe.autoscalers
        for signal in scaler.signals
        if signal.source == Source.QUERY and signal.query is not None
    )
    return tuple(dict.fromkeys(texts))


def diagnose(
    recipe: Recipe, *, showings: Sequence[Showing] = (), answers: Mapping[str, Answer] | None = None
) -> tuple[Finding, ...]:
    """Every finding, in the order of the documents and, at one place, of how bad it is. Each once."""
    case = Case(recipe=recipe, showings=showings, answers=answers or {})
    found = [finding for _, _, check in _FAMILIES for finding in check(case)]
    unique = {(one.rule.id, one.at.document.index, one.at.path, one.found): one for one in found}
    return tuple(_with_fixes(tuple(unique.values())))


def _with_fixes(found: Sequence[Finding]) -> Iterator[Finding]:
    """Each finding of a query offers the query with everything repaired that is wrong in it."""
    repairs: dict[tuple[int, Path], dict[Repair, None]] = defaultdict(dict)
    for finding in found:
        if finding.repair is not None:
            repairs[_place(finding)][finding.repair] = None
    for finding in found:
        if finding.repair is None:
            yield finding
        else:
            yield replace(finding, fix=f"{finding.repair.key}: {repaired(tuple(repairs[_place(finding)]))}")


def _place(finding: Finding) -> tuple[int, Path]:
    return finding.at.document.index, finding.at.path
