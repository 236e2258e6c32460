"""`quarterdeck models`: what people read (golden files), what scripts read, exit codes."""

import json
import os
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli.models import app

GOLDEN: Final = Path(__file__).parents[2] / "golden"

UPDATE: Final = "QUARTERDECK_GOLDEN"
"""`write` writes the golden files anew; then read the difference."""

TINY_CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 1024,
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("models_list.txt", ("list",), 0),
        ("models_show.txt", ("show", "qwen2-72b"), 0),
        ("models_fit.txt", ("fit", "llama-3.1-70b", "--gpu", "b200", "--context", "131072"), 0),
        ("models_fit_refused.txt", ("fit", "llama-3.1-70b", "--gpu", "b200", "--tp", "1", "--context", "131072"), 1),
        ("models_recommend.txt", ("recommend", "--gpu", "a100-40", "--context", "32768", "--concurrency", "16"), 0),
        ("models_check.txt", ("check",), 0),
    ],
)
def test_what_people_read(name: str, arguments: tuple[str, ...], code: int) -> None:
    result = run(*arguments)
    shown = "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"

    assert result.exit_code == code, result.output
    if os.environ.get(UPDATE) == "write":
        (GOLDEN / name).write_text(shown, encoding="utf-8")
    assert shown == (GOLDEN / name).read_text(encoding="utf-8")


def test_json_for_scripts() -> None:
    answer = json.loads(run("fit", "llama-3-8b", "--gpu", "B200", "--json").stdout)

    assert answer["fits"] is True
    assert answer["tensor_parallel"] == 1
    assert sum(answer["bytes_per_gpu"].values()) == answer["cap_bytes"]
    assert answer["placements"][0]["gpu"] in {"rtx-4090", "tier-24"}
    assert {row["id"] for row in json.loads(run("list", "--task", "embed", "--json").stdout)} >= {"bge-m3"}
    assert all(row["agrees"] for row in json.loads(run("check", "--json").stdout))
    assert json.loads(run("show", "styletts2", "--json").stdout)["parameters"] is None
    rows = json.loads(run("recommend", "--gpu", "tier-8", "--context", "512", "--task", "embed", "--json").stdout)
    assert rows[0]["fits"] is True


def test_a_model_by_its_config(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY_CONFIG))
    result = run("fit", "--config", str(path), "--gpu", "tier-8", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "tiny"
    assert json.loads(result.stdout)["kv_bytes_per_token_per_gpu"] == 2 * 2 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("fit", "lama-3-8b"), 2, "did you mean llama-3-8b?"),
        (("fit", "llama-3-8b", "--gpu", "b20"), 2, "did you mean b200?"),
        (("fit",), 2, "a model, or --config"),
        (("fit", "--config", "nowhere/config.json"), 2, "a readable file"),
        (("fit", "llama-3-8b", "--price", "b200=cheap"), 2, "GPU=USD_PER_HOUR"),
        (("show", "nothing-like-it-at-all"), 2, "known are"),
        (("fit", "styletts2"), 1, "not servable by vllm"),
        (("fit", "command-r-v01"), 4, "--accept-license"),
        (("fit", "command-r-v01", "--accept-license"), 0, "CC-BY-NC-4.0"),
        (("recommend", "--gpu", "tier-8", "--context", "131072"), 1, "no"),
        (("schema", "--write", "nowhere"), 2, "an existing folder"),
    ],
)
def test_exit_codes_and_messages(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(*arguments)

    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    assert "expected JSON" in run("fit", "--config", str(path)).output
    path.write_text("[]")
    assert "a JSON object" in run("fit", "--config", str(path)).output


def test_schemas_can_be_written(tmp_path: Path) -> None:
    assert run("schema", "--write", str(tmp_path)).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "engine.schema.json",
        "hardware.schema.json",
        "model.schema.json",
    ]
