"""How fast this site restores, learned from its drills.

Each phase is a line: a fixed part and so much a byte, neither negative. Of all lines through two observations (or
through one, with a part at zero) the one with the least absolute relative error is taken: a fit that one odd drill does
not bend. The guesses for a site without drills take part with a small weight, and settle what the drills leave open:
one drill says nothing of how its time divides.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from controlplane.domain.dataset import StorageClass
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes, RecoveryPoint
from controlplane.kernel.units import GIB, MIB
from controlplane.recovery.classes import coldest
from controlplane.recovery.lineage import Chain, chain_of
from controlplane.recovery.phrases import count_of

SAMPLES_MAX: Final = 20
"""Newest drills that are learned from: enough for a line, few enough to forget a machine that was replaced."""
_RECENT: Final = 0.85
"""Weight of a drill relative to the next newer one: after four or five a change of hardware has won."""
_GUESS_WEIGHT: Final = 0.15
"""Of each of the two guessed observations, against 1 for the newest drill."""
_GUESS_SIZES: Final = (0, 1024 * GIB)
_NOISE_S: Final = 0.05
"""Added to both sides of a comparison: phases of some milliseconds are noise."""
_BAND: Final = 0.8
"""A forecast's band holds this share of what was seen."""
_UNSURE_AT_FIRST: Final = 0.5
"""Of the band, divided by the number of drills: one drill may be off by 1.6, ten by 5 % more than they differed."""
_UNSURE_GUESS: Final = math.log(3.0)
"""Nothing was measured: between a third and three times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Seconds of a phase: `fixed_s + bytes * s_per_byte`."""

    fixed_s: float
    s_per_byte: float
    samples: int = 0
    """Drills behind the fixed part; 0: a guess."""
    sized: int = 0
    """Of these, the ones that had any bytes: they are behind the rate."""

    def seconds(self, size_bytes: float) -> float:
        return self.fixed_s + size_bytes * self.s_per_byte

    def is_guess(self, size_bytes: float) -> bool:
        return self.samples == 0 or (size_bytes > 0 and self.sized == 0)

    def said(self, size_bytes: float) -> str:
        """`5.0 s and 347 MiB/s, measured by 2 drills`."""
        fixed = f"{self.fixed_s:.1f} s"
        if size_bytes > 0:
            rate = f"{1.0 / self.s_per_byte / MIB:.0f} MiB/s" if self.s_per_byte > 0.0 else "no time a byte"
            fixed = f"{fixed} and {rate}"
        if self.is_guess(size_bytes):
            return f"{fixed}, a guess until a drill measures it"
        return f"{fixed}, measured by {count_of(self.sized if size_bytes > 0 else self.samples, 'drill')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one passed drill says about speed."""

    plain_bytes: int
    """Of all links of the chain."""
    log_bytes: int
    """Of the log that was replayed, as stored."""
    storage_class: StorageClass
    times: DrillTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    restore: Line
    """Fetch, decrypt, decompress, write: by plain bytes of the chain."""
    replay: Line
    """Start and replay: by stored bytes of the log."""
    verify: Line
    """By plain bytes."""
    waits_s: tuple[tuple[StorageClass, float], ...] = ()
    """Retrievals that drills waited for, the median of each archive class."""
    samples: int = 0
    scatter: float = _UNSURE_GUESS
    """A drill takes between `exp(-scatter)` and `exp(scatter)` times the forecast, as far as was seen."""
    sizes: tuple[int, int] | None = None
    """Plain bytes of the smallest and the largest drill."""

    def wait_s(self, storage_class: StorageClass) -> float | None:
        return dict(self.waits_s).get(storage_class)


GUESSED_RATES: Final = Rates(
    # pgBackRest from S3 was seen between 8 MB/s and 1.4 GB/s (its issues 989 and 884), so this is low rather than high.
    restore=Line(fixed_s=5.0, s_per_byte=1.0 / (100 * MIB)),
    # One process replays PostgreSQL's WAL; a server starts within seconds.
    replay=Line(fixed_s=5.0, s_per_byte=1.0 / (30 * MIB)),
    # pg_amcheck with --heapallindexed read a database of 1.9 GiB in 9.2 s on two cores.
    verify=Line(fixed_s=5.0, s_per_byte=1.0 / (200 * MIB)),
)
"""Before the first drill."""


def sample_of(drill: Drill, *, chain_stored_bytes: int) -> Sample | None:
    """None for a drill that did not pass: what it stopped at says nothing of how long the whole takes.

    `Drill.plain_bytes` is of all links of the chain; what was fetched beyond their stored bytes was log.
    """
    if drill.phase is not DrillPhase.PASSED:
        return None
    return Sample(
        plain_bytes=drill.plain_bytes,
        log_bytes=max(0, drill.fetched_bytes - chain_stored_bytes),
        storage_class=coldest(drill.storage_classes),
        times=drill.times,
    )


