"""The cheapest schedule for a load that is known beforehand: what policies are measured against.

What is exact and what is a model. The load is counted in bins of time, and a bin with so much work needs so many
replicas ready (`needs`), no fewer, in all of it. For this covering model `cheapest` is optimal: no schedule with
enough ready replicas in every bin takes less GPU time. For a queue it is no bound: requests that may wait some seconds
smooth the peaks inside and between bins, so a policy may stay below it and still meet its objectives; the longer the
bin, the more of that the model grants. What happens before the load begins is not paid for.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.workload import Workload

type Bools = npt.NDArray[np.bool_]

_STAY: Final = 0
_SLEEP: Final = 1
_START: Final = 2
"""The ways through a gap."""
_ROUNDING: Final = 1e-9
"""So that a bin with just one replica's work does not need two."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Step functions from 0 to duration_s: each value holds from its moment to the next."""

    at_s: Floats
    """Moments of change, rising, the first 0."""
    wanted: Ints
    """Replicas that are ordered and awake from then on: starting, waking or ready. An order comes a cold start before
    its replica is needed, a wake-up a wake time before. Those wanted at 0 are there: ready, waking or starting."""
    asleep: Ints
    duration_s: float
    replica_s: float
    """From order to removal, all replicas together; asleep at its share."""
    starts: int
    wakes: int
    unmet_replica_s: float
    """What the maximum leaves uncovered: 0 when every bin has what it needs."""

    def wanted_at(self, at_s: float) -> int:
        """From 0 on."""
        return int(self.wanted[self._place(at_s)])

    def asleep_at(self, at_s: float) -> int:
        """From 0 on."""
        return int(self.asleep[self._place(at_s)])

    def _place(self, at_s: float) -> int:
        return int(np.searchsorted(self.at_s, at_s, side="right")) - 1

    @property
    def mean_replicas(self) -> float:
        return self.replica_s / self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What it takes to have a replica back, in seconds of a GPU's time."""

    cold_start_s: float
    wake_s: float | None = None
    """None: replicas do not sleep."""
    asleep_share: float = 0.0
    """What a sleeping replica costs of a ready one: 0 when its GPUs serve something else, 1 when they are kept."""
    asleep_most: int | None = None
    """Asleep at once; None: all."""

    def __post_init__(self) -> None:
        assert self.cold_start_s >= 0.0, "a start takes no less than no time"
        assert self.wake_s is None or self.wake_s >= 0.0, "waking up takes no less than no time"
        assert 0.0 <= self.asleep_share <= 1.0, "a sleeper costs at most what a ready one does"


def needs(
    workload: Workload, replica_rps: float, bin_s: float, *, work: Floats | None = None, replicas_min: int = 0
) -> Ints:
    """Replicas that each bin needs for what arrives in it.

    `replica_rps` is the capacity of one replica in requests of weight 1 per second. `work` weighs each request, for
    instance by its time on the GPU over that of the request for which the capacity holds; without it all weigh 1. A
    last bin that the load's end cuts short counts as a whole one: a request in its last instant is no rush.
    """
    assert replica_rps > 0.0, "a replica serves something"
    assert bin_s > 0.0, "a bin lasts"
    assert work is None or len(work) == workload.requests, "a weight for each request"
    bins = max(int(np.ceil(workload.duration_s / bin_s - _ROUNDING)), 1)
    bin_of = np.minimum((workload.arrival_s / bin_s).astype(np.int64), bins - 1)
    load = np.bincount(bin_of, weights=work, minlength=bins)
    needed: Ints = np.ceil(load / (replica_rps * bin_s) - _ROUNDING).astype(np.int64)
    return np.maximum(needed, replicas_min)


def static_peak(needed: Ints) -> int:
    """The fewest replicas that cover every bin without ever changing."""
    return int(needed.max())


