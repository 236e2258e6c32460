"""How quick the simulated fleet is: a day of 1.4 million requests on some hundred replicas, on one core.

Beside it the HTTP engine's own scheduler, which takes every step by itself in Python, on a small share of the same
requests: one replica's for some minutes.
"""

import time
from typing import Any, Final

import numpy as np

from benchmarks.measuring import measure_apart
from benchmarks.report import Cell, Grid, Report
from controlplane.simulation.engine.scheduler import Scheduler, SchedulerLimits
from controlplane.simulation.engine.sequence import Sequence
from controlplane.simulation.engine.timing import EngineProfile
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.policy import ScalingPolicy
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.rates import lengths_around
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS, serve
from controlplane.simulation.fleet.state import OUTPUT_TOKENS, READY, new_fleet
from controlplane.simulation.fleet.subject import Subject, subject_of
from controlplane.simulation.fleet.trial import Trial, run_policy
from controlplane.simulation.fleet.workload import Workload, workload_of
from controlplane.simulation.peers.registry import make_peer

SUMMARY: Final = "a day of 1.4 M requests on about 100 replicas, on one core, beside a step-by-step scheduler"
AIM_S: Final = 60.0
_REQUESTS: Final = 1_400_000
_REQUESTS_QUICK: Final = 2_000
_DAY_S: Final = 86_400.0
_DAY_QUICK_S: Final = 600.0
_REPLICAS: Final = 100
_PROMPT_TOKENS: Final = 3000.0
_OUTPUT_TOKENS: Final = 2500.0
"""At the daily peak, twice the mean of 16 requests/s, they keep about a hundred replicas busy."""
_SHARE_REQUESTS: Final = 600
_PIECES: Final = 1440
"""Of even rate: the minutes of a day."""


def run(*, quick: bool) -> Report:
    requests, seconds = (_REQUESTS_QUICK, _DAY_QUICK_S) if quick else (_REQUESTS, _DAY_S)
    results = [
        measure_apart("simulator", requests=requests, seconds=seconds, policy=policy)
        for policy in ("static", "quarterdeck")
    ]
    steps = measure_apart("simulator", requests=min(_SHARE_REQUESTS, requests), seconds=seconds, policy="steps")
    slowest = max(result["seconds"] for result in results)
    return Report(
        name="simulator",
        grids=[
            Grid(
                title=f"{requests:,} requests in {seconds / 3600:.3g} hours, {results[0]['tokens']:,} tokens out",
                heads=["policy", "s", "requests/s", "replicas, mean", "most", "peak, MiB", "within objectives, %"],
                rows=[_row(result) for result in results],
            ),
            Grid(
                title=f"{steps['requests']} requests of one replica, {steps['tokens']:,} tokens out",
                heads=["how", "ms", "requests/s"],
                rows=[
                    ["the engine's scheduler, step by step", steps["step_ms"], f"{steps['step_rps']:,.0f}"],
                    ["the compiled fleet", steps["fleet_ms"], f"{steps['fleet_rps']:,.0f}"],
                ],
            ),
        ],
        verdict=f"{slowest:.1f} s, {'within' if slowest <= AIM_S else 'ABOVE'} the aim of {AIM_S:.0f} s; "
        f"{steps['step_ms'] / steps['fleet_ms']:,.0f} times as quick as step by step",
        results={"aim_s": AIM_S, "results": [*results, steps]},
    )


def measure(requests: int, seconds: float, policy: str) -> dict[str, Any]:
    """Called in a process of its own; machine code is made, or loaded, before the clock starts."""
    subject = subject_of("llama-3.1-70b", "h100", tensor_parallel=2, precision="fp8")
    if policy == "steps":
        return _steps(subject, requests)
    _played(subject, _day(50, 60.0), policy)
    day = _day(requests, seconds)
    began = time.process_time()
    result = _played(subject, day, policy)
    return {"policy": policy, "seconds": time.process_time() - began, "requests": requests, **result}


