"""Backing a PostgreSQL up and getting it back: ours beside the pipe that most teams have.

    python -m benchmarks recovery
    python -m benchmarks.recovery --size 600 --rounds 2

Beside plain pgBackRest, where the system has it and a PostgreSQL that it knows: then all of it runs on that version.

The classic pipe is `pg_dump | gpg --symmetric --cipher-algo AES256`, then upload; and download, `gpg --decrypt | psql`
into an empty server. It runs with gpg's own defaults (which compress) and with `--compress-algo none`. Ours is what
the product does: BASE_BACKUP, zstd, AES-256-GCM, packs into the bucket; and back, fsynced, with the server started and
asked, then with everything verified. pgBackRest makes a full backup and restores it, with its own cipher, once set up
as ours is and once with its defaults. Same database, same object store on the same two cores, turns in one run.
"""

import argparse
import statistics
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console

from benchmarks.classic_pipe import DEFAULTS as CLASSIC
from benchmarks.classic_pipe import PLAIN
from benchmarks.recovery_lab import BUCKET, DATASET, Ours, Timed, lab
from benchmarks.report import Cell, Grid, Report, show
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import DrillSelection, KeyPurpose
from controlplane.domain.recovery import Drill, DrillPhase, RecoveryPoint
from controlplane.kernel.units import MIB
from controlplane.recovery.forecast import forecast_rto
from controlplane.recovery.lineage import Chain
from controlplane.recovery.rates import learn_rates
from controlplane.recovery.workshop import CopyMade, DrillMade

SUMMARY: Final = "back up and restore 2 GiB of PostgreSQL, beside pg_dump | gpg and pgBackRest; and the RTO's forecast"

SIZE_MIB: Final = 2_100
FORECAST_MIB: Final = (150, 600, SIZE_MIB)
ROUNDS: Final = 3
DRILLS_MAX: Final = 3
"""Of each size: two that are learned from when the third is forecast."""
QUICK_MIB: Final = (12, 24, 48)
AIM_BACKUP: Final = 5.0
AIM_RESTORE: Final = 8.0
AIM_FORECAST: Final = 0.15


def run(*, quick: bool) -> Report:
    if quick:
        return measure(QUICK_MIB, 1, with_pgbackrest=False)
    return measure(FORECAST_MIB, ROUNDS, with_pgbackrest=True)


def measure(sizes_mib: Sequence[int], rounds: int, *, with_pgbackrest: bool) -> Report:
    """The last size is the one that is compared; drills of each are forecast from the others."""
    with lab(with_pgbackrest=with_pgbackrest) as place:
        forecasts = _Forecasts()
        for size in sizes_mib:
            place.fill(size)
            forecasts.add(size, place.ours(drills=max(2, min(rounds, DRILLS_MAX))))
        times = _Times()
        for _ in range(rounds):
            times.add_ours(place.ours(drills=1))
            for peer in place.peers:
                times.add(peer.name, place.timed(peer))
        title = f"A database of {place.database_bytes() / MIB:,.0f} MiB, {place.server}, medians of {rounds}"
        if place.without:
            title += f"; without {place.without}"
    return _report(title, times, forecasts)


OURS: Final = "ours"
_VERIFIED: Final = "ours, verified"


