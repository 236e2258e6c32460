"""Backing a PostgreSQL up and getting it back: ours beside the pipe that most teams have.

    python -m benchmarks recovery
    python -m benchmarks.recovery --size 600 --rounds 2

The classic pipe is `pg_dump | gpg --symmetric --cipher-algo AES256`, then upload; and download, `gpg --decrypt | psql`
into an empty server. It runs with gpg's own defaults (which compress) and with `--compress-algo none`. Ours is what
the product does: BASE_BACKUP, zstd, AES-256-GCM, packs into the bucket; and back, fsynced, with the server started and
asked, then with everything verified. Same database, same object store on the same two cores, turns in one run.
"""

import argparse
import statistics
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console

from benchmarks.recovery_lab import BUCKET, DATASET, Ours, lab
from benchmarks.report import Cell, Grid, Report, show
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import DrillSelection, KeyPurpose
from controlplane.domain.recovery import Drill, DrillPhase, RecoveryPoint
from controlplane.kernel.units import MIB
from controlplane.recovery.forecast import forecast_rto
from controlplane.recovery.lineage import Chain
from controlplane.recovery.rates import learn_rates
from controlplane.recovery.workshop import CopyMade, DrillMade

SUMMARY: Final = "back up and restore 2 GiB of PostgreSQL, beside pg_dump | gpg; and how well the RTO is forecast"

SIZE_MIB: Final = 2_100
FORECAST_MIB: Final = (150, 600, SIZE_MIB)
ROUNDS: Final = 3
QUICK_MIB: Final = (12, 24, 48)
AIM_BACKUP: Final = 5.0
AIM_RESTORE: Final = 8.0
AIM_FORECAST: Final = 0.15


def run(*, quick: bool) -> Report:
    return measure(QUICK_MIB if quick else FORECAST_MIB, 1 if quick else ROUNDS)


def measure(sizes_mib: Sequence[int], rounds: int) -> Report:
    """The last size is the one that is compared; each is forecast from drills of the others."""
    with lab() as place:
        forecasts = _Forecasts()
        for size in sizes_mib:
            place.fill(size)
            forecasts.add(size, place.ours(drills=2))
        times = _Times()
        for _ in range(rounds):
            times.add(OURS, *_both(place.ours(drills=1)))
            times.add(CLASSIC, *place.classic(compress=True))
            times.add(PLAIN, *place.classic(compress=False))
        size_bytes = place.database_bytes()
    return _report(times, forecasts, size_bytes, rounds)


OURS: Final = "ours"
CLASSIC: Final = "pg_dump | gpg, its defaults"
PLAIN: Final = "pg_dump | gpg --compress-algo none"
_VERIFIED: Final = "ours, everything verified"


@dataclass(slots=True)
class _Times:
    backup_s: dict[str, list[float]] = field(default_factory=dict)
    restore_s: dict[str, list[float]] = field(default_factory=dict)
    verified_s: list[float] = field(default_factory=list)

    def add(self, way: str, backup_s: float, restore_s: float, verified_s: float | None = None) -> None:
        self.backup_s.setdefault(way, []).append(backup_s)
        self.restore_s.setdefault(way, []).append(restore_s)
        if verified_s is not None:
            self.verified_s.append(verified_s)


@dataclass(slots=True)
class _Forecasts:
    """Each size forecast from the drills of the other sizes."""

    measured: list[tuple[int, Drill, Chain]] = field(default_factory=list)

    def add(self, size_mib: int, ours: Ours) -> None:
        for made in ours.drills:
            drill, chain = _as_rows(ours.copy, made)
            self.measured.append((size_mib, drill, chain))

    def rows(self) -> Iterator[tuple[int, float, float, float]]:
        """Size in MiB, drilled and forecast seconds, error."""
        for size in sorted({size for size, _, _ in self.measured}):
            others = [drill for other, drill, _ in self.measured if other != size]
            own = [(drill, chain) for other, drill, chain in self.measured if other == size]
            drilled_s = statistics.median(drill.times.rto_s for drill, _ in own)
            forecast_s = forecast_rto(own[0][1], learn_rates(others)).total_s
            yield size, drilled_s, forecast_s, forecast_s / drilled_s - 1.0


