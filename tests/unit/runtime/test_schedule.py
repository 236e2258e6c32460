"""When a resource is due: properties over random lives of a schedule."""

from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from controlplane.runtime.reconciler import Pace
from controlplane.runtime.schedule import JITTER_LOW, Schedule

SECOND = timedelta(seconds=1)
PACES = st.builds(
    Pace,
    period=st.timedeltas(SECOND / 10, 60 * SECOND),
    deadline=st.just(5 * SECOND),
    floor=st.timedeltas(SECOND / 100, SECOND),
    backoff_max=st.timedeltas(SECOND, 60 * SECOND),
)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 10),  # seconds that the tick takes
        st.sampled_from(["success", "failure", "again"]),
        st.integers(0, 3),  # hints during the tick
        st.integers(0, 3),  # hints after it
    ),
    min_size=1,
    max_size=20,
)


@given(PACES, STEPS)
def test_starts_are_never_closer_than_the_floor_nor_further_than_the_back_off(
    pace: Pace, steps: list[tuple[float, str, int, int]]
) -> None:
    schedule, now_s, starts = Schedule(pace=pace), 100.0, []
    longest_s = max(pace.period, pace.backoff_max).total_seconds()
    for took_s, ending, hints_during, hints_after in steps:
        start_s = max(now_s, schedule.next_s)
        assert start_s - now_s <= longest_s + 1e-6
        schedule.start(start_s)
        starts.append(start_s)
        for _ in range(hints_during):
            schedule.hint()
        now_s = start_s + took_s
        if ending == "failure":
            schedule.fail(now_s, jitter=1.0)
        else:
            schedule.succeed(now_s, again_after=timedelta(0) if ending == "again" else None)
        for _ in range(hints_after):
            schedule.hint()
    for before, after in pairwise(starts):
        assert after - before >= pace.floor.total_seconds() - 1e-6


@given(PACES, st.integers(1, 50), st.floats(JITTER_LOW, 1.0))
def test_the_pause_doubles_and_stays_under_its_limit(pace: Pace, failures: int, jitter: float) -> None:
    schedule = Schedule(pace=pace)
    period_s, floor_s = pace.period.total_seconds(), pace.floor.total_seconds()
    limit_s = max(period_s, pace.backoff_max.total_seconds())
    for number in range(failures):
        schedule.start(0.0)
        schedule.fail(0.0, jitter=jitter)
        wanted_s = max(min(period_s * 2.0**number, limit_s) * jitter, floor_s)
        assert abs(schedule.next_s - wanted_s) < 1e-6
    assert schedule.failures == failures
    schedule.start(0.0)
    schedule.succeed(0.0, again_after=None)
    assert schedule.failures == 0


def test_any_number_of_hints_is_one() -> None:
    schedule = Schedule(pace=Pace(period=10 * SECOND, deadline=SECOND, floor=SECOND))
    schedule.start(0.0)
    for _ in range(5):
        schedule.hint()
    schedule.succeed(0.2, again_after=None)
    assert schedule.next_s == 1.0
    schedule.start(1.0)
    schedule.succeed(1.1, again_after=None)
    assert schedule.next_s == 11.0
