"""What a local replica is started with, and its log: no process is started here."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.adapters.instance import site_mark
from controlplane.adapters.launchers.local import logs, spawn
from controlplane.adapters.sitefile.parse import parse_site
from controlplane.domain.deployment import EngineKind
from controlplane.kernel.ids import NodeName, ReplicaName
from controlplane.replicas.ports import LaunchSpec
from controlplane.testing.builders import make_template

POOL = "node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]\n"


def spec() -> LaunchSpec:
    template = replace(
        make_template(),
        argv=("{python}", "-m", "engine", "--port", "{port}", "--name", "{name}", "--profile", '{"step": {"a": 1}}'),
        env=(("CUDA_VISIBLE_DEVICES", "{gpus}"), ("HOME", "/nowhere")),
    )
    return LaunchSpec(
        name=ReplicaName("qd-chat-0a1b2c3d-0"),
        node=NodeName("node-1"),
        gpus=(2, 3),
        gpu_model="b200",
        numa_domain=0,
        port=20007,
        template=template,
    )


def test_placeholders_are_filled_and_json_stays_as_it_is() -> None:
    command = spawn.command_of(spec(), "127.0.0.1")
    assert command[4] == "20007"
    assert command[6] == "qd-chat-0a1b2c3d-0"
    assert command[8] == '{"step": {"a": 1}}'
    assert "{" not in command[0]


def test_the_environment_is_what_programs_need_the_template_and_the_marks_never_our_secrets() -> None:
    ours = {"PATH": "/bin", "HOME": "/home/a", "HF_TOKEN": "t", "DATABASE_URL": "secret", "LC_ALL": "C"}
    environment = spawn.environment_of(spec(), "127.0.0.1", "mark", ours)
    assert environment == {
        "PATH": "/bin",
        "HOME": "/nowhere",
        "HF_TOKEN": "t",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "QUARTERDECK_SITE": "mark",
        "QUARTERDECK_REPLICA": "qd-chat-0a1b2c3d-0",
        "QUARTERDECK_NODE": "node-1",
        "QUARTERDECK_GPUS": "2,3",
        "QUARTERDECK_PORT": "20007",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_missing_program_says_how_to_get_it() -> None:
    missing = spawn.find_program(["no-such-program-here"], {"PATH": "/bin"}, EngineKind.VLLM)
    assert isinstance(missing, spawn.MissingProgram)
    assert "pip install vllm" in missing.sentence


@pytest.mark.parametrize("kind", EngineKind)
def test_the_hint_names_a_place_that_a_site_file_has(kind: EngineKind) -> None:
    missing = spawn.find_program(["no-such-program-here"], {"PATH": "/bin"}, kind)
    assert isinstance(missing, spawn.MissingProgram)
    assert "under `engines:`" in missing.sentence
    (example,) = re.findall(r"`(command: .+?)`", missing.sentence)
    text = f"site: {{name: lab}}\n{POOL}engines:\n  - name: default\n    kind: {kind}\n    {example}\n"
    site = parse_site(text, file="site.yaml")
    assert site.engines[0].command == ("/opt/vllm/bin/vllm", "serve")


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}), ("5\n", {5}), ("\n", set())])
def test_the_kernels_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert spawn.parse_cpu_list(text) == cpus


def test_the_mark_belongs_to_the_folder(tmp_path: Path) -> None:
    assert site_mark(tmp_path) == site_mark(tmp_path / "x" / "..")
    assert site_mark(tmp_path) != site_mark(tmp_path / "x")


def test_a_start_keeps_one_old_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for run in ("one", "two", "three"):
        logs.begin_log(log)
        assert not log.exists()
        log.write_text(run, encoding="utf-8")
    assert (tmp_path / "log.1").read_text(encoding="utf-8") == "two"


def test_a_log_that_grew_too_long_is_cut_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        os.truncate(log, logs.LOG_BYTES_MAX)
        writer.write(b"the last line\n")
        logs.bound_log(log)
        assert log.stat().st_size == 0
        writer.write(b"goes on\n")
    assert logs.tail(log, 5) == ["goes on"]
    assert logs.tail(tmp_path / "log.1", 1)[0].endswith("the last line")


def test_the_tail_of_nothing_and_of_broken_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert logs.tail(log, 3) == []
    log.write_bytes(b"a\nb\xff\nc\n")
    assert logs.tail(log, 2) == ["b\N{REPLACEMENT CHARACTER}", "c"]
    assert logs.tail(log, 0) == []
