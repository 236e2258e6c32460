"""Which hardware for a model, which models for a GPU."""

from typing import Final

from controlplane.catalog.files import load_catalog
from controlplane.catalog.recommend import placements, recommend
from controlplane.domain.deployment import TaskKind

CATALOG: Final = load_catalog()
MODELS: Final = tuple(CATALOG.models.values())
GPUS: Final = tuple(CATALOG.gpus.values())


def test_the_cheapest_placement_comes_first() -> None:
    found = placements(CATALOG.model("llama-3.1-70b"), GPUS)

    assert found
    assert [place.price_usd_per_hour for place in found] == sorted(place.price_usd_per_hour for place in found)
    assert all(place.answer.fits and place.answer.context_tokens == 131072 for place in found)


def test_own_prices_change_the_order() -> None:
    free = placements(CATALOG.model("llama-3.1-70b"), GPUS, prices={"b200": 0.01})

    assert free[0].answer.gpu == "b200"


def test_a_model_that_vllm_does_not_serve_is_placed_nowhere() -> None:
    assert placements(CATALOG.model("styletts2"), GPUS) == ()


def test_what_fits_comes_first_and_largest_first() -> None:
    found = recommend(MODELS, CATALOG.gpu("a100-40"), context=32768, concurrency=16)
    fitting = [item.model.id for item in found if item.fits]

    assert fitting == ["qwen2-7b", "mistral-7b-v0.1"]
    assert [item.fits for item in found] == sorted((item.fits for item in found), reverse=True)
    assert all(item.answer.refusals for item in found if not item.answer.fits)


def test_shorter_sequences_let_larger_models_in() -> None:
    found = recommend(MODELS, CATALOG.gpu("a100-40"), context=32768, concurrency=16, mean_tokens=2048)

    assert found[0].model.id == "qwen3-32b"
    assert found[0].answer.precision == "awq"


def test_a_non_commercial_model_is_not_recommended_without_a_yes() -> None:
    without = recommend(MODELS, CATALOG.gpu("b200"), context=8192, concurrency=1)
    accepted = recommend(MODELS, CATALOG.gpu("b200"), context=8192, concurrency=1, accept_licence=True)

    assert "command-r-v01" not in [item.model.id for item in without if item.fits]
    assert "command-r-v01" in [item.model.id for item in accepted if item.fits]


def test_only_models_of_the_task_are_looked_at() -> None:
    found = recommend(MODELS, CATALOG.gpu("tier-8"), context=512, concurrency=32, task=TaskKind.EMBED)

    assert {item.model.task for item in found} == {TaskKind.EMBED}
    assert all(item.fits for item in found)
