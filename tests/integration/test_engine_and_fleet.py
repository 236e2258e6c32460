"""The simulated engine behind its sockets and the fleet in virtual time: one load, one answer."""

import asyncio
import json
import math
from typing import Final

import numpy as np
import pytest

from controlplane.simulation.engine.timing import EngineProfile
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import FINISHED, READY, Fleet, Timing, new_fleet
from tests.integration.test_simulated_engine import Engine, engine

PROFILE: Final = EngineProfile(
    step_base_s=0.02,
    step_per_seq_s=0.002,
    step_per_context_token_s=5e-6,
    prefill_base_s=0.01,
    prefill_per_token_s=0.0005,
    prefill_per_token2_s=0.0,
    kv_tokens=1600,
    max_num_seqs=8,
)
"""Steps of tens of milliseconds, so that what sockets and a busy machine add is small beside them."""
REQUESTS: Final = 60
SECONDS: Final = 5.0
BUDGET: Final = 64


async def test_both_say_the_same_of_a_small_load() -> None:
    """More than eight at once, so that some queue; prompts of several chunks; a KV cache that is full at times.

    The fleet gets the moments at which the requests were really sent. Means agree within 3 % and 10 %: the engine
    counts cache in blocks of 16 tokens, and takes a request in some milliseconds after it was sent.
    """
    rng = np.random.default_rng(4)
    prompt, output = rng.integers(20, 200, REQUESTS), rng.integers(5, 40, REQUESTS)
    due_s = np.sort(rng.random(REQUESTS)) * SECONDS
    fields = {name: getattr(PROFILE, name) for name in EngineProfile.__dataclass_fields__}
    options = ("--sim-profile", json.dumps(fields), "--max-num-batched-tokens", str(BUDGET))
    async with engine(*options, "--no-enable-prefix-caching") as real:
        sent_s = await send(real, due_s, prompt.tolist(), output.tolist())
        ttft_s = await mean(real, "vllm:time_to_first_token_seconds")
        per_token_s = await mean(real, "vllm:request_time_per_output_token_seconds")
        all_s = await mean(real, "vllm:e2e_request_latency_seconds")
    requests = played(np.array(sent_s), prompt, output).requests
    virtual = requests.first_s - requests.arrival_s
    gaps = (requests.done_s - requests.first_s) / (requests.output - 1)
    assert virtual.max() > 0.5, "some had to queue"
    assert per_token_s == pytest.approx(gaps.mean(), rel=0.03)
    assert ttft_s == pytest.approx(virtual.mean(), rel=0.10)
    assert all_s == pytest.approx((requests.done_s - requests.arrival_s).mean(), rel=0.05)


async def send(real: Engine, due_s: np.ndarray, prompt: list[int], output: list[int]) -> list[float]:
    """Each at its moment; when each was really sent, from the first on."""
    clock = asyncio.get_running_loop().time
    began_s, sent_s = clock() + 0.2, [math.nan] * len(due_s)

    async def one(number: int) -> None:
        await asyncio.sleep(max(began_s + due_s[number] - clock(), 0.0))
        sent_s[number] = clock() - began_s
        asked = {"model": "m", "prompt": [7] * prompt[number], "max_tokens": output[number], "ignore_eos": True}
        status, answer = await real.post("/v1/completions", asked)
        assert status == 200, answer

    await asyncio.gather(*(one(number) for number in range(len(due_s))))
    return sent_s


async def mean(real: Engine, histogram: str) -> float:
    count = await real.metric(f"{histogram}_count")
    assert count == REQUESTS
    return await real.metric(f"{histogram}_sum") / count


def played(arrival_s: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> Fleet:
    timing = Timing(
        **{name: getattr(PROFILE, name) for name in EngineProfile.__dataclass_fields__},
        max_num_batched_tokens=BUDGET,
    )
    order = np.argsort(arrival_s, kind="stable")
    fleet = new_fleet(arrival_s[order], prompt[order], output[order], slots=1, timing=timing)
    fleet.slots.phase = READY
    serve(fleet, timing, LEAST_CONNECTIONS, 0, 1e6)
    assert fleet.totals[0].counters[FINISHED] == len(arrival_s)
    return fleet
