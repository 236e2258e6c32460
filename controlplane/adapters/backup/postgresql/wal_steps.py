"""What has to be copied and removed for another bucket to have the same log. Pure.

Nothing is ever removed because the first bucket lacks it: only pieces that a longer range replaces in the further
bucket itself. So whoever empties the first bucket empties that one alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from controlplane.adapters.backup.postgresql.lsn import Position
from controlplane.adapters.backup.postgresql.wal_coverage import is_obsolete
from controlplane.adapters.backup.postgresql.wal_layout import WalRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """First the copy, then the removals."""

    segment: str
    copy: WalRange | None
    removes: tuple[WalRange, ...] = ()


def by_segment(
    source: Iterable[WalRange], target: Iterable[WalRange]
) -> Iterator[tuple[str, list[WalRange], list[WalRange]]]:
    """Both are listings, in the order of their keys: each segment of the source, and what the target has of it."""
    theirs = _groups(target)
    there = next(theirs, None)
    for segment, found in _groups(source):
        while there is not None and there[0] < segment:
            there = next(theirs, None)
        same = there is not None and there[0] == segment
        yield segment, found, there[1] if same and there is not None else []


def steps_for(
    segment: str, found: Sequence[WalRange], there: Sequence[WalRange], *, keep_since: Position | None = None
) -> Iterator[Step]:
    """For one segment, in the order of the log. `keep_since`: what lies before it nobody needs."""
    sizes = {one.key: one.stored_bytes for one in there}
    for one in covering(found):
        if keep_since is not None and is_obsolete(one, keep_since):
            continue
        missing = sizes.get(one.key) != one.stored_bytes and not any(replaces(other, one) for other in there)
        removes = tuple(other for other in there if replaces(one, other))
        if missing or removes:
            yield Step(segment=segment, copy=one if missing else None, removes=removes)


def covering(ranges: Iterable[WalRange]) -> list[WalRange]:
    """As few of one segment's as have all of its bytes that there are, in order."""
    chosen: list[WalRange] = []
    for one in sorted(ranges, key=lambda found: (found.start, -found.end, -found.covered_ms)):
        if not chosen or one.end > chosen[-1].end:
            chosen.append(one)
    return chosen


def replaces(one: WalRange, other: WalRange) -> bool:
    """It has all of the other's bytes, more of them, and says as much about time."""
    longer = one.end - one.start > other.end - other.start
    return longer and one.start <= other.start and other.end <= one.end and one.covered_ms >= other.covered_ms


def _groups(ranges: Iterable[WalRange]) -> Iterator[tuple[str, list[WalRange]]]:
    for segment, found in groupby(ranges, key=lambda one: one.segment):
        yield segment, list(found)
