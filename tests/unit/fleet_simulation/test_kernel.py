"""One replica in virtual time: the HTTP engine's scheduler in closed form, with nothing lost and no bound crossed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.fleet.routing import serve
from controlplane.simulation.fleet.state import (
    ARRIVED,
    EDGES,
    END_TO_END,
    FINISHED,
    INTER_TOKEN,
    OUTPUT_TOKENS,
    PER_OUTPUT_TOKEN,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REJECTED,
    STARTED,
    TTFT,
    Fleet,
    Timing,
)
from tests.unit.fleet_simulation.small_fleets import (
    FOREVER_S,
    SMALL,
    Request,
    figures,
    fleet_of,
    loads,
    reference,
    seeded_load,
    served,
    tight_run,
    timings,
)

ROOT = Path(__file__).parents[3]
EXACT_S = 1e-9
ample = st.just(1_000_000)
tight = st.integers(60, 200)


# -- the same as the engine's scheduler -------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(load=loads(), timing=timings(kv_tokens=ample))
def test_it_is_the_engines_scheduler(load: list[Request], timing: Timing) -> None:
    first_s, done_s, _ = reference(load, timing, block_tokens=16)
    fleet = served(load, timing)
    np.testing.assert_allclose(fleet.requests.first_s, first_s, rtol=0.0, atol=EXACT_S)
    np.testing.assert_allclose(fleet.requests.done_s, done_s, rtol=0.0, atol=EXACT_S)


@settings(max_examples=300, deadline=None)
@given(load=loads(), timing=timings(kv_tokens=tight))
def test_with_a_cache_too_small_it_is_that_scheduler_with_blocks_of_one_token(
    load: list[Request], timing: Timing
) -> None:
    """Who is admitted, who is preempted and when, who recomputes how much: all the same."""
    first_s, done_s, preemptions = reference(load, timing)
    fleet = served(load, timing)
    np.testing.assert_allclose(fleet.requests.first_s, first_s, rtol=0.0, atol=EXACT_S)
    np.testing.assert_allclose(fleet.requests.done_s, done_s, rtol=0.0, atol=EXACT_S)
    assert fleet.totals[0].counters[PREEMPTIONS] == preemptions


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_sixteen_tokens_change_little_where_the_cache_binds(seed: int) -> None:
    """A block is full when its sequence ends only by chance: eight tokens of each are lost on average."""
    timing = SMALL._replace(kv_tokens=4800, max_num_seqs=64, max_num_batched_tokens=512)
    load = seeded_load(300, seed, rate_rps=12.0)
    first_s, done_s, preemptions = reference(load, timing, block_tokens=16)
    fleet = served(load, timing)
    assert preemptions > 0
    assert fleet.totals[0].counters[PREEMPTIONS] > 0
    arrival_s = fleet.requests.arrival_s
    assert (fleet.requests.done_s - arrival_s).mean() == pytest.approx((done_s - arrival_s).mean(), rel=0.05)
    assert (fleet.requests.first_s - arrival_s).mean() == pytest.approx((first_s - arrival_s).mean(), rel=0.10)
    assert fleet.requests.done_s.max() == pytest.approx(done_s.max(), rel=0.02)


def test_a_request_alone_takes_what_the_formulas_say() -> None:
    """150 prompt tokens in chunks of 64, 64 and 22, then three more tokens, the first with 151 in its context."""
    fleet = served([(1.0, 150, 4)], SMALL)
    prefill_s = 3 * SMALL.prefill_base_s + 150 * SMALL.prefill_per_token_s + 150**2 * SMALL.prefill_per_token2_s
    decode_s = 3 * (SMALL.step_base_s + SMALL.step_per_seq_s) + (151 + 152 + 153) * SMALL.step_per_context_token_s
    assert fleet.requests[0].first_s == pytest.approx(1.0 + prefill_s, abs=EXACT_S)
    assert fleet.requests[0].done_s == pytest.approx(1.0 + prefill_s + decode_s, abs=EXACT_S)


# -- nothing is lost --------------------------------------------------------------------------------------------------


def check_bounds(fleet: Fleet, timing: Timing) -> None:
    slots = fleet.slots
    assert (slots.used <= timing.kv_tokens).all()
    assert (slots.running <= timing.max_num_seqs).all()
    assert (slots.decoding + slots.prefilling == slots.running).all()
    assert (slots.running + slots.waiting == slots.open).all()
    for name in ("used", "context", "decoding", "waiting", "prefilling", "queued_prompt", "heap_size"):
        assert (slots[name] >= 0).all(), name
    assert (slots.heap_size <= fleet.places.shape[1]).all()


@settings(max_examples=200, deadline=None)
@given(
    load=loads(requests_max=30),
    timing=timings(kv_tokens=tight),
    replicas=st.integers(1, 3),
    slice_s=st.sampled_from([0.013, 0.2, 3.0]),
)
def test_every_request_ends_once_and_the_sums_agree(
    load: list[Request], timing: Timing, replicas: int, slice_s: float
) -> None:
    fleet, upcoming = fleet_of(load, timing, replicas=replicas), 0
    for now_s in np.arange(0.0, load[-1][0] + 4.0, slice_s):
        upcoming = serve(fleet, timing, 0, upcoming, float(now_s))
        check_bounds(fleet, timing)
    serve(fleet, timing, 0, upcoming, FOREVER_S)
    check_bounds(fleet, timing)
    check_sums(fleet, timing)


def check_sums(fleet: Fleet, timing: Timing) -> None:
    """After the end."""
    requests, totals = fleet.requests, fleet.totals[0]
    fits = requests.prompt + requests.output <= timing.kv_tokens
    assert (~np.isnan(requests.done_s) == fits).all()
    ended = requests[fits]
    assert (ended.arrival_s < ended.first_s).all()
    assert (ended.first_s[ended.output == 1] == ended.done_s[ended.output == 1]).all()
    assert (ended.first_s[ended.output > 1] < ended.done_s[ended.output > 1]).all()
    assert (ended.generated == ended.output).all()
    for name in ("used", "context", "decoding", "open", "running", "waiting", "prefilling", "queued_prompt"):
        assert (fleet.slots[name] == 0).all(), name
    counters = totals.counters
    assert counters[ARRIVED] == len(requests)
    assert counters[REJECTED] == (~fits).sum()
    assert counters[FINISHED] == counters[STARTED] == fits.sum()
    assert counters[PROMPT_TOKENS] == ended.prompt.sum()
    assert counters[OUTPUT_TOKENS] == ended.output.sum()
    check_histograms(fleet, fits.sum(), ended)


def check_histograms(fleet: Fleet, finished: int, ended: np.recarray) -> None:
    """Each counts what its name says, in the buckets where the values belong."""
    totals = fleet.totals[0]
    several = ended[ended.output > 1]
    values_of = {
        TTFT: ended.first_s - ended.arrival_s,
        END_TO_END: ended.done_s - ended.arrival_s,
        PER_OUTPUT_TOKEN: (several.done_s - several.first_s) / (several.output - 1),
    }
    for histogram, values in values_of.items():
        edges = EDGES[histogram]
        counts = np.bincount(np.searchsorted(edges, values), minlength=totals.buckets.shape[1])
        assert (totals.buckets[histogram] == counts).all()
        assert totals.sums[histogram] == pytest.approx(values.sum())
    gaps = totals.buckets[INTER_TOKEN].sum()
    # Tokens that come out of a prefill (the first of a request, and one after each preemption) end no gap.
    assert gaps <= totals.counters[OUTPUT_TOKENS] - finished
    assert gaps >= totals.counters[OUTPUT_TOKENS] - finished - totals.counters[PREEMPTIONS]


@settings(max_examples=200, deadline=None)
@given(load=loads(requests_max=30), timing=timings(kv_tokens=tight))
def test_first_come_first_served(load: list[Request], timing: Timing) -> None:
    """No first token overtakes an older request's, preemption or not."""
    first_s = served(load, timing).requests.first_s
    assert (np.diff(first_s[~np.isnan(first_s)]) >= 0.0).all()


