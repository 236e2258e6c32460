"""A site file with real vLLM servers, run as a user runs it: `up`, a question, a kill of the control plane, `down`.

The weights are in a folder, as on a machine without a network: a tiny model in the place of the catalog's. The GPU is
played by a node agent, since vLLM's CPU build needs none.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from controlplane.adapters.instance import read_note
from controlplane.adapters.launchers.local.launcher import LocalLauncher
from tests.vllm.vllm_lab import ARGUMENTS, ENVIRONMENT, end_all, find_vllm, free_port, processes_of

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.timeout(300)]

SCRAPED_WITHIN_S: Final = 10.0
MODEL: Final = "mistral-7b-v0.3"
SITE: Final = """
site:
  name: cpu
node_pools:
  - name: cpu
    gpu: rtx-4090
    gpus_per_node: 1
    nodes: [{{name: cpu-1, agent_url: "{agent_url}"}}]
engines:
  - name: vllm
    kind: vllm
    command: [{program}, serve]
    env: {env}
    args: {args}
deployments:
  - name: chat
    model: {model}
    weights: {weights}
    precision: bf16
    context: 1024
    max_num_seqs: 16
    replicas: {{min: 1, max: 1}}
replica_ports: {{first: {first_port}, last: {last_port}}}
"""


@dataclass(slots=True, kw_only=True)
class Run:
    """A state folder with a site file, and the commands on it."""

    folder: Path
    gateway_port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def quarterdeck(self, *arguments: str) -> str:
        """Its output; the exit code must be 0."""
        done = subprocess.run(
            [*PROGRAM, *arguments], env=environment(), capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{arguments[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def up(self, *arguments: str) -> str:
        ports = ("--port", str(self.gateway_port), "--control-port", str(self.control_port))
        return self.quarterdeck("up", *arguments, "--state-dir", str(self.state_dir), *ports, "--no-load", "--detach")

    def down(self) -> str:
        return self.quarterdeck("down", "--state-dir", str(self.state_dir))

    def leaders(self) -> list[int]:
        groups = LocalLauncher(self.state_dir, environ={})._groups()
        return [members[0].pid for members in groups.values() if members[0].is_leader]

    def ask(self, model: str) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "ignore_eos": True}
        url = f"http://127.0.0.1:{self.gateway_port}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return fetched(request)

    def api(self, path: str) -> Any:
        return fetched(urllib.request.Request(f"http://127.0.0.1:{self.control_port}/api/v1{path}"))


PROGRAM: Final = (sys.executable, "-m", "controlplane")


def environment() -> dict[str, str]:
    """Ours, without what would point at another site."""
    return {name: value for name, value in os.environ.items() if not name.startswith("QUARTERDECK_")}


def fetched(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def write_site(run: Run, agent_url: str) -> Path:
    vllm = find_vllm()
    first = free_port()
    site = run.folder / "site.yaml"
    text = SITE.format(
        agent_url=agent_url,
        program=vllm.program,
        env=json.dumps(dict(ENVIRONMENT)),
        args=json.dumps({**ARGUMENTS, "enforce-eager": True}),
        model=MODEL,
        weights=vllm.model,
        first_port=first,
        last_port=min(first + 20, 65535),
    )
    site.write_text(text, encoding="utf-8")
    return site


@pytest.fixture
def run() -> Iterator[Run]:
    find_vllm()
    folder = Path(tempfile.mkdtemp(prefix="qd-vllm-"))
    run = Run(folder=folder)
    try:
        yield run
    finally:
        note = read_note(run.state_dir)
        if note is not None:
            end(note.pid)
        end_all(run.state_dir)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def agent_url(run: Run) -> Iterator[str]:
    """A node agent that plays one GPU."""
    command = [*PROGRAM, "agent", "--simulate", "rtx-4090", "--gpus", "1", "--node", "cpu-1", "--port", "0"]
    command += ["--gpu-state-dir", str(run.folder / "gpus")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        try:
            told = agent.stdout.readline()
            found = re.search(r"http://[\d.]+:\d+", told)
            assert found is not None, told
            yield found[0]
        finally:
            agent.terminate()


def test_a_site_of_real_vllm_servers(run: Run, agent_url: str) -> None:
    run.up("--site", str(write_site(run, agent_url)))
    (leader,) = run.leaders()
    answer = run.ask("chat")
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["system_fingerprint"].startswith("vllm-")
    assert run.ask(MODEL)["model"] == "chat"
    replica = measured_replica(run)
    assert replica["phase"] == "ready"
    (node,) = run.api("/nodes")
    assert node["state"] == "ready"

    note = read_note(run.state_dir)
    assert note is not None
    end(note.pid)
    assert run.ask("chat")["usage"]["completion_tokens"] == 8, "served without a control plane"
    run.up()
    assert run.leaders() == [leader], "the same process, not started again"
    assert [one["name"] for one in run.api("/replicas")] == [replica["name"]]
    assert run.ask("chat")["usage"]["completion_tokens"] == 8

    run.down()
    assert run.leaders() == []
    assert [process.cmdline() for process in processes_of(run.state_dir)] == []
    log = (run.state_dir / "replicas" / replica["name"] / "log").read_text(encoding="utf-8")
    assert log.count("Starting vLLM server") == 1


def measured_replica(run: Run) -> dict[str, Any]:
    """The only one, once its metrics were read: a second after it became ready."""
    deadline_s = time.monotonic() + SCRAPED_WITHIN_S
    while True:
        (replica,) = run.api("/replicas")
        if replica["engine_data"] == "fresh":
            return dict(replica)
        assert time.monotonic() < deadline_s, f"not measured within {SCRAPED_WITHIN_S:g} s: {replica}"
        time.sleep(0.2)


def end(pid: int) -> None:
    """SIGKILL to a control plane, and wait until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] == "Z":
                return
            time.sleep(0.02)
    except (ProcessLookupError, FileNotFoundError):
        return
