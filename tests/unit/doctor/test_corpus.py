"""Broken recipes get the findings that they should and no other, sound ones none; every rule has both."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.doctor.documents import Folder, read_documents
from controlplane.adapters.doctor.live import page_showing
from controlplane.autoscaler.doctor.diagnose import RULES, diagnose, understand
from controlplane.autoscaler.doctor.live import Answer
from controlplane.autoscaler.doctor.model import Document, Finding, Plain
from controlplane.autoscaler.doctor.promql import Query, parse

CORPUS: Final = Path(__file__).parent / "corpus"
ALL_RULES: Final = {rule.id: rule for rules in RULES.values() for rule in rules}

BROKEN: Final[dict[str, set[str]]] = {
    "adapter-offers-other-name": {"adapter-metric-missing"},
    "aibrix-settings": {"aibrix-dead-annotation", "aibrix-setting-as-label"},
    "bare-counter": {"counter-without-total"},
    "bare-histogram": {"histogram-without-suffix"},
    "behavior": {"scale-down-faster-than-start", "scale-up-disabled"},
    "careless-pods": {
        *("in-flight-cut", "no-prestop", "no-readiness-probe", "replicas-in-manifest", "start-budget-too-short"),
    },
    "chart-defaults": {
        *("chart-without-monitor", "empty-reads-as-zero", "keda-max-default", "label-wrong", "many-series"),
    },
    "chart-trigger-mapping": {"keda-without-triggers"},
    "cpu-of-an-engine": {"cpu-says-nothing"},
    "gpu-memory": {"gpu-busy-saturates", "gpu-memory-always-full"},
    "grace-too-short": {"grace-too-short"},
    "hpa-from-zero": {"hpa-zero-never-wakes"},
    "keda-from-zero": {"keda-max-default", "zero-never-wakes"},
    "keda-outage": {
        *("absent-is-zero", "cooldown-only-to-zero", "empty-reads-as-zero", "fallback-never-used"),
        "keda-metric-name-ignored",
    },
    "knative-from-zero": {
        *("cpu-says-nothing", "knative-metric-of-other-class", "knative-zero-cold-start"),
        "scale-down-faster-than-start",
    },
    "kserve-both": {"kserve-replicas-and-scaling"},
    "label-model": {"label-wrong"},
    "label-team": {"label-unknown"},
    "latency-alone": {"latency-only"},
    "le-between-edges": {"le-not-an-edge"},
    "limits-swapped": {"max-below-min", "never-scales"},
    "mean-queue-divided": {"per-replica-value-divided"},
    "misspelt-names": {"metric-unknown"},
    "monitor-elsewhere": {"monitor-other-namespace"},
    "monitor-of-pod-labels": {"monitor-selects-nothing"},
    "monitor-port": {"monitor-port-missing"},
    "no-threshold": {"threshold-missing"},
    "not-in-prometheus": {
        *("live-query-empty", "live-query-many", "live-query-not-a-number", "live-query-refused", "many-series"),
        "per-replica-value-divided",
    },
    "not-on-the-page": {"live-label-absent", "live-metric-absent", "live-value-absent"},
    "not-promql": {"query-refused"},
    "old-api": {"api-removed"},
    "older-engine": {"metric-vanishes-on-upgrade"},
    "quantile-of-all-time": {"quantile-of-all-time"},
    "quantile-without-le": {"quantile-without-le"},
    "rate-of-gauge": {"gauge-with-rate"},
    "raw-counter": {"counter-without-rate"},
    "ray-defaults": {"ray-max-default", "ray-setting-renamed", "scale-down-faster-than-start"},
    "series-for-each-pod": {"many-series"},
    "short-window": {"rate-window-too-short"},
    "slo-of-two-seconds": {"slo-between-edges"},
    "target-misspelt": {"target-misspelt"},
    "token-rate-of-one-request": {"threshold-always-exceeded"},
    "total-as-ratio": {"total-with-ratio"},
    "two-on-one": {"two-autoscalers"},
    "usage-divided-twice": {"target-caps-replicas"},
    "usage-in-percent": {"threshold-never-reached"},
    "vanished-names": {"metric-vanished"},
}
"""What is found in each folder of corpus/broken, no more and no less."""

SOUND: Final[dict[str, set[str]]] = {
    "aibrix-apa": {"aibrix-dead-annotation", "aibrix-setting-as-label"},
    "chart-with-triggers": {"chart-without-monitor", "keda-without-triggers", "label-wrong"},
    "hpa-of-the-router": {"cpu-says-nothing"},
    "hpa-through-adapter": {"adapter-metric-missing", "api-removed", "hpa-zero-never-wakes"},
    "keda-from-zero-by-router": {"cooldown-only-to-zero", "zero-never-wakes"},
    "keda-mean-as-ratio": {"per-replica-value-divided", "target-caps-replicas"},
    "keda-queue": {
        *("empty-reads-as-zero", "grace-too-short", "in-flight-cut", "keda-max-default", "keda-metric-name-ignored"),
        *("many-series", "max-below-min", "monitor-other-namespace", "monitor-port-missing", "never-scales"),
        *("monitor-selects-nothing", "no-prestop", "no-readiness-probe", "query-refused", "replicas-in-manifest"),
        *("start-budget-too-short", "target-misspelt", "threshold-missing", "two-autoscalers"),
    },
    "keda-relabelled": {"label-unknown", "label-wrong"},
    "keda-running": {"gauge-with-rate", "total-with-ratio"},
    "keda-several-signals": {
        *("counter-without-rate", "counter-without-total", "gpu-busy-saturates", "gpu-memory-always-full"),
        *("latency-only", "metric-vanished", "quantile-of-all-time", "quantile-without-le", "rate-window-too-short"),
        *("slo-between-edges", "threshold-always-exceeded", "threshold-never-reached"),
    },
    "keda-share-within-slo": {"histogram-without-suffix", "le-not-an-edge"},
    "keda-with-fallback": {
        *("absent-is-zero", "fallback-never-used", "scale-down-faster-than-start", "scale-up-disabled"),
    },
    "knative": {"knative-metric-of-other-class", "knative-zero-cold-start"},
    "kserve": {"kserve-replicas-and-scaling"},
    "live": {"metric-vanishes-on-upgrade", *(name for name in ALL_RULES if name.startswith("live-"))},
    "ray": {"ray-max-default", "ray-setting-renamed"},
    "recorded": {"metric-unknown"},
}
"""The rules to which each folder of corpus/sound is the counterpart: it does right what they look for."""


@cache
def read(kind: str, name: str) -> Folder:
    return read_documents([CORPUS / kind / name])


def live_of(folder: Path) -> dict[str, Any]:
    """A page in metrics.txt; answers in answers.json, which also says whether the page stands for a Prometheus."""
    told = folder / "answers.json"
    said = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    page = folder / "metrics.txt"
    showings = [page_showing(page.read_bytes(), source="metrics.txt")] if page.exists() else []
    is_prometheus = bool(said.get("page_is_prometheus"))
    return {
        "showings": [replace(showing, has_scrape_labels=is_prometheus) for showing in showings],
        "answers": {query: Answer(**answer) for query, answer in said.get("answers", {}).items()},
    }


def findings(kind: str, name: str) -> tuple[Finding, ...]:
    folder = read(kind, name)
    return diagnose(understand([one.document for one in folder.documents]), **live_of(CORPUS / kind / name))


def test_the_tables_name_every_folder() -> None:
    assert sorted(BROKEN) == sorted(path.name for path in (CORPUS / "broken").iterdir())
    assert sorted(SOUND) == sorted(path.name for path in (CORPUS / "sound").iterdir())


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name: str) -> None:
    found = findings("broken", name)
    assert {finding.rule.id for finding in found} == BROKEN[name]
    placed = read("broken", name).ordered(found)
    assert all(one.line >= 1 and one.column >= 1 and one.field != "document" for one in placed)
    assert all(finding.found and finding.expected for finding in found)


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_left_alone(name: str) -> None:
    assert [(one.rule.id, one.found) for one in findings("sound", name)] == []


def test_every_rule_has_a_broken_and_a_sound_case() -> None:
    assert set().union(*BROKEN.values()) == set(ALL_RULES)
    assert set().union(*SOUND.values()) == set(ALL_RULES)


def test_every_rule_says_why_and_where_that_is_from() -> None:
    assert len(ALL_RULES) == sum(len(rules) for rules in RULES.values())
    for rule in ALL_RULES.values():
        assert rule.why.endswith("."), rule.id
        assert rule.source, rule.id
        assert rule.looks_for, rule.id


@pytest.mark.parametrize("name", [name for name, ids in BROKEN.items() if ids & {"label-wrong", "metric-vanished"}])
def test_a_repaired_query_has_no_more_of_it(name: str) -> None:
    for finding in findings("broken", name):
        if finding.repair is not None:
            query = parse(finding.fix.removeprefix(f"{finding.repair.key}: "))
            assert isinstance(query, Query)
            assert finding.repair.old not in query.names
            assert all(finding.repair.old != match.label for one in query.selectors for match in one.matches)


DOCUMENTS: Final = [
    one.document for kind, names in (("broken", BROKEN), ("sound", SOUND)) for name in names
    for one in read(kind, name).documents
]  # fmt: skip
ODD: Final[st.SearchStrategy[Plain]] = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "x", "0", "-1", "{{ x }}", "1e99", "5m"]),
    st.just([]), st.just([None]), st.just({}), st.just({"name": 3}),
)  # fmt: skip


def paths(value: Plain, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [inner for key, one in value.items() for inner in paths(one, (*path, key))]
    elif isinstance(value, list):
        found += [inner for index, one in enumerate(value) for inner in paths(one, (*path, index))]
    return found


def with_odd(value: Plain, path: tuple[str | int, ...], odd: Plain) -> Plain:
    if not path:
        return odd
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {key: with_odd(one, rest, odd) if key == head else one for key, one in value.items()}
    assert isinstance(value, list)
    return [with_odd(one, rest, odd) if index == head else one for index, one in enumerate(value)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_that_can_stand_in_a_file_makes_it_fail(data: st.DataObject) -> None:
    """Documents of the corpus with one part replaced by something else."""
    document = data.draw(st.sampled_from(DOCUMENTS))
    path = data.draw(st.sampled_from(paths(document.data)))
    spoilt = Document(source="f", index=0, data=with_odd(document.data, path, data.draw(ODD)))
    for finding in diagnose(understand([spoilt])):
        assert finding.at.document is spoilt
