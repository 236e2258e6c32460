"""One replica's continuous batching, as vLLM's V1 scheduler does it, compiled.

The same rules as `simulation.engine.scheduler`: a step gives one token to every decoding sequence and spends the rest
of the token budget on prefill chunks, first of running prompts, then of waiting ones in order of arrival; a sequence
that finds no room in the KV cache makes the youngest give way. What differs is the cost: between two changes of the
batch the time of k decode steps has a closed form (each step is longer than the last by the context that it added), so
k steps are one operation, and a day of a large fleet takes seconds.

A step is taken when it starts: what it changes shows at most one step early.
"""

from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import compiled
from controlplane.simulation.fleet.state import (
    EDGES,
    END_TO_END,
    FINISHED,
    INTER_TOKEN,
    NOBODY,
    OUTPUT_TOKENS,
    PER_OUTPUT_TOKEN,
    PREEMPTIONS,
    PROMPT_TOKENS,
    ROUTER_PER_OUTPUT_TOKEN,
    ROUTER_TTFT,
    STARTED,
    TTFT,
    Fleet,
    Timing,
)

_NEVER: Final = np.inf
_EDGES: Final = max(len(edges) for edges in EDGES)
_STEPS_MAX: Final = 1 << 40
"""More steps than any sequence has tokens."""


@compiled
def count(fleet: Fleet, histogram: int, value_s: float, weight: float) -> None:
    """Observations of one value, in a histogram."""
    totals = fleet.totals[0]
    place = 0
    while place < _EDGES and totals.edges[histogram, place] < value_s:
        place += 1
    totals.buckets[histogram, place] += weight
    totals.sums[histogram] += value_s * weight


# -- the queue --------------------------------------------------------------------------------------------------------


@compiled
def push(fleet: Fleet, slot: int, request: int) -> None:
    """To the end of the slot's queue."""
    fleet.requests[request].follower = NOBODY
    if fleet.slots[slot].head == NOBODY:
        fleet.slots[slot].head = request
    else:
        fleet.requests[fleet.slots[slot].tail].follower = request
    fleet.slots[slot].tail = request
    fleet.slots[slot].waiting += 1


@compiled
def _push_first(fleet: Fleet, slot: int, request: int) -> None:
    fleet.requests[request].follower = fleet.slots[slot].head
    if fleet.slots[slot].head == NOBODY:
        fleet.slots[slot].tail = request
    fleet.slots[slot].head = request
    fleet.slots[slot].waiting += 1


@compiled
def _pop(fleet: Fleet, slot: int) -> int:
    request = fleet.slots[slot].head
    fleet.slots[slot].head = fleet.requests[request].follower
    fleet.slots[slot].waiting -= 1
    return int(request)


# -- the finish steps, a binary heap per slot -------------------------------------------------------------------------


@compiled
def _heap_push(fleet: Fleet, slot: int, key: int, request: int) -> None:
    heap = fleet.places[slot]
    if fleet.slots[slot].heap_size == len(heap):
        _heap_rebuild(fleet, slot)
    place = fleet.slots[slot].heap_size
    fleet.slots[slot].heap_size += 1
    while place > 0:
        above = (place - 1) // 2
        if heap[above].heap_key <= key:
            break
        heap[place].heap_key = heap[above].heap_key
        heap[place].heap_request = heap[above].heap_request
        place = above
    heap[place].heap_key = key
    heap[place].heap_request = request


@compiled
def _sink(fleet: Fleet, slot: int, place: int, key: int, request: int) -> None:
    """Put an entry at `place` or below it, wherever it belongs."""
    heap, size = fleet.places[slot], fleet.slots[slot].heap_size
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and heap[below + 1].heap_key < heap[below].heap_key:
            below += 1
        if key <= heap[below].heap_key:
            break
        heap[place].heap_key = heap[below].heap_key
        heap[place].heap_request = heap[below].heap_request
        place = below
    heap[place].heap_key = key
    heap[place].heap_request = request


@compiled
def _heap_pop(fleet: Fleet, slot: int) -> None:
    fleet.slots[slot].heap_size -= 1
    last = fleet.places[slot, fleet.slots[slot].heap_size]
    _sink(fleet, slot, 0, last.heap_key, last.heap_request)


