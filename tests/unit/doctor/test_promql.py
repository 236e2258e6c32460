"""What a query is understood to mean."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.autoscaler.doctor.model import Change, Repair
from controlplane.autoscaler.doctor.promql import Query, Unparsed, parse, repaired
from controlplane.autoscaler.doctor.promql_result import Gist

USAGE = "vllm:kv_cache_usage_perc"
BUCKETS = "rate(vllm:time_to_first_token_seconds_bucket[2m])"


def parsed(text: str) -> Query:
    query = parse(text)
    assert isinstance(query, Query), query
    return query


@pytest.mark.parametrize(
    ("text", "varying"),
    [
        ("vllm:num_requests_waiting", None),
        ("rate(x_total[1m])", None),
        ("topk(1, x)", None),
        ("sum(x)", set()),
        ("sum by (pod) (x)", {"pod"}),
        ('sum by (pod) (x{pod="a"})', set()),
        ('sum by (model_name) (x{model_name=~"a|b"})', {"model_name"}),
        ("sum without (pod) (x)", None),
        ("sum without (pod) (sum by (pod) (x))", set()),
        (f"histogram_quantile(0.9, sum by (le) ({BUCKETS}))", set()),
        (f"histogram_quantile(0.9, sum by (le, pod) ({BUCKETS}))", {"pod"}),
        (f"histogram_quantile(0.9, {BUCKETS})", None),
        ("sum(x) or vector(0)", set()),
        ("x or vector(0)", None),
        ("sum(x) / sum(y)", set()),
        ("sum(x) / scalar(sum(y))", set()),
        ("x / scalar(sum(y))", None),
        ("2 * sum(x)", set()),
        ("sum(x) and sum by (pod) (y)", set()),
        ("max_over_time(sum(x)[5m:30s])", set()),
        ("clamp_max(sum(x), 3)", set()),
        ("vector(1)", set()),
        ("time()", set()),
        ("-sum(x)", set()),
        ("sum by (pod) (x) + sum by (pod, job) (y)", {"pod", "job"}),
    ],
)
def test_by_what_its_series_differ(text: str, varying: set[str] | None) -> None:
    assert parsed(text).varying == varying


@pytest.mark.parametrize(
    ("text", "gist"),
    [
        ("sum(x)", Gist.TOTAL),
        ("count(x)", Gist.TOTAL),
        ("sum(x) / 2", Gist.TOTAL),
        ("3 * sum(x)", Gist.TOTAL),
        ("sum(x) + sum(y)", Gist.TOTAL),
        ("sum(x) or vector(0)", Gist.TOTAL),
        ("avg(x)", Gist.PER_REPLICA),
        ("max(x) > 3", Gist.PER_REPLICA),
        ("sum(x) / count(x)", Gist.PER_REPLICA),
        (f"histogram_quantile(0.9, sum by (le) ({BUCKETS}))", Gist.PER_REPLICA),
        ("avg_over_time(avg(x)[1m:])", Gist.PER_REPLICA),
        ("x", Gist.UNKNOWN),
        ("sum(x) * avg(y)", Gist.UNKNOWN),
        ("count(x) * max(y)", Gist.UNKNOWN),
    ],
)
def test_what_its_number_stands_for(text: str, gist: Gist) -> None:
    assert parsed(text).gist == gist


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (f"avg({USAGE})", 1.0),
        (f"sum({USAGE})", 1.0),
        (f"avg({USAGE}) * 100", 100.0),
        (f"100 * max({USAGE})", 100.0),
        (f"avg({USAGE}) / 2", 0.5),
        ("avg(vllm:gpu_cache_usage_perc)", 1.0),
        ("avg(DCGM_FI_DEV_GPU_UTIL)", 100.0),
        ("avg(avg_over_time(vllm:kv_cache_usage_perc[1m]))", 1.0),
        (f"clamp_max(avg({USAGE}), 0.5)", 0.5),
        ("clamp_max(sum(x), 4)", 4.0),
        ("sum(x)", math.inf),
        (f"avg({USAGE}) + 1", math.inf),
    ],
)
def test_the_most_that_it_can_be(text: str, bound: float) -> None:
    assert parsed(text).bound == bound


def test_selectors_know_what_surrounds_them() -> None:
    query = parsed('sum(rate(a_total{x="1",y=~"p|q"}[90s])) / count({__name__="b"})')
    first, second = query.selectors
    assert (first.name, first.window, first.within) == ("a_total", timedelta(seconds=90), ("rate", "sum"))
    assert [(match.op, match.values) for match in first.matches] == [("=", ("1",)), ("=~", ("p", "q"))]
    assert (second.name, second.matches, second.within) == ("b", (), ("count",))


def test_quantiles_know_whether_buckets_are_left() -> None:
    kept, dropped, bare = (
        parsed(f"histogram_quantile(0.9, {inner})").quantiles[0]
        for inner in (f"sum by (le) ({BUCKETS})", f"sum({BUCKETS})", BUCKETS)
    )
    assert (kept.keeps_le, kept.aggregation) == (True, "sum by (le)")
    assert (dropped.keeps_le, dropped.aggregation) == (False, "sum")
    assert (bare.keeps_le, bare.aggregation) == (True, "")
    assert not parsed(f"histogram_quantile(0.9, sum without (le) ({BUCKETS}))").quantiles[0].keeps_le


@pytest.mark.parametrize("text", ["sum(x) or vector(0)", "(sum(x) or vector(0)) / 2", "sum(x or vector(0))"])
def test_zero_for_absence_is_seen(text: str) -> None:
    assert parsed(text).absent_is_zero
    assert not parsed(text.replace("vector(0)", "vector(1)")).absent_is_zero


@pytest.mark.parametrize("text", ["", "sum(", "rate(x)", "rate(x[$__interval])", "{{ .Values.query }}"])
def test_what_prometheus_refuses_is_refused(text: str) -> None:
    query = parse(text)
    assert isinstance(query, Unparsed)
    assert query.problem


@given(st.text(alphabet='abx:_{}[]()"=~!<>/*-+ ,.019mle\n', max_size=40))
def test_no_text_makes_it_fail(text: str) -> None:
    assert parse(text).text == text


def test_repairs_leave_values_alone() -> None:
    text = 'max by (model) (vllm:gpu_cache_usage_perc{model="model", job!="model"})'
    repairs = [
        Repair(change=Change.SUM, query=text, key="query"),
        Repair(change=Change.LABEL, query=text, key="query", old="model", new="model_name"),
        Repair(change=Change.METRIC, query=text, key="query", old="vllm:gpu_cache_usage_perc", new=USAGE),
    ]
    expected = f'sum(max by (model_name) ({USAGE}{{model_name="model", job!="model"}}))'
    assert repaired(repairs) == expected
