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

ROOT: Final = Path(__file__).parents[3]
GOLDEN: Final = ROOT / "tests" / "golden" / "site_check"
DEMO: Final = ROOT / "examples" / "demo" / "site.yaml"
NOBODY: Final = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["everything_wrong", "not_yaml"])
def test_broken_files_get_the_golden_answer(name: str) -> None:
    """To renew one: `cd tests/golden/site_check; quarterdeck site check NAME.yaml > NAME.txt`, then read it."""
    result = run("check", GOLDEN / f"{name}.yaml")
    assert result.exit_code == ExitCode.FAILED
    assert result.output.replace(f"{GOLDEN}/", "") == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
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


class ControlPlane(BaseHTTPRequestHandler):
    """Answers the two requests of `quarterdeck site` as the API does."""

    def do_GET(self) -> None:
        assert self.path == "/api/v1/site/document"
        self._answer({"document": DEMO.read_text("utf-8").replace("max: 8", "max: 6")})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body == {"document": DEMO.read_text("utf-8")}
        dry_run = self.path == "/api/v1/site?dry_run=true"
        self._answer({"changed": True, "dry_run": dry_run, "changes": [f"dry run: {dry_run}"]})

    def _answer(self, body: dict[str, object]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
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
    assert (result.exit_code, result.output) == (ExitCode.OK, "deployment chat-8b changes replicas_max: 6 -> 8\n")


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
