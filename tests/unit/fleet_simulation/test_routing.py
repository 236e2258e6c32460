"""The gateway in virtual time: who gets the next request, and what happens while nobody can."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.compiled import Ints
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, SHORTEST_QUEUE, release_held, serve
from controlplane.simulation.fleet.state import ARRIVED, DRAINING, EMPTY, FINISHED, READY, REJECTED, Fleet, Timing
from tests.unit.fleet_simulation.small_fleets import (
    FOREVER_S,
    SMALL,
    Request,
    fleet_of,
    loads,
    seeded_load,
    served,
    timings,
)

LONG = 400
"""Tokens of output that take about four seconds: longer than any load here comes in."""


def given_to(load: list[Request], timing: Timing, *, replicas: int, routing: int) -> list[int]:
    """The replica of each request."""
    fleet = fleet_of(load, timing, replicas=replicas)
    return [int(np.argmax(taken_by(fleet, timing, routing, number))) for number in range(len(load))]


def taken_by(fleet: Fleet, timing: Timing, routing: int, number: int) -> Ints:
    """How many requests each replica took at this one's arrival: 1 of one of them, where none is preempted."""
    before = fleet.slots.admissions + fleet.slots.waiting
    assert serve(fleet, timing, routing, number, float(fleet.requests[number].arrival_s)) == number + 1
    grown: Ints = fleet.slots.admissions + fleet.slots.waiting - before
    return grown


@pytest.mark.parametrize("routing", [LEAST_CONNECTIONS, SHORTEST_QUEUE])
def test_equals_take_turns(routing: int) -> None:
    load = [(0.01 * number, 10, LONG) for number in range(6)]
    assert given_to(load, SMALL, replicas=3, routing=routing) == [0, 1, 2, 0, 1, 2]


def test_turns_go_on_where_they_stopped() -> None:
    """Each request is long through when the next one comes: without turns all would go to the first replica."""
    load = [(10.0 * number, 10, 5) for number in range(4)]
    fleet = fleet_of(load, SMALL, replicas=3)
    taken = []
    for number, (at_s, _, _) in enumerate(load):
        serve(fleet, SMALL, LEAST_CONNECTIONS, number, at_s)
        taken.append(int(fleet.totals[0].cursor))
    assert taken == [1, 2, 0, 1]


def test_least_connections_goes_to_whoever_has_fewest() -> None:
    """The first replica's request is short and through when the third comes; its turn would be the second's."""
    load = [(0.0, 10, 3), (0.01, 10, LONG), (1.0, 10, LONG), (1.01, 10, LONG)]
    assert given_to(load, SMALL, replicas=2, routing=LEAST_CONNECTIONS) == [0, 1, 0, 1]


def test_shortest_queue_prefers_who_runs_more_but_queues_none() -> None:
    """The second replica is busy for two seconds with a long prompt, behind which a short one waits."""
    load = [(0.0, 10, LONG), (0.05, 2000, LONG), (0.1, 10, LONG), (0.15, 10, LONG), (0.2, 10, LONG), (0.25, 10, LONG)]
    assert given_to(load, SMALL, replicas=2, routing=LEAST_CONNECTIONS) == [0, 1, 0, 1, 0, 1]
    assert given_to(load, SMALL, replicas=2, routing=SHORTEST_QUEUE) == [0, 1, 0, 1, 0, 0]


def test_drainers_and_empty_slots_get_nothing() -> None:
    load = [(0.01 * number, 10, LONG) for number in range(6)]
    fleet = fleet_of(load, SMALL, replicas=3)
    fleet.slots.phase[0], fleet.slots.phase[2] = DRAINING, EMPTY
    serve(fleet, SMALL, LEAST_CONNECTIONS, 0, 0.1)
    assert fleet.slots.open.tolist() == [0, 6, 0]


def test_what_never_fits_is_rejected_and_holds_nobody_up() -> None:
    timing = SMALL._replace(kv_tokens=100)
    fleet = served([(0.0, 90, 11), (0.0, 90, 10)], timing)
    assert fleet.totals[0].counters[[ARRIVED, REJECTED, FINISHED]].tolist() == [2.0, 1.0, 1.0]
    assert np.isnan(fleet.requests.first_s).tolist() == [True, False]


def test_with_no_replica_requests_wait_and_leave_in_order() -> None:
    load = seeded_load(12, seed=1)
    fleet = fleet_of(load, SMALL, replicas=2, ready=0)
    assert serve(fleet, SMALL, LEAST_CONNECTIONS, 0, 60.0) == len(load)
    assert fleet.totals[0].held == len(load)
    assert np.isnan(fleet.requests.first_s).all()
    release_held(fleet, SMALL, LEAST_CONNECTIONS, 60.0)
    assert fleet.totals[0].held == len(load), "still nobody is ready"
    fleet.slots.phase[1] = READY
    release_held(fleet, SMALL, LEAST_CONNECTIONS, 61.0)
    assert fleet.totals[0].held == 0
    serve(fleet, SMALL, LEAST_CONNECTIONS, len(load), FOREVER_S)
    assert (np.diff(fleet.requests.first_s) >= 0.0).all()
    assert fleet.requests.first_s.min() > 61.0


def test_those_that_were_held_are_shared_out() -> None:
    fleet = fleet_of([(0.0, 10, LONG)] * 6, SMALL, replicas=3, ready=0)
    serve(fleet, SMALL, LEAST_CONNECTIONS, 0, 1.0)
    fleet.slots.phase[:] = READY
    release_held(fleet, SMALL, LEAST_CONNECTIONS, 1.0)
    assert fleet.slots.open.tolist() == [2, 2, 2]


@settings(max_examples=100, deadline=None)
@given(
    load=loads(requests_max=30, at_once=False), timing=timings(kv_tokens=st.just(1_000_000)), replicas=st.integers(2, 4)
)
def test_nobody_with_more_connections_is_chosen(load: list[Request], timing: Timing, replicas: int) -> None:
    fleet = fleet_of(load, timing, replicas=replicas)
    for number, (at_s, _, _) in enumerate(load):
        serve(fleet, timing, LEAST_CONNECTIONS, len(load), at_s)  # all steps that start by then
        before = fleet.slots.open.copy()
        taken = taken_by(fleet, timing, LEAST_CONNECTIONS, number)
        assert taken.sum() == 1
        assert before[np.argmax(taken)] == before.min()
