"""The catalog's files: all load, mistakes are named, schemas beside them are those of the code."""

import json
from pathlib import Path
from typing import Final

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from controlplane.catalog.files import CATALOG_PLACES, SCHEMAS, load_catalog, schema_text
from controlplane.catalog.model import Commercial
from controlplane.domain.deployment import EngineKind
from controlplane.kernel.errors import InvalidError, NotFoundError
from controlplane.kernel.units import MIB

SHIPPED: Final = CATALOG_PLACES[0]
FOLDER_OF: Final = {"model.schema.json": "models", "hardware.schema.json": "hardware", "engine.schema.json": "engines"}

MINIMAL: Final = """
id: tiny
title: Tiny
repo: me/tiny
family: llama
task: generate
engines: [vllm]
context_tokens: 128
licence: {name: MIT, commercial: "yes"}
precisions: {bf16: {}}
config: {architectures: [LlamaForCausalLM], hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1,
  num_attention_heads: 2, vocab_size: 64, max_position_embeddings: 128}
source: made up
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path


def test_every_entry_loads() -> None:
    catalog = load_catalog()

    assert len(list(catalog.models.values())) == 23
    assert {"b200", "b300", "h200", "h100", "a100-40", "a100-80", "l40s", "rtx-4090"} < set(catalog.gpus)
    assert {name for name, gpu in catalog.gpus.items() if gpu.tier} == {"tier-8", "tier-16", "tier-24", "tier-48"}
    assert {engine.kind for engine in catalog.engines.values()} == set(EngineKind)
    assert catalog.gpu("b200").memory_bytes == 183359 * MIB


def test_what_is_not_confirmed_says_so() -> None:
    catalog = load_catalog()

    assert catalog.model("command-r-08-2024").unconfirmed
    assert all(any("price" in fact for fact in gpu.unconfirmed) for gpu in catalog.gpus.values())
    assert all(card.source for card in catalog.models.values())


def test_licences_say_their_condition() -> None:
    cards = load_catalog().models.values()

    assert {card.id for card in cards if card.licence.commercial is Commercial.NO} == {
        "command-r-v01",
        "command-r-08-2024",
    }
    assert all(card.licence.condition for card in cards if card.licence.commercial is not Commercial.YES)


def test_calibrations_name_what_the_catalog_has() -> None:
    catalog = load_catalog()

    for row in catalog.engine(EngineKind.VLLM).calibrations:
        assert row.gpu in catalog.gpus
        assert all(catalog.model(model).precision(row.precision) is not None for model in row.models)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schemas_beside_the_files_are_current(name: str) -> None:
    """Renew them with `quarterdeck models schema --write model_catalog`."""
    assert (SHIPPED / name).read_text(encoding="utf-8") == schema_text(SCHEMAS[name])


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_files_hold_to_the_schemas_that_editors_see(name: str) -> None:
    validator = Draft202012Validator(json.loads((SHIPPED / name).read_text(encoding="utf-8")))
    for path in sorted((SHIPPED / FOLDER_OF[name]).glob("*.yaml")):
        content = json.loads(json.dumps(YAML(typ="safe").load(path.read_text(encoding="utf-8"))))
        assert not list(validator.iter_errors(content)), path.name


def test_entries_are_read_only_when_asked_for(root: Path) -> None:
    (root / "models" / "good.yaml").write_text(MINIMAL.replace("id: tiny", "id: good"))
    (root / "models" / "bad.yaml").write_text("[")
    catalog = load_catalog(root)

    assert set(catalog.models) == {"good", "bad"}
    assert catalog.model("good").context_tokens == 128
    with pytest.raises(InvalidError, match=r"bad\.yaml"):
        catalog.model("bad")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("title: Tiny", "titel: Tiny", "titel"),
        ("hidden_size: 8", "hidden_sice: 8", "hidden_sice"),
        ("bf16: {}", "int3: {}", "unknown precision int3"),
        ('commercial: "yes"', 'commercial: "no"', "says its condition"),
        ("id: tiny", "id: other", "the file's name, tiny"),
        ("task: generate", "task: dance", "task"),
    ],
)
def test_a_mistake_in_a_file_is_named(root: Path, before: str, after: str, words: str) -> None:
    assert before in MINIMAL
    (root / "models" / "tiny.yaml").write_text(MINIMAL.replace(before, after))

    with pytest.raises(InvalidError) as caught:
        load_catalog(root).model("tiny")

    assert words in str(caught.value)
    assert all(problem.file.endswith("tiny.yaml") for problem in caught.value.problems)


def test_a_folder_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="models/, hardware/ and engines/"):
        load_catalog(tmp_path)


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean mixtral-8x22b\?"):
        load_catalog().model("mixtral-8x22")


def test_another_model_can_be_added() -> None:
    catalog = load_catalog()
    card = catalog.model("llama-3-8b")

    assert "llama-3-8b" in catalog.adding(card).models
