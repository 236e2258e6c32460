"""The doctor's list of metrics agrees with what the simulated engine, which plays a real page, exports."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.telemetry.exposition import read_series
from controlplane.autoscaler.doctor import metrics
from controlplane.autoscaler.doctor.metrics import Kind
from controlplane.autoscaler.doctor.model import duration, quantity
from controlplane.simulation.engine import families
from controlplane.testing.engine_page import EnginePage


def simulated() -> Mapping[str, tuple[Kind, set[str]]]:
    found: dict[str, tuple[Kind, set[str]]] = {}
    singles = ((Kind.GAUGE, families.GAUGES), (Kind.COUNTER, (*families.COUNTERS, *families.FLOPS_COUNTERS)))
    for kind, group in singles:
        for family in group:
            engine = {"engine"} if family.engine_label else set()
            found[family.name] = (kind, {"model_name", *engine, *({family.label} - {""})})
    for histogram in families.HISTOGRAMS:
        found[histogram.name] = (Kind.HISTOGRAM, {"model_name", "engine", "le"})
    return found


def test_every_family_of_an_engine_is_known_with_its_kind_and_labels() -> None:
    for name, (kind, labels) in simulated().items():
        known = metrics.FAMILIES[name]
        assert (known.kind, known.of_engine) == (kind, True), name
        assert labels <= known.labels, name


def test_edges_are_those_of_the_engine() -> None:
    for histogram in families.HISTOGRAMS:
        known = metrics.FAMILIES[histogram.name]
        assert known.edges in {(), histogram.edges}, histogram.name
    assert sum(1 for family in metrics.FAMILIES.values() if family.edges) >= 8


def test_every_sample_of_a_page_is_understood() -> None:
    for line in read_series(EnginePage().body()):
        if line.series.name.startswith(metrics.PREFIX):
            assert metrics.sample(line.series.name) is not None, line.series.name


def test_what_vanished_is_not_there_and_its_successor_is() -> None:
    for gone in metrics._VANISHED:
        assert metrics.sample(gone.name) is None
        known = metrics.sample(gone.successor) or metrics.sample(f"{gone.successor}_bucket")
        assert known is not None, gone.successor
    name = "vllm:time_per_output_token_seconds_bucket"
    former = metrics.vanished(name)
    assert former is not None
    assert metrics.replacement(name, former) == "vllm:inter_token_latency_seconds_bucket"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("vllm:num_request_waiting", "vllm:num_requests_waiting"),
        ("vllm:request_success", "vllm:request_success_total"),
        ("vllm:kv_cache_usage", "vllm:kv_cache_usage_perc"),
    ],
)
def test_the_nearest_name_is_the_one_meant(written: str, meant: str) -> None:
    assert metrics.nearest_sample(written) == meant


@given(st.floats(0.0, 10_000.0, allow_nan=False))
def test_edges_enclose_what_lies_between_them(value: float) -> None:
    edges = metrics.FAMILIES["vllm:time_to_first_token_seconds"].edges
    below, above = metrics.edges_beside(value, edges)
    assert below is None or below <= value
    assert above is None or above >= value
    assert (below == above) == (value in edges)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5.0), ("500m", 0.5), ("80%", 0.8), ("1k", 1000.0), ("2Ki", 2048.0), ("x", None), ("", None)],
)
def test_quantities_are_those_of_kubernetes(text: str, value: float | None) -> None:
    found = quantity(text)
    assert found is None if value is None else math.isclose(found or 0.0, value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300", 300.0), ("5m", 300.0), ("1m30s", 90.0), ("500ms", 0.5), ("soon", None), ("1e12", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    found = duration(text)
    assert (None if found is None else found.total_seconds()) == seconds
