"""Counters at moments, as what happened between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.simulation.dry_run.counted import appearing_max, arrivals, grown, without_appearance

NAN = float("nan")


def always(count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(count, dtype=bool)


@pytest.mark.parametrize(
    ("values", "by", "restarts"),
    [
        ([5, 7, 7, 12], [2, 0, 5], 0),
        ([5, 7, 3, 4], [2, 3, 1], 1),  # all that the new process shows came since
        ([5, NAN, NAN, 11], [2, 2, 2], 0),  # spread over what was missed
        ([5, NAN, 4, 6], [2, 2, 2], 1),
        ([NAN, NAN, NAN, NAN], [0, 0, 0], 0),
        ([9, 9, 9, NAN], [0, 0, 0], 0),
    ],
)
def test_what_a_counter_grew_by(values: list[float], by: list[float], restarts: int) -> None:
    found = grown(np.array(values, dtype=np.float64), always(len(values)))
    assert found.by.tolist() == by
    assert found.restarts == restarts


def test_a_replica_that_appears_is_counted_from_zero() -> None:
    found = grown(np.array([NAN, NAN, 4.0, 6.0]), always(4))
    assert found.by.tolist() == [0, 4, 2]
    assert (found.appeared_with, found.appeared_at) == (4, 1)


def test_what_was_counted_before_anybody_looked_is_not_known() -> None:
    """The first moment, and the first one after a gap in which nothing was scraped."""
    watched = np.array([True, True, False, False, True, True])
    assert grown(np.array([100.0, 101, NAN, NAN, NAN, NAN]), watched).by.tolist() == [1, 0, 0, 0, 0]
    assert grown(np.array([NAN, NAN, NAN, NAN, 100.0, 103]), watched).by.tolist() == [0, 0, 0, 0, 3]


def test_a_replica_that_appears_with_a_week_of_counts_is_told_from_a_new_one() -> None:
    old = grown(np.array([10.0, 20.0, 30.0, 40.0]), always(4))
    new = grown(np.array([NAN, 12.0, 20.0, 31.0]), always(4))
    late = grown(np.array([NAN, NAN, 90_000.0, 90_008.0]), always(4))
    most = appearing_max([old, new, late])
    assert new.appeared_with <= most < late.appeared_with
    assert without_appearance(late).tolist() == [0, 0, 8]
    assert without_appearance(old).tolist() == [10, 10, 10]


def test_open_requests_are_arrivals_before_they_finish() -> None:
    """A queue builds up and drains: nothing finishes while six come, then all do."""
    finished, opened = np.array([0.0, 0, 0, 4, 6]), np.array([0.0, 3, 6, 2, 0])
    assert arrivals(finished, opened, always(5)).by.tolist() == [3, 3, 0, 0]


def test_a_sum_that_falls_back_for_a_moment_is_taken_as_never_falling() -> None:
    """The gauge is of one step of the engine's loop, the counter of another."""
    finished, opened = np.array([0.0, 2, 5, 5]), np.array([3.0, 2, 0, 2])
    found = arrivals(finished, opened, always(4)).by
    assert found.tolist() == [1, 1, 2]
    assert found.sum() == 7 - 3


def test_a_replica_that_ends_with_open_requests_takes_none_back() -> None:
    finished, opened = np.array([0.0, 2, 4, NAN]), np.array([0.0, 5, 5, NAN])
    assert arrivals(finished, opened, always(4)).by.tolist() == [7, 2, 0]


def test_what_it_finished_after_its_last_gauge_is_no_second_arrival() -> None:
    """Counters are looked back on for a step, gauges for a scrape: the last moment has only the counter."""
    finished, opened = np.array([0.0, 2, 6]), np.array([0.0, 4, NAN])
    assert arrivals(finished, opened, always(3)).by.tolist() == [6, 0]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=2, max_size=40),
    st.integers(0, 5),
)
def test_rebuilt_arrivals_add_up(steps: list[tuple[int, int, bool]], opened_first: int) -> None:
    """In each step some come, some of the open ones finish; some steps nobody looks. All that came is found."""
    finished, opened, came = [10.0], [float(opened_first)], 0
    for arriving, finishing, _ in steps:
        came += arriving
        done = min(finishing, opened[-1] + arriving)
        opened.append(opened[-1] + arriving - done)
        finished.append(finished[-1] + done)
    seen = np.array([True, *(is_seen for _, _, is_seen in steps)])
    seen[-1] = True
    found = arrivals(np.where(seen, finished, NAN), np.where(seen, opened, NAN), always(len(finished)))
    assert found.by.sum() == pytest.approx(came)
    assert (found.by >= 0).all()


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8), min_size=1, max_size=5))
def test_no_growth_is_lost_over_restarts_that_show(lives: list[list[int]]) -> None:
    """A restart shows where the new process has counted less than the old one had: here each begins at zero."""
    values = [float(value) for life in lives for value in np.concatenate([[0], np.cumsum(life)])]
    found = grown(np.array(values), always(len(values)))
    assert found.by.sum() == pytest.approx(sum(sum(life) for life in lives))
    assert found.restarts == sum(sum(life) > 0 for life in lives[:-1])