# -- how it is computed changes nothing -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(load=loads(), timing=timings(kv_tokens=tight), slice_s=st.sampled_from([0.0071, 0.05, 1.0]))
def test_merging_steps_changes_nothing(load: list[Request], timing: Timing, slice_s: float) -> None:
    """But the sum of floating point numbers, and which gaps are told by their mean."""
    whole, sliced = served(load, timing), served(load, timing, slice_s=slice_s)
    np.testing.assert_allclose(sliced.requests.first_s, whole.requests.first_s, rtol=0.0, atol=EXACT_S)
    np.testing.assert_allclose(sliced.requests.done_s, whole.requests.done_s, rtol=0.0, atol=EXACT_S)
    assert (sliced.totals[0].counters == whole.totals[0].counters).all()
    np.testing.assert_allclose(sliced.totals[0].sums, whole.totals[0].sums, rtol=1e-9)


def test_compiled_and_pure_python_are_the_same_to_the_last_bit() -> None:
    """The same run in a process whose numba does nothing; without numba both are pure Python."""
    pure = subprocess.run(
        [sys.executable, "-m", "tests.unit.fleet_simulation.small_fleets"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    fleet = tight_run()
    assert fleet.totals[0].counters[PREEMPTIONS] > 0
    assert json.loads(pure.stdout) == json.loads(json.dumps(figures(fleet)))
