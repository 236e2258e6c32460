"""One episode of llm-d's published benchmark: its ramp, its pool, its protocol, any settings of its law.

The load generator sends a stage, waits until the last request of it is through, and sends the next (`drained`): an
overloaded stage thus gives the pool time to recover before the next one. Because nothing that comes later changes what
was before, an episode is played stage by stage: each time from the beginning, with one stage more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.outcome import turns
from controlplane.simulation.fleet.policy import Facts, ScalingPolicy
from controlplane.simulation.fleet.ramps import LLM_D
from controlplane.simulation.fleet.routing import LEAST_CONNECTIONS
from controlplane.simulation.fleet.state import Timing
from controlplane.simulation.fleet.workload import Workload
from controlplane.simulation.fleet.world import Run, Scenario, World
from controlplane.simulation.peers.registry import make_peer

TTFT_S: Final = 3.0
PER_TOKEN_S: Final = 0.1
WINDOW_S: Final = 42 * 60
"""From the load's beginning: the publication's window for costs that are compared."""
EPISODE_S: Final = 65 * 60
"""The mean of the published series (aligned-run-timeseries.csv) is the published 5.93 over its first 65 minutes: load,
drain and ten idle minutes at the minimum."""
WARM_LEAD_S: Final = 150.0
"""A pool of 8 stands idle before the load, then its minimum is 3 again: the first replica goes 30 s after the load
began, as in the published series (8 to 7 at minute 0.5, 6 at 2.5, 5 at 4.5, 4 at 6.5), for the HPA's window of 180 s
began before."""
PREFILL_TOKENS_PER_S: Final = 15_928.0
"""Measured by llm-d on this very setup: peakPrefillThroughput's default, "calibrated for this reference setup
(Qwen3-32B on H100 80 GB, TP=2)", in guides/workload-autoscaling/slo-aware/epp-plugins-configmap.yaml. The catalog's
roofline says 18,400."""
_PROMPT: Final = 4000
_TAIL_S: Final = 1500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything about an episode but its seed. The defaults are the published run's, where that is known."""

    timing: Timing
    peer: str = "llmd-slo"
    knobs: Mapping[str, float] = field(default_factory=dict)
    make: Callable[[Facts], ScalingPolicy] | None = None
    """In place of the peer."""
    warm: bool = True
    """Begins with 8, else with 3."""
    drained: bool = True
    pause_s: float = 0.0
    """Between stages, where they are not drained."""
    lead_s: float = WARM_LEAD_S
    cold_start_s: float = 100.0
    replicas_max: int = 8
    routing: int = LEAST_CONNECTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    attainment: float
    """Each request that met both limits."""
    attainment_twice: float
    """1 less misses of either kind over requests: one that missed both counts twice, as the published counters do."""
    replicas_window: float
    replicas_episode: float
    first_up_s: float
    """From the load's beginning; NaN when none was ever added."""
    load_s: float
    """Until the last request was through."""
    scale_events: int
    direction_changes: int
    """Both within the window."""


def play(setting: Setting, seed: int) -> Episode:
    base, lead_s = LLM_D.workload(seed), setting.lead_s if setting.warm else 0.0
    ends_s = np.cumsum([step.duration_s for step in LLM_D.steps])
    stage_of = np.searchsorted(ends_s[:-1], base.arrival_s, side="right")
    within_s = base.arrival_s - np.concatenate([[0.0], ends_s[:-1]])[stage_of]
    begin_s = np.zeros(len(LLM_D.steps))
    begin_s[0] = lead_s
    for stage, step in enumerate(LLM_D.steps[:-1]):
        end_s = begin_s[stage] + step.duration_s
        if setting.drained:
            sent = stage_of <= stage
            run = _run(setting, seed, base, (begin_s[stage_of] + within_s)[sent], end_s)
            end_s = max(end_s, float(np.nanmax(run.fleet.requests.done_s)))
        begin_s[stage + 1] = end_s + (0.0 if setting.drained else setting.pause_s)
    last_s = begin_s[-1] + LLM_D.steps[-1].duration_s
    run = _run(setting, seed, base, begin_s[stage_of] + within_s, last_s + _TAIL_S)
    return _scored(run, lead_s)


def _run(setting: Setting, seed: int, base: Workload, arrival_s: Floats, duration_s: float) -> Run:
    scenario = Scenario(
        arrival_s=arrival_s,
        prompt=base.prompt[: len(arrival_s)],
        output=base.output[: len(arrival_s)],
        duration_s=duration_s,
        timing=setting.timing,
        gpus_per_replica=2,
        replicas_min=3,
        replicas_max=setting.replicas_max,
        replicas_first=8 if setting.warm else 3,
        cold_start_s=setting.cold_start_s,
        routing=setting.routing,
        seed=seed,
    )
    facts = _facts(setting, base)
    policy = setting.make(facts) if setting.make else make_peer(setting.peer, facts, setting.knobs)
    return World(scenario, policy).run()


def _facts(setting: Setting, base: Workload) -> Facts:
    """Without a profile: this law does not read it."""
    return Facts(
        ttft_slo_s=TTFT_S,
        itl_slo_s=PER_TOKEN_S,
        percentile=0.9,
        timing=setting.timing,
        gpus_per_replica=2,
        cold_start_s=setting.cold_start_s,
        replica_rps=0.0,
        replica_concurrency=0.0,
        mean_prompt_tokens=float(base.prompt.mean()),
        mean_output_tokens=float(base.output.mean()),
    )


def _scored(run: Run, lead_s: float) -> Episode:
    requests = run.fleet.requests
    late = ~(requests.first_s - requests.arrival_s <= TTFT_S)
    slow = ~((requests.done_s - requests.first_s) / (requests.output - 1) <= PER_TOKEN_S)
    begin = round(lead_s)
    ups = [at_s - lead_s for at_s, before, after in run.changes if after > before]
    steps = [after - before for at_s, before, after in run.changes if begin <= at_s < begin + WINDOW_S]
    return Episode(
        attainment=1.0 - float((late | slow).mean()),
        attainment_twice=1.0 - float(late.mean() + slow.mean()),
        replicas_window=float(run.timeline.wanted[begin : begin + WINDOW_S].mean()),
        replicas_episode=float(run.timeline.wanted[begin : begin + EPISODE_S].mean()),
        first_up_s=ups[0] if ups else float("nan"),
        load_s=float(np.nanmax(requests.done_s)) - lead_s,
        scale_events=len(steps),
        direction_changes=turns(steps),
    )


def prefill_as_measured(timing: Timing) -> Timing:
    """With a prompt of this load taking as long as llm-d's figure says, in the proportions of the catalog."""
    own_s = timing.prefill_base_s + timing.prefill_per_token_s * _PROMPT + timing.prefill_per_token2_s * _PROMPT**2
    return slower(timing, prefill=_PROMPT / PREFILL_TOKENS_PER_S / own_s)


def slower(timing: Timing, *, prefill: float = 1.0, decode: float = 1.0, decode_more_s: float = 0.0) -> Timing:
    """With times of prefill and of decode steps multiplied, and every decode step longer by so much."""
    return timing._replace(
        prefill_base_s=timing.prefill_base_s * prefill,
        prefill_per_token_s=timing.prefill_per_token_s * prefill,
        prefill_per_token2_s=timing.prefill_per_token2_s * prefill,
        step_base_s=timing.step_base_s * decode + decode_more_s,
        step_per_seq_s=timing.step_per_seq_s * decode,
        step_per_context_token_s=timing.step_per_context_token_s * decode,
    )
