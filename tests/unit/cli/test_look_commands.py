"""The commands that look, over HTTP: what a person reads (golden), what a script reads, and every way to fail."""

import json

import pytest

from controlplane.api.context import ReplayAnswer
from controlplane.api.wire import (
    DecisionDetail,
    DecisionOut,
    DeploymentDetail,
    DeploymentOut,
    EventOut,
    GpuOut,
    LogOut,
    NodeOut,
    ReplayOut,
    ReplicaOut,
    StatusOut,
    UsageOut,
    Wire,
)
from controlplane.cli.exits import ExitCode
from controlplane.domain.telemetry import Missing
from tests.conftest import GoldenText
from tests.unit.cli.conftest import NOBODY, Fleet, run

LOOKS = {
    "status": "status",
    "nodes": "nodes",
    "gpus": "gpus",
    "deployments": "deployments",
    "deployment": "deployments chat-8b",
    "replicas": "replicas",
    "replicas_of_one": "replicas --deployment embed",
    "logs": "logs qd-chat-8b-0a1b2c3d-0 --lines 2",
    "events": "events",
    "events_of_a_kind": "events --kind replica --limit 1",
    "decisions": "decisions",
    "decision": "decisions --show 3",
    "replay": "decisions --replay",
    "usage": "usage",
}
"""Golden file and what is typed."""

SHAPES: dict[str, tuple[type[Wire], bool]] = {
    "status": (StatusOut, False),
    "nodes": (NodeOut, True),
    "gpus": (GpuOut, True),
    "deployments": (DeploymentOut, True),
    "deployments chat-8b": (DeploymentDetail, False),
    "replicas": (ReplicaOut, True),
    "logs qd-chat-8b-0a1b2c3d-0": (LogOut, False),
    "events": (EventOut, True),
    "decisions": (DecisionOut, True),
    "decisions --show 3": (DecisionDetail, False),
    "decisions --replay": (ReplayOut, False),
    "usage": (UsageOut, False),
}
"""What is typed, the documented shape of its JSON, and whether it is a list of them."""


@pytest.mark.parametrize("name", LOOKS)
def test_what_a_person_reads(fleet: Fleet, golden_text: GoldenText, name: str) -> None:
    result = fleet.run(*LOOKS[name].split())
    assert result.exit_code == ExitCode.OK
    assert all(line == line.rstrip() for line in result.output.splitlines())
    golden_text(f"cli_{name}.txt", f"$ quarterdeck {LOOKS[name]}\n{result.output}")


@pytest.mark.parametrize("typed", SHAPES)
def test_what_a_script_reads(fleet: Fleet, typed: str) -> None:
    result = fleet.run(*typed.split(), "--json")
    assert result.exit_code == ExitCode.OK
    answer = json.loads(result.output)
    shape, is_list = SHAPES[typed]
    assert isinstance(answer, list) is is_list
    rows = answer if is_list else [answer]
    assert rows
    for row in rows:
        shape.model_validate(row)


