"""What sleep mode is worth: our policy on a load of short bursts, with replicas that go, and with replicas that sleep.

Synthetic, so that anybody can run it: an even load, and bursts of one to three minutes at random moments, most of them
over before a replica that was ordered for them is there. All begin with what the even load needs, and nobody asleep:
the first burst finds no sleepers.
"""

from dataclasses import asdict, replace
from statistics import median
from typing import Final

import numpy as np

from benchmarks.report import Cell, Grid, Report
from controlplane.simulation.fleet.ours import our_policy
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.fleet.profile import Limits
from controlplane.simulation.fleet.ramps import ramp
from controlplane.simulation.fleet.replicas import Sleep
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.fleet.trial import Trial, clairvoyant, profiled, run_policy
from controlplane.simulation.fleet.workload import Workload

SUMMARY: Final = "what sleep mode is worth: our policy on a load of short bursts, with and without it"
_SEEDS: Final = 3
_BURSTS: Final = 5
_BURSTS_QUICK: Final = 1
_EVEN_RPS: Final = 4.0
_COLD_START_S: Final = 100.0
_WAKE_S: Final = 5.0
"""llm-d's fast model actuation wakes Qwen3-32B in 4.7 s, and starts it in 108 to 183."""
_SLEEPS: Final[dict[str, Sleep | None]] = {
    "none": None,
    "GPUs kept": Sleep(wake_s=_WAKE_S, asleep_share=1.0),
    "kept, at most 2": Sleep(wake_s=_WAKE_S, asleep_share=1.0, most=2),
    "GPUs lent": Sleep(wake_s=_WAKE_S, asleep_share=0.0),
}


def run(*, quick: bool) -> Report:
    trials = [_trial(seed, _BURSTS_QUICK if quick else _BURSTS) for seed in range(1 if quick else _SEEDS)]
    found = {name: [_played(replace(trial, sleep=sleep)) for trial in trials] for name, sleep in _SLEEPS.items()}
    hours = np.mean([trial.workload.duration_s for trial in trials]) / 3600.0
    return Report(
        name="sleep",
        grids=[
            Grid(
                title=f"qwen3-32b on two H100s, bursts in {hours:.1f} hours; cold start {_COLD_START_S:g} s, "
                f"wake {_WAKE_S:g} s; medians of {len(trials)} seeds",
                heads=["sleep", "met, %", "worst", "GPU-h", "x best", "p99, s", "wakes", "asleep"],
                rows=[_row(name, outcomes) for name, outcomes in found.items()],
            )
        ],
        verdict=_verdict(found),
        results={
            "results": [
                {"sleep": name, "clairvoyant_gpu_hours": best.gpu_hours, **asdict(ours)}
                for name, outcomes in found.items()
                for ours, best in outcomes
            ]
        },
    )


def _trial(seed: int, bursts: int) -> Trial:
    return profiled(
        Trial(
            subject=subject_of("qwen3-32b", "h100", tensor_parallel=2),
            workload=_bursty(seed, bursts),
            limits=Limits(ttft_s=3.0, itl_s=0.1, percentile=0.99),
            cold_start_s=_COLD_START_S,
            replicas_max=24,
            replicas_first=3,
            seed=seed,
        )
    )


def _bursty(seed: int, bursts: int) -> Workload:
    """Poisson at an even rate; every five to fifteen minutes two to four times as much for one to three."""
    rng = np.random.default_rng(seed)
    steps = [(_EVEN_RPS, 300.0)]
    for _ in range(bursts):
        steps += [(_EVEN_RPS * rng.uniform(2.0, 4.0), rng.uniform(60.0, 180.0)), (_EVEN_RPS, rng.uniform(300.0, 900.0))]
    return ramp(steps, 4000, 1000, seed, name="bursts")


def _played(trial: Trial) -> tuple[Outcome, Outcome]:
    """Ours, and who knows the bursts."""
    return run_policy(trial, our_policy(trial.facts))[0], clairvoyant(trial)[0]


def _row(name: str, outcomes: list[tuple[Outcome, Outcome]]) -> list[Cell]:
    ours = [one for one, _ in outcomes]
    return [
        name,
        f"{100.0 * median(one.attainment for one in ours):.2f}",
        f"{100.0 * min(one.attainment for one in ours):.2f}",
        median(one.gpu_hours for one in ours),
        f"{median(one.gpu_hours / best.gpu_hours for one, best in outcomes):.2f}",
        f"{median(one.ttft_p99_s for one in ours):.2f}",
        f"{median(one.wakes for one in ours):g}",
        f"{median(one.asleep_mean for one in ours):.1f}",
    ]


def _verdict(found: dict[str, list[tuple[Outcome, Outcome]]]) -> str:
    missed = {name: 100.0 * (1.0 - median(one.attainment for one, _ in outcomes)) for name, outcomes in found.items()}
    return f"missed {missed['none']:.1f} % where replicas go, {missed['GPUs kept']:.1f} % where they sleep"
