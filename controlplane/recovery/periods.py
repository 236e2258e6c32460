"""The periods of the calendar (UTC) that retention speaks of. Each has a number: one more is the next period."""

from datetime import UTC, datetime, timedelta
from typing import Final, assert_never

from controlplane.domain.dataset import RetentionPeriod

_HOURS: Final = 24
_DAYS_OF_WEEK: Final = 7
_MONTHS: Final = 12
_MONTHS_OF_QUARTER: Final = 3
_QUARTERS: Final = 4
_MEAN_YEAR: Final = timedelta(days=365.2425)
"""Of the Gregorian calendar."""


def period_number(period: RetentionPeriod, moment: datetime) -> int:
    """Which hour, day, ISO week (from Monday), month, quarter or year since the year 1 a moment is in."""
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    match period:
        case RetentionPeriod.HOURLY:
            return at.toordinal() * _HOURS + at.hour
        case RetentionPeriod.DAILY:
            return at.toordinal()
        case RetentionPeriod.WEEKLY:
            # 1 January of the year 1 was a Monday.
            return (at.toordinal() - 1) // _DAYS_OF_WEEK
        case RetentionPeriod.MONTHLY:
            return at.year * _MONTHS + at.month - 1
        case RetentionPeriod.QUARTERLY:
            return at.year * _QUARTERS + (at.month - 1) // _MONTHS_OF_QUARTER
        case RetentionPeriod.YEARLY:
            return at.year
        case _ as unknown:
            assert_never(unknown)


def period_start(period: RetentionPeriod, number: int) -> datetime:
    match period:
        case RetentionPeriod.HOURLY:
            return _day(number // _HOURS) + timedelta(hours=number % _HOURS)
        case RetentionPeriod.DAILY:
            return _day(number)
        case RetentionPeriod.WEEKLY:
            return _day(number * _DAYS_OF_WEEK + 1)
        case RetentionPeriod.MONTHLY:
            return datetime(number // _MONTHS, number % _MONTHS + 1, 1, tzinfo=UTC)
        case RetentionPeriod.QUARTERLY:
            return datetime(number // _QUARTERS, number % _QUARTERS * _MONTHS_OF_QUARTER + 1, 1, tzinfo=UTC)
        case RetentionPeriod.YEARLY:
            return datetime(number, 1, 1, tzinfo=UTC)
        case _ as unknown:
            assert_never(unknown)


def period_label(period: RetentionPeriod, moment: datetime) -> str:
    """`2026-11-22 03h`, `2026-11-22`, `2026-W47`, `2026-11`, `2026-Q4`, `2026`."""
    at = moment.astimezone(UTC)
    match period:
        case RetentionPeriod.HOURLY:
            return f"{at:%Y-%m-%d %H}h"
        case RetentionPeriod.DAILY:
            return f"{at:%Y-%m-%d}"
        case RetentionPeriod.WEEKLY:
            return f"{at:%G-W%V}"
        case RetentionPeriod.MONTHLY:
            return f"{at:%Y-%m}"
        case RetentionPeriod.QUARTERLY:
            return f"{at.year}-Q{(at.month - 1) // _MONTHS_OF_QUARTER + 1}"
        case RetentionPeriod.YEARLY:
            return f"{at.year}"
        case _ as unknown:
            assert_never(unknown)


def mean_length(period: RetentionPeriod) -> timedelta:
    match period:
        case RetentionPeriod.HOURLY:
            return timedelta(hours=1)
        case RetentionPeriod.DAILY:
            return timedelta(days=1)
        case RetentionPeriod.WEEKLY:
            return timedelta(days=_DAYS_OF_WEEK)
        case RetentionPeriod.MONTHLY:
            return _MEAN_YEAR / _MONTHS
        case RetentionPeriod.QUARTERLY:
            return _MEAN_YEAR / _QUARTERS
        case RetentionPeriod.YEARLY:
            return _MEAN_YEAR
        case _ as unknown:
            assert_never(unknown)


def _day(ordinal: int) -> datetime:
    return datetime.fromordinal(ordinal).replace(tzinfo=UTC)
