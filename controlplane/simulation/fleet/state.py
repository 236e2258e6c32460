"""The state of a fleet in virtual time: records in arrays, so that the compiled steps share it with Python.

Few arrays of records rather than many arrays: each array that a compiled function is given costs a count of its
references, which at one array per field cost ten times the arithmetic.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from controlplane.domain.deployment import CapacityPrior
from controlplane.simulation.engine import families
from controlplane.simulation.fleet.compiled import Floats, Ints, Records

EMPTY: Final = 0
READY: Final = 1
DRAINING: Final = 2
"""Phases of a slot, as the compiled code sees them: a replica that starts or sleeps has no slot in the traffic."""

NOBODY: Final = -1
"""In a list of requests: no further one."""

ARRIVED: Final = 0
FINISHED: Final = 1
PROMPT_TOKENS: Final = 2
OUTPUT_TOKENS: Final = 3
PREEMPTIONS: Final = 4
REJECTED: Final = 5
"""Never fits into a KV cache, however empty."""
STARTED: Final = 6
"""Requests that got their first token."""
COUNTERS: Final = 7

TTFT: Final = 0
INTER_TOKEN: Final = 1
PER_OUTPUT_TOKEN: Final = 2
END_TO_END: Final = 3
ROUTER_TTFT: Final = 4
ROUTER_PER_OUTPUT_TOKEN: Final = 5
HISTOGRAMS: Final = 6

ROUTER_TTFT_EDGES: Final = (
    *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0),
    *(30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0),
)
ROUTER_PER_OUTPUT_TOKEN_EDGES: Final = (
    *(0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5),
    *(2.0, 3.0, 4.5, 6.0, 12.0, 18.0, 24.0, 30.0, 36.0, 48.0, 60.0, 90.0, 120.0, 180.0, 270.0, 360.0),
)
"""Of the same latencies in the histograms of llm-d's router: generalLatencyBuckets and tpotBuckets in the metrics.go of
llm-d/llm-d-router."""

EDGES: Final = (
    families.TIME_TO_FIRST_TOKEN.edges,
    families.INTER_TOKEN_LATENCY.edges,
    families.TIME_PER_OUTPUT_TOKEN.edges,
    families.END_TO_END.edges,
    ROUTER_TTFT_EDGES,
    ROUTER_PER_OUTPUT_TOKEN_EDGES,
)
"""Bucket edges in seconds, one row per histogram; the first four are vLLM's own."""


class Timing(NamedTuple):
    """What times and bounds one replica. Seconds and tokens; the formulas are those of `engine.timing`."""

    step_base_s: float
    step_per_seq_s: float
    step_per_context_token_s: float
    prefill_base_s: float
    prefill_per_token_s: float
    prefill_per_token2_s: float
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int

    @classmethod
    def of(cls, prior: CapacityPrior, *, max_num_batched_tokens: int = 8192) -> "Timing":
        return cls(
            step_base_s=prior.step_base_s,
            step_per_seq_s=prior.step_per_seq_s,
            step_per_context_token_s=prior.step_per_context_token_s,
            prefill_base_s=prior.prefill_base_s,
            prefill_per_token_s=prior.prefill_per_token_s,
            prefill_per_token2_s=prior.prefill_per_token2_s,
            kv_tokens=prior.kv_tokens,
            max_num_seqs=prior.max_num_seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, prior.max_num_seqs),
        )


