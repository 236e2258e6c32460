"""What happened, rebuilt from Prometheus' answers: arrivals, lengths, replicas, latencies, and what is not known."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.simulation.dry_run.counted import (
    Flags,
    Grown,
    appearing_max,
    arrivals,
    grown,
    without_appearance,
)
from controlplane.simulation.dry_run.grid import Grid, Ranged
from controlplane.simulation.dry_run.questions import Ask
from controlplane.simulation.fleet.compiled import Floats, Ints

BRIDGED_S: Final = 600.0
"""A gap up to this long is bridged, what grew over it spread evenly: longer ones hide whole bursts."""
_LEAST_S: Final = 900.0
"""A stretch between two gaps that is shorter tells nothing about an autoscaler, which starts anew in it."""
_LENGTHS_OVER_S: Final = 3600.0
"""Mean lengths are taken over an hour around each moment: tokens and requests are counted at different moments of a
request's life, which evens out over many lives."""
_LENGTHS_LEAST: Final = 30.0
"""Requests in that hour: fewer tell less than the mean of the whole."""
_INFINITE: Final = "+Inf"
_NOT_IDENTITY: Final = frozenset({"job", "service", "endpoint", "container", "prometheus", "prometheus_replica", "le"})
"""Labels that tell who scraped, not what."""

_WHOLE: Final = (Ask.SUCCESS, Ask.RUNNING, Ask.WAITING, Ask.WATCHED, Ask.FAILING, Ask.HELD, Ask.WANTED)
"""Looked at as a whole; of the rest only sums are needed."""

