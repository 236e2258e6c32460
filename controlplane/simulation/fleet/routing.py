"""Requests to replicas: the gateway in virtual time, compiled."""

from typing import Final

from controlplane.simulation.fleet.compiled import compiled
from controlplane.simulation.fleet.kernel import push, run_slot
from controlplane.simulation.fleet.state import ARRIVED, DRAINING, NOBODY, READY, REJECTED, Fleet, Timing

LEAST_CONNECTIONS: Final = 0
"""The fewest open requests: HAProxy's `leastconn`."""
SHORTEST_QUEUE: Final = 1
"""The fewest waiting ones, then the fewest open ones: what a router that reads the engines' metrics does at best."""

_QUEUE_WEIGHT: Final = 1 << 20


@compiled
def _load(fleet: Fleet, slot: int, routing: int) -> int:
    load = fleet.slots[slot].open
    if routing == SHORTEST_QUEUE:
        load += fleet.slots[slot].waiting * _QUEUE_WEIGHT
    return int(load)


@compiled
def _pick(fleet: Fleet, timing: Timing, routing: int, now_s: float) -> int:
    """The ready slot with the least load, equals in turn; NOBODY when none is ready."""
    slots = len(fleet.slots)
    best, least = NOBODY, 0
    start = fleet.totals[0].cursor
    for offset in range(slots):
        slot = start + offset
        if slot >= slots:
            slot -= slots
        if fleet.slots[slot].phase != READY:
            continue
        if fleet.slots[slot].change_s <= now_s:
            run_slot(fleet, timing, slot, now_s)
        load = _load(fleet, slot, routing)
        if best == NOBODY or load < least:
            best, least = slot, load
    if best != NOBODY:
        fleet.totals[0].cursor = best + 1 if best + 1 < slots else 0
    return best


@compiled
def _give(fleet: Fleet, timing: Timing, slot: int, request: int, now_s: float) -> None:
    run_slot(fleet, timing, slot, now_s)
    if fleet.slots[slot].open == 0:
        fleet.slots[slot].clock_s = max(fleet.slots[slot].clock_s, now_s)
    push(fleet, slot, request)
    fleet.slots[slot].open += 1
    fleet.slots[slot].queued_prompt += fleet.requests[request].prompt
    fleet.slots[slot].change_s = fleet.slots[slot].clock_s


@compiled
def _hold(fleet: Fleet, request: int) -> None:
    fleet.requests[request].follower = NOBODY
    if fleet.totals[0].held_head == NOBODY:
        fleet.totals[0].held_head = request
    else:
        fleet.requests[fleet.totals[0].held_tail].follower = request
    fleet.totals[0].held_tail = request
    fleet.totals[0].held += 1


@compiled
def release_held(fleet: Fleet, timing: Timing, routing: int, now_s: float) -> None:
    """What waited for a replica goes to the ready ones, in order of arrival."""
    while fleet.totals[0].held > 0:
        slot = _pick(fleet, timing, routing, now_s)
        if slot == NOBODY:
            return
        request = fleet.totals[0].held_head
        fleet.totals[0].held_head = fleet.requests[request].follower
        fleet.totals[0].held -= 1
        _give(fleet, timing, slot, request, now_s)


@compiled
def serve(fleet: Fleet, timing: Timing, routing: int, first: int, until_s: float) -> int:
    """All arrivals from the request `first` on that come by `until_s`, and all steps that start by then.

    Returns the first request that comes later. With no replica ready, requests wait in the gateway.
    """
    request = first
    while request < len(fleet.requests) and fleet.requests[request].arrival_s <= until_s:
        now_s = fleet.requests[request].arrival_s
        fleet.totals[0].counters[ARRIVED] += 1
        if fleet.requests[request].prompt + fleet.requests[request].output > timing.kv_tokens:
            fleet.totals[0].counters[REJECTED] += 1
        else:
            slot = _pick(fleet, timing, routing, now_s)
            if slot == NOBODY:
                _hold(fleet, request)
            else:
                _give(fleet, timing, slot, request, now_s)
        request += 1
    for slot in range(len(fleet.slots)):
        if (fleet.slots[slot].phase == READY or fleet.slots[slot].phase == DRAINING) and fleet.slots[slot].open > 0:
            run_slot(fleet, timing, slot, until_s)
    return request