@pytest.mark.parametrize("typed", [*SHAPES, "watch", "watch --once", "events --follow"])
def test_without_a_control_plane_it_says_what_to_type(typed: str) -> None:
    result = run(*typed.split(), "--control-plane", NOBODY)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert f"no control plane answers at {NOBODY}" in result.output
    assert "`make up`" in result.output
    assert "--control-plane URL" in result.output


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("deployments chat-8", "there is no deployment 'chat-8'; did you mean 'chat-8b'?"),
        ("replicas --deployment chat-80b", "did you mean 'chat-8"),
        ("events --deployment chat-8", "did you mean 'chat-8b'?"),
        ("decisions --deployment imbed", "did you mean 'embed'?"),
        ("decisions --replay --deployment imbed", "did you mean 'embed'?"),
        ("deployments x", "there is no deployment 'x'; there are chat-70b, chat-8b, embed"),
        ("logs qd-chat-8b-0a1b2c3d-9", "did you mean 'qd-chat-8b-0a1b2c3d-"),
        ("logs a/../b?c", "nothing is named 'a/../b?c'; names have letters"),
        ("logs ..", "nothing is named '..'"),
        ("logs chat-8b", "chat-8b is a deployment with 3 replicas; name one: qd-chat-8b-"),
        ("decisions --show 999", "no decision has the number 999; `quarterdeck decisions` lists them"),
        ("events --kind replicas", "'replicas' is not one of 'site', 'node', 'deployment', 'replica'"),
        ("status --control-plane nonsense", "found 'nonsense', expected a URL such as http://127.0.0.1:8080"),
        ("status --control-plane http://127.0.0.1:99999", "expected a URL"),
        ("logs", "Missing argument"),
        ("stats", "No such command 'stats'"),
    ],
)  # fmt: skip
def test_a_slip_is_answered_with_what_would_be_right(fleet: Fleet, typed: str, said: str) -> None:
    result = fleet.run(*typed.split())
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.output.replace("│", " ").split())


def test_a_decision_that_comes_out_otherwise_fails_the_command(fleet: Fleet) -> None:
    async def replay(deployment: str | None, limit: int) -> ReplayAnswer:
        return ReplayAnswer(replayed=2, differing=("decision 7 of chat-8b: wanted was 3, now 4",))

    fleet.change(replay=replay)
    result = fleet.run("decisions", "--replay")
    assert result.exit_code == ExitCode.FAILED
    assert result.output.splitlines() == [
        "2 decisions decided again, 1 came out the same, byte for byte",
        "  decision 7 of chat-8b: wanted was 3, now 4",
    ]


def test_a_deployment_with_one_replica_needs_no_replica_name_for_its_log(fleet: Fleet) -> None:
    result = fleet.run("logs", "chat-70b", "--lines", "1")
    assert result.exit_code == ExitCode.OK
    assert "qd-chat-70b-c8a49fd8-0" in result.output


@pytest.mark.parametrize(
    ("more", "asked_for", "said"), [((), 10_000, "7 decisions"), (("--limit", "7"), 7, "the last 7")]
)
def test_all_decisions_are_replayed_unless_a_limit_is_given(
    fleet: Fleet, more: tuple[str, ...], asked_for: int, said: str
) -> None:
    limits: list[int] = []

    async def replay(deployment: str | None, limit: int) -> ReplayAnswer:
        limits.append(limit)
        return ReplayAnswer(replayed=7, differing=())

    fleet.change(replay=replay)
    result = fleet.run("decisions", "--replay", *more)
    assert limits == [asked_for]
    assert result.output.startswith(said)


def test_figures_that_are_missing_are_marked_and_never_zero(fleet: Fleet) -> None:
    fleet.telemetry.set_gateway(Missing("HAProxy does not answer"))
    status = fleet.run("status").output
    assert "gateway http://127.0.0.1:8000 (its figures are missing)" in status
    row = next(line for line in status.splitlines() if line.startswith("chat-8b"))
    assert row.split()[-3:] == ["?", "?", "99.8%"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("status", "no site  0 of 0 GPUs held  gateway http://127.0.0.1:8000"),
        ("status", "apply a site with `quarterdeck site apply FILE`"),
        ("nodes", "no nodes"),
        ("gpus", "no GPUs"),
        ("deployments", "no deployments"),
        ("replicas", "no replicas"),
        ("events", "no such event yet"),
        ("decisions", "no decision yet"),
        ("usage", "no replica held a GPU"),
    ],
)
def test_an_empty_control_plane_is_told_in_words(empty: Fleet, typed: str, said: str) -> None:
    result = empty.run(typed)
    assert result.exit_code == ExitCode.OK
    assert said in result.output


def test_long_lines_stay_whole_in_a_pipe(fleet: Fleet) -> None:
    narrow = fleet.run("decisions", env={"COLUMNS": "40"})
    assert narrow.output == fleet.run("decisions").output
