"""`quarterdeck site` as people and scripts see it: output, exit codes, golden answers to broken files."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli.exits import ExitCode
from controlplane.cli.site import app
from tests.conftest import GoldenText

ROOT: Final = Path(__file__).parents[3]
GOLDEN: Final = ROOT / "tests" / "golden" / "site_check"
DEMO: Final = ROOT / "examples" / "demo" / "site.yaml"
NOBODY: Final = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["everything_wrong", "not_yaml"])
def test_broken_files_get_the_golden_answer(name: str, golden_text: GoldenText) -> None:
    """QUARTERDECK_GOLDEN=write writes them anew."""
    result = run("check", GOLDEN / f"{name}.yaml")
    assert result.exit_code == ExitCode.FAILED
    golden_text(f"site_check/{name}.txt", result.output.replace(f"{GOLDEN}/", ""))
    assert "hunter2" not in result.output


def test_a_good_file_is_shown_with_its_fit() -> None:
    result = run("check", DEMO)
    assert result.exit_code == ExitCode.OK
    assert "chat-70b" in result.output
    assert "ok, site demo, nodes: 2, GPUs: 16" in result.output


def test_check_for_scripts() -> None:
    good = run("check", DEMO, "--json")
    assert good.exit_code == ExitCode.OK
    answer = json.loads(good.output)
    assert answer["ok"]
    assert [row["gpus_per_replica"] for row in answer["deployments"]] == [1, 4, 1]
    bad = run("check", GOLDEN / "not_yaml.yaml", "--json")
    assert bad.exit_code == ExitCode.FAILED
    problem = json.loads(bad.output)["problems"][0]
    assert (problem["line"], problem["column"], problem["found"]) == (3, 1, "a tab")
    assert problem["hint"]


def test_a_model_that_cannot_run_is_found_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        """\
site: {name: lab}
node_pools: [{name: small, gpu: rtx-4090, nodes: 1, gpus_per_node: 1, simulated: true}]
engines: [{name: default, kind: simulated}]
deployments:
  - name: chat
    model: llama-3.1-70b
    replicas: {min: 1, max: 1}
""",
        encoding="utf-8",
    )
    result = run("check", path)
    assert result.exit_code == ExitCode.FAILED
    assert f"{path}:6:5: deployments[chat].model" in result.output


MIXED: Final = """\
sit: {name: lab}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 1, simulated: true}]
engines: [{name: sim, kind: simulated}]
deployments:
  - {name: big, model: llama-3.1-70b, replicas: {min: 1, max: 1}}
  - {name: slow, model: llama-3.1-8b, replicas: {min: 1, max: 1}, slo: {ttft: {p95: 500}}}
"""


def test_a_mistake_does_not_hide_that_another_model_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(MIXED.replace("llama-3.1-70b,", "llama-3.1-70b, context: 131072,"), encoding="utf-8")
    result = run("check", path)
    assert result.exit_code == ExitCode.FAILED
    assert result.output.count("  found  ") == 3
    assert f"{path}:1:1: sit\n" in result.output
    assert "deployments[big].context\n" in result.output
    assert "for example 500ms" in result.output
    assert result.output.endswith(f"{path}: 3 problems; the fit of slow was not checked: fix these first\n")
    assert json.loads(run("check", path, "--json").output)["note"] == "the fit of slow was not checked: fix these first"


def test_an_engine_argument_that_is_not_known_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    text = DEMO.read_text("utf-8").replace("max: 8}", "max: 8}\n    engine_args: {stream-intervall: 4}", 1)
    assert "stream-intervall" in text
    path.write_text(text, encoding="utf-8")
    result = run("check", path)
    assert result.exit_code == ExitCode.OK
    assert "warning: " in result.output
    assert 'did you mean "stream-interval"?' in result.output


def test_a_file_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    for command in (("check",), ("diff",), ("apply",)):
        result = run(*command, tmp_path / "none.yaml")
        assert result.exit_code == ExitCode.USAGE
        assert "no such file" in result.output


def test_diff_between_two_files(tmp_path: Path) -> None:
    other = tmp_path / "site.yaml"
    other.write_text(
        DEMO.read_text("utf-8").replace("max: 8", "max: 6").replace("context: 16384", "context: 8192"), "utf-8"
    )
    result = run("diff", other, "--against", DEMO)
    assert result.exit_code == ExitCode.OK
    assert "deployment chat-8b changes replicas_max: 8 -> 6\n" in result.output
    assert "deployment chat-8b changes context_tokens: 16384 -> 8192\n" in result.output
    assert "every replica is replaced" in result.output
    assert json.loads(run("diff", other, "--against", DEMO, "--json").output)["changed"]
    assert run("diff", DEMO, "--against", DEMO).output == "nothing changes\n"


@pytest.mark.parametrize("command", ["diff", "apply"])
def test_without_a_control_plane(command: str) -> None:
    result = run(command, DEMO, "--control-plane", NOBODY)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "no control plane answers" in result.output


REFUSAL: Final = "hardware would change under running replicas of n1 (qd-chat-0)"


class ControlPlane(BaseHTTPRequestHandler):
    """Answers the one request of `quarterdeck site` as the API does."""

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "gpu: h200" in body["document"]:
            self._answer({"title": "Conflict", "status": 409, "detail": REFUSAL}, status=409)
            return
        assert body == {"document": DEMO.read_text("utf-8")}
        dry_run = self.path == "/api/v1/site?dry_run=true"
        self._answer({"changed": True, "dry_run": dry_run, "changes": [f"dry run: {dry_run}"]})

    def _answer(self, body: dict[str, object], *, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the library's name
        """Silence."""


@pytest.fixture
def control_plane() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ControlPlane) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_diff_with_the_running_site(control_plane: str) -> None:
    result = run("diff", DEMO, "--control-plane", control_plane)
    assert (result.exit_code, result.output) == (ExitCode.OK, "dry run: True\n"), "the control plane itself is asked"


def test_a_refusal_is_predicted_by_diff_and_dry_run(control_plane: str, tmp_path: Path) -> None:
    other = tmp_path / "site.yaml"
    other.write_text(DEMO.read_text("utf-8").replace("gpu: b200", "gpu: h200"), "utf-8")
    for command in (("diff",), ("apply", "--dry-run"), ("apply",)):
        result = run(*command, other, "--control-plane", control_plane)
        assert (result.exit_code, result.output) == (ExitCode.CONFLICT, f"refused: {REFUSAL}\n")
    answer = json.loads(run("diff", other, "--json", "--control-plane", control_plane).output)
    assert answer == {"changed": False, "changes": [], "refused": REFUSAL}


def test_apply_and_dry_run(control_plane: str) -> None:
    assert run("apply", DEMO, "--control-plane", control_plane).output == "dry run: False\n"
    assert run("apply", DEMO, "--dry-run", "--control-plane", control_plane).output == "dry run: True\n"


def test_apply_sends_nothing_that_is_broken() -> None:
    result = run("apply", GOLDEN / "everything_wrong.yaml", "--control-plane", NOBODY)
    assert result.exit_code == ExitCode.USAGE
    assert "gatway" in result.output


def test_schema_goes_to_the_terminal_or_a_file(tmp_path: Path) -> None:
    out = tmp_path / "schema.json"
    assert run("schema", "--out", out).exit_code == ExitCode.OK
    assert run("schema").output == out.read_text(encoding="utf-8")
    assert run("schema", "--out", tmp_path / "none" / "schema.json").exit_code == ExitCode.USAGE
