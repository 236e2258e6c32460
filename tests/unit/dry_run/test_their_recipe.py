"""Manifests as policies: their queries on simulated metrics, their arithmetic, their behaviour, what is left out."""

import math
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from controlplane.adapters.doctor.documents import read_documents
from controlplane.autoscaler.doctor.diagnose import understand
from controlplane.kernel.errors import InvalidError, NotFoundError
from controlplane.simulation.dry_run.expression import Compiler, UnsimulatedError
from controlplane.simulation.dry_run.recipe import Theirs, chosen_scaler, theirs_of
from controlplane.simulation.fleet.policy import Counter, Gauge, Latency
from tests.unit.peers.steady import Steady, first, look, run

FLEET: Final = Steady(
    gauges={Gauge.RUNNING: (10.0, 20.0, 30.0), Gauge.WAITING: (0.0, 4.0, 2.0), Gauge.KV_USAGE: (0.2, 0.4, 0.9)},
    rates={Counter.FINISHED: 6.0, Counter.STARTED: 5.0, Counter.OUTPUT_TOKENS: 3000.0},
    latencies={Latency.TTFT: 1.5, Latency.INTER_TOKEN: 0.04},
)
KEDA: Final = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: chat}
spec:
  scaleTargetRef: {name: chat}
  minReplicaCount: MIN
  maxReplicaCount: 9
  triggers:
    - type: prometheus
      metadata: {query: 'QUERY', threshold: '5'}
"""
HPA: Final = """\
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: chat}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  minReplicas: 2
  maxReplicas: 8
  metrics: METRICS
  behavior: BEHAVIOR
