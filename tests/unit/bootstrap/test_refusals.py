"""`up` and `down` where they must refuse: what is said, which exit code, and that nothing was started or written."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from controlplane.adapters.instance import InstanceLock, InstanceNote, held_by, site_mark
from controlplane.bootstrap.leftovers import marked_processes
from controlplane.cli.exits import ExitCode
from controlplane.cli.main import app
from controlplane.cli.up import _code_of, _last_words
from controlplane.kernel.errors import ConflictError

BROKEN = """\
site: {name: lab}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: default, kind: simulated}]
deployments:
  - name: chat
    model: lama-3.1-8b
    replicas: {min: 1, max: 2}
gatway: {}
"""


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """`up` sets the umask and the root logger of its process, which here is the test's."""
    umask, root = os.umask(0o022), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    os.umask(umask)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "state"
    yield folder
    assert marked_processes(site_mark(folder)) == [], "something was started"


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "300", "NO_COLOR": "1", **(env or {})}
    )
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_a_second_up_on_the_same_folder(state: Path, more: tuple[str, ...]) -> None:
    with InstanceLock(state) as lock:
        lock.write_note(InstanceNote(pid=os.getpid(), control_url="http://127.0.0.1:1", gateway_url=""))
        result = run("up", "--state-dir", state, *more)
    assert result.exit_code == ExitCode.CONFLICT
    assert f"a control plane (pid {os.getpid()}, http://127.0.0.1:1) already works in {state}" in result.output
    assert "`quarterdeck down`" in result.output
    assert "--state-dir" in result.output


def test_named_ones_are_together_and_one_without_a_name_is_alone(state: Path) -> None:
    with InstanceLock(state, "a") as a, InstanceLock(state, "b") as b:
        assert (a.others(), b.others(), held_by(state)) == (["b"], ["a"], ["a", "b"])
        for name in (None, "a"):
            with pytest.raises(ConflictError, match="already works in"), InstanceLock(state, name):
                pass
    assert held_by(state) == []
    with InstanceLock(state), pytest.raises(ConflictError), InstanceLock(state, "a"):
        pass
    assert held_by(state) == []


def test_several_need_a_shared_store(state: Path, free: int) -> None:
    with InstanceLock(state, "a"):
        result = run("up", "--state-dir", state, "--control-port", str(free), "--instance", "b")
    assert result.exit_code == ExitCode.CONFLICT
    assert "name a PostgreSQL with" in result.output


def test_a_name_that_is_none(state: Path) -> None:
    result = run("up", "--state-dir", state, "--instance", "../a")
    assert result.exit_code == ExitCode.USAGE
    assert "--instance: found '../a', expected 1 to 32 small letters, digits and dashes" in result.output


def test_a_taken_control_port(state: Path, taken: int) -> None:
    result = run("up", "--state-dir", state, "--control-port", str(taken))
    assert result.exit_code == ExitCode.CONFLICT
    assert f"port {taken} on 127.0.0.1, for the control plane, is taken by " in result.output
    assert f"(pid {os.getpid()})" in result.output
    assert "choose another with --control-port" in result.output


def test_a_taken_gateway_port(state: Path, taken: int, free: int) -> None:
    result = run("up", "--state-dir", state, "--control-port", str(free), "--port", str(taken))
    assert result.exit_code == ExitCode.CONFLICT
    assert f"port {taken} on 127.0.0.1, for the gateway, is taken by " in result.output
    assert result.output.rstrip().endswith("choose another with --port")


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_one_port_for_both(state: Path, free: int, more: tuple[str, ...]) -> None:
    result = run("up", "--state-dir", state, "--control-port", str(free), "--port", str(free), *more)
    assert result.exit_code == ExitCode.USAGE
    assert f"--control-port: found {free}, the gateway's port too (--port, " in result.output
    assert "starting" not in result.output


