"""llm-d's ramp under llm-d's own law, beside what was published of it, and how far the result hangs on what is unknown.

Sources of the published figures: docs/developer-guide/epp-saturation-benchmark.md of the workload variant autoscaler
(headline, "full experiment frontier") with its two time series, and llm-d's guides/workload-autoscaling/slo-aware.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from benchmarks.llmd_episode import Episode, Setting, play, prefill_as_measured, slower
from benchmarks.measuring import measure_apart
from benchmarks.report import Cell, Grid, Report
from controlplane.simulation.fleet.ramps import LLM_D_PAUSE_S
from controlplane.simulation.fleet.routing import SHORTEST_QUEUE
from controlplane.simulation.fleet.state import Timing
from controlplane.simulation.fleet.subject import subject_of
from controlplane.simulation.peers.llmd import PUBLISHED_RUN

SUMMARY: Final = "llm-d's ramp with llm-d's law: the published points, and what they hang on"
POINTS: Final = 2.0
REPLICAS: Final = 0.3
"""What counts as reproduced."""
_SEEDS: Final = 10
_SEEDS_SENSITIVITY: Final = 5
_SLOW_GRANTS: Final = {"alpha": 0.3, "cycle_s": 60.0, "up_pods": 1.0, "up_percent": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A row of the publication's tables."""

    name: str
    attainment: float
    """Percent."""
    replicas: float
    over: str = "window"
    peer: str = "llmd-slo"
    knobs: Mapping[str, float] = field(default_factory=dict)
    warm: bool = True
    replicas_max: int = 8


PUBLISHED: Final = (
    Published(name="headline: P90, 0.55 / 0.40", attainment=95.8, replicas=6.55, knobs=PUBLISHED_RUN),
    Published(name="headline, whole episode", attainment=95.8, replicas=5.93, over="episode", knobs=PUBLISHED_RUN),
    Published(name="previous defaults: mean, 0.85 / 0.50", attainment=84.7, replicas=5.89, peer="llmd-old"),
    Published(name="previous defaults, from 3", attainment=83.8, replicas=4.92, peer="llmd-old", warm=False),
    Published(
        name="P90 alone, 0.85 / 0.50",
        attainment=85.1,
        replicas=5.9,
        knobs={**_SLOW_GRANTS, "up_threshold": 0.85, "down_threshold": 0.5},
    ),
    Published(
        name="P90, quick grants, 0.85 / 0.50",
        attainment=81.0,
        replicas=5.77,
        knobs={**PUBLISHED_RUN, "up_threshold": 0.85, "down_threshold": 0.5},
    ),
    Published(
        name="mean, 0.40 / 0.25",
        attainment=80.2,
        replicas=6.75,
        peer="llmd-old",
        knobs={"up_threshold": 0.4, "down_threshold": 0.25},
    ),
    Published(
        name="mean, quick grants, at most 12",
        attainment=84.2,
        replicas=7.14,
        peer="llmd-old",
        knobs={"up_pods": 4.0, "up_percent": 100.0},
        replicas_max=12,
    ),
)


def run(*, quick: bool) -> Report:
    result = measure_apart("llmd", seeds=1 if quick else _SEEDS, sensitivity=0 if quick else _SEEDS_SENSITIVITY)
    heads = ["", "published", "both met, %", "worst..best", "misses twice, %", "published", "replicas", "first up, min"]
    return Report(
        name="llmd",
        grids=[
            Grid(title=f"Published settings, {result['seeds']} seeds", heads=heads, rows=result["published"]),
            Grid(
                title="One thing changed: headline (95.8 % at 6.55) and previous defaults (84.7 % at 5.89)",
                heads=["", "headline, %", "replicas", "", "previous, %", "replicas", ""],
                rows=result["sensitivity"],
            ),
        ],
        verdict=result["verdict"],
        results={"points": POINTS, "replicas": REPLICAS, "results": [result]},
    )


def measure(seeds: int, sensitivity: int) -> dict[str, Any]:
    """Called in a process of its own."""
    catalog = subject_of("qwen3-32b", "h100", tensor_parallel=2).timing
    timing = prefill_as_measured(catalog)
    rows, reproduced = [], []
    for point in PUBLISHED:
        episodes = [play(setting_of(point, timing), seed) for seed in range(seeds)]
        rows.append(_row(point, episodes))
        if _hit(point, episodes):
            reproduced.append(point.name)
    return {
        "seeds": seeds,
        "published": rows,
        "sensitivity": [_sensitivity(name, setting, sensitivity) for name, setting in variants(timing, catalog)]
        if sensitivity
        else [],
        "verdict": f"{len(reproduced)} of {len(PUBLISHED)} published points within {POINTS:g} points and {REPLICAS:g} "
        f"replicas: {'; '.join(reproduced) or 'none'}",
    }


