"""One failure at every call of the bucket, the database and the keys: loud, never a silent wrong success, and it heals.

Each story is a backup, a look into the bucket and a drill of a SQLite database, with one call failing. Whatever comes
of it, the same again without a failure must give a whole copy and a passed drill, and nothing may be left over.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import BackupPhase, BackupRun, Drill, DrillPhase
from controlplane.kernel.errors import DeniedError, QuarterdeckError, RetryableError, TerminalError
from tests.integration.recovery_lab import RecoveryLab, declare, no_trouble
from tests.integration.recovery_sources import content, fill

ROWS: Final = 60
SWEPT_MIN: Final = {"bucket": 15, "database": 40, "keys": 8}
"""Fewer calls than this, and the sweep has not swept what it says."""

type MakeError = Callable[[str], QuarterdeckError]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "shop.sqlite3"
    fill(path, rows=ROWS)
    return path


@dataclass(slots=True)
class At:
    """Trouble at the call of this number, counted from 1."""

    number: int
    error: MakeError
    calls: int = 0
    armed: bool = True
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: str) -> None:
        if not self.armed:
            return
        with self._mutex:
            self.calls += 1
            number = self.calls
        if number == self.number:
            raise self.error(f"{call}: fails, as the test asked")

    @property
    def struck(self) -> bool:
        return self.calls >= self.number


class Story:
    """A site of its own, a failure somewhere in it, and what came of it."""

    def __init__(self, folder: Path, database: Path, number: int, *, key_trouble: At | None = None) -> None:
        folder.mkdir()
        self.number = number
        self.path = Path(shutil.copy(database, folder))
        dataset = declare(DatasetKind.SQLITE, self.path)
        self.lab = RecoveryLab(folder / "state", dataset, key_trouble=key_trouble or no_trouble)
        self.truth = content(self.path)

    async def told(self) -> tuple[BackupRun, Drill]:
        run = await self.lab.back_up()
        await self.lab.look()
        return run, await self.lab.drill()

    def must_be_true(self, run: BackupRun, drill: Drill) -> str:
        """What is said to be there is there; what failed says why."""
        lab = self.lab
        if run.phase is BackupPhase.DONE:
            assert run.point is not None
            assert content(lab.read(run.point, "database")) == self.truth, f"call {self.number}: {run.sentence}"
        else:
            assert run.phase is BackupPhase.FAILED
            assert len(run.sentence.split()) > 2, f"call {self.number}: it failed, and says nothing"
        if drill.phase is DrillPhase.PASSED:
            assert drill.point is not None
            assert content(lab.read(drill.point, "database")) == self.truth, f"call {self.number}: {drill.sentence}"
        else:
            assert drill.phase is DrillPhase.FAILED
            assert len(drill.failure.split()) > 2, f"call {self.number}: it failed, and says nothing"
        return f"backup {run.phase}, drill {drill.phase}, {len(lab.troubles)} ticks raised"

    async def must_heal(self) -> None:
        lab = self.lab
        lab.fake_clock.jump(timedelta(minutes=1))
        run, drill = await self.told()
        assert run.phase is BackupPhase.DONE, f"call {self.number}: {run.sentence}"
        assert drill.phase is DrillPhase.PASSED, f"call {self.number}: {drill.sentence}"
        assert run.point is not None
        assert drill.point == run.point
        assert content(lab.read(run.point, "database")) == self.truth
        await lab.sweep()
        assert not lab.orphans(), f"call {self.number}"
        assert not lab.strays(), f"call {self.number}"
        assert all(lab.is_whole(manifest.point) for manifest in lab.manifests())
        assert [path.name for path in self.path.parent.iterdir() if path.name != "state"] == [self.path.name]
        working = [thread.name for thread in threading.enumerate() if thread.name.startswith(("seal", "send", "fetch"))]
        assert not working, f"call {self.number}: threads are left: {working}"


@pytest.mark.parametrize(
    ("error", "applied"),
    [
        pytest.param(RetryableError, False, id="out-of-reach"),
        pytest.param(TerminalError, False, id="refused"),
        pytest.param(RetryableError, True, id="answer-lost"),
    ],
)
async def test_every_call_of_the_bucket(
    error: type[QuarterdeckError], applied: bool, database: Path, tmp_path: Path
) -> None:
    ends: Counter[str] = Counter()
    for number in range(1, 500):
        story = Story(tmp_path / f"{number}", database, number)
        story.lab.objects.fail_call(number, error("the bucket fails, as the test asked"), applied=applied)
        run, drill = await story.told()
        if story.lab.objects.calls < number:
            break
        ends[story.must_be_true(run, drill)] += 1
        await story.must_heal()
    assert ends.total() >= SWEPT_MIN["bucket"], ends
    assert len(ends) > 1, f"every failure had the same end: {ends}"


@pytest.mark.parametrize("error", [RetryableError, DeniedError], ids=["out-of-reach", "denied"])
async def test_every_use_of_a_key(error: type[QuarterdeckError], database: Path, tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for number in range(1, 500):
        trouble = At(number, error)
        story = Story(tmp_path / f"{number}", database, number, key_trouble=trouble)
        run, drill = await story.told()
        if not trouble.struck:
            break
        ends[story.must_be_true(run, drill)] += 1
        await story.must_heal()
    assert ends.total() >= SWEPT_MIN["keys"], ends


@pytest.mark.parametrize("error", [RetryableError, TerminalError], ids=["out-of-reach", "refused"])
async def test_every_transaction(error: type[QuarterdeckError], database: Path, tmp_path: Path) -> None:
    """Before it begins, and after it was committed: then only the answer is lost."""
    ends: Counter[str] = Counter()
    for number in range(1, 500):
        story = Story(tmp_path / f"{number}", database, number)
        trouble = story.lab.store.trouble = At(number, error)
        run, drill = await story.told()
        if not trouble.struck:
            break
        trouble.armed = False
        ends[story.must_be_true(run, drill)] += 1
        await story.must_heal()
    assert ends.total() >= SWEPT_MIN["database"], ends
