"""The fit against every figure known from elsewhere; `quarterdeck models check` prints the same table."""

from typing import Final

import pytest

from controlplane.catalog.files import load_catalog
from controlplane.catalog.fit import fit
from controlplane.catalog.known import MODELS, Check, checks
from controlplane.catalog.model import Catalog
from controlplane.kernel.units import GIB

CHECKS: Final = tuple(checks(load_catalog()))

NAMED_IN_THE_SITES: Final = (
    "whisper-large-v3",
    "styletts2",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "mistral-7b-v0.1",
    "mistral-7b-v0.3",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "e5-large-v2",
    "multilingual-e5-large",
    "bge-m3",
    "codellama-70b",
    "qwen2.5-vl-7b",
    "deepseek-coder-6.7b",
    "deepseek-coder-7b-v1.5",
    "qwen2-7b",
    "qwen2-72b",
    "deepseek-v2",
    "command-r-v01",
    "command-r-08-2024",
    "qwen3-32b",
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


@pytest.mark.parametrize(
    "check", CHECKS, ids=[f"{item.section}: {item.subject}, {item.figure.split(',')[0]}" for item in CHECKS]
)
def test_known_figure(check: Check) -> None:
    assert check.agrees, f"known {check.known}, computed {check.computed:.6g}"


def test_a_figure_that_does_not_round_to_the_known_one_disagrees() -> None:
    assert Check(section="", subject="", figure="", known="6.8", computed=6.849).agrees
    assert not Check(section="", subject="", figure="", known="6.8", computed=6.851).agrees
    assert not Check(section="", subject="", figure="", known="100", computed=103, tolerance=0.02).agrees


def test_every_named_model_is_in_the_catalog(catalog: Catalog) -> None:
    assert set(NAMED_IN_THE_SITES) == set(catalog.models)
    assert {known.model for known in MODELS} <= set(catalog.models)


@pytest.mark.parametrize(
    ("model", "smallest"), [("llama-3.1-70b", 2), ("command-r-v01", 2), ("codellama-70b", 1), ("qwen2-72b", 1)]
)
def test_on_a_b200_multipliers_err_in_both_directions(catalog: Catalog, model: str, smallest: int) -> None:
    """One multiplier says 1, 1, 1 and 1 or 2: the cache of one whole sequence decides."""
    card = catalog.model(model)
    answer = fit(card, catalog.gpu("b200"), context=card.context_tokens, utilization=0.9)

    assert answer.fits
    assert answer.smallest_tensor_parallel == answer.tensor_parallel == smallest


def test_llama_70b_at_full_context_is_refused_on_one_b200(catalog: Catalog) -> None:
    answer = fit(
        catalog.model("llama-3.1-70b"),
        catalog.gpu("b200"),
        tp=1,
        context=131072,
        utilization=0.9,
        overhead_bytes=int(3.5 * GIB),
    )

    assert [item.field for item in answer.refusals] == ["context"]
    assert "of one sequence of 131072" in answer.refusals[0].found
    assert "tensor_parallel: 2 fits" in answer.refusals[0].advice
    assert answer.smallest_tensor_parallel == 2