@compiled
def _heap_rebuild(fleet: Fleet, slot: int) -> None:
    """Without entries of sequences that were preempted since: there are never more valid ones than sequences."""
    heap, kept = fleet.places[slot], 0
    for place in range(fleet.slots[slot].heap_size):
        key, request = heap[place].heap_key, heap[place].heap_request
        if fleet.requests[request].finish_at == key:
            heap[kept].heap_key = key
            heap[kept].heap_request = request
            kept += 1
    fleet.slots[slot].heap_size = kept
    for place in range(kept // 2 - 1, -1, -1):
        _sink(fleet, slot, place, heap[place].heap_key, heap[place].heap_request)


@compiled
def _next_finish(fleet: Fleet, slot: int) -> int:
    """The first finish step of a sequence that still decodes."""
    while fleet.slots[slot].heap_size > 0:
        first = fleet.places[slot, 0]
        if fleet.requests[first.heap_request].finish_at == first.heap_key:
            return int(first.heap_key)
        _heap_pop(fleet, slot)
    return _STEPS_MAX


# -- the batch --------------------------------------------------------------------------------------------------------


@compiled
def _enter(fleet: Fleet, slot: int, request: int) -> None:
    """From the queue into the batch, with room for its whole prompt."""
    target = fleet.requests[request].prompt + fleet.requests[request].generated
    fleet.requests[request].target = target
    fleet.requests[request].computed = 0
    fleet.slots[slot].used += target
    place = fleet.slots[slot].running
    fleet.places[slot, place].batch = request
    fleet.requests[request].place = place
    fleet.slots[slot].running += 1
    fleet.slots[slot].admissions += 1
    fleet.requests[request].admitted = fleet.slots[slot].admissions
    fleet.places[slot, fleet.slots[slot].prefilling].prefill = request
    fleet.slots[slot].prefilling += 1


@compiled
def _leave(fleet: Fleet, slot: int, request: int) -> None:
    """Out of the batch, whatever it did there; its room is free again."""
    if fleet.requests[request].finish_at != NOBODY:
        made = fleet.slots[slot].steps - fleet.requests[request].joined
        fleet.requests[request].generated += made
        fleet.slots[slot].decoding -= 1
        fleet.slots[slot].context -= fleet.requests[request].prompt + fleet.requests[request].generated
        fleet.slots[slot].used -= fleet.requests[request].target + made
        fleet.requests[request].finish_at = NOBODY
    else:
        fleet.slots[slot].used -= fleet.requests[request].target
    place, last = fleet.requests[request].place, fleet.places[slot, fleet.slots[slot].running - 1].batch
    fleet.places[slot, place].batch = last
    fleet.requests[last].place = place
    fleet.requests[request].place = NOBODY
    fleet.slots[slot].running -= 1


@compiled
def _finish(fleet: Fleet, slot: int, request: int) -> None:
    now = fleet.slots[slot].clock_s
    _leave(fleet, slot, request)
    fleet.slots[slot].open -= 1
    fleet.requests[request].done_s = now
    tokens = fleet.requests[request].output
    fleet.totals[0].counters[FINISHED] += 1
    count(fleet, END_TO_END, now - fleet.requests[request].arrival_s, 1.0)
    if tokens > 1:
        gap_s = (now - fleet.requests[request].first_s) / (tokens - 1)
        count(fleet, PER_OUTPUT_TOKEN, gap_s, 1.0)
        count(fleet, ROUTER_PER_OUTPUT_TOKEN, gap_s, 1.0)


@compiled
def _preempt(fleet: Fleet, slot: int) -> None:
    """The youngest goes back to the head of the queue; what it generated stays, its cache does not."""
    youngest = fleet.places[slot, 0].batch
    for place in range(1, fleet.slots[slot].running):
        request = fleet.places[slot, place].batch
        if fleet.requests[request].admitted > fleet.requests[youngest].admitted:
            youngest = request
    decoded = fleet.requests[youngest].finish_at != NOBODY
    if not decoded:
        _drop_prefill(fleet, slot, youngest)
        fleet.slots[slot].queued_prompt += fleet.requests[youngest].computed
    _leave(fleet, slot, youngest)
    if decoded:
        fleet.slots[slot].queued_prompt += fleet.requests[youngest].prompt + fleet.requests[youngest].generated
    _push_first(fleet, slot, youngest)
    fleet.totals[0].counters[PREEMPTIONS] += 1


@compiled
def _drop_prefill(fleet: Fleet, slot: int, request: int) -> None:
    kept = 0
    for place in range(fleet.slots[slot].prefilling):
        other = fleet.places[slot, place].prefill
        if other != request:
            fleet.places[slot, kept].prefill = other
            kept += 1
    fleet.slots[slot].prefilling = kept


@compiled
def _first_token(fleet: Fleet, slot: int, request: int) -> None:
    """Its prefill is through: its last logits are a token."""
    now = fleet.slots[slot].clock_s
    if np.isnan(fleet.requests[request].first_s):
        fleet.requests[request].first_s = now
        fleet.totals[0].counters[STARTED] += 1
        fleet.totals[0].counters[PROMPT_TOKENS] += fleet.requests[request].prompt
        count(fleet, TTFT, now - fleet.requests[request].arrival_s, 1.0)
        count(fleet, ROUTER_TTFT, now - fleet.requests[request].arrival_s, 1.0)
    fleet.totals[0].counters[OUTPUT_TOKENS] += 1
    fleet.requests[request].generated += 1
    left = fleet.requests[request].output - fleet.requests[request].generated
    if left <= 0:
        _finish(fleet, slot, request)
        return
    fleet.requests[request].joined = fleet.slots[slot].steps
    fleet.requests[request].finish_at = fleet.slots[slot].steps + left
    fleet.slots[slot].decoding += 1
    fleet.slots[slot].context += fleet.requests[request].prompt + fleet.requests[request].generated
    _heap_push(fleet, slot, fleet.requests[request].finish_at, request)


# -- steps ------------------------------------------------------------------------------------------------------------


@compiled
def _make_room(fleet: Fleet, timing: Timing, slot: int) -> bool:
    """For one more token of each decoding sequence. Whether somebody had to give way."""
    preempted = False
    while fleet.slots[slot].used + fleet.slots[slot].decoding > timing.kv_tokens and fleet.slots[slot].running > 1:
        _preempt(fleet, slot)
        preempted = True
    return preempted


@compiled
def _admits(fleet: Fleet, timing: Timing, slot: int) -> bool:
    """Whether the head of the queue can come in now."""
    if fleet.slots[slot].waiting == 0 or fleet.slots[slot].running >= timing.max_num_seqs:
        return False
    request = fleet.slots[slot].head
    needs = fleet.requests[request].prompt + fleet.requests[request].generated
    return bool(fleet.slots[slot].used + fleet.slots[slot].decoding + needs <= timing.kv_tokens)


@compiled
def _chunk(fleet: Fleet, timing: Timing, slot: int, request: int, budget: int) -> tuple[int, float]:
    """Tokens of one prompt in this step, and the seconds that they add."""
    done = fleet.requests[request].computed
    tokens = min(fleet.requests[request].target - done, budget)
    after = done + tokens
    fleet.requests[request].computed = after
    fleet.slots[slot].queued_prompt -= tokens
    work_s = timing.prefill_per_token_s * tokens + timing.prefill_per_token2_s * (after * after - done * done)
    return tokens, work_s


@compiled
def _mixed_step(fleet: Fleet, timing: Timing, slot: int) -> None:
    """One step with prefill chunks."""
    budget = timing.max_num_batched_tokens - fleet.slots[slot].decoding
    work_s = 0.0
    for place in range(fleet.slots[slot].prefilling):
        if budget <= 0:
            break
        tokens, more_s = _chunk(fleet, timing, slot, fleet.places[slot, place].prefill, budget)
        budget -= tokens
        work_s += more_s
    while budget > 0 and _admits(fleet, timing, slot):
        request = _pop(fleet, slot)
        _enter(fleet, slot, request)
        tokens, more_s = _chunk(fleet, timing, slot, request, budget)
        budget -= tokens
        work_s += more_s
    decoding = fleet.slots[slot].decoding
    fixed_s = timing.prefill_base_s
    if decoding > 0:
        fixed_s = max(fixed_s, timing.step_base_s)
    seconds = fixed_s + work_s + timing.step_per_seq_s * decoding
    seconds += timing.step_per_context_token_s * fleet.slots[slot].context
    _pass(fleet, slot, 1, seconds)
    _finish_due(fleet, slot)
    _land(fleet, slot)


@compiled
def _land(fleet: Fleet, slot: int) -> None:
    """Prompts that are through their prefill get their first token and decode from the next step on."""
    kept, number = 0, fleet.slots[slot].prefilling
    for place in range(number):
        request = fleet.places[slot, place].prefill
        if fleet.requests[request].computed < fleet.requests[request].target:
            fleet.places[slot, kept].prefill = request
            kept += 1
        else:
            _first_token(fleet, slot, request)
    fleet.slots[slot].prefilling = kept


@compiled
def _pass(fleet: Fleet, slot: int, steps: int, seconds: float) -> None:
    """Time passes; each decoding sequence makes one token per step."""
    decoding = fleet.slots[slot].decoding
    made = decoding * steps
    fleet.slots[slot].clock_s += seconds
    fleet.slots[slot].steps += steps
    fleet.slots[slot].context += made
    fleet.slots[slot].used += made
    if made > 0:
        fleet.totals[0].counters[OUTPUT_TOKENS] += made
        count(fleet, INTER_TOKEN, seconds / steps, float(made))


@compiled
def _finish_due(fleet: Fleet, slot: int) -> None:
    while _next_finish(fleet, slot) <= fleet.slots[slot].steps:
        request = fleet.places[slot, 0].heap_request
        _heap_pop(fleet, slot)
        _finish(fleet, slot, request)


@compiled
def _step_s(fleet: Fleet, timing: Timing, slot: int) -> float:
    """The next pure decode step."""
    decoding = fleet.slots[slot].decoding
    return float(
        timing.step_base_s
        + timing.step_per_seq_s * decoding
        + timing.step_per_context_token_s * fleet.slots[slot].context
    )


@compiled
def _steps_s(first_s: float, more_s: float, steps: int) -> float:
    """Of `steps` steps, each longer than the one before by `more_s`."""
    return steps * first_s + more_s * steps * (steps - 1) / 2.0


@compiled
def _steps_until(first_s: float, more_s: float, span_s: float) -> int:
    """The fewest steps that end after `span_s`: the last one starts within it."""
    if span_s < first_s:
        return 1
    steps = int(span_s / first_s) + 1
    if more_s > 0.0:
        half = first_s - more_s / 2.0
        steps = int((np.sqrt(half * half + 2.0 * more_s * span_s) - half) / more_s)
        while _steps_s(first_s, more_s, steps) <= span_s:
            steps += 1
    return max(steps, 1)


@compiled
def _decode(fleet: Fleet, timing: Timing, slot: int, until_s: float) -> None:
    """Decode steps up to the next change of the batch, or the first that ends after `until_s`."""
    decoding = fleet.slots[slot].decoding
    first_s = _step_s(fleet, timing, slot)
    more_s = timing.step_per_context_token_s * decoding
    steps = min(
        _next_finish(fleet, slot) - fleet.slots[slot].steps, (timing.kv_tokens - fleet.slots[slot].used) // decoding
    )
    steps = max(min(steps, _steps_until(first_s, more_s, until_s - fleet.slots[slot].clock_s)), 1)
    _pass(fleet, slot, steps, _steps_s(first_s, more_s, steps))
    _finish_due(fleet, slot)


@compiled
def _note_change(fleet: Fleet, timing: Timing, slot: int) -> None:
    """When the slot has to be looked at next if nothing arrives."""
    if fleet.slots[slot].open == 0:
        fleet.slots[slot].change_s = _NEVER
    elif fleet.slots[slot].decoding == 0 or fleet.slots[slot].prefilling > 0 or fleet.slots[slot].waiting > 0:
        fleet.slots[slot].change_s = fleet.slots[slot].clock_s
    else:
        steps = _next_finish(fleet, slot) - fleet.slots[slot].steps
        more_s = timing.step_per_context_token_s * fleet.slots[slot].decoding
        # The last of them starts one step before it ends: that is when it is taken.
        ends_s = _steps_s(_step_s(fleet, timing, slot), more_s, max(steps - 1, 0))
        fleet.slots[slot].change_s = fleet.slots[slot].clock_s + ends_s


@compiled
def run_slot(fleet: Fleet, timing: Timing, slot: int, until_s: float) -> None:
    """All steps of one replica that start by `until_s`."""
    while fleet.slots[slot].open > 0 and fleet.slots[slot].clock_s <= until_s:
        preempted = _make_room(fleet, timing, slot)
        if fleet.slots[slot].prefilling > 0 or (not preempted and _admits(fleet, timing, slot)):
            _mixed_step(fleet, timing, slot)
        else:
            _decode(fleet, timing, slot, until_s)
    _note_change(fleet, timing, slot)