def cheapest(
    needed: Ints,
    bin_s: float,
    prices: Prices,
    *,
    replicas_min: int = 0,
    replicas_max: int | None = None,
    duration_s: float | None = None,
) -> Schedule:
    """The schedule of least GPU time with at least `needed` ready replicas in every bin.

    An order is paid from its moment, cold_start_s before the replica is ready; waking up is paid in full, and takes
    wake_s; removing and falling asleep take no time. `replicas_min` are always ready. Needs above `replicas_max` stay
    uncovered, and are told. `duration_s` cuts the last bin short.

    Exact, because levels are separable: a k-th replica is needed in the bins that need k and more, and any schedule
    costs what "at least k are awake" and "at least k are held" cost, summed over k. For a gap of g seconds between two
    stretches in which it is needed, a level pays no less than the cheapest of

        staying ready   g
        sleeping        wake_s + asleep_share (g - wake_s)     where g >= wake_s
        starting anew   cold_start_s                           where g >= cold_start_s

    and the cheapest for every gap of every level is one schedule: the gaps of a higher level enclose those of a lower
    one, and the longer a gap, the colder the choice. Where only `asleep_most` may sleep at once, the gaps that do are
    those that save most (`_with_few_asleep`). The gap before the first stretch is like any other (the replica
    is there at 0, or is ordered in time); after the last one it costs nothing.
    """
    assert bin_s > 0.0, "a bin lasts"
    edges_s, levels = _runs(np.maximum(needed, replicas_min), bin_s, duration_s)
    peak = int(levels.max())
    most = peak if replicas_max is None else min(replicas_max, peak)
    gaps = [_gaps(edges_s, levels >= level, prices) for level in range(1, most + 1)]
    if prices.asleep_most is not None:
        gaps = _with_few_asleep(gaps, min(prices.asleep_most, most))
    paths = [_path(one, prices) for one in gaps]
    awake = _Spans.of([path.awake for path in paths])
    asleep = _Spans.of([path.asleep for path in paths])
    at_s = np.unique(np.concatenate([[0.0], awake.from_s, awake.to_s, asleep.from_s, asleep.to_s]))
    at_s = at_s[at_s < edges_s[-1]]
    wanted, sleeping = awake.open_at(at_s), asleep.open_at(at_s)
    changes = np.concatenate([[True], (np.diff(wanted) != 0) | (np.diff(sleeping) != 0)])
    return Schedule(
        at_s=at_s[changes],
        wanted=wanted[changes],
        asleep=sleeping[changes],
        duration_s=float(edges_s[-1]),
        replica_s=awake.total_s + prices.asleep_share * asleep.total_s,
        starts=sum(path.starts for path in paths),
        wakes=sum(len(path.asleep.from_s) for path in paths),
        unmet_replica_s=float((np.maximum(levels - most, 0) * np.diff(edges_s)).sum()),
    )


class _Spans(NamedTuple):
    """Stretches of time of replicas, those of each end in order."""

    from_s: Floats
    to_s: Floats

    @classmethod
    def of(cls, parts: "Sequence[_Spans]") -> "_Spans":
        nothing = np.empty(0)
        return cls(
            np.sort(np.concatenate([nothing, *(part.from_s for part in parts)])),
            np.sort(np.concatenate([nothing, *(part.to_s for part in parts)])),
        )

    @property
    def total_s(self) -> float:
        return float(self.to_s.sum() - self.from_s.sum())

    def open_at(self, at_s: Floats) -> Ints:
        return np.searchsorted(self.from_s, at_s, side="right") - np.searchsorted(self.to_s, at_s, side="right")


class _Gaps(NamedTuple):
    """When the replica of one level is not needed, the time before it is for the first time included."""

    free_s: Floats
    begin_s: Floats
    """Needed again, until `stop_s`."""
    stop_s: Floats
    costs_s: Floats
    """(3, gaps): of each way through."""
    choice: Ints
    """Of the ways."""


class _Path(NamedTuple):
    """What the replica of one level does."""

    awake: _Spans
    asleep: _Spans
    starts: int


def _runs(needed: Ints, bin_s: float, duration_s: float | None) -> tuple[Floats, Ints]:
    """Edges of the stretches of equal need, one more than stretches, and the needs."""
    turns = np.flatnonzero(np.diff(needed)) + 1
    edges_s = np.concatenate([[0], turns, [len(needed)]]) * bin_s
    if duration_s is not None:
        assert edges_s[-2] < duration_s, "every bin begins before the load ends"
        edges_s[-1] = duration_s
    return edges_s, needed[np.concatenate([[0], turns])]


