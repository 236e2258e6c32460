"""Cadences: what is due when, what was missed is made up once, and cron expressions that are refused."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.dataset import Cadence
from controlplane.recovery.schedule import (
    cron_problem,
    is_due,
    longest_gap,
    mean_gap,
    next_due,
    occurrence_after,
    occurrence_at_or_before,
)

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
"""A Wednesday."""
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
NIGHTLY = Cadence(cron="15 3 * * *")

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2080, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001 - hypothesis takes its bounds without a zone
FIELDS = st.tuples(
    st.sampled_from(["0", "*/5", "59", "0,30", "1-20/3"]),
    st.sampled_from(["*", "0", "3", "9-17", "*/6"]),
    st.sampled_from(["*", "1", "L", "15", "LW"]),
    st.sampled_from(["*", "1", "2", "1,4,7,10", "DEC"]),
    st.sampled_from(["*", "MON", "1-5", "SUN#1", "5L"]),
)
CADENCES = st.one_of(
    st.timedeltas(timedelta(seconds=1), 400 * DAY).map(lambda every: Cadence(every=every)),
    FIELDS.map(lambda fields: Cadence(cron=" ".join(fields))),
)


@given(CADENCES, MOMENTS)
def test_the_next_one_is_later_and_nothing_lies_between(cadence: Cadence, last: datetime) -> None:
    after = next_due(cadence, last, last)
    assert after > last
    assert occurrence_after(cadence, after - timedelta(microseconds=1)) >= after
    if cadence.cron is not None:
        assert after == occurrence_at_or_before(cadence, after)
        assert occurrence_at_or_before(cadence, after - timedelta(seconds=1)) <= last


@given(CADENCES, MOMENTS, st.timedeltas(timedelta(0), 3000 * DAY))
def test_however_many_were_missed_one_makes_up_for_all(cadence: Cadence, last: datetime, away: timedelta) -> None:
    now = last + away
    if is_due(cadence, last, now):
        assert not is_due(cadence, now, now)
        assert next_due(cadence, now, now) > now


@given(CADENCES, MOMENTS, st.timedeltas(timedelta(0), 3000 * DAY))
def test_a_clock_that_was_set_back_delays_by_one_cadence_at_most(
    cadence: Cadence, now: datetime, ahead: timedelta
) -> None:
    assert next_due(cadence, now + ahead, now) == next_due(cadence, now, now)


@given(CADENCES, MOMENTS)
def test_the_last_occurrence_is_one_and_not_later(cadence: Cadence, moment: datetime) -> None:
    before = occurrence_at_or_before(cadence, moment)
    assert before <= moment
    assert occurrence_after(cadence, before) > moment or cadence.every is not None
    if cadence.every is not None:
        assert moment - before < cadence.every
        assert occurrence_at_or_before(cadence, before) == before


@given(st.text(alphabet="0123456789*/,-#LW MONSUN?²", max_size=24))
def test_any_text_is_judged_and_what_passes_can_be_followed(text: str) -> None:
    problem = cron_problem(text)
    if problem is None:
        assert occurrence_after(Cadence(cron=text), NOON) > NOON
    else:
        assert "for example" in problem


def test_what_never_ran_is_due_now() -> None:
    assert next_due(NIGHTLY, None, NOON) == NOON
    assert is_due(Cadence(every=DAY), None, NOON)


@pytest.mark.parametrize(
    ("cadence", "last", "due"),
    [
        (Cadence(every=HOUR), NOON, NOON + HOUR),
        (Cadence(every=timedelta(minutes=90)), NOON - DAY, NOON - DAY + timedelta(minutes=90)),
        (NIGHTLY, NOON, datetime(2026, 3, 5, 3, 15, tzinfo=UTC)),
        (NIGHTLY, datetime(2026, 3, 5, 3, 15, tzinfo=UTC), datetime(2026, 3, 6, 3, 15, tzinfo=UTC)),
        (Cadence(cron="0 0 29 2 *"), NOON, datetime(2028, 2, 29, tzinfo=UTC)),
        (Cadence(cron="0 2 * * SUN"), NOON, datetime(2026, 3, 8, 2, 0, tzinfo=UTC)),
        (Cadence(cron="0 0 1 1,4,7,10 *"), NOON, datetime(2026, 4, 1, tzinfo=UTC)),
        # In Europe 02:30 does not exist that night; in UTC it does.
        (Cadence(cron="30 2 * * *"), datetime(2026, 3, 29, 0, 0, tzinfo=UTC), datetime(2026, 3, 29, 2, 30, tzinfo=UTC)),
    ],
)
def test_next_due(cadence: Cadence, last: datetime, due: datetime) -> None:
    assert next_due(cadence, last, max(last, NOON)) == due


def test_the_second_occurrence_skips_a_week_end() -> None:
    friday = datetime(2026, 3, 6, 3, 20, tzinfo=UTC)
    assert occurrence_after(Cadence(cron="0 3 * * 1-5"), friday, 2) == datetime(2026, 3, 10, 3, 0, tzinfo=UTC)


def test_gaps() -> None:
    working_days = Cadence(cron="0 3 * * 1-5")
    assert longest_gap(working_days, NOON) == 3 * DAY
    assert DAY < mean_gap(working_days, NOON) < 1.5 * DAY
    assert longest_gap(Cadence(every=HOUR), NOON) == mean_gap(Cadence(every=HOUR), NOON) == HOUR


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("", "this one has 0"),
        ("15 3 * *", "this one has 4"),
        ("0 15 3 * * *", "this one has 6"),
        ("60 3 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 32 * *", "bad day-of-month"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * 13 *", "bad month"),
        ("0 0 * * 8", "bad day-of-week"),
        ("0 0 * * MON-", "bad day-of-week"),
        ("* * * FOO *", "bad month"),
    ],
)
def test_a_bad_expression_is_refused_with_an_example(cron: str, says: str) -> None:
    problem = cron_problem(cron)
    assert problem is not None
    assert says in problem
    assert '"15 3 * * *"' in problem
