"""Two hundred good recovery points, each of other contents, and not one false alarm."""

import random
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.domain.dataset import DatasetKind, DrillSelection
from controlplane.domain.recovery import BackupPhase, DrillPhase, Verdict
from controlplane.recovery.rpo import RpoState
from tests.integration.recovery_lab import DAY, RecoveryLab, declare
from tests.integration.recovery_sources import content, fill, plant

HOUR: Final = timedelta(hours=1)
LABS, DRILLS_EACH = 10, 20
_SELECTIONS: Final = (DrillSelection.LATEST, DrillSelection.RANDOM, DrillSelection.OLDEST)


@pytest.mark.parametrize("seed", range(LABS))
async def test_twenty_good_ones(seed: int, tmp_path: Path) -> None:
    """Ten times twenty, each of contents that were never there before: not one false alarm."""
    chance = random.Random(seed)
    kind = DatasetKind.FILES if seed % 2 else DatasetKind.SQLITE
    path = tmp_path / "source"
    lab = RecoveryLab(tmp_path / "state", replace(declare(kind, path), rpo=DAY), seed=seed)
    for turn in range(DRILLS_EACH):
        renew(path, kind, chance)
        lab.fake_clock.jump(HOUR)
        run = await lab.back_up()
        assert run.phase is BackupPhase.DONE, run.sentence
        await lab.look()
        drill = await lab.drill(selection=_SELECTIONS[turn % len(_SELECTIONS)])
        assert drill.phase is DrillPhase.PASSED, drill.sentence
        assert all(check.verdict is Verdict.PASSED for check in drill.checks), drill.checks
        assert drill.point is not None
        if kind is DatasetKind.SQLITE and drill.selection is DrillSelection.LATEST:
            assert content(lab.read(drill.point, "database")) == content(path)
    assert not lab.troubles
    assert not lab.orphans()
    assert (await lab.verdict()).state is RpoState.OK


def renew(path: Path, kind: DatasetKind, chance: random.Random) -> None:
    if kind is DatasetKind.SQLITE:
        path.unlink(missing_ok=True)
        fill(path, seed=chance.randint(0, 10**9), rows=chance.randint(0, 300))
    else:
        shutil.rmtree(path, ignore_errors=True)
        plant(path, chance)