def _gaps(edges_s: Floats, needed: Bools, prices: Prices) -> _Gaps:
    turns = np.diff(np.concatenate([[0], needed.astype(np.int8), [0]]))
    begin_s, stop_s = edges_s[np.flatnonzero(turns == 1)], edges_s[np.flatnonzero(turns == -1)]
    free_s = np.concatenate([[0.0], stop_s[:-1]])
    gap_s = begin_s - free_s
    wake_s = np.inf if prices.wake_s is None else prices.wake_s
    with np.errstate(invalid="ignore"):
        sleeping_s = np.where(gap_s >= wake_s, wake_s + prices.asleep_share * (gap_s - wake_s), np.inf)
    starting_s = np.where(gap_s >= prices.cold_start_s, prices.cold_start_s, np.inf)
    costs_s = np.array([gap_s, sleeping_s, starting_s])
    # Among equals the first: staying ready needs nothing to be done.
    return _Gaps(free_s, begin_s, stop_s, costs_s, np.argmin(costs_s, axis=0))


def _path(gaps: _Gaps, prices: Prices) -> _Path:
    free_s, begin_s = gaps.free_s, gaps.begin_s
    wake_s = np.inf if prices.wake_s is None else prices.wake_s
    sleeps, starts = gaps.choice == _SLEEP, gaps.choice == _START
    up_s = np.where(sleeps, begin_s - wake_s, np.where(starts, begin_s - prices.cold_start_s, free_s))
    return _Path(_Spans(up_s, gaps.stop_s), _Spans(free_s[sleeps], up_s[sleeps]), int(starts.sum()))


# -- few beds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Nap:
    """A gap that its level had better sleep through."""

    level: int
    place: int
    free_s: float
    inside: "Sequence[_Nap]"
    """Those of lower levels within it."""
    saved_s: Floats
    """The most that can be saved in it and inside, by the number of beds."""
    slept: Bools
    """Whether it is slept through itself then."""


def _with_few_asleep(levels: Sequence[_Gaps], most: int) -> list[_Gaps]:
    """The same gaps with at most so many asleep at once; the others take their next best way.

    Gaps are nested, so those that sleep at once lie inside each other, and the best choice comes from the inside out:
    of each gap the most that it saves with so many beds, in one of them or with all left to what is inside.
    """
    outermost: list[_Nap] = []
    for level, gaps in enumerate(levels):
        for place in np.flatnonzero(gaps.choice == _SLEEP):
            first = bisect_left(outermost, gaps.free_s[place], key=attrgetter("free_s"))
            last = bisect_left(outermost, gaps.begin_s[place], key=attrgetter("free_s"))
            outermost[first:last] = [_nap(gaps, level, int(place), outermost[first:last], most)]
    choices = [np.where(gaps.choice == _SLEEP, _without_sleep(gaps), gaps.choice) for gaps in levels]
    pending = [(nap, most) for nap in outermost]
    while pending:
        nap, beds = pending.pop()
        if nap.slept[beds]:
            choices[nap.level][nap.place] = _SLEEP
        pending += [(inside, beds - int(nap.slept[beds])) for inside in nap.inside]
    return [gaps._replace(choice=choice) for gaps, choice in zip(levels, choices, strict=True)]


def _without_sleep(gaps: _Gaps) -> Ints:
    return np.where(gaps.costs_s[_STAY] <= gaps.costs_s[_START], _STAY, _START)


def _nap(gaps: _Gaps, level: int, place: int, inside: Sequence[_Nap], most: int) -> _Nap:
    stay_s, sleep_s, start_s = gaps.costs_s[:, place]
    without_s = np.sum([nap.saved_s for nap in inside], axis=0) if inside else np.zeros(most + 1)
    with_s = np.concatenate([[-np.inf], min(stay_s, start_s) - sleep_s + without_s[:-1]])
    return _Nap(
        level=level,
        place=place,
        free_s=float(gaps.free_s[place]),
        inside=inside,
        saved_s=np.maximum(with_s, without_s),
        slept=with_s > without_s,
    )
