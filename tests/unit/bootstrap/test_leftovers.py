"""Ending what an earlier control plane left: only what carries the mark, politely first, then for sure."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.adapters.instance import ROLE_VARIABLE, SITE_VARIABLE
from controlplane.bootstrap.leftovers import marked_processes, stop_leftovers
from controlplane.bootstrap.site_load import SiteLoad
from controlplane.domain.site import LoadSpec
from controlplane.kernel.ids import DeploymentName

type Start = Callable[..., "subprocess.Popen[bytes]"]

DEADLINE_S = 30.0
"""For one that was ended to be gone: a busy machine takes its time."""
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"
"""A shell that ignores SIGTERM."""


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def start() -> Iterator[Start]:
    """A process under a mark that has begun; ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(mark: str, script: str = "echo up; exec sleep 60", role: str = "") -> "subprocess.Popen[bytes]":
        environment = {"PATH": "/usr/bin:/bin", SITE_VARIABLE: mark, ROLE_VARIABLE: role}
        process = subprocess.Popen(["/bin/sh", "-c", script], env=environment, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_only_what_carries_the_mark_is_ended(start: Start, mark: str) -> None:
    ours, others = [start(mark), start(mark)], start(uuid.uuid4().hex)
    assert {process.pid for process in marked_processes(mark)} == {process.pid for process in ours}
    assert stop_leftovers(mark) == 2
    assert [process.wait(DEADLINE_S) for process in ours] == [-15, -15]
    assert others.poll() is None
    assert stop_leftovers(mark) == 0


def test_what_ignores_sigterm_is_killed_after_the_grace(start: Start, mark: str) -> None:
    process = start(mark, STUBBORN)
    assert stop_leftovers(mark, grace_s=0.2) >= 1
    assert process.wait(DEADLINE_S) == -9
    assert marked_processes(mark) == []


LOAD = LoadSpec(deployment_weights=((DeploymentName("chat"), 1.0),), peak_rps=10.0, trough_rps=1.0)


def test_a_load_of_an_earlier_control_plane_is_taken_over_and_ended(start: Start, mark: str, tmp_path: Path) -> None:
    earlier = start(mark, role="load")
    load = SiteLoad(state_dir=tmp_path, mark=mark)
    load.start(LOAD, "http://127.0.0.1:9", control_url="http://127.0.0.1:9", embedding=frozenset())
    assert [process.pid for process in marked_processes(mark)] == [earlier.pid]
    load.stop()
    earlier.wait(DEADLINE_S)
    assert marked_processes(mark) == []
    load.stop()
