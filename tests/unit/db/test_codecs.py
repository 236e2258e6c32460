"""Codecs give back exactly what they were given, and read what older and newer versions wrote."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.db import codecs
from controlplane.domain.deployment import (
    CapacityPrior,
    DeploymentSpec,
    EngineKind,
    IdleMode,
    Intent,
    LaunchTemplate,
    ServingPlan,
    TaskKind,
)
from controlplane.domain.node import NodeSpec
from controlplane.domain.slo import LatencyTarget, Slo
from controlplane.kernel.errors import TerminalError
from controlplane.testing.builders import make_spec

WORDS = st.text(max_size=10)
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple)
DURATIONS = st.timedeltas(timedelta(0), timedelta(days=400))
NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**62)
TARGETS = st.none() | st.builds(
    LatencyTarget,
    percentile=st.floats(0, 1, exclude_min=True, exclude_max=True),
    limit=st.timedeltas(timedelta(microseconds=1), timedelta(days=1)),
)
SPECS: st.SearchStrategy[DeploymentSpec] = st.builds(
    DeploymentSpec,
    name=WORDS,
    model=WORDS,
    served_names=st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    replicas_min=st.integers(0, 5),
    replicas_max=st.integers(5, 9),
    slo=st.builds(Slo, ttft=TARGETS, inter_token=TARGETS, end_to_end=TARGETS),
    engine=WORDS,
    pool=st.none() | WORDS,
    precision=st.none() | WORDS,
    tensor_parallel=st.none() | COUNTS,
    context_tokens=st.none() | COUNTS,
    max_num_seqs=st.none() | COUNTS,
    engine_args=PAIRS,
    weights=st.none() | WORDS,
    adapters=PAIRS,
    idle_after=st.none() | DURATIONS,
    idle_mode=st.sampled_from(IdleMode),
    accept_license=st.booleans(),
)
PRIORS = st.builds(
    CapacityPrior,
    step_base_s=NUMBERS,
    step_per_seq_s=NUMBERS,
    step_per_context_token_s=NUMBERS,
    prefill_base_s=NUMBERS,
    prefill_per_token_s=NUMBERS,
    prefill_per_token2_s=NUMBERS,
    kv_tokens=COUNTS,
    max_num_seqs=COUNTS,
    cold_start=DURATIONS,
    wake=DURATIONS,
    calibrated=st.booleans(),
)
TEMPLATES = st.builds(
    LaunchTemplate,
    engine=st.sampled_from(EngineKind),
    task=st.sampled_from(TaskKind),
    argv=st.lists(WORDS, max_size=3).map(tuple),
    env=PAIRS,
    health_path=WORDS,
    metrics_path=WORDS,
    probe_model=WORDS,
    start_deadline=DURATIONS,
    drain_deadline=DURATIONS,
    stop_deadline=DURATIONS,
)
PLANS = st.builds(
    ServingPlan,
    revision=WORDS,
    gpus_per_replica=COUNTS,
    gpu_models=st.lists(WORDS, max_size=3).map(tuple),
    memory_bytes_per_gpu=COUNTS,
    launch=TEMPLATES,
    prior=PRIORS,
    proof=st.lists(WORDS, max_size=3).map(tuple),
)
NODE_SPECS = st.builds(
    NodeSpec,
    name=WORDS,
    pool=WORDS,
    gpu_model=WORDS,
    gpus=COUNTS,
    numa_of_gpu=st.lists(st.integers(0, 7), max_size=8).map(tuple),
    address=WORDS,
    agent_url=st.none() | WORDS,
    simulated=st.booleans(),
)
INTENTS = st.builds(Intent, paused=st.booleans(), replicas_pinned=st.none() | COUNTS)
DATA = st.lists(st.tuples(WORDS, WORDS | st.integers() | NUMBERS | st.booleans()), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("codec", "values"),
    [
        (codecs.DEPLOYMENT_SPEC, SPECS),
        (codecs.SERVING_PLAN, PLANS),
        (codecs.NODE_SPEC, NODE_SPECS),
        (codecs.INTENT, INTENTS),
        (codecs.EVENT_DATA, DATA),
    ],
    ids=["deployment spec", "serving plan", "node spec", "intent", "event data"],
)
def test_a_value_comes_back_with_the_same_types_and_the_same_text(
    codec: codecs.Codec[Any], values: st.SearchStrategy[Any]
) -> None:
    @given(values)
    def check(value: object) -> None:
        text = codec.encode(value)
        again = codec.decode(text)
        assert again == value
        assert repr(again) == repr(value), "equal, but of another type: 1 for 1.0, a list for a tuple"
        assert codec.encode(again) == text
        assert "\0" not in text

    check()


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_comes_back(moment: datetime) -> None:
    assert codecs.time_from_us(codecs.us_from_time(moment)) == moment


def test_a_moment_of_another_zone_is_the_same_moment() -> None:
    moment = datetime(2026, 1, 5, 9, tzinfo=timezone(timedelta(hours=1)))
    assert codecs.time_from_us(codecs.us_from_time(moment)) == moment
    with pytest.raises(AssertionError, match="no time zone"):
        codecs.us_from_time(moment.replace(tzinfo=None))


@given(st.timedeltas())
def test_a_duration_comes_back(duration: timedelta) -> None:
    assert codecs.duration_from_us(codecs.us_from_duration(duration)) == duration


@given(st.lists(st.integers(0, 15), unique=True).map(tuple))
def test_gpus_come_back(gpus: tuple[int, ...]) -> None:
    assert codecs.gpus_from_text(codecs.text_from_gpus(gpus)) == gpus


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_ordinary_text_is_stored_as_it_is(text: str) -> None:
    assert codecs.storable(text) == text


@given(st.text(st.characters()))
def test_any_text_becomes_storable(text: str) -> None:
    stored = codecs.storable(text)
    stored.encode("utf-8")
    assert "\0" not in stored


def test_fields_of_other_versions() -> None:
    plain = json.loads(codecs.DEPLOYMENT_SPEC.encode(make_spec()))
    for later_field in ("slo", "engine", "adapters", "accept_license", "weights"):
        del plain[later_field]
    plain["not_yet_known"] = {"a": 1}
    spec = codecs.DEPLOYMENT_SPEC.decode(json.dumps(plain))
    assert (spec.slo, spec.engine, spec.adapters, spec.accept_license) == (Slo(), "default", (), False)
    assert spec.weights is None


@pytest.mark.parametrize("text", ["", "[]", '{"name":"a"}', '{"paused":7}'])
def test_what_no_version_wrote_is_terminal_and_says_what_to_do(text: str) -> None:
    with pytest.raises(
        TerminalError, match=r"a deployment spec that this program cannot read: .* apply the site again"
    ):
        codecs.DEPLOYMENT_SPEC.decode(text)