type Answers = Mapping[Ask, Sequence[Ranged]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Within:
    """Of one histogram, by interval: observations in all, and those up to the edges beside a limit."""

    edges_s: tuple[float, ...]
    """Finite ones that were asked for, rising."""
    counts: tuple[Floats, ...]
    """Up to each of them."""
    total: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """Everything by interval of the grid, of all replicas together."""

    grid: Grid
    known: Flags
    """Somebody looked, and what is told is what was."""
    arrived: Floats
    finished: Floats
    started: Floats
    """Requests with a first token; empty where the engine does not tell."""
    prompt_tokens: Floats
    output_tokens: Floats
    ready: Ints
    """Replicas that were there at the end of the interval."""
    held: Ints | None
    """Pods that existed, starting ones among them, where Kubernetes told."""
    wanted: Ints | None
    """Pods that were wanted, where Kubernetes told."""
    ttft: Within | None
    per_token: Within | None
    replicas: int
    """Different ones in all."""
    restarts: int
    doubled: tuple[str, ...]
    """Replicas that Prometheus has twice, of which one was taken."""
    late: tuple[str, ...]
    """Replicas that appeared with counts from before they were looked at, which were left out."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Intervals `first` to `last`, `last` not among them, over which everything is known."""

    first: int
    last: int


def history_of(grid: Grid, answers: Answers) -> History:
    """Empty rows where nothing was answered: see `known`."""
    rows = {ask: _columns(grid, answers.get(ask, ())) for ask in _WHOLE}
    finished, doubled = _unique(rows[Ask.SUCCESS])
    running = {key: rows[Ask.RUNNING].get(key, _nothing(grid)) for key in finished}
    watched = _watched(grid, rows, list(running.values()))
    opened = {key: running[key] + np.nan_to_num(rows[Ask.WAITING].get(key, _nothing(grid))) for key in finished}
    came = {key: arrivals(column, opened[key], watched) for key, column in finished.items()}
    most = appearing_max(list(came.values()))
    late = {key for key, one in came.items() if one.appeared_with > most}

    def total(ask: Ask) -> Floats:
        return _total(grid, (series for series in answers.get(ask, ()) if _key(series.labels) in came), watched, late)

    ttft = _within(grid, answers.get(Ask.TTFT, ()), watched, late, came)
    there = np.array([~np.isnan(column) for column in running.values()], dtype=bool).reshape(-1, grid.moments)
    return History(
        grid=grid,
        known=_bridged(watched[1:] & watched[:-1], grid.step_s),
        arrived=_summed(grid, (without_appearance(one) if key in late else one.by for key, one in came.items())),
        finished=total(Ask.SUCCESS),
        started=np.zeros(0) if ttft is None else ttft.total,
        prompt_tokens=total(Ask.PROMPT_TOKENS),
        output_tokens=total(Ask.OUTPUT_TOKENS),
        ready=_bridged_count(there.sum(axis=0), watched),
        held=_told(rows[Ask.HELD]),
        wanted=_told(rows[Ask.WANTED]),
        ttft=ttft,
        per_token=_within(grid, answers.get(Ask.PER_TOKEN, ()), watched, late, came),
        replicas=len(finished),
        restarts=sum(one.restarts for one in came.values()),
        doubled=tuple(sorted(doubled)),
        late=tuple(sorted(late)),
    )


def stretches(history: History) -> tuple[Stretch, ...]:
    """All that is known, without what is too short to tell anything."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], history.known.astype(np.int8), [0]])))
    least = _LEAST_S / history.grid.step_s
    whole = len(edges) == 2 and edges[0] == 0 and edges[1] == history.grid.intervals  # noqa: PLR2004 - begin and end
    return tuple(
        Stretch(int(first), int(last))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
        if whole or last - first >= least
    )


def mean_lengths(history: History) -> tuple[Floats, Floats]:
    """Prompt and output tokens of a request, around each interval."""
    started = history.started if len(history.started) else history.arrived
    half = max(round(_LENGTHS_OVER_S / 2.0 / history.grid.step_s), 1)
    return (
        _ratio_around(np.where(history.known, history.prompt_tokens, 0.0), started * history.known, half),
        _ratio_around(np.where(history.known, history.output_tokens, 0.0), history.finished * history.known, half),
    )


# -- rows -------------------------------------------------------------------------------------------------------------


def _columns(grid: Grid, answer: Sequence[Ranged]) -> Mapping[str, Floats]:
    return {_key(series.labels): grid.column(series) for series in answer}


def _key(labels: Mapping[str, str]) -> str:
    """All labels but the edge: those of one replica's families are alike."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()) if name not in {"le", "__name__"})


def _identity(key: str) -> str:
    return ",".join(part for part in key.split(",") if part.partition("=")[0] not in _NOT_IDENTITY)


def _unique(columns: Mapping[str, Floats]) -> tuple[dict[str, Floats], set[str]]:
    """One series for each replica at any time: those that were scraped twice, under two jobs say, count once."""
    kept: dict[str, Floats] = {}
    doubled: set[str] = set()
    by_identity: dict[str, list[str]] = defaultdict(list)
    for key in sorted(columns, key=lambda one: (-int((~np.isnan(columns[one])).sum()), one)):
        identity = _identity(key)
        there = ~np.isnan(columns[key])
        if any((there & ~np.isnan(kept[other])).sum() > 1 for other in by_identity[identity]):
            doubled.add(identity)
            continue
        by_identity[identity].append(key)
        kept[key] = columns[key]
    return kept, doubled


def _nothing(grid: Grid) -> Floats:
    return np.full(grid.moments, np.nan)


def _watched(grid: Grid, rows: Mapping[Ask, Mapping[str, Floats]], running: Sequence[Floats]) -> Flags:
    """Moments at which a replica was seen, or at which it is certain that there was none.

    There was none where Kubernetes says so, or where Prometheus scraped others and none of the engines' targets failed.
    """
    seen = np.zeros(grid.moments, dtype=bool)
    for column in running:
        seen |= ~np.isnan(column)
    held = rows[Ask.HELD]
    if held:
        column = next(iter(held.values()))
        return np.asarray(seen | (column == 0.0))
    awake, failing = (_any(grid, rows[ask]) for ask in (Ask.WATCHED, Ask.FAILING))
    return np.asarray(seen | (awake & ~failing))


def _any(grid: Grid, columns: Mapping[str, Floats]) -> Flags:
    found = np.zeros(grid.moments, dtype=bool)
    for column in columns.values():
        found |= np.nan_to_num(column) > 0.0
    return found


def _bridged(known: Flags, step_s: float) -> Flags:
    """With gaps of up to BRIDGED_S between two known stretches filled."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], known.astype(np.int8), [1]])))
    filled = known.copy()
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        # Of n unwatched moments n + 1 intervals are unknown.
        if begin > 0 and end < len(known) and (end - begin - 1) * step_s <= BRIDGED_S:
            filled[begin:end] = True
    return filled


def _bridged_count(counts: Ints, watched: Flags) -> Ints:
    """At the end of each interval; over moments that nobody watched the last known one."""
    latest = np.maximum.accumulate(np.where(watched, np.arange(len(counts)), 0))
    return np.asarray(counts[latest][1:])


def _total(grid: Grid, answer: Iterable[Ranged], watched: Flags, late: set[str]) -> Floats:
    """What all of them grew by; one series at a time, since a week of a fleet that turns over is a gigabyte."""

    def by(series: Ranged) -> Floats:
        one = grown(grid.column(series), watched)
        return without_appearance(one) if _key(series.labels) in late else one.by

    return _summed(grid, map(by, answer))


def _summed(grid: Grid, parts: Iterable[Floats]) -> Floats:
    total = np.zeros(grid.intervals)
    for part in parts:
        total += part
    return total


def _told(columns: Mapping[str, Floats]) -> Ints | None:
    """By interval; the latest known one where it was not told."""
    if not columns:
        return None
    column = next(iter(columns.values()))
    known = ~np.isnan(column)
    if not known.any():
        return None
    places = np.where(known, np.arange(len(column)), -1)
    latest = np.maximum.accumulate(places)
    latest[latest < 0] = int(np.argmax(known))
    told: Ints = column[latest][1:].astype(np.int64)
    return told


def _within(
    grid: Grid, answer: Sequence[Ranged], watched: Flags, late: set[str], kept: Mapping[str, Grown]
) -> Within | None:
    by_edge: dict[str, list[Ranged]] = defaultdict(list)
    for series in answer:
        if _key(series.labels) in kept:
            by_edge[series.labels.get("le", "")].append(series)
    if _INFINITE not in by_edge:
        return None
    finite = sorted((edge for edge in by_edge if edge != _INFINITE), key=float)
    return Within(
        edges_s=tuple(float(edge) for edge in finite),
        counts=tuple(_total(grid, by_edge[edge], watched, late) for edge in finite),
        total=_total(grid, by_edge[_INFINITE], watched, late),
    )


def _ratio_around(tokens: Floats, requests: Floats, half: int) -> Floats:
    """Tokens for each request within `half` intervals before and after; at least 1."""
    whole = float(tokens.sum()) / max(float(requests.sum()), 1.0)
    summed_tokens, summed_requests = (np.concatenate([[0.0], np.cumsum(values)]) for values in (tokens, requests))
    places = np.arange(len(tokens))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(tokens))
    count = summed_requests[last] - summed_requests[first]
    enough = count >= _LENGTHS_LEAST
    mean = np.full(len(tokens), whole)
    mean[enough] = (summed_tokens[last] - summed_tokens[first])[enough] / count[enough]
    at_least_one: Floats = np.maximum(mean, 1.0)
    return at_least_one


def coefficient_of_variation(edges: Sequence[float], counts: Floats) -> float:
    """Of what a histogram observed, each observation in the geometric middle of its bucket; NaN without any.

    `counts` are cumulative, one for each of `edges`, the last of which may be infinite.
    """
    inside = np.diff(np.concatenate([[0.0], counts]))
    total = float(inside.sum())
    if total <= 0.0:
        return math.nan
    low = np.concatenate([[max(edges[0] / 2.0, 1.0)], np.asarray(edges[:-1], dtype=np.float64)])
    high = np.where(np.isinf(edges), low, edges)
    middle = np.sqrt(np.maximum(low, 1.0) * np.maximum(high, 1.0))
    mean = float((middle * inside).sum()) / total
    return math.sqrt(max(float((np.square(middle - mean) * inside).sum()) / total, 0.0)) / mean
