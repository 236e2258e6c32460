"""How much one replica carries: Qwen3-32B on two H100s, 4000 tokens in and 1000 out, where llm-d measured it."""

from typing import Any, Final

import numpy as np

from benchmarks.measuring import measure_apart
from benchmarks.report import Cell, Grid, Report
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.profile import measure as profile
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import READY, Timing, new_fleet
from controlplane.simulation.fleet.subject import subject_of

SUMMARY: Final = "requests per second of one replica of Qwen3-32B on two H100s, beside llm-d's measured 1.4 to 1.5"
MEASURED_RPS: Final = (1.4, 1.5)
"""llm-d's guides/workload-autoscaling/README.slo-aware.md: "~1.4-1.5 rps per H100 TP=2 replica"."""
_PROMPT, _OUTPUT = 4000, 1000
_TTFT_S: Final = 3.0
_PER_TOKEN_S: Final = 0.1
_PERCENTILES: Final = (0.5, 0.9, 0.95, 0.99)
_POOLS: Final = (1, 4, 8)
_OVERLOAD_RPS: Final = 4.0
_OVERLOAD_S: Final = 4000.0


def run(*, quick: bool) -> Report:
    result = measure_apart("knee", pools=1 if quick else len(_POOLS))
    knee = result["rates"][0][1]
    within = MEASURED_RPS[0] <= knee <= MEASURED_RPS[1]
    return Report(
        name="knee",
        grids=[
            Grid(
                title=f"Requests/s per replica with so many within {_TTFT_S:g} s and {_PER_TOKEN_S:g} s a token",
                heads=["replicas", *(f"{percentile:.0%}" for percentile in _PERCENTILES)],
                rows=[[name, *(f"{rate:.2f}" for rate in rates)] for name, *rates in result["rates"]],
            ),
            Grid(
                title="One replica with more than it can do",
                heads=["", "value"],
                rows=[
                    ["requests/s out", f"{result['saturated_rps']:.3f}"],
                    ["sequences at once", result["saturated_sequences"]],
                    ["time per token, ms", result["saturated_ms"]],
                    ["KV tokens", result["kv_tokens"]],
                ],
            ),
        ],
        verdict=f"half of all requests are late at {knee:.2f} requests/s, saturated at {result['saturated_rps']:.2f}: "
        f"{'within' if within else 'OUTSIDE'} the measured {MEASURED_RPS[0]:g} to {MEASURED_RPS[1]:g}",
        results={"results": [result]},
    )


def measure(pools: int) -> dict[str, Any]:
    """Called in a process of its own."""
    timing = subject_of("qwen3-32b", "h100", tensor_parallel=2).timing
    rates: list[list[Cell]] = []
    for replicas in _POOLS[:pools]:
        found = [
            profile(
                timing,
                np.array([_PROMPT]),
                np.array([_OUTPUT]),
                Limits(ttft_s=_TTFT_S, itl_s=_PER_TOKEN_S, percentile=percentile),
                replicas=replicas,
            ).rate_rps
            for percentile in _PERCENTILES
        ]
        rates.append([f"{replicas}", *found])
    return {"rates": rates, "kv_tokens": timing.kv_tokens, **_saturated(timing)}


def _saturated(timing: Timing) -> dict[str, float]:
    count = int(_OVERLOAD_RPS * _OVERLOAD_S)
    arrival_s = np.arange(count) / _OVERLOAD_RPS
    fleet = new_fleet(arrival_s, np.full(count, _PROMPT), np.full(count, _OUTPUT), slots=1, timing=timing)
    fleet.slots.phase = READY
    serve(fleet, timing, LEAST_CONNECTIONS, 0, _OVERLOAD_S)
    done_s = fleet.requests.done_s
    late = fleet.requests[(done_s > _OVERLOAD_S / 2) & (done_s <= _OVERLOAD_S)]
    gap_s = (late.done_s - late.first_s) / (_OUTPUT - 1)
    return {
        "saturated_rps": len(late) / (_OVERLOAD_S / 2),
        "saturated_sequences": int(fleet.slots[0].running),
        "saturated_ms": round(float(gap_s.mean()) * 1e3, 1),
    }