_REQUEST: Final = np.dtype(
    [
        ("arrival_s", "f8"),
        ("prompt", "i8"),
        ("output", "i8"),
        # First token; NaN until then.
        ("first_s", "f8"),
        # NaN until then, and for ever for a request that was rejected or lost.
        ("done_s", "f8"),
        # The next one in the same queue.
        ("follower", "i8"),
        # Prompt tokens through prefill, of so many: the prompt, and what was generated before a preemption.
        ("computed", "i8"),
        ("target", "i8"),
        # Tokens generated before it joined the batch this time, and the slot's step count then.
        ("generated", "i8"),
        ("joined", "i8"),
        # The slot's step count at its last token; NOBODY while it does not decode.
        ("finish_at", "i8"),
        # Of it in its slot's batch.
        ("place", "i8"),
        # Order of admission in its slot: who is preempted first.
        ("admitted", "i8"),
    ],
    align=True,
)
_SLOT: Final = np.dtype(
    [
        ("phase", "i8"),
        # End of the last step that was taken; what comes later joins from here on.
        ("clock_s", "f8"),
        # When its batch changes next if nothing arrives; infinite when idle.
        ("change_s", "f8"),
        ("steps", "i8"),
        ("decoding", "i8"),
        # Tokens in the contexts of the decoding sequences.
        ("context", "i8"),
        # KV tokens of admitted sequences.
        ("used", "i8"),
        ("running", "i8"),
        ("waiting", "i8"),
        # Running and waiting.
        ("open", "i8"),
        # Prompt tokens that nobody has prefilled yet.
        ("queued_prompt", "i8"),
        ("admissions", "i8"),
        ("head", "i8"),
        ("tail", "i8"),
        # How many of the batch are not through their prefill.
        ("prefilling", "i8"),
        ("heap_size", "i8"),
    ],
    align=True,
)
_PLACE: Final = np.dtype(
    [
        # Requests in prefill, in order of admission.
        ("prefill", "i8"),
        # Requests of the batch, in no order.
        ("batch", "i8"),
        # A binary heap of finish steps.
        ("heap_key", "i8"),
        ("heap_request", "i8"),
    ],
    align=True,
)
_EDGES_MAX: Final = max(len(edges) for edges in EDGES)
_TOTALS: Final = np.dtype(
    [
        ("counters", "f8", (COUNTERS,)),
        # Not cumulative; the last one is +Inf.
        ("buckets", "f8", (HISTOGRAMS, _EDGES_MAX + 1)),
        ("sums", "f8", (HISTOGRAMS,)),
        # Seconds, padded with infinity.
        ("edges", "f8", (HISTOGRAMS, _EDGES_MAX)),
        # What waits in the gateway for a replica.
        ("held_head", "i8"),
        ("held_tail", "i8"),
        ("held", "i8"),
        # Where the search for the next replica begins, so that equals take turns.
        ("cursor", "i8"),
    ],
    align=True,
)


class Fleet(NamedTuple):
    """N requests, R slots with places for S sequences each, and what they add up to."""

    requests: Records
    """(N,)"""
    slots: Records
    """(R,)"""
    places: Records
    """(R, 2 S)"""
    totals: Records
    """(1,)"""


def new_fleet(arrival_s: Floats, prompt: Ints, output: Ints, *, slots: int, timing: Timing) -> Fleet:
    """Nothing has happened; all slots are empty. Prompts and outputs below 1 count as 1."""
    requests = _records(len(arrival_s), _REQUEST)
    requests.arrival_s = arrival_s
    requests.prompt = np.maximum(prompt, 1)
    requests.output = np.maximum(output, 1)
    requests.first_s = requests.done_s = np.nan
    requests.follower = requests.finish_at = requests.place = NOBODY
    slot_records = _records(slots, _SLOT)
    slot_records.change_s = np.inf
    slot_records.head = slot_records.tail = NOBODY
    totals = _records(1, _TOTALS)
    totals.edges = np.inf
    for row, values in enumerate(EDGES):
        totals.edges[0, row, : len(values)] = values
    totals.held_head = totals.held_tail = NOBODY
    return Fleet(
        requests=requests,
        slots=slot_records,
        places=_records((slots, 2 * timing.max_num_seqs), _PLACE),
        totals=totals,
    )


def _records(shape: int | tuple[int, int], dtype: np.dtype[Any]) -> Records:
    return np.zeros(shape, dtype=dtype).view(np.recarray)