def test_one_port_for_both_in_the_site_file(state: Path, free: int, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    sound = BROKEN.replace("lama", "llama").replace("gatway: {}", f"gateway: {{port: {free}}}")
    site.write_text(sound, encoding="utf-8")
    result = run("up", "--state-dir", state, "--control-port", str(free), "--site", site)
    assert result.exit_code == ExitCode.USAGE
    assert "`gateway.port` of the site" in result.output


def test_a_taken_port_of_the_agent_and_of_the_simulated_engine(taken: int) -> None:
    agent = run("agent", "--simulate", "b200", "--port", str(taken))
    assert agent.exit_code == ExitCode.CONFLICT
    assert f"port {taken} on 127.0.0.1, for the node agent, is taken by " in agent.output
    engine = run("sim-engine", "m", "--port", str(taken))
    assert engine.exit_code == ExitCode.CONFLICT
    assert f"port {taken} on 127.0.0.1, for the simulated engine, is taken by " in engine.output


@pytest.mark.parametrize("words", [("agent",), ("agent", "check")])
def test_a_gpu_that_nobody_knows(words: tuple[str, ...]) -> None:
    result = run("agent", "--simulate", "b20") if len(words) == 1 else run(*words, "--simulate", "b20")
    assert result.exit_code == ExitCode.USAGE
    assert "no GPU 'b20': did you mean b200?" in result.output


def test_a_broken_site_file_is_refused_with_every_place(state: Path, free: int, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(BROKEN, encoding="utf-8")
    result = run("up", "--state-dir", state, "--control-port", str(free), "--site", site)
    assert result.exit_code == ExitCode.USAGE
    assert "error: 2 problems" in result.output
    assert f"{site}:6:12: deployments[chat].model: found an unknown model" in result.output
    assert f"{site}:8:1: gatway: found " in result.output


def test_a_site_file_that_is_not_there(state: Path, free: int, tmp_path: Path) -> None:
    result = run("up", "--state-dir", state, "--control-port", str(free), "--site", tmp_path / "none.yaml")
    assert result.exit_code == ExitCode.USAGE
    assert "no such file" in result.output


@pytest.mark.parametrize("more", [(), ("--detach",)])
def test_a_folder_that_cannot_be_made(tmp_path: Path, more: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = run("up", "--state-dir", tmp_path / "file" / "state", *more)
    assert result.exit_code == ExitCode.USAGE
    assert "expected a folder that this user may write" in result.output
    assert "QUARTERDECK_STATE_DIR" in result.output


def test_a_variable_with_a_wrong_value(state: Path) -> None:
    result = run("up", env={"QUARTERDECK_STATE_DIR": str(state), "QUARTERDECK_LOG_LEVEL": "loud"})
    assert result.exit_code == ExitCode.USAGE
    assert "QUARTERDECK_LOG_LEVEL: found 'LOUD', expected one of DEBUG, INFO, WARNING, ERROR" in result.output
    assert not state.exists()


@pytest.mark.parametrize("more", [(), ("--keep-serving",)])
def test_down_where_nothing_runs(state: Path, more: tuple[str, ...]) -> None:
    result = run("down", "--state-dir", state, *more)
    assert result.exit_code == ExitCode.OK
    assert f"nothing runs for {state}" in result.output
    assert not state.exists()


def test_down_while_one_begins(state: Path) -> None:
    with InstanceLock(state):
        result = run("down", "--state-dir", state)
    assert result.exit_code == ExitCode.FAILED
    assert "has not said its pid yet; try again" in result.output


def test_detached_it_ends_with_the_words_and_the_code_of_the_one_that_was_started(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    log.write_text("error: of an earlier start\n", encoding="utf-8")
    before = log.stat().st_size
    with log.open("a", encoding="utf-8") as file:
        file.write("starting; the first replicas take some seconds\nerror: port 8080 is taken\nby nginx\n")
    assert _last_words(log, before) == "port 8080 is taken\nby nginx"
    assert [_code_of(code) for code in (4, 2, 1, 0, -9, 139)] == [4, 2, 1, 1, 1, 1]
    log.write_text("no words", encoding="utf-8")
    assert _last_words(log, 0) == "it ended with:\nno words"