def _row(result: dict[str, Any]) -> list[Cell]:
    return [
        result["policy"],
        f"{result['seconds']:.1f}",
        f"{result['requests'] / result['seconds']:,.0f}",
        f"{result['replicas_mean']:.1f}",
        result["replicas_most"],
        f"{result['program_mib'] + result['added_mib']:,.0f}",
        f"{100 * result['attainment']:.1f}",
    ]


def _day(requests: int, seconds: float) -> Workload:
    """Poisson arrivals along a sine with its trough at the ends."""
    rng = np.random.default_rng(0)
    edges_s = np.linspace(0.0, seconds, _PIECES + 1)
    share = 1.0 - np.cos(2.0 * np.pi * (edges_s[:-1] + edges_s[1:]) / 2.0 / seconds)
    piece = rng.choice(_PIECES, size=requests, p=share / share.sum())
    arrival_s = edges_s[piece] + rng.random(requests) * seconds / _PIECES
    prompt = lengths_around(rng, np.full(requests, _PROMPT_TOKENS), 0.5)
    output = lengths_around(rng, np.full(requests, _OUTPUT_TOKENS), 0.5)
    return workload_of("a day", arrival_s, prompt, output, duration_s=seconds)


def _played(subject: Subject, day: Workload, policy: str) -> dict[str, Any]:
    trial = Trial(
        subject=subject,
        workload=day,
        limits=Limits(ttft_s=3.0, itl_s=0.1, percentile=0.99),
        cold_start_s=100.0,
        replicas_min=1,
        replicas_max=_REPLICAS,
        replicas_first=_REPLICAS if policy == "static" else 1,
    )
    chosen: ScalingPolicy = (
        make_peer("static", trial.facts, {"replicas": _REPLICAS}) if policy == "static" else our_policy(trial.facts)
    )
    outcome, run = run_policy(trial, chosen)
    return {
        "tokens": int(run.fleet.totals[0].counters[OUTPUT_TOKENS]),
        "replicas_mean": outcome.replicas_mean,
        "replicas_most": int(run.timeline.billed.max()),
        "attainment": outcome.attainment,
    }


def _steps(subject: Subject, requests: int) -> dict[str, Any]:
    """One replica at its share of the daily peak, both ways."""
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(_REPLICAS * _DAY_S / (2.0 * _REQUESTS), requests))
    prompt = lengths_around(rng, np.full(requests, _PROMPT_TOKENS), 0.5)
    output = lengths_around(rng, np.full(requests, _OUTPUT_TOKENS), 0.5)
    timing, until_s = subject.timing, float(arrival_s[-1]) + _DAY_S
    fleet = new_fleet(arrival_s, prompt, output, slots=1, timing=timing)
    fleet.slots.phase = READY
    warm = new_fleet(arrival_s[:2], prompt[:2], output[:2], slots=1, timing=timing)
    serve(warm, timing, LEAST_CONNECTIONS, 0, until_s)
    began = time.process_time()
    serve(fleet, timing, LEAST_CONNECTIONS, 0, until_s)
    fleet_s = time.process_time() - began
    profile = EngineProfile.from_prior(subject.prior)
    scheduler = Scheduler(profile, SchedulerLimits.of(profile))
    left = [
        Sequence(prompt_tokens=int(p), output_tokens=int(o), arrived_at=float(at))
        for at, p, o in zip(arrival_s, prompt, output, strict=True)
    ][::-1]
    began, now_s = time.process_time(), 0.0
    while left or scheduler.busy:
        if not scheduler.busy:
            now_s = max(now_s, left[-1].arrived_at)
        while left and left[-1].arrived_at <= now_s:
            scheduler.submit(left.pop())
        step = scheduler.step(now_s)
        assert step is not None, "a busy scheduler steps"
        now_s = step.ends_at
    step_s = time.process_time() - began
    return {
        "policy": "steps",
        "requests": requests,
        "tokens": int(output.sum()),
        "fleet_ms": round(fleet_s * 1e3, 2),
        "step_ms": round(step_s * 1e3, 1),
        "fleet_rps": requests / fleet_s,
        "step_rps": requests / step_s,
    }
