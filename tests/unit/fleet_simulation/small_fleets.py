"""Small loads for the compiled fleet, and the HTTP engine's scheduler on the same requests, step by step."""

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from controlplane.simulation.engine import sequence, timing
from controlplane.simulation.engine.scheduler import Scheduler, SchedulerLimits
from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import COUNTERS, READY, Fleet, Timing, new_fleet

type Request = tuple[float, int, int]
"""Arrival in seconds, prompt tokens, output tokens."""

FOREVER_S: Final = 1e7
"""By then every load here is through."""

SMALL: Final = Timing(
    step_base_s=0.01,
    step_per_seq_s=0.0005,
    step_per_context_token_s=0.00001,
    prefill_base_s=0.007,
    prefill_per_token_s=0.0001,
    prefill_per_token2_s=0.0000005,
    kv_tokens=1_000_000,
    max_num_seqs=8,
    max_num_batched_tokens=64,
)


@st.composite
def timings(draw: st.DrawFn, *, kv_tokens: st.SearchStrategy[int]) -> Timing:
    """With few places and small budgets, so that every bound binds in some of them."""
    max_num_seqs = draw(st.integers(1, 6))
    return SMALL._replace(
        step_per_context_token_s=draw(st.sampled_from([0.0, 0.00001, 0.002])),
        prefill_base_s=draw(st.sampled_from([0.0, 0.007, 0.05])),
        kv_tokens=draw(kv_tokens),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, 64)),
    )


@st.composite
def loads(draw: st.DrawFn, *, requests_max: int = 14, at_once: bool = True) -> list[Request]:
    """In order of arrival, at odd moments: apart, close together, and some of them at once."""
    gaps = st.sampled_from([0.00123, 0.0171, 0.3337, 2.1, *([0.0] if at_once else [])])
    found = draw(st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=requests_max))
    at_s = np.cumsum([gap for gap, _, _ in found])
    return [(float(at), prompt, output) for at, (_, prompt, output) in zip(at_s, found, strict=True)]


def fleet_of(load: Sequence[Request], timing: Timing, *, replicas: int = 1, ready: int | None = None) -> Fleet:
    """Nothing has happened yet; `ready` of the replicas take traffic, all unless told."""
    arrival_s, prompt, output = (np.array(column) for column in zip(*load, strict=True))
    fleet = new_fleet(arrival_s, prompt, output, slots=replicas, timing=timing)
    fleet.slots.phase[: replicas if ready is None else ready] = READY
    return fleet


def served(
    load: Sequence[Request],
    timing: Timing,
    *,
    replicas: int = 1,
    slice_s: float = 0.0,
    routing: int = LEAST_CONNECTIONS,
) -> Fleet:
    """To the end; with `slice_s` in steps of so many seconds as long as requests come, and half as long again."""
    fleet = fleet_of(load, timing, replicas=replicas)
    upcoming = 0
    if slice_s:
        for now_s in np.arange(0.0, 1.5 * load[-1][0] + 100 * slice_s, slice_s):
            upcoming = serve(fleet, timing, routing, upcoming, float(now_s))
    assert serve(fleet, timing, routing, upcoming, FOREVER_S) == len(load)
    return fleet


def reference(load: Sequence[Request], limits: Timing, *, block_tokens: int = 1) -> tuple[Floats, Floats, int]:
    """First tokens and ends in seconds, and preemptions, of the engine's scheduler taken one step at a time.

    A step takes in what came before it starts, and an idle engine starts with the first that comes: the compiled
    fleet's rule. Who keeps no more blocks than that is rejected there as here (NaN).
    """
    scheduler = _scheduler(limits, block_tokens)
    sequences = [sequence.Sequence(prompt_tokens=p, output_tokens=o, arrived_at=at) for at, p, o in load]
    left = [one for one in sequences if one.prompt_tokens + one.output_tokens <= limits.kv_tokens]
    now_s = 0.0
    while left or scheduler.busy:
        if not scheduler.busy:
            now_s = max(now_s, left[0].arrived_at)
            scheduler.submit(left.pop(0))
        while left and left[0].arrived_at < now_s:
            scheduler.submit(left.pop(0))
        step = scheduler.step(now_s)
        assert step is not None, "a busy scheduler steps"
        now_s = step.ends_at
    first = np.array([np.nan if one.first_token_at is None else one.first_token_at for one in sequences])
    done = np.array([one.finished_at or np.nan for one in sequences])
    return first, done, sum(one.preemptions for one in sequences)


def _scheduler(limits: Timing, block_tokens: int) -> Scheduler:
    fields = timing.EngineProfile.__dataclass_fields__
    return Scheduler(
        timing.EngineProfile(**{name: getattr(limits, name) for name in fields}),
        SchedulerLimits(
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            kv_blocks=limits.kv_tokens // block_tokens,
            block_tokens=block_tokens,
            prefix_caching=False,
        ),
    )


def seeded_load(requests: int, seed: int, *, rate_rps: float = 3.0) -> list[Request]:
    """Poisson arrivals with prompts of 20 to 400 and outputs of 1 to 120 tokens."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0 / rate_rps, requests))
    prompts, outputs = rng.integers(20, 400, requests), rng.integers(1, 120, requests)
    return [(float(at), int(p), int(o)) for at, p, o in zip(at_s, prompts, outputs, strict=True)]


def figures(fleet: Fleet) -> dict[str, Any]:
    """What a run came to, to the last bit."""
    totals = fleet.totals[0]
    return {
        "first_s": [value.hex() for value in fleet.requests.first_s.tolist()],
        "done_s": [value.hex() for value in fleet.requests.done_s.tolist()],
        "counters": [float(totals.counters[counter]) for counter in range(COUNTERS)],
        "buckets": totals.buckets.tolist(),
        "sums": [value.hex() for value in totals.sums.tolist()],
    }


TIGHT: Final = SMALL._replace(kv_tokens=900, max_num_batched_tokens=256)


def tight_run() -> Fleet:
    """Several replicas whose caches are too small for what comes: queues, chunks, preemptions."""
    return served(seeded_load(80, seed=5, rate_rps=20.0), TIGHT, replicas=3, slice_s=0.4)


if __name__ == "__main__":
    json.dump(figures(tight_run()), sys.stdout)
