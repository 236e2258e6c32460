"""What the comparison says, and what is taken from labels."""

import math

import numpy as np
import pytest

from controlplane.catalog.files import load_catalog
from controlplane.simulation.dry_run.guesses import GuessedModel, guessed_gpu, guessed_model, kv_tokens_of
from controlplane.simulation.dry_run.happened import AtEdge, Bounds, Happened
from controlplane.simulation.dry_run.questions import (
    Ask,
    bounds,
    deployment_of,
    kubernetes,
    questions,
    with_matcher,
)
from controlplane.simulation.dry_run.runs import Ran, Total, Who, totals
from controlplane.simulation.dry_run.verdict import spread, verdict_of
from tests.unit.dry_run.hand_made import MINUTE

CATALOG = load_catalog()


def was(gpu_hours: float = 100.0, attainment: Bounds | None = None) -> Happened:
    return Happened(
        requests=1000.0,
        hours=10.0,
        gpu_hours=gpu_hours,
        gpu_hours_told=True,
        replicas_mean=5.0,
        replicas_least=2,
        replicas_most=8,
        scale_events=4,
        direction_changes=1,
        ttft=attainment,
        per_token=attainment,
        attainment=attainment,
        ttft_edges=(AtEdge(edge_s=1.0, share=0.9), AtEdge(edge_s=2.5, share=0.97)),
        per_token_edges=(),
    )


def total(who: Who, seed: int, gpu_hours: float, attainment: float = 0.99, at_edge: float = 0.9) -> Total:
    return Total(
        who=who,
        seed=seed,
        requests=1000,
        attainment=attainment,
        gpu_hours=gpu_hours,
        ttft_p99_s=1.0,
        itl_p99_s=0.03,
        scale_events=3,
        direction_changes=2,
        ttft_edges=(AtEdge(edge_s=1.0, share=at_edge), AtEdge(edge_s=2.5, share=0.97)),
        per_token_edges=(),
    )


def test_the_saving_and_how_sure_it_is() -> None:
    runs = [total(Who.OURS, 0, 58.0), total(Who.OURS, 1, 62.0), total(Who.THEIRS, 0, 90.0), total(Who.THEIRS, 1, 90.0)]
    verdict = verdict_of(runs, was())
    assert verdict.saving == pytest.approx(0.4)
    # The seeds against what was used, and against their autoscaler as the simulator has it.
    assert (verdict.saving_low, verdict.saving_high) == pytest.approx((1 - 62 / 90, 1 - 58 / 100))
    assert verdict.is_judged
    assert verdict.attainment is None
    [error] = verdict.errors
    assert (error.who, error.attainment) == (Who.THEIRS, 0.0)
    assert error.gpu_hours == pytest.approx(-0.1)


def test_the_simulated_engine_s_error_widens_what_is_said_of_attainment() -> None:
    runs = [total(Who.OURS, 0, 60.0), total(Who.REPLAYED, 0, 99.0, at_edge=0.88)]
    verdict = verdict_of(runs, was(attainment=Bounds(low=0.9, high=0.97)))
    assert not verdict.is_judged
    assert verdict.errors[0].attainment == pytest.approx(-0.02)
    assert verdict.attainment is not None
    assert (verdict.attainment.low, verdict.attainment.high) == pytest.approx((0.97 - 0.97, 1.0 - 0.9))


def test_a_history_without_hours_or_latencies_has_a_verdict_too() -> None:
    verdict = verdict_of([total(Who.OURS, 0, 60.0), total(Who.REPLAYED, 0, 60.0)], was(gpu_hours=0.0))
    assert verdict.saving == 0.0
    assert math.isnan(verdict.errors[0].gpu_hours)


def test_spreads() -> None:
    assert spread([1.0, 4.0, 1.0]).mean == 2.0
    assert spread([1.0, 4.0, 1.0]).half == 1.5
    assert math.isinf(spread([1.0, math.inf]).mean)


def ran(who: Who, *ttft_s: float, seed: int = 0, steps: tuple[int, ...] = ()) -> Ran:
    return Ran(
        who=who,
        seed=seed,
        met=sum(one <= 2.0 for one in ttft_s),
        gpu_hours=1.5,
        ttft_s=np.array(ttft_s),
        itl_s=np.full(len(ttft_s), 0.02),
        steps=steps,
    )


