"""The machine of a PostgreSQL under load dies and its data are gone: what was acknowledged, and what comes back.

    python -m benchmarks deaths
    python -m benchmarks.deaths --trials 10

The trials are those of the suite, in a pytest of their own, many more of them: kill -9 and a wiped data folder while
clients commit, the bucket frozen at the same moment, a restore from what it had then. By WAL mode.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.report import Cell, Grid, Report, show
from controlplane.domain.dataset import WalMode

SUMMARY: Final = "PostgreSQL killed and wiped under load, 100 times: acknowledged commits lost, and what the gauge said"

TRIALS: Final = 100
QUICK_TRIALS: Final = 2
AIM_LOSS_S: Final = 1.0
AIM_GAUGE_S: Final = 1.0
_SUITE: Final = "tests/integration/test_postgresql_backup_kill.py"
_ROOT: Final = Path(__file__).parents[1]
_START_S: Final = 300.0
_TRIAL_S: Final = 30.0
"""Each takes two or three; the suite's own deadlines come first, and clean up."""
_SHOWN_CHARS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A line of the suite's."""

    mode: str
    acknowledged: int
    lost: int
    loss_s: float
    gauge_s: float
    """The recovery point age that the bucket told."""
    restore_s: float

    @property
    def gauge_error_s(self) -> float:
        return abs(self.gauge_s - self.loss_s)


def run(*, quick: bool) -> Report:
    return measure(QUICK_TRIALS if quick else TRIALS)


def measure(trials: int) -> Report:
    """RuntimeError with the suite's last words when not even one trial came to its end."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "trials.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", _SUITE],
            cwd=_ROOT,
            env=_environment(trials, results),
            capture_output=True,
            text=True,
            timeout=_START_S + _TRIAL_S * trials,
            check=False,
        )
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    found = [Trial(**json.loads(line)) for line in lines]
    said = done.stdout.strip()[-_SHOWN_CHARS:]
    if done.returncode and not found:
        raise RuntimeError(f"{_SUITE} failed:\n{said or done.stderr.strip()[-_SHOWN_CHARS:]}")
    if not found:
        return Report(name="deaths", grids=[], verdict=f"No trial could be made here. {_skipped(said)}", results={})
    return report_of(found, failed=said if done.returncode else "")


def _environment(trials: int, results: Path) -> dict[str, str]:
    """Without what a pytest around us has set for itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**kept, "QUARTERDECK_KILL_TRIALS": str(trials), "QUARTERDECK_KILL_RESULTS": str(results)}


def _skipped(said: str) -> str:
    return next((line for line in said.splitlines() if line.startswith("SKIPPED")), said)


def report_of(found: Sequence[Trial], *, failed: str) -> Report:
    """`failed`: the suite's last words, when it was not content; its trials count all the same."""
    by_mode = {mode: [one for one in found if one.mode == mode] for mode in (WalMode.SYNCHRONOUS, WalMode.STREAMING)}
    sure = sum(one.lost for one in by_mode[WalMode.SYNCHRONOUS])
    worst_s = max((one.loss_s for one in by_mode[WalMode.STREAMING]), default=0.0)
    gauge_s = max(one.gauge_error_s for one in found)
    verdict = (
        f"{sure} acknowledged commits lost in synchronous mode (aim 0), at worst {worst_s:.3f} s in streaming mode "
        f"(aim {AIM_LOSS_S:g}); the gauge off by at most {gauge_s:.3f} s (aim {AIM_GAUGE_S:g})"
    )
    return Report(
        name="deaths",
        grids=[
            Grid(
                title=f"{len(found)} deaths under load; loss and the gauge's error at worst, restore in the median",
                heads=["mode", "trials", "acknowledged", "lost", "loss s", "gauge s", "restore s"],
                rows=[_row(mode, trials) for mode, trials in by_mode.items() if trials],
            )
        ],
        verdict=f"{verdict}; the suite FAILED:\n{failed}" if failed else verdict,
        results={"trials": [asdict(one) for one in found]},
    )


def _row(mode: WalMode, trials: Sequence[Trial]) -> list[Cell]:
    return [
        mode,
        len(trials),
        sum(one.acknowledged for one in trials),
        sum(one.lost for one in trials),
        f"{max(one.loss_s for one in trials):.3f}",
        f"{max(one.gauge_error_s for one in trials):.3f}",
        f"{statistics.median(one.restore_s for one in trials):.2f}",
    ]


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.deaths", description=SUMMARY)
    options.add_argument("--trials", type=int, default=TRIALS, help="of both modes together, two thirds synchronous")
    show(measure(options.parse_args().trials), Console())


if __name__ == "__main__":
    main()
