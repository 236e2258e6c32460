"""Clients that wait for their answers: throughput and latency bound to each other by Little's law."""

import numpy as np
import pytest

from controlplane.simulation.fleet.closed_loop import closed_loop
from tests.unit.fleet_simulation.small_fleets import SMALL


def test_alone_each_request_follows_the_last() -> None:
    fleet = closed_loop(SMALL, np.full(5, 100), np.full(5, 20), concurrency=1)
    assert fleet.requests.arrival_s[1:].tolist() == fleet.requests.done_s[:-1].tolist()
    took_s = fleet.requests.done_s - fleet.requests.arrival_s
    assert took_s == pytest.approx([took_s[0]] * 5)


@pytest.mark.parametrize("concurrency", [1, 4, 8, 20])
def test_never_more_are_open_than_clients_and_all_of_them_most_of_the_time(concurrency: int) -> None:
    """Eight places: with twenty clients twelve wait."""
    fleet = closed_loop(SMALL, np.full(200, 30), np.full(200, 10), concurrency=concurrency)
    arrival_s, done_s = fleet.requests.arrival_s, fleet.requests.done_s
    assert not np.isnan(done_s).any()
    events = np.sort(np.concatenate([arrival_s, done_s]))
    open_at = np.searchsorted(arrival_s, events, side="right") - np.searchsorted(np.sort(done_s), events, side="right")
    assert open_at.max() == concurrency
    # Little's law, but for the end, when clients leave one by one.
    mean_open = (done_s - arrival_s).sum() / done_s.max()
    assert mean_open == pytest.approx(concurrency, rel=0.12)


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(AssertionError, match="what never fits"):
        closed_loop(SMALL._replace(kv_tokens=100), np.array([90]), np.array([11]), concurrency=1)