"""
PODS: Final = (
    "[{type: Pods, pods: {metric: {name: vllm_num_requests_running}, "
    "target: {type: AverageValue, averageValue: '20'}}}]"
)
ITL: Final = "vllm:inter_token_latency_seconds"


def theirs(tmp_path: Path, text: str, *, present: set[str] | None = None) -> Theirs:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = understand([read.document for read in read_documents([path]).documents])
    return theirs_of(chosen_scaler(recipe), recipe, scrape_s=15.0, present=present)


def keda(tmp_path: Path, query: str, *, least: int = 1, present: set[str] | None = None) -> Theirs:
    return theirs(tmp_path, KEDA.replace("QUERY", query).replace("MIN", str(least)), present=present)


def value(query: str, metrics: Steady = FLEET) -> Any:
    return Compiler().query(query).of(look(metrics))


# -- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('sum(vllm:num_requests_running{model_name="chat"})', 60.0),
        ("avg(vllm:num_requests_waiting)", 2.0),
        ("max by (namespace) (vllm:kv_cache_usage_perc)", 0.9),
        ("sum(vllm:num_requests_waiting) + sum(vllm:num_requests_running)", 66.0),
        ("sum(vllm:num_requests_running + vllm:num_requests_waiting)", 66.0),
        ("sum(vllm:num_requests_running) / count(vllm:num_requests_running)", 20.0),
        ("100 * avg(vllm:kv_cache_usage_perc)", 50.0),
        ("sum(avg_over_time(vllm:num_requests_waiting[2m]))", 6.0),
        ("max(max_over_time(vllm:num_requests_waiting[2m]))", 4.0),
        ("sum(rate(vllm:request_success_total[1m]))", 6.0),
        ("sum(increase(vllm:request_success_total[1m]))", 360.0),
        ("avg(rate(vllm:generation_tokens_total[1m]))", 1000.0),
        ("histogram_quantile(0.9, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))", 1.5),
        (f"1000 * sum(rate({ITL}_sum[5m])) / sum(rate({ITL}_count[5m]))", 40.0),
        ("ceil(clamp_max(sum(vllm:num_requests_running) / 7, 8))", 8.0),
        ("clamp(sum(vllm:num_requests_waiting), 7, 9)", 7.0),
        ("-sum(vllm:num_requests_waiting)", -6.0),
        ("sum(vllm_num_requests_running)", 60.0),
        ("sum(vllm:num_requests_waiting) or vector(0)", 6.0),
    ],
)  # fmt: skip
def test_queries_on_the_simulated_metrics(query: str, expected: float) -> None:
    assert np.size(value(query)) == 1
    assert float(np.ravel(value(query))[0]) == pytest.approx(expected)


def test_nothing_observed_took_no_time() -> None:
    idle = Steady(rates={Counter.STARTED: 0.0}, gauges={Gauge.RUNNING: (0.0,)})
    assert value("sum(rate(vllm:time_to_first_token_seconds_sum[5m]))", idle) == 0.0


@pytest.mark.parametrize("query", ["vllm:num_requests_running", "sum by (pod) (vllm:num_requests_running)",
                                   "sum without (engine) (vllm:num_requests_running)"])  # fmt: skip
def test_one_value_from_each_replica(query: str) -> None:
    assert value(query).tolist() == [10.0, 20.0, 30.0]


def test_without_replicas_there_is_nothing() -> None:
    nobody = Steady()
    assert math.isnan(value("sum(vllm:num_requests_running)", nobody))
    assert math.isnan(value("sum(vllm:num_requests_running) / count(vllm:num_requests_running)", nobody))
    assert value("sum(vllm:num_requests_waiting) or vector(0)", nobody) == 0.0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum(DCGM_FI_DEV_GPU_UTIL)", "the metric DCGM_FI_DEV_GPU_UTIL"),
        ("deriv(vllm:num_requests_waiting[5m])", "deriv()"),
        ("topk(1, vllm:num_requests_waiting)", "topk()"),
        ("sum(vllm:num_requests_waiting) > 3", "the operator >"),
        ("avg_over_time(sum(vllm:num_requests_waiting)[5m:15s])", "avg_over_time() of a subquery"),
        ("sum(rate(vllm:prefix_cache_hits_total[1m]))", "rate(vllm:prefix_cache_hits_total)"),
        ("histogram_quantile(0.9, sum by (le) (rate(vllm:request_prompt_tokens_bucket[5m])))", "a quantile of"),
        ("sum(vllm:num_requests_waiting", "Prometheus refuses the query"),
    ],
)
def test_what_the_simulated_metrics_lack_is_said(query: str, said: str) -> None:
    with pytest.raises(UnsimulatedError) as refused:
        Compiler().query(query)
    assert said in str(refused.value)


def test_a_recorded_name_is_its_query() -> None:
    compiler = Compiler(recorded={"chat:queue": "sum(vllm:num_requests_waiting)"})
    assert compiler.query("chat:queue * 2").of(look(FLEET)) == 12.0


# -- KEDA -------------------------------------------------------------------------------------------------------------


def test_a_scaled_object_divides_by_its_threshold(tmp_path: Path) -> None:
    found = keda(tmp_path, "sum(vllm:num_requests_running)")
    assert (found.title, found.replicas_min, found.replicas_max, found.left_out) == ("ScaledObject chat", 1, 9, ())
    assert found.policy is not None
    assert first(found.policy, look(FLEET, high=100)) == 7  # 12 are wanted, 4 pods at once allowed
    assert run(pickle.loads(pickle.dumps(found.policy)), FLEET, wanted=3, until_s=60.0)[-1] == (15.0, 12)


def test_a_name_that_this_prometheus_lacks_reads_as_zero(tmp_path: Path) -> None:
    """`ignoreNullValues` is true by default: replicas go, five minutes later."""
    found = keda(tmp_path, "sum(vllm:gpu_cache_usage_perc) * 10", present={"vllm:num_requests_running"})
    assert found.policy is not None
    assert run(found.policy, FLEET, wanted=3, until_s=600.0) == [(300.0, 1)]
    strict = keda(tmp_path, "sum(vllm:gpu_cache_usage_perc)', ignoreNullValues: 'false", present=set())
    assert strict.policy is not None
    assert run(strict.policy, FLEET, wanted=3, until_s=600.0) == []


def test_several_values_are_an_error_that_holds(tmp_path: Path) -> None:
    found = keda(tmp_path, "vllm:num_requests_running', ignoreNullValues: 'false")
    assert found.policy is not None
    assert run(found.policy, FLEET, wanted=3, until_s=600.0) == []


def test_to_zero_and_back(tmp_path: Path) -> None:
    found = keda(tmp_path, "sum(vllm:num_requests_waiting)", least=0)
    assert found.policy is not None
    idle = Steady(gauges={Gauge.RUNNING: (0.0,), Gauge.WAITING: (0.0,)})
    assert run(found.policy, idle, wanted=1, until_s=600.0, low=0) == [(300.0, 0)]
    knocking = Steady(waiting_in_gateway=1.0)
    assert run(found.policy, knocking, wanted=0, until_s=60.0, low=0)[0] == (0.0, 1)


def test_a_trigger_without_a_counterpart_is_left_out(tmp_path: Path) -> None:
    text = KEDA.replace("MIN", "1").replace("QUERY", "sum(vllm:num_requests_running)")
    text += (
        "    - type: kafka\n      metadata: {topic: x}\n"
        "    - type: prometheus\n      metadata: {query: 'sum(DCGM_FI_DEV_GPU_UTIL)', threshold: '80'}\n"
        "    - type: cpu\n      metadata: {value: '80'}\n"
    )
    found = theirs(tmp_path, text)
    assert found.policy is not None
    assert len(found.policy.triggers) == 1
    assert [note.split(" was left out")[0] for note in found.left_out] == [
        "a trigger of type kafka",
        "`sum(DCGM_FI_DEV_GPU_UTIL)`",
        "the metric cpu of the pods",
    ]


# -- HPA --------------------------------------------------------------------------------------------------------------


def test_an_hpa_on_its_pods(tmp_path: Path) -> None:
    found = theirs(tmp_path, HPA.replace("METRICS", PODS).replace("BEHAVIOR", "{}"))
    assert (found.replicas_min, found.replicas_max) == (2, 8)
    assert found.policy is not None
    busy = Steady(gauges={Gauge.RUNNING: (30.0, 30.0)})
    assert first(found.policy, look(busy, wanted=2, low=2)) == 3
    assert first(found.policy, look(FLEET, low=2)) == 3


@pytest.mark.parametrize(("kind", "wanted"), [("Value", 9), ("AverageValue", 3)])
def test_external_metrics_as_ratio_or_as_total(tmp_path: Path, kind: str, wanted: int) -> None:
    key = kind[0].lower() + kind[1:]
    metric = f"[{{type: External, external: {{metric: {{name: queue}}, target: {{type: {kind}, {key}: '2'}}}}}}]"
    rules = (
        "---\nrules:\n  external:\n    - seriesQuery: 'vllm:num_requests_waiting'\n      name: {as: queue}\n"
        "      metricsQuery: 'sum(vllm:num_requests_waiting)'\n"
    )
    fast = "{scaleUp: {policies: [{type: Pods, value: 50, periodSeconds: 15}]}}"
    found = theirs(tmp_path, HPA.replace("METRICS", metric).replace("BEHAVIOR", fast) + rules)
    assert found.policy is not None
    assert first(found.policy, look(FLEET, wanted=3, low=2)) == wanted


def test_behaviour_is_taken_along(tmp_path: Path) -> None:
    behavior = (
        "{scaleUp: {stabilizationWindowSeconds: 30, policies: [{type: Pods, value: 1, periodSeconds: 60}]}, "
        "scaleDown: {selectPolicy: Disabled}}"
    )
    found = theirs(tmp_path, HPA.replace("METRICS", PODS).replace("BEHAVIOR", behavior))
    assert found.policy is not None
    busy = Steady(gauges={Gauge.RUNNING: (90.0,) * 2})
    assert [at_s for at_s, _ in run(found.policy, busy, wanted=2, until_s=150.0)] == [30.0, 90.0, 150.0]
    idle = Steady(gauges={Gauge.RUNNING: (1.0,) * 5})
    assert run(found.policy, idle, wanted=5, until_s=900.0, low=2) == []


def test_policies_of_several_periods_are_said_to_be_read_in_another_way(tmp_path: Path) -> None:
    behavior = (
        "{scaleDown: {policies: [{type: Pods, value: 1, periodSeconds: 60}, "
        "{type: Percent, value: 10, periodSeconds: 30}]}}"
    )
    found = theirs(tmp_path, HPA.replace("METRICS", PODS).replace("BEHAVIOR", behavior))
    assert found.left_out == (
        "of scaleDown's 2 policies the most generous of each kind counts, over their longest period",
    )


def test_without_one_of_its_metrics_it_does_not_shed(tmp_path: Path) -> None:
    text = KEDA.replace("MIN", "1").replace("QUERY", "sum(vllm:num_requests_waiting)', ignoreNullValues: 'false")
    text += (
        "    - type: prometheus\n      metadata: "
        "{query: 'sum(vllm:kv_cache_usage_perc)', threshold: '9', ignoreNullValues: 'false'}\n"
    )
    found = theirs(tmp_path, text)
    assert found.policy is not None
    half = Steady(gauges={Gauge.WAITING: (0.0, 0.0, 0.0)})
    assert run(found.policy, half, wanted=3, until_s=900.0) == []


# -- which ------------------------------------------------------------------------------------------------------------


def test_one_autoscaler_is_chosen(tmp_path: Path) -> None:
    one = KEDA.replace("MIN", "1").replace("QUERY", "sum(vllm:num_requests_waiting)")
    path = tmp_path / "two.yaml"
    path.write_text(one + "---\n" + one.replace("name: chat", "name: other"), encoding="utf-8")
    recipe = understand([read.document for read in read_documents([path]).documents])
    with pytest.raises(InvalidError, match="choose with --scaler NAME"):
        chosen_scaler(recipe)
    assert chosen_scaler(recipe, "other").spec.document.name == "other"
    with pytest.raises(NotFoundError, match="there are ScaledObject chat, ScaledObject other"):
        chosen_scaler(recipe, "third")


def test_what_is_no_hpa_and_no_scaled_object_is_not_simulated(tmp_path: Path) -> None:
    text = (
        "apiVersion: autoscaling.aibrix.ai/v1alpha1\nkind: PodAutoscaler\nmetadata: {name: chat}\nspec:\n"
        "  scalingStrategy: APA\n  minReplicas: 1\n  maxReplicas: 4\n  scaleTargetRef: {kind: Deployment, name: chat}\n"
        "  metricsSources: [{metricSourceType: pod, targetMetric: vllm:num_requests_running, targetValue: '20'}]\n"
    )
    found = theirs(tmp_path, text)
    assert found.policy is None
    assert found.left_out == ("a PodAutoscaler cannot be simulated from its manifest, only an HPA or a ScaledObject",)