def _both(ours: Ours) -> tuple[float, float, float]:
    times = ours.drills[-1].times
    started_s = times.fetch_and_restore_s + times.start_and_replay_s
    return ours.copy.took_s, started_s, started_s + times.verify_s


def _report(times: _Times, forecasts: _Forecasts, size_bytes: int, rounds: int) -> Report:
    backup = {way: statistics.median(seconds) for way, seconds in times.backup_s.items()}
    restore = {way: statistics.median(seconds) for way, seconds in times.restore_s.items()}
    rows: list[list[Cell]] = [
        [way, backup[way], _spread(times.backup_s[way]), backup[CLASSIC] / backup[way],
         restore[way], _spread(times.restore_s[way]), restore[CLASSIC] / restore[way]]
        for way in (OURS, CLASSIC, PLAIN)
    ]  # fmt: skip
    verified_s = statistics.median(times.verified_s)
    rows.append([_VERIFIED, "", "", "", verified_s, _spread(times.verified_s), restore[CLASSIC] / verified_s])
    forecast_rows: list[list[Cell]] = [
        [f"{size} MiB", drilled_s, forecast_s, f"{error:+.0%}"]
        for size, drilled_s, forecast_s, error in forecasts.rows()
    ]
    worst = max(abs(error) for _, _, _, error in forecasts.rows())
    faster, sooner = backup[CLASSIC] / backup[OURS], restore[CLASSIC] / restore[OURS]
    verdict = (
        f"{faster:.1f}x backing up (aim {AIM_BACKUP:g}), {sooner:.1f}x restoring to a started, queried server "
        f"(aim {AIM_RESTORE:g}); RTO forecast within {worst:.0%} of the drilled time (aim {AIM_FORECAST:.0%})"
    )
    return Report(
        name="recovery",
        grids=[
            Grid(
                title=f"A database of {size_bytes / MIB:,.0f} MiB, medians of {rounds}",
                heads=["way", "backup s", "spread", "times", "restore s", "spread", "times"],
                rows=rows,
            ),
            Grid(
                title="The RTO, forecast from drills of the other sizes",
                heads=["size", "drilled s", "forecast s", "error"],
                rows=forecast_rows,
            ),
        ],
        verdict=verdict,
        results={"backup_s": times.backup_s, "restore_s": times.restore_s, "verified_s": times.verified_s},
    )


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f}"


def _as_rows(copy: CopyMade, made: DrillMade) -> tuple[Drill, Chain]:
    """As the store would have them, for the code that learns from drills."""
    now = SystemClock().now()
    point = RecoveryPoint(
        point=copy.point,
        dataset=DATASET.name,
        bucket=BUCKET.name,
        consistent_at=now,
        finished_at=now,
        plain_bytes=copy.plain_bytes,
        stored_bytes=copy.stored_bytes,
        parent=None,
        storage_classes=frozenset(made.storage_classes),
        key_ids=(),
    )
    drill = Drill(
        drill=str(uuid.uuid4()),
        name="benchmark",
        dataset=DATASET.name,
        selection=DrillSelection.LATEST,
        key=KeyPurpose.SITE,
        bucket=BUCKET.name,
        phase=DrillPhase.PASSED,
        phase_since=now,
        asked_at=now,
        asked_by="benchmark",
        point=copy.point,
        storage_classes=made.storage_classes,
        fetched_bytes=made.fetched_bytes,
        plain_bytes=made.plain_bytes,
        times=made.times,
    )
    return drill, Chain(links=(point,))


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=SUMMARY)
    options.add_argument("--size", type=int, default=SIZE_MIB, metavar="MIB", help="of the database that is compared")
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    share = [size / SIZE_MIB for size in FORECAST_MIB]
    show(measure([round(chosen.size * one) for one in share], chosen.rounds), Console())


if __name__ == "__main__":
    main()