def setting_of(point: Published, timing: Timing) -> Setting:
    return Setting(timing=timing, peer=point.peer, knobs=point.knobs, warm=point.warm, replicas_max=point.replicas_max)


def variants(timing: Timing, catalog: Timing) -> list[tuple[str, Setting]]:
    """Settings of the headline; the first is its own. `catalog` is the timing with the catalog's prefill."""
    known = setting_of(PUBLISHED[0], timing)
    kv_per_percent = 6104  # tokens of 256 KiB in 1 % of 2 x 80 GB
    return [
        ("as above", known),
        ("form with KEDA: every 15 s, mean over 45 s", replace(known, knobs={"cycle_s": 15.0, "alpha": 0.0})),
        ("measured latencies alone", replace(known, knobs={**known.knobs, "predicted": 0.0})),
        ("pool from 3", replace(known, warm=False)),
        *(
            (f"cycle begins {seconds:g} s later", replace(known, lead_s=known.lead_s - seconds))
            for seconds in (15.0, 30.0, 45.0)
        ),
        *(
            (f"no drain, pauses of {pause_s:g} s", replace(known, drained=False, pause_s=pause_s))
            for pause_s in (0.0, LLM_D_PAUSE_S, 60.0)
        ),
        *((f"cold start {seconds:g} s", replace(known, cold_start_s=seconds)) for seconds in (90.0, 105.0, 135.0)),
        ("prefill as in the catalog: 18,400 tokens/s", replace(known, timing=catalog)),
        ("prefill 30 % slower than that", replace(known, timing=slower(catalog, prefill=1.3))),
        ("decode 10 % slower, as `calibration` finds", replace(known, timing=slower(timing, decode=1.1))),
        ("decode 5 % quicker", replace(known, timing=slower(timing, decode=0.95))),
        ("each decode step 2 ms longer", replace(known, timing=slower(timing, decode_more_s=0.002))),
        *(
            (
                f"gpu_memory_utilization 0.{percent}",
                replace(known, timing=timing._replace(kv_tokens=timing.kv_tokens + kv_per_percent * (percent - 92))),
            )
            for percent in (90, 94, 95)
        ),
        (
            "each decode step 2 ms longer, and 0.95",
            replace(
                known,
                timing=slower(timing, decode_more_s=0.002)._replace(kv_tokens=timing.kv_tokens + 3 * kv_per_percent),
            ),
        ),
        ("routing to the shortest queue", replace(known, routing=SHORTEST_QUEUE)),
    ]


def _row(point: Published, episodes: Sequence[Episode]) -> list[Cell]:
    met = [100.0 * episode.attainment for episode in episodes]
    twice = [100.0 * episode.attainment_twice for episode in episodes]
    up_min = [episode.first_up_s / 60.0 for episode in episodes]
    return [
        point.name,
        f"{point.attainment:.1f}",
        f"{statistics.mean(met):.1f}",
        f"{min(met):.1f}..{max(met):.1f}",
        f"{statistics.mean(twice):.1f}",
        f"{point.replicas:.2f}",
        f"{_replicas(point, episodes):.2f}",
        f"{statistics.median(up_min):.1f}",
    ]


def _replicas(point: Published, episodes: Sequence[Episode]) -> float:
    whole = point.over == "episode"
    return statistics.mean(episode.replicas_episode if whole else episode.replicas_window for episode in episodes)


def _hit(point: Published, episodes: Sequence[Episode]) -> bool:
    met = 100.0 * statistics.mean(episode.attainment_twice for episode in episodes)
    return abs(met - point.attainment) <= POINTS and abs(_replicas(point, episodes) - point.replicas) <= REPLICAS


def _sensitivity(name: str, setting: Setting, seeds: int) -> list[Cell]:
    cells: list[Cell] = [name]
    old = PUBLISHED[2]
    for point, changed in (
        (PUBLISHED[0], setting),
        (old, replace(setting, peer=old.peer, knobs=_knobs_of_old(setting.knobs))),
    ):
        episodes = [play(changed, seed) for seed in range(seeds)]
        met = 100.0 * statistics.mean(episode.attainment_twice for episode in episodes)
        replicas = _replicas(point, episodes)
        cells += [f"{met:.1f}", f"{replicas:.2f}", "yes" if _hit(point, episodes) else "-"]
    return cells


def _knobs_of_old(knobs: Mapping[str, float]) -> dict[str, float]:
    """What a variant changes beside the headline's own knobs; its form has no weight of 0.6."""
    return {name: value for name, value in knobs.items() if PUBLISHED_RUN.get(name) != value}
