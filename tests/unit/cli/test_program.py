"""The program as a whole: help, version, completion, and what answers that is no control plane."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

import controlplane
from controlplane.cli.exits import ExitCode
from controlplane.cli.main import app
from tests.unit.cli.conftest import run


def commands() -> Iterator[tuple[str, ...]]:
    """Every command, groups included, as words."""

    def below(group: TyperGroup, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            yield (*words, name)
            if isinstance(command, TyperGroup):
                yield from below(command, (*words, name))

    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    yield from below(root, ())


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_explains_itself_and_its_options(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == ExitCode.OK
    assert words[-1] in result.output
    command: TyperGroup | TyperCommand = typer.main.get_command(app)  # type: ignore[assignment]  # typer's own classes
    for word in words:
        assert isinstance(command, TyperGroup)
        command = command.commands[word]  # type: ignore[assignment]  # typer's own classes
    assert command.help
    unexplained = [str(one.name) for one in command.params if not getattr(one, "help", "")]
    assert unexplained in ([], ["context"]), f"options of `quarterdeck {' '.join(words)}` without help: {unexplained}"


def test_without_arguments_it_shows_its_help() -> None:
    result = run()
    assert result.exit_code == ExitCode.USAGE
    assert "status" in result.output


def test_version() -> None:
    assert run("--version").output == f"{controlplane.__version__}\n"


def _typed(*words: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: completion is decided by the environment before anything is parsed."""
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *words],
        env={**os.environ, "NO_COLOR": "1", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )


def test_completion_is_shown() -> None:
    assert "complete -o default -F" in _typed("--show-completion", "bash").stdout


def test_completion_is_installed(tmp_path: Path) -> None:
    installed = _typed("--install-completion", "bash", env={"HOME": str(tmp_path)}).stdout
    assert "completion installed" in installed
    assert "source" in (tmp_path / ".bashrc").read_text(encoding="utf-8")


class Stranger(BaseHTTPRequestHandler):
    """Some other program behind the URL."""

    def do_GET(self) -> None:
        code, body = (200, b"<html>hello</html>") if self.path.endswith("status") else (400, b"Invalid host header")
        if self.path.endswith("usage"):
            code, body = 404, b'{"error": {"message": "no such path"}}'
        if self.path.endswith("nodes"):
            code, body = 200, b'[{"name": "n1", "colour": "blue"}]'
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the library's name
        """Silence."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_program_at_the_url(stranger: str) -> None:
    for typed in ("status", "usage"):
        result = run(typed, "--control-plane", stranger)
        assert result.exit_code == ExitCode.UNREACHABLE
        assert "is no control plane" in result.output


def test_an_answer_without_problem_json_is_quoted(stranger: str) -> None:
    result = run("gpus", "--control-plane", stranger)
    assert result.exit_code == ExitCode.FAILED
    assert "answered HTTP 400: Invalid host header" in result.output


def test_a_control_plane_of_another_version(stranger: str) -> None:
    result = run("nodes", "--control-plane", stranger)
    assert result.exit_code == ExitCode.FAILED
    assert "different versions" in result.output
