"""When something that is declared with a cadence is due. All of it in UTC, so no hour of the year comes twice."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Final

from cronsim import CronSim, CronSimError

from controlplane.domain.dataset import Cadence

CRON_FIELDS: Final = 5
"""Minute, hour, day of month, month, day of week. The library also takes seconds: nothing here is worth a second."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_A_LEAP_YEAR: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""Expressions are tried from here, so that 29 February comes soon."""
_CRON_EXAMPLE: Final = '"15 3 * * *": every day at 03:15 UTC'
_GAPS_LOOKED_AT: Final = 64
"""Occurrences: more than a month of daily ones, a year of weekly ones."""


def next_due(cadence: Cadence, last: datetime | None, now: datetime) -> datetime:
    """When the next one is to begin, given when the last one began; in the past when it is late.

    However many occurrences were missed, the answer is the first of them, and once that has begun they are all behind
    `last`: what was missed is made up once. What never ran is due now. A `last` in the future (a clock was set back)
    counts as now, so nothing waits longer than one cadence.
    """
    if last is None:
        return now
    return occurrence_after(cadence, min(last, now))


def is_due(cadence: Cadence, last: datetime | None, now: datetime) -> bool:
    return next_due(cadence, last, now) <= now


def occurrence_after(cadence: Cadence, start: datetime, count: int = 1) -> datetime:
    """The first (second...) occurrence later than `start`."""
    assert count >= 1, "occurrences count from one"
    if cadence.every is not None:
        return start + cadence.every * count
    return next(islice(_cron(cadence, start), count - 1, None))


def occurrence_at_or_before(cadence: Cadence, moment: datetime) -> datetime:
    """The last occurrence up to a moment; those of a fixed distance are counted from 1970."""
    if cadence.every is not None:
        return moment - (moment - _EPOCH) % cadence.every
    # Backwards the library takes the second that it is given only where that is a begun one.
    return next(_cron(cadence, moment.replace(microsecond=1), reverse=True))


def longest_gap(cadence: Cadence, start: datetime) -> timedelta:
    """The longest distance between two of the next 64 occurrences: what a week-end does to a weekday expression."""
    return max(_gaps(cadence, start))


def mean_gap(cadence: Cadence, start: datetime) -> timedelta:
    """Over the next 64 occurrences."""
    gaps = _gaps(cadence, start)
    return sum(gaps, timedelta()) / len(gaps)


def cron_problem(cron: str) -> str | None:
    """What is wrong with a cron expression, as a sentence with what to write instead; None: nothing."""
    fields = len(cron.split())
    if fields != CRON_FIELDS:
        return (
            f"a cron expression has {CRON_FIELDS} fields (minute, hour, day of month, month, day of week), "
            f"this one has {fields}; for example {_CRON_EXAMPLE}"
        )
    try:
        next(CronSim(cron, _A_LEAP_YEAR))
    except CronSimError as error:
        return f"{str(error).lower()}; for example {_CRON_EXAMPLE}"
    except StopIteration:
        return f"it never comes true; for example {_CRON_EXAMPLE}"
    return None


def _cron(cadence: Cadence, start: datetime, *, reverse: bool = False) -> CronSim:
    assert cadence.cron is not None, "a cadence is a distance or a cron expression"
    return CronSim(cadence.cron, start.astimezone(UTC), reverse=reverse)


def _gaps(cadence: Cadence, start: datetime) -> list[timedelta]:
    if cadence.every is not None:
        return [cadence.every]
    return [after - before for before, after in pairwise(islice(_cron(cadence, start), _GAPS_LOOKED_AT))]
