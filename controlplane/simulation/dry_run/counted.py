"""Counters as they stood at moments, turned into what happened between these: restarts, gaps, replicas that come."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats, Ints

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

_APPEARING_TIMES: Final = 3.0
_APPEARING_MORE: Final = 10.0
"""A counter that appears is counted from zero, since vLLM exports its counters from its start on; unless it appears
with more than any replica got between two moments, three times over and ten: that is a replica which had served for
long before Prometheus looked at it, under these labels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grown:
    """What a counter grew by in each interval."""

    by: Floats
    restarts: int = 0
    appeared_with: float = 0.0
    """What it had counted when it appeared after the beginning: within `by`, or left out when that cannot be."""
    appeared_at: int = -1
    """In which interval; -1: it was there from the first moment that was watched."""


def grown(values: Floats, watched: Flags) -> Grown:
    """Of a counter at each moment, NaN where it was not there.

    Between two moments at which it was seen the growth is spread evenly: where it was missed in between, nobody knows
    better. Where it is lower than before, the process restarted, and all that it shows came since.
    """
    return _grown(values, np.asarray(values, dtype=np.float64), watched)


def arrivals(finished: Floats, opened: Floats, watched: Flags) -> Grown:
    """Requests that came to one replica: what it finished and what it has open only grow together when some come.

    The two are read at slightly different moments of the engine's loop, so that the sum may fall back for a moment:
    it is taken as never falling. A restart shows in `finished`; what was open then had come before. When a replica
    ends, what it still had open is not taken back, for it came.
    """
    return _grown(finished, finished + np.nan_to_num(opened), watched)


def appearing_max(grown_by: list[Grown]) -> float:
    """The most that a replica may appear with and still be counted from zero."""
    largest = 0.0
    for one in grown_by:
        others = one.by.copy()
        if one.appeared_at >= 0:
            others[one.appeared_at] = 0.0
        largest = max(largest, float(others.max(initial=0.0)))
    return _APPEARING_TIMES * largest + _APPEARING_MORE


def without_appearance(one: Grown) -> Floats:
    """What it grew by, from its first sample on."""
    by = one.by.copy()
    if one.appeared_at >= 0:
        by[one.appeared_at] = 0.0
    return by


def _grown(sentinel: Floats, values: Floats, watched: Flags) -> Grown:
    """`sentinel` falls when the process restarts, and `values`, which it is a part of, must not within one life."""
    by = np.zeros(len(values) - 1)
    seen: Ints = np.flatnonzero(~np.isnan(sentinel))
    if not len(seen):
        return Grown(by=by)
    known = values[seen]
    begins: Ints = np.flatnonzero(np.concatenate([[True], np.diff(sentinel[seen]) < 0.0]))
    steps = np.zeros(len(seen))
    for life, begin in enumerate(begins):
        end = begins[life + 1] if life + 1 < len(begins) else len(seen)
        highest = np.maximum.accumulate(known[begin:end])
        steps[begin] = highest[0]
        steps[begin + 1 : end] = np.diff(highest)
    appeared = bool(seen[0] > 0 and watched[seen[0] - 1])
    if appeared:
        by[seen[0] - 1] += steps[0]
    _spread(by, seen, steps[1:])
    return Grown(
        by=by,
        restarts=len(begins) - 1,
        appeared_with=float(steps[0]) if appeared else 0.0,
        appeared_at=int(seen[0]) - 1 if appeared else -1,
    )


def _spread(by: Floats, seen: Ints, steps: Floats) -> None:
    """Each step evenly over the intervals between the two moments that it was told by."""
    lengths = np.diff(seen)
    if not len(lengths):
        return
    intervals = np.arange(seen[0], seen[-1])
    by[intervals] += np.repeat(steps / lengths, lengths)
