"""The fit's rules, by example and by property."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog.divisibility import degree_problems
from controlplane.catalog.files import load_catalog
from controlplane.catalog.fit import CONTEXT_MIN_TOKENS, fit
from controlplane.catalog.memory import GRAPH_BATCH_MAX, captured_sizes, kv_bytes_per_token
from controlplane.catalog.model import Gpu, ModelCard
from controlplane.catalog.weights import LINEAR_BITS, total_weight_bytes, weight_bytes
from controlplane.kernel.units import GIB, KIB

CATALOG: Final = load_catalog()
B200: Final = CATALOG.gpu("b200")
H100: Final = CATALOG.gpu("h100")

models = st.sampled_from([card for card in CATALOG.models.values() if card.shape is not None])
generating = st.sampled_from(
    [card for card in CATALOG.models.values() if card.shape is not None and card.shape.keeps_kv]
)
gpus = st.sampled_from(list(CATALOG.gpus.values()))
degrees = st.sampled_from([1, 2, 4, 8])


def possible(card: ModelCard, precision: str, degree: int) -> bool:
    assert card.shape is not None
    return not degree_problems(card.shape, precision, degree)


# -- degrees


@pytest.mark.parametrize(
    ("model", "precision", "degree", "expected"),
    [
        ("qwen2-7b", "bf16", 8, "28 attention heads"),
        ("qwen2-72b", "awq", 8, "whole groups of 128"),
        ("qwen2.5-vl-7b", "bf16", 8, "28 attention heads"),
        ("whisper-large-v3", "bf16", 8, "20 attention heads"),
        ("llama-3-8b", "bf16", 3, "32 attention heads"),
        ("llama-3-8b", "bf16", 0, "at least 1"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused(model: str, precision: str, degree: int, expected: str) -> None:
    shape = CATALOG.model(model).shape
    assert shape is not None

    assert any(expected in problem for problem in degree_problems(shape, precision, degree))


def test_nothing_is_computed_for_a_degree_that_does_not_divide() -> None:
    answer = fit(CATALOG.model("llama-3.1-70b"), CATALOG.gpu("b200"), tp=3)

    parameters, refused = answer.proof
    assert "70.55 B parameters" in parameters
    assert refused.startswith("refused: TP3; needed is a divisor of 64 attention heads")
    assert (answer.budget, answer.kv_tokens, answer.kv_bytes_per_token) == (None, 0, 0)


def test_vision_heads_and_width_must_divide_too() -> None:
    card = CATALOG.model("qwen2.5-vl-7b")
    shape = card.shape
    assert shape is not None
    wide = replace(shape, text=replace(shape.text, heads=32, kv_heads=4, intermediate=18944))

    assert degree_problems(wide, "bf16", 8) == ("a divisor of vision intermediate size 3420",)
    assert degree_problems(shape, "bf16", 4) == ()


def test_mixtral_8x22b_runs_on_eight_gpus() -> None:
    answer = fit(CATALOG.model("mixtral-8x22b"), H100, tp=8)

    assert answer.fits
    assert answer.kv_bytes_per_token == 224 * KIB // 8


def test_kv_heads_are_repeated_beyond_their_number() -> None:
    shape = CATALOG.model("qwen2-7b").shape
    assert shape is not None

    per_token = [kv_bytes_per_token(shape, "auto", degree) // KIB for degree in (1, 2, 4, 7)]

    assert per_token == [56, 28, 14, 14]


# -- what is asked


def test_the_models_own_limit_is_chosen_where_it_fits() -> None:
    answer = fit(CATALOG.model("llama-3.1-8b"), B200)

    assert (answer.tensor_parallel, answer.context_tokens) == (1, 131072)


def test_the_largest_context_is_chosen_where_the_limit_does_not_fit() -> None:
    answer = fit(CATALOG.model("llama-3.1-70b"), B200, tp=1)

    assert answer.fits
    assert CONTEXT_MIN_TOKENS < answer.context_tokens == answer.largest_context < 131072


def test_no_context_is_chosen_that_is_of_no_use() -> None:
    """Little is left beyond the weights: some hundred tokens."""
    card = CATALOG.model("llama-3-8b")
    answer = fit(card, CATALOG.gpu("tier-24"), tp=1, utilization=0.71)

    assert not answer.fits
    assert answer.context_tokens == card.context_tokens
    assert 0 < answer.largest_context < CONTEXT_MIN_TOKENS


def test_weights_alone_too_large() -> None:
    answer = fit(CATALOG.model("llama-3-70b"), H100, tp=1)

    assert [item.field for item in answer.refusals] == ["tensor_parallel"]
    assert answer.smallest_tensor_parallel == 2
    assert "weights and overheads" in answer.refusals[0].found
    assert "lighter in fp8" in answer.refusals[0].advice


def test_concurrency_counts_mean_length() -> None:
    card = CATALOG.model("llama-3.1-8b")
    worst = fit(card, H100, tp=1, context=32768, concurrency=64)
    typical = fit(card, H100, tp=1, context=32768, concurrency=64, mean_tokens=4096)

    assert [item.field for item in worst.refusals] == ["concurrency"]
    assert typical.fits


def test_concurrency_is_bounded_by_the_engine() -> None:
    answer = fit(CATALOG.model("llama-3-8b"), B200, context=512, max_num_seqs=32)

    assert answer.largest_concurrency == 32


def test_a_context_beyond_the_model_is_refused() -> None:
    answer = fit(CATALOG.model("llama-3-8b"), B200, context=9000)

    assert [item.field for item in answer.refusals] == ["context"]
    assert "at most 8192" in answer.refusals[0].expected


def test_an_extended_context_fits_only_when_asked_for() -> None:
    card = CATALOG.model("qwen2-7b")

    assert fit(card, B200).context_tokens == 32768
    assert fit(card, B200, context=131072).fits


def test_styletts2_is_not_servable_by_vllm() -> None:
    answer = fit(CATALOG.model("styletts2"), B200)

    assert not answer.fits
    assert "not servable by vllm" in answer.refusals[0].found
    assert "its own inference server" in answer.refusals[0].advice


@pytest.mark.parametrize(("precision", "kv", "field"), [("int3", "auto", "precision"), (None, "int3", "kv_precision")])
def test_unknown_precisions_are_refused(precision: str | None, kv: str, field: str) -> None:
    answer = fit(CATALOG.model("llama-3-8b"), B200, precision=precision, kv_precision=kv)

    assert [item.field for item in answer.refusals] == [field]


# -- parts


def test_quantization_leaves_embeddings_and_head_alone() -> None:
    """The published AWQ repository of Llama 3.1 8B holds 5.73 GB."""
    shape = CATALOG.model("llama-3.1-8b").shape
    assert shape is not None

    assert total_weight_bytes(shape, "awq") == pytest.approx(5.73e9, rel=0.002)
    assert total_weight_bytes(shape, "fp8") - shape.vocab * shape.text.hidden * 2 * 2 == pytest.approx(
        6.98e9, rel=0.001
    )


def test_pooling_models_need_no_cache_and_no_graphs() -> None:
    answer = fit(CATALOG.model("bge-m3"), CATALOG.gpu("tier-8"))

    assert answer.fits
    assert answer.kv_tokens == 0
    assert answer.budget is not None
    assert answer.budget.part("cuda graphs") == 0
    assert answer.memory_bytes_per_gpu < 4 * GIB


def test_whisper_caches_its_frames_with_every_request() -> None:
    """1500 frames and 448 tokens in blocks of 16: 1504 + 448 slots."""
    answer = fit(CATALOG.model("whisper-large-v3"), H100)

    assert answer.sequences_at_context == answer.kv_tokens / 1952


def test_a_window_limits_what_a_sequence_keeps() -> None:
    plain = fit(CATALOG.model("mistral-7b-v0.3"), CATALOG.gpu("a100-40"), context=32768)
    windowed = fit(CATALOG.model("mistral-7b-v0.1"), CATALOG.gpu("a100-40"), context=32768)

    assert windowed.largest_concurrency > 4 * plain.largest_concurrency


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    card = CATALOG.model("llama-3-8b")
    plain, halved = fit(card, H100, tp=1), fit(card, H100, tp=1, kv_precision="fp8")

    assert halved.kv_tokens == pytest.approx(2 * plain.kv_tokens, abs=32)


def test_the_batch_sizes_that_vllm_captures() -> None:
    assert captured_sizes(1) == 2
    assert captured_sizes(16) == 7
    assert captured_sizes(GRAPH_BATCH_MAX) == 51


# -- properties


@given(card=generating, gpu=gpus, precision=st.sampled_from(["bf16", "fp8"]))
def test_more_gpus_never_hold_fewer_tokens(card: ModelCard, gpu: Gpu, precision: str) -> None:
    """While there are KV heads to spread; beyond, and with latent attention, every GPU holds each token."""
    assert card.shape is not None
    if card.precision(precision) is None or card.shape.text.latent is not None:
        return
    spread = [tp for tp in (1, 2, 4, 8) if tp <= card.shape.text.kv_heads and possible(card, precision, tp)]
    tokens = [fit(card, gpu, tp=tp, precision=precision).kv_tokens for tp in spread]

    assert tokens == sorted(tokens)


@given(card=models, precision=st.sampled_from(sorted(LINEAR_BITS)), degree=degrees)
def test_parts_of_the_weights_make_up_the_whole(card: ModelCard, precision: str, degree: int) -> None:
    assert card.shape is not None
    whole, part = total_weight_bytes(card.shape, precision), weight_bytes(card.shape, precision, degree)

    assert part * degree >= whole * 0.9999
    assert part <= whole * 1.001


@given(
    card=generating,
    degree=degrees,
    low=st.floats(min_value=0.3, max_value=0.95),
    more=st.floats(min_value=0.0, max_value=0.05),
)
def test_more_memory_never_holds_fewer_tokens(card: ModelCard, degree: int, low: float, more: float) -> None:
    smaller = fit(card, B200, tp=degree, utilization=low)
    larger = fit(card, B200, tp=degree, utilization=low + more)

    assert smaller.kv_tokens <= larger.kv_tokens
    assert smaller.largest_context <= larger.largest_context


@given(card=generating, degree=degrees, utilization=st.floats(min_value=0.2, max_value=1.0))
def test_the_largest_context_fits_and_a_block_more_does_not(card: ModelCard, degree: int, utilization: float) -> None:
    largest = fit(card, H100, tp=degree, utilization=utilization).largest_context
    if largest == 0:
        return
    assert fit(card, H100, tp=degree, utilization=utilization, context=largest).fits
    if largest < card.context_tokens:
        assert not fit(card, H100, tp=degree, utilization=utilization, context=largest + 16).fits


@given(
    card=models,
    degree=st.integers(min_value=1, max_value=16),
    context=st.integers(min_value=1, max_value=200_000),
    concurrency=st.integers(min_value=1, max_value=2000),
)
def test_every_answer_explains_itself(card: ModelCard, degree: int, context: int, concurrency: int) -> None:
    answer = fit(card, H100, tp=degree, context=context, concurrency=concurrency)

    assert answer.proof
    assert answer.fits == (not answer.refusals)
    for refusal in answer.refusals:
        assert refusal.found
        assert refusal.expected
        assert refusal.advice
    if answer.fits:
        assert answer.budget is not None
        assert answer.budget.kv_bytes >= 0
        assert answer.largest_concurrency >= concurrency
        assert answer.largest_context >= context