def test_stretches_are_added_up() -> None:
    parts = [
        ran(Who.OURS, 0.5, 1.0, steps=(1, -1)),
        ran(Who.OURS, 3.0, math.inf, steps=(-2, -1)),
        ran(Who.OURS, 0.1, seed=1),
    ]
    one, other = totals([*parts, ran(Who.CLAIRVOYANT)], ttft_edges_s=(1.0, 2.5), per_token_edges_s=())
    assert (one.who, one.seed, one.requests, one.attainment, one.gpu_hours) == (Who.OURS, 0, 4, 0.5, 3.0)
    assert (one.scale_events, one.direction_changes) == (4, 1)
    assert math.isinf(one.ttft_p99_s)
    assert [edge.share for edge in one.ttft_edges] == [0.5, 0.5]
    assert other.seed == 1  # and the clairvoyant, for which nothing is possible, is not there


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Qwen/Qwen3-32B", GuessedModel("qwen3-32b", None, exact=True)),
        ("/models/Qwen3-32B/", GuessedModel("qwen3-32b", None, exact=True)),
        ("meta-llama/Llama-3.1-8B-Instruct", GuessedModel("llama-3.1-8b", None, exact=True)),
        ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", GuessedModel("llama-3.1-8b", "awq", exact=True)),
        ("llama3.1-8b", GuessedModel("llama-3.1-8b", None, exact=False)),
        ("our-assistant", None),
    ],
)
def test_models_by_their_label(label: str, expected: GuessedModel | None) -> None:
    assert guessed_model(label, CATALOG) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["NVIDIA H100 80GB HBM3"], "h100"),
        (["NVIDIA H200"], "h200"),
        (["NVIDIA A100-SXM4-80GB"], "a100-80"),
        (["NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"], "a100-40"),
        (["NVIDIA H100 80GB HBM3", "NVIDIA L40S"], None),
        (["NVIDIA T4"], None),
        ([], None),
    ],
)
def test_gpus_by_dcgm_s_label(labels: list[str], expected: str | None) -> None:
    assert guessed_gpu(labels, CATALOG) == expected


def test_the_cache_by_the_engine_s_own_words() -> None:
    assert kv_tokens_of(["20000", "19990"], ["16"]) == 19990 * 16
    assert kv_tokens_of(["20000", "10000"], ["16"]) is None
    assert kv_tokens_of(["20000"], ["16", "32"]) is None
    assert kv_tokens_of(["None"], ["16"]) is None
    assert kv_tokens_of([], []) is None


# -- questions --------------------------------------------------------------------------------------------------------


def test_only_what_prometheus_has_is_asked() -> None:
    names = ["vllm:request_success_total", "vllm:num_requests_running", "vllm:time_to_first_token_seconds_bucket"]
    asked = questions(
        'model_name="m"',
        MINUTE,
        15.0,
        names=names,
        ttft_edges=["1.0", "2.5", "+Inf"],
        per_token="vllm:inter_token_latency_seconds",
        per_token_edges=["+Inf"],
    )
    assert set(asked) == {Ask.SUCCESS, Ask.RUNNING, Ask.TTFT, Ask.WATCHED}
    assert asked[Ask.SUCCESS] == (
        'sum without (engine, finished_reason) (last_over_time(vllm:request_success_total{model_name="m"}[60s]))'
    )
    assert "[38s]" in asked[Ask.RUNNING]
    assert r'model_name="m",le=~"\\+Inf|1\\.0|2\\.5"' in asked[Ask.TTFT]


def test_what_a_user_names_is_quoted() -> None:
    assert with_matcher("", "job", ['a"b', "c.d"]) == r'job=~"a\"b|c\\.d"'
    assert (
        kubernetes("llm", 'x"y')[Ask.HELD] == r'max(kube_deployment_status_replicas{deployment="x\"y",namespace="llm"})'
    )
    assert 'scaletargetref_name="chat",namespace="llm"' in bounds("llm", "chat")[0]


def test_the_deployment_by_its_pods() -> None:
    assert deployment_of(["chat-8b-6d5f7c9b8d-x2x9z", "chat-8b-7c9d5f6b8d-abcde"]) == "chat-8b"
    assert deployment_of(["chat-0", "chat-1"]) is None
    assert deployment_of(["chat-6d5f7c9b8d-x2x9z", "other-6d5f7c9b8d-x2x9z"]) is None
    assert deployment_of([]) is None
