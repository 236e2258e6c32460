"""A drill is cleaned up by what runs and lies in its folder: what it restored may no longer be declared."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from controlplane.adapters.backup.drill_work import RESTORED
from controlplane.adapters.backup.mongodb_scratch import SERVERS as MONGODB
from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.server import postmaster_of, servers_in
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.adapters.backup.redis_scratch import SERVERS as REDIS
from controlplane.domain.dataset import DatasetKind
from controlplane.recovery.ports import RestoreRequest, SilentWatch
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import make_drill
from tests.integration.postgresql_lab import DATASET, copy_of, enterable_folder, primary_in
from tests.integration.recovery_lab import RecoveryLab, declare

DRILL: Final = make_drill(START)


@pytest.fixture
def lab(tmp_path: Path) -> RecoveryLab:
    return RecoveryLab(tmp_path / "state", declare(DatasetKind.FILES, tmp_path))


def scratch_of(lab: RecoveryLab) -> Path:
    into = lab.vault.scratch_root() / DRILL.drill / RESTORED
    into.mkdir(parents=True)
    return into


def engine(program: str, tools: Path, cwd: Path) -> "subprocess.Popen[bytes]":
    """A process of that name, which sleeps."""
    tools.mkdir(exist_ok=True)
    path = tools / program
    if not path.exists():
        shutil.copy(shutil.which("sleep") or "/bin/sleep", path)
    return subprocess.Popen([path, "600"], cwd=cwd)


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.parametrize("program", sorted(REDIS | MONGODB))
async def test_an_engine_of_any_kind_is_ended(
    lab: RecoveryLab, tmp_path: Path, program: str, processes: list["subprocess.Popen[bytes]"]
) -> None:
    into = scratch_of(lab)
    (into / "dump").write_bytes(b"restored")
    mine = engine(program, tmp_path / "tools", into)
    elsewhere = engine(program, tmp_path / "tools", tmp_path)
    person = engine("bash", tmp_path / "tools", into)
    processes += [mine, elsewhere, person]
    proof = await lab.workshop.clean(DRILL, None)
    assert mine.poll() is not None
    assert (elsewhere.poll(), person.poll()) == (None, None), "only engines, and only in that folder"
    assert not into.parent.exists()
    assert proof == (f"no process of an engine runs in {DRILL.drill}; the folder {DRILL.drill} is gone",)
    assert await lab.workshop.clean(DRILL, None) == proof, "once more is fine"


async def test_a_dataset_that_became_another_kind_meanwhile(
    lab: RecoveryLab, tmp_path: Path, processes: list["subprocess.Popen[bytes]"]
) -> None:
    into = scratch_of(lab)
    processes.append(engine("redis-server", tmp_path / "tools", into))
    await lab.workshop.clean(DRILL, lab.dataset)
    assert processes[0].poll() is not None
    assert not into.parent.exists()


async def test_a_real_postgresql_is_ended_without_its_declaration() -> None:
    with enterable_folder() as folder, primary_in(folder / "live") as primary:
        lab = RecoveryLab(folder / "state", declare(DatasetKind.FILES, folder))
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
        into = lab.vault.scratch_root() / DRILL.drill / RESTORED
        for entered in (lab.folder, into.parent.parent, into.parent):
            entered.mkdir(exist_ok=True)
            entered.chmod(0o711)
        adapter.restore(RestoreRequest(chain=(copy_of(adapter, "a"),), into=into), SilentWatch())
        owner = adapter.start(into, SilentWatch())
        owner.__enter__()  # and its owner is never heard of again
        places = places_of(into)
        postmaster = postmaster_of(places.data)
        assert postmaster is not None
        await lab.workshop.clean(DRILL, None)
        assert not psutil.pid_exists(postmaster.pid) or postmaster.status() == psutil.STATUS_ZOMBIE
        assert servers_in(places.home) == []
        assert not any(place.exists() for place in (into.parent, places.home, places.sockets))
        owner.__exit__(None, None, None)
