"""`quarterdeck autoscale doctor` as people and scripts see it."""

import json
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli.autoscale import app as autoscale
from controlplane.cli.exits import ExitCode
from controlplane.cli.main import app
from tests.conftest import GoldenText

CORPUS: Final = Path(__file__).parent / "corpus"
EXAMPLE: Final = CORPUS / "broken" / "chart-defaults"
NOBODY: Final = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def run(*arguments: str | Path) -> Result:
    assert autoscale.registered_commands, "the group has its commands"
    return CliRunner().invoke(app, ["autoscale", "doctor", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(
    ("name", "folders"),
    [("doctor", ["chart-defaults"]), ("doctor_everything", ["vanished-names", "careless-pods", "short-window"])],
)
def test_the_golden_answers(name: str, folders: list[str], golden_text: GoldenText) -> None:
    """QUARTERDECK_GOLDEN=write writes them anew."""
    result = run(*(CORPUS / "broken" / folder for folder in folders))
    assert result.exit_code == ExitCode.FAILED
    golden_text(f"{name}.txt", result.output.replace(f"{CORPUS}/broken/", ""))


def test_a_sound_recipe_is_said_to_be() -> None:
    result = run(CORPUS / "sound" / "keda-queue")
    assert result.exit_code == ExitCode.OK
    assert result.output == "3 files, 1 autoscaler, 1 monitor, 1 workload, 1 query: nothing found\n"


def test_for_scripts() -> None:
    result = run(EXAMPLE, "--json")
    assert result.exit_code == ExitCode.FAILED
    answer = json.loads(result.output)
    assert (answer["ok"], answer["files"], answer["autoscalers"]) == (False, 1, 1)
    wrong = next(one for one in answer["findings"] if one["id"] == "label-wrong")
    assert (wrong["severity"], wrong["found"], wrong["expected"]) == ("broken", "label model", "model_name")
    assert wrong["file"].endswith("chart-defaults/values.yaml")
    assert wrong["fix"] == 'query: sum(vllm:num_requests_waiting{model_name="llama"})'


def test_what_is_only_risky_fails_when_asked_to() -> None:
    risky = CORPUS / "broken" / "keda-outage"
    assert run(risky).exit_code == ExitCode.OK
    assert run(risky, "--strict").exit_code == ExitCode.FAILED


def test_a_page_from_a_file_is_looked_at() -> None:
    folder = CORPUS / "broken" / "not-on-the-page"
    result = run(folder, "--metrics", folder / "metrics.txt")
    assert result.exit_code == ExitCode.FAILED
    assert "live-value-absent" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        (CORPUS / "absent",),
        (EXAMPLE, "--metrics", CORPUS / "absent.txt"),
        (EXAMPLE, "--metrics", NOBODY),
        (EXAMPLE, "--metrics", EXAMPLE / "values.yaml"),
        (EXAMPLE, "--prometheus", NOBODY),
        (EXAMPLE, "--prometheus", "prometheus:9090"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_bad_input(arguments: tuple[str | Path, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == ExitCode.USAGE, result.output
    assert "error:" in result.output
    assert "Traceback" not in result.output


def test_a_password_in_a_url_is_not_repeated() -> None:
    for option in ("--metrics", "--prometheus"):
        result = run(EXAMPLE, option, "http://me:hunter2@127.0.0.1:9")
        assert result.exit_code == ExitCode.USAGE
        assert "hunter2" not in result.output


def test_a_check_of_nothing_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", encoding="utf-8")
    result = run(tmp_path)
    assert result.exit_code == ExitCode.USAGE
    assert "nothing that scales" in result.output
