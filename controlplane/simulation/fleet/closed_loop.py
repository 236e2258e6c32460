"""One replica under a fixed number of clients, each of which sends its next request when the last one is through."""

import numpy as np

from controlplane.simulation.fleet.compiled import Ints, compiled
from controlplane.simulation.fleet.kernel import push, run_slot
from controlplane.simulation.fleet.state import ARRIVED, READY, Fleet, Timing, new_fleet


def closed_loop(timing: Timing, prompt: Ints, output: Ints, *, concurrency: int) -> Fleet:
    """To the end of the last request; all clients begin at 0. Every request must fit into the KV cache alone."""
    assert concurrency > 0, "somebody sends"
    assert int((prompt + output).max()) <= timing.kv_tokens, "what never fits would never end"
    fleet = new_fleet(np.zeros(len(prompt)), prompt, output, slots=1, timing=timing)
    fleet.slots.phase = READY
    _play(fleet, timing, concurrency)
    return fleet


@compiled
def _play(fleet: Fleet, timing: Timing, concurrency: int) -> None:
    sent = 0
    while True:
        while sent < len(fleet.requests) and fleet.slots[0].open < concurrency:
            fleet.requests[sent].arrival_s = fleet.slots[0].clock_s
            push(fleet, 0, sent)
            fleet.slots[0].open += 1
            fleet.slots[0].queued_prompt += fleet.requests[sent].prompt
            fleet.totals[0].counters[ARRIVED] += 1
            sent += 1
        if fleet.slots[0].open == 0:
            return
        run_slot(fleet, timing, 0, fleet.slots[0].clock_s)