def learn_rates(
    drills: Sequence[Drill], points: Sequence[RecoveryPoint] = (), *, guess: Rates = GUESSED_RATES
) -> Rates:
    """From the drills of one dataset, in any order. `points` tell how much of what was fetched was log.

    Of a point that is no longer there all of it counts as copy.
    """
    newest_first = sorted(drills, key=lambda drill: drill.asked_at, reverse=True)
    samples = (sample_of(drill, chain_stored_bytes=_stored_bytes(drill, points)) for drill in newest_first)
    return learn([sample for sample in samples if sample is not None], guess=guess)


def learn(samples: Sequence[Sample], *, guess: Rates = GUESSED_RATES) -> Rates:
    """Newest first. Without samples: the guess itself."""
    recent = samples[:SAMPLES_MAX]
    if not recent:
        return guess
    lines = Rates(
        restore=_fit([(one.plain_bytes, one.times.fetch_and_restore_s) for one in recent], guess.restore),
        replay=_fit([(one.log_bytes, one.times.start_and_replay_s) for one in recent], guess.replay),
        verify=_fit([(one.plain_bytes, one.times.verify_s) for one in recent], guess.verify),
    )
    return Rates(
        restore=lines.restore,
        replay=lines.replay,
        verify=lines.verify,
        waits_s=tuple(_waits(recent)),
        samples=len(recent),
        scatter=_scatter(recent, lines),
        sizes=(min(one.plain_bytes for one in recent), max(one.plain_bytes for one in recent)),
    )


def _stored_bytes(drill: Drill, points: Sequence[RecoveryPoint]) -> int:
    here = (point for point in points if point.point == drill.point and point.bucket == drill.bucket)
    point = next(here, None)
    chain = None if point is None else chain_of(point, points)
    return chain.stored_bytes if isinstance(chain, Chain) else drill.fetched_bytes


def work_s(rates: Rates, *, plain_bytes: float, log_bytes: float) -> float:
    """Everything but the wait for a retrieval."""
    return rates.restore.seconds(plain_bytes) + rates.replay.seconds(log_bytes) + rates.verify.seconds(plain_bytes)


@dataclass(frozen=True, slots=True)
class _Seen:
    size_bytes: float
    duration_s: float
    weight: float
    guessed: bool = False

    def error(self, line: tuple[float, float]) -> float:
        """A guess is at most once wrong, however far the site is from it."""
        off = abs(_log_ratio(line[0] + line[1] * self.size_bytes, self.duration_s))
        return self.weight * (min(off, 1.0) if self.guessed else off)


def _fit(seen: Sequence[tuple[int, float]], guess: Line) -> Line:
    """`seen`: bytes and seconds, newest first."""
    drilled = [_Seen(size, duration, _RECENT**age) for age, (size, duration) in enumerate(seen)]
    guessed = [_Seen(size, guess.seconds(size), _GUESS_WEIGHT, guessed=True) for size in _GUESS_SIZES]
    everything = [*drilled, *guessed]
    best = min(_lines(everything), key=lambda line: sum(one.error(line) for one in everything))
    sized = sum(one.size_bytes > 0 for one in drilled)
    return Line(fixed_s=best[0], s_per_byte=best[1], samples=len(drilled), sized=sized)


def _lines(seen: Sequence[_Seen]) -> Iterator[tuple[float, float]]:
    """Through every two observations, and through each one with a part at zero; no part negative."""
    for one in seen:
        yield one.duration_s, 0.0
        if one.size_bytes > 0:
            yield 0.0, one.duration_s / one.size_bytes
    for one, other in combinations(seen, 2):
        if one.size_bytes == other.size_bytes:
            continue
        slope = (one.duration_s - other.duration_s) / (one.size_bytes - other.size_bytes)
        fixed = one.duration_s - slope * one.size_bytes
        if slope >= 0.0 and fixed >= 0.0:
            yield fixed, slope


def _waits(samples: Sequence[Sample]) -> Iterator[tuple[StorageClass, float]]:
    waited = [sample for sample in samples if sample.times.retrieval_wait_s > 0.0]
    for storage_class in sorted({sample.storage_class for sample in waited}):
        of_class = sorted(one.times.retrieval_wait_s for one in waited if one.storage_class is storage_class)
        yield storage_class, of_class[len(of_class) // 2]


def _scatter(samples: Sequence[Sample], rates: Rates) -> float:
    errors = sorted(
        abs(_log_ratio(work_s(rates, plain_bytes=one.plain_bytes, log_bytes=one.log_bytes), _worked_s(one.times)))
        for one in samples
    )
    return errors[min(int(_BAND * len(errors)), len(errors) - 1)] + _UNSURE_AT_FIRST / len(errors)


def _worked_s(times: DrillTimes) -> float:
    return times.rto_s - times.retrieval_wait_s


def _log_ratio(one_s: float, other_s: float) -> float:
    return math.log((one_s + _NOISE_S) / (other_s + _NOISE_S))
