"""The capacity prior: measured where the catalog has it, a roofline near the measurements elsewhere."""

from dataclasses import replace
from typing import Final

import pytest

from controlplane.catalog.engine import Calibration
from controlplane.catalog.files import load_catalog
from controlplane.catalog.fit import fit
from controlplane.catalog.prior import prior_of
from controlplane.domain.deployment import CapacityPrior, EngineKind

CATALOG: Final = load_catalog()
ENGINE: Final = CATALOG.engine(EngineKind.VLLM)

STEP_TOLERANCE: Final = 0.25
"""A roofline may miss a measured decode step by this much: the prior is replaced by measurements soon."""

PREFILL_TOLERANCE: Final = 0.45


def prior(model: str, gpu: str, *, tp: int, precision: str | None = None, measured: bool = True) -> CapacityPrior:
    card, chosen = CATALOG.model(model), CATALOG.gpu(gpu)
    answer = fit(card, chosen, tp=tp, precision=precision)
    rows = ENGINE.calibrations if measured else ()
    return prior_of(card, chosen, answer, calibrations=rows, start=ENGINE.start)


def step_s(known: CapacityPrior, sequences: int, context: int) -> float:
    per_sequence = known.step_per_seq_s + known.step_per_context_token_s * context
    return known.step_base_s + per_sequence * sequences


def prefill_s(known: CapacityPrior, tokens: int) -> float:
    return known.prefill_base_s + known.prefill_per_token_s * tokens + known.prefill_per_token2_s * tokens**2


def test_measured_coefficients_are_used_where_they_are_known() -> None:
    known = prior("llama-3.1-8b", "b200", tp=1)

    assert known.calibrated
    assert known.step_base_s == pytest.approx(3.39e-3)
    assert known.prefill_per_token2_s == pytest.approx(3.30e-10)


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "precision"),
    [("llama-3-8b", "a100-80", 1, "bf16"), ("llama-3-8b", "b200", 2, "bf16"), ("llama-3.1-8b", "b200", 1, "awq")],
)
def test_another_gpu_degree_or_precision_is_derived(model: str, gpu: str, tp: int, precision: str) -> None:
    assert not prior(model, gpu, tp=tp, precision=precision).calibrated


@pytest.mark.parametrize(
    "row",
    ENGINE.calibrations,
    ids=lambda row: f"{min(row.models)} {row.precision} {row.gpu} TP{row.tensor_parallel}",
)
def test_the_roofline_is_near_every_measured_row(row: Calibration) -> None:
    model = min(row.models)
    measured = prior(model, row.gpu, tp=row.tensor_parallel, precision=row.precision)
    derived = prior(model, row.gpu, tp=row.tensor_parallel, precision=row.precision, measured=False)

    assert step_s(derived, 16, 1000) == pytest.approx(step_s(measured, 16, 1000), rel=STEP_TOLERANCE)
    assert prefill_s(derived, 2048) == pytest.approx(prefill_s(measured, 2048), rel=PREFILL_TOLERANCE)


@pytest.mark.parametrize(("sequences", "rps", "published_s"), [(32, 1.15, 27e-3), (48, 1.39, 34e-3)])
def test_qwen3_32b_agrees_with_the_published_step_times(sequences: int, rps: float, published_s: float) -> None:
    """H100 TP2, 4000 tokens in and 1000 out (aiconfigurator): steps, and the share of time that prefills take."""
    derived = prior("qwen3-32b", "h100", tp=2)
    inter_token_s = step_s(derived, sequences, 4500) / (1 - rps * prefill_s(derived, 4000))

    assert inter_token_s == pytest.approx(published_s, rel=0.1)


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "low_s", "high_s"),
    [("qwen3-32b", "h100", 2, 100, 135), ("llama-3-8b", "h100", 1, 39, 70), ("llama-3-70b", "h100", 8, 100, 215)],
)
def test_cold_starts_lie_between_the_published_ones(model: str, gpu: str, tp: int, low_s: float, high_s: float) -> None:
    assert low_s <= prior(model, gpu, tp=tp).cold_start.total_seconds() <= high_s


def test_qwen3_32b_wakes_as_published() -> None:
    assert prior("qwen3-32b", "h100", tp=2).wake.total_seconds() == pytest.approx(4.7, abs=0.5)


def test_a_larger_batch_and_a_longer_context_never_take_less() -> None:
    for card in CATALOG.models.values():
        if card.shape is None:
            continue
        answer = fit(card, CATALOG.gpu("b200"), tp=4)
        known = prior_of(card, CATALOG.gpu("b200"), answer, calibrations=ENGINE.calibrations, start=ENGINE.start)
        assert min(known.step_base_s, known.step_per_seq_s, known.prefill_base_s, known.prefill_per_token_s) > 0, (
            card.id
        )
        assert known.step_per_context_token_s >= 0, card.id
        assert replace(known, calibrated=True).cold_start.total_seconds() > known.wake.total_seconds(), card.id