@dataclass(slots=True)
class _Times:
    backup_s: dict[str, list[float]] = field(default_factory=dict)
    store_cpu_s: dict[str, list[float]] = field(default_factory=dict)
    restore_s: dict[str, list[float]] = field(default_factory=dict)
    verified_s: list[float] = field(default_factory=list)

    def add(self, way: str, timed: Timed) -> None:
        self.backup_s.setdefault(way, []).append(timed.backup_s)
        self.store_cpu_s.setdefault(way, []).append(timed.store_cpu_s)
        self.restore_s.setdefault(way, []).append(timed.restore_s)

    def add_ours(self, ours: Ours) -> None:
        times = ours.drills[-1].times
        started_s = times.fetch_and_restore_s + times.start_and_replay_s
        self.add(OURS, Timed(backup_s=ours.copy.took_s, store_cpu_s=ours.store_cpu_s, restore_s=started_s))
        self.verified_s.append(started_s + times.verify_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forecast:
    size_mib: int
    drilled_s: float
    """The median."""
    forecast_s: float
    """From all drills but the one that is forecast; the median."""
    errors: list[float]
    """Of those, relative to each drill itself."""
    of_other_sizes_s: float

    @property
    def row(self) -> list[Cell]:
        other = self.of_other_sizes_s / self.drilled_s - 1.0
        return [
            f"{self.size_mib} MiB",
            self.drilled_s,
            self.forecast_s,
            f"{self.forecast_s / self.drilled_s - 1.0:+.0%}",
            f"{min(self.errors):+.0%} to {max(self.errors):+.0%}",
            self.of_other_sizes_s,
            f"{other:+.0%}",
        ]


@dataclass(slots=True)
class _Forecasts:
    """Each drill forecast from all the others, and each size from the drills of the other sizes."""

    measured: list[tuple[int, Drill, Chain]] = field(default_factory=list)

    def add(self, size_mib: int, ours: Ours) -> None:
        for made in ours.drills:
            drill, chain = _as_rows(ours.copy, made)
            self.measured.append((size_mib, drill, chain))

    def rows(self) -> Iterator[_Forecast]:
        for size in sorted({size for size, _, _ in self.measured}):
            own = [(drill, chain) for other, drill, chain in self.measured if other == size]
            others = [drill for other, drill, _ in self.measured if other != size]
            of_all = [
                forecast_rto(chain, learn_rates([one for _, one, _ in self.measured if one is not drill])).total_s
                for drill, chain in own
            ]
            yield _Forecast(
                size_mib=size,
                drilled_s=statistics.median(drill.times.rto_s for drill, _ in own),
                forecast_s=statistics.median(of_all),
                errors=[one_s / drill.times.rto_s - 1.0 for one_s, (drill, _) in zip(of_all, own, strict=True)],
                of_other_sizes_s=forecast_rto(own[0][1], learn_rates(others)).total_s,
            )


def _report(title: str, times: _Times, forecasts: _Forecasts) -> Report:
    backup = {way: statistics.median(seconds) for way, seconds in times.backup_s.items()}
    restore = {way: statistics.median(seconds) for way, seconds in times.restore_s.items()}
    rows: list[list[Cell]] = [
        [way, _spread(times.backup_s[way]), backup[CLASSIC] / backup[way], statistics.median(times.store_cpu_s[way]),
         _spread(times.restore_s[way]), restore[CLASSIC] / restore[way]]
        for way in backup
    ]  # fmt: skip
    verified = restore[CLASSIC] / statistics.median(times.verified_s)
    rows.append([_VERIFIED, "", "", "", _spread(times.verified_s), verified])
    forecast = list(forecasts.rows())
    worst = max(abs(one.forecast_s / one.drilled_s - 1.0) for one in forecast)
    faster, sooner = backup[CLASSIC] / backup[OURS], restore[CLASSIC] / restore[OURS]
    peers = [way for way in backup if way not in {OURS, CLASSIC, PLAIN}]
    beside = (
        f"beside pgBackRest's best {min(backup[way] for way in peers) / backup[OURS]:.1f}x and "
        f"{min(restore[way] for way in peers) / restore[OURS]:.1f}x; "
        if peers
        else ""
    )
    verdict = (
        f"{faster:.1f}x backing up (aim {AIM_BACKUP:g}), {sooner:.1f}x restoring to a started, queried server "
        f"(aim {AIM_RESTORE:g}); {beside}RTO forecast within {worst:.0%} of the drilled time (aim {AIM_FORECAST:.0%})"
    )
    return Report(
        name="recovery",
        grids=[
            Grid(
                title=title,
                heads=["way", "backup s", "times", "store s", "restore s", "times"],
                rows=rows,
            ),
            Grid(
                title="The RTO of drills, forecast from all the other drills, and from those of other sizes alone",
                heads=["size", "drilled s", "forecast s", "error", "each drill", "other sizes s", "error"],
                rows=[one.row for one in forecast],
            ),
        ],
        verdict=verdict,
        results={"backup_s": times.backup_s, "restore_s": times.restore_s, "verified_s": times.verified_s},
    )


def _spread(seconds: Sequence[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"


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
    sizes_mib = [round(chosen.size * one) for one in share]
    show(measure(sizes_mib, chosen.rounds, with_pgbackrest=True), Console())


if __name__ == "__main__":
    main()
