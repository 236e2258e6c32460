"""The commands that change what is wanted: what they say, what they changed, how they are refused."""

import asyncio
import json

import pytest

from controlplane.cli.exits import ExitCode
from controlplane.domain.deployment import Deployment
from controlplane.domain.node import Node
from controlplane.kernel.ids import DeploymentName
from tests.conftest import GoldenText
from tests.unit.cli.conftest import NOBODY, Fleet, run

CHANGES = (
    "scale chat-8b 3",
    "scale chat-8b auto",
    "pause chat-8b --reason upgrade",
    "resume chat-8b",
    "node cordon b200-1 --reason fan",
    "node drain b200-1",
    "node uncordon b200-2",
)


def deployment(fleet: Fleet, name: str = "chat-8b") -> Deployment:
    async def read() -> Deployment:
        async with fleet.store.transaction() as tx:
            return await tx.deployment(DeploymentName(name))

    return asyncio.run(read())


def node(fleet: Fleet, name: str) -> Node:
    async def read() -> Node:
        async with fleet.store.transaction() as tx:
            return {str(row.name): row for row in await tx.nodes()}[name]

    return asyncio.run(read())


def test_what_a_person_reads(fleet: Fleet, golden_text: GoldenText) -> None:
    said = []
    for typed in CHANGES:
        result = fleet.run(*typed.split())
        assert result.exit_code == ExitCode.OK
        said.append(f"$ quarterdeck {typed}\n{result.output}")
    golden_text("cli_changes.txt", "\n".join(said))


@pytest.mark.parametrize("typed", CHANGES)
def test_what_a_script_reads(fleet: Fleet, typed: str) -> None:
    answer = json.loads(fleet.run(*typed.split(), "--json").output)
    assert sorted(answer) == ["generation", "sentence", "subject"]


def test_they_change_intent(fleet: Fleet) -> None:
    fleet.run("scale", "chat-8b", "3")
    assert deployment(fleet).intent.replicas_pinned == 3
    fleet.run("scale", "chat-8b", "auto")
    assert deployment(fleet).intent.replicas_pinned is None
    fleet.run("pause", "chat-8b")
    assert deployment(fleet).intent.paused
    fleet.run("resume", "chat-8b")
    assert not deployment(fleet).intent.paused
    fleet.run("node", "drain", "b200-1", "--reason", "fan")
    assert (node(fleet, "b200-1").state, node(fleet, "b200-1").state_reason) == ("draining", "fan")


@pytest.mark.parametrize("typed", ["scale chat-8b 3", "pause chat-8b", "resume chat-8b", "node cordon b200-1"])
def test_a_generation_that_passed_is_refused(fleet: Fleet, typed: str) -> None:
    result = fleet.run(*typed.split(), "--generation", "99")
    assert result.exit_code == ExitCode.CONFLICT
    assert "somebody changed it first. Read it again, then repeat the change" in result.output


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("scale chat-8b 9", "replicas: found 9, expected 1 to 8. these are replicas.min and replicas.max"),
        ("scale chat-8b three", "found replicas 'three', expected a number or `auto`"),
        ("scale chat-8b ²", "found replicas '²', expected a number or `auto`"),
        ("scale chat-8 3", "there is no deployment 'chat-8'; did you mean 'chat-8b'?"),
        ("pause chat-8", "did you mean 'chat-8b'?"),
        ("node cordon b200-3", "there is no node 'b200-3'; did you mean 'b200-"),
        ("node cordon", "Missing argument"),
        ("node reboot b200-1", "No such command 'reboot'"),
    ],
)
def test_a_slip_changes_nothing_and_says_what_would_be_right(fleet: Fleet, typed: str, said: str) -> None:
    before = deployment(fleet)
    result = fleet.run(*typed.split())
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.output.replace("│", " ").split())
    assert deployment(fleet) == before


@pytest.mark.parametrize("typed", CHANGES)
def test_without_a_control_plane(typed: str) -> None:
    result = run(*typed.split(), "--control-plane", NOBODY)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "start one with `make up`" in result.output
