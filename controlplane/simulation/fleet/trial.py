"""One cell of a comparison: a load on a model, its objectives and cold start, and any policy on it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from controlplane.simulation.fleet.clairvoyant import Prices, Schedule, cheapest, needs, static_peak
from controlplane.simulation.fleet.compiled import Floats, Ints
from controlplane.simulation.fleet.outcome import Outcome, outcome_of
from controlplane.simulation.fleet.policy import Facts, ScalingPolicy, Seen
from controlplane.simulation.fleet.profile import Limits, Profile, measure
from controlplane.simulation.fleet.replicas import Sleep
from controlplane.simulation.fleet.subject import Subject
from controlplane.simulation.fleet.workload import Workload
from controlplane.simulation.fleet.world import Run, Scenario, Span, World

CLAIRVOYANT: Final = "clairvoyant"
_BIN_S: Final = 10.0
"""Of the clairvoyant schedule: no start is so quick that a finer one would help."""
_LOADS: Final = (1.6, 1.5, 1.4, 1.3, 1.25, 1.2, 1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Of one replica in the clairvoyant schedule, in multiples of the profiled capacity: a pool of replicas evens out what
one replica cannot, and bursts need room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Everything but the policy."""

    subject: Subject
    workload: Workload
    limits: Limits
    cold_start_s: float
    cold_start_cv: float = 0.1
    sleep: Sleep | None = None
    """None: who is given back goes."""
    asleep_first: int = 0
    replicas_min: int = 1
    replicas_max: int = 64
    replicas_first: int = 1
    no_gpus: tuple[Span, ...] = ()
    no_metrics: tuple[Span, ...] = ()
    seed: int = 0
    profile: Profile = field(default_factory=lambda: Profile(rate_rps=0.0, concurrency=0.0))

    @property
    def scenario(self) -> Scenario:
        return Scenario(
            arrival_s=self.workload.arrival_s,
            prompt=self.workload.prompt,
            output=self.workload.output,
            duration_s=self.workload.duration_s,
            timing=self.subject.timing,
            gpus_per_replica=self.subject.tensor_parallel,
            replicas_min=self.replicas_min,
            replicas_max=self.replicas_max,
            replicas_first=self.replicas_first,
            cold_start_s=self.cold_start_s,
            cold_start_cv=self.cold_start_cv,
            sleep=self.sleep,
            asleep_first=self.asleep_first,
            no_gpus=self.no_gpus,
            no_metrics=self.no_metrics,
            seed=self.seed,
        )

    @property
    def facts(self) -> Facts:
        return Facts(
            ttft_slo_s=self.limits.ttft_s,
            itl_slo_s=self.limits.itl_s,
            percentile=self.limits.percentile,
            timing=self.subject.timing,
            gpus_per_replica=self.subject.tensor_parallel,
            cold_start_s=self.cold_start_s,
            replica_rps=self.profile.rate_rps,
            replica_concurrency=self.profile.concurrency,
            mean_prompt_tokens=float(self.workload.prompt.mean()),
            mean_output_tokens=float(self.workload.output.mean()),
            wake_s=None if self.sleep is None else self.sleep.wake_s,
        )


def profiled(trial: Trial) -> Trial:
    """With the capacity of one replica measured on the workload's own requests."""
    workload = trial.workload
    return replace(
        trial, profile=measure(trial.subject.timing, workload.prompt, workload.output, trial.limits, seed=trial.seed)
    )


def run_policy(
    trial: Trial, policy: ScalingPolicy, *, asleep_at: Callable[[float], int] | None = None
) -> tuple[Outcome, Run]:
    """`asleep_at`: as a `World` has it."""
    scenario = trial.scenario
    run = World(scenario, policy, asleep_at).run()
    limits = trial.limits
    return outcome_of(policy.name, scenario, run, ttft_slo_s=limits.ttft_s, itl_slo_s=limits.itl_s), run


# -- who knows the future ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Implements `ScalingPolicy`: follows a schedule."""

    schedule: Schedule
    name: str = CLAIRVOYANT
    tick_s: float = 1.0
    scrape_s: float = 60.0

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        return self.schedule.wanted_at(seen.at_s), memory


def schedules(trial: Trial) -> list[Schedule]:
    """The covering model's optimum at each load that a replica may be planned with, the cheapest first.

    Where replicas sleep, also those that do without.
    """
    work = work_of(trial)
    found = []
    for load in _LOADS:
        needed = needs(
            trial.workload,
            trial.profile.rate_rps * load,
            _BIN_S,
            work=work,
            replicas_min=trial.replicas_min,
        )
        for prices in _prices(trial):
            schedule = cheapest(
                needed,
                _BIN_S,
                prices,
                replicas_min=trial.replicas_min,
                replicas_max=trial.replicas_max,
                duration_s=trial.workload.duration_s,
            )
            # With nobody asleep it is the one that does without.
            if prices.wake_s is None or schedule.wakes:
                found.append(schedule)
    return sorted(found, key=lambda schedule: schedule.replica_s)


def _prices(trial: Trial) -> list[Prices]:
    sleep, awake = trial.sleep, Prices(cold_start_s=trial.cold_start_s)
    if sleep is None:
        return [awake]
    return [
        awake,
        replace(awake, wake_s=sleep.wake_s, asleep_share=sleep.asleep_share, asleep_most=sleep.most),
    ]


def work_of(trial: Trial) -> Floats:
    """Each request's GPU time at a large batch over the mean request's."""
    timing, prompt, output = trial.subject.timing, trial.workload.prompt, trial.workload.output
    prefill_s = timing.prefill_per_token_s * prompt + timing.prefill_per_token2_s * prompt.astype(float) ** 2
    per_token_s = timing.step_per_seq_s + timing.step_per_context_token_s * (prompt + output / 2.0)
    seconds = prefill_s + per_token_s * output
    return seconds / max(float(seconds.mean()), 1e-12)


def clairvoyant(trial: Trial) -> tuple[Outcome, Run]:
    """The cheapest of `schedules` that meets the objectives in the simulator; the dearest where none does."""
    assert trial.profile.rate_rps > 0.0, "a profiled trial, whose single request meets its objectives"
    outcome_run: tuple[Outcome, Run] | None = None
    for schedule in schedules(trial):
        starting = replace(trial, replicas_first=schedule.wanted_at(0.0), asleep_first=schedule.asleep_at(0.0))
        outcome_run = run_policy(starting, Scheduled(schedule=schedule), asleep_at=schedule.asleep_at)
        if outcome_run[0].attainment >= trial.limits.percentile:
            return outcome_run
    assert outcome_run is not None, "there is at least one load"
    return outcome_run


def peak_replicas(trial: Trial) -> int:
    """What a static fleet needs at the profiled capacity, in its busiest ten seconds."""
    return max(static_peak(_needed(trial)), 1)


def first_replicas(trial: Trial, seconds: float) -> int:
    """What the busiest ten seconds of the first so many need, within the bounds: those of a service that ran before."""
    busiest = int(_needed(trial)[: round(seconds / _BIN_S)].max())
    return min(max(busiest, trial.replicas_min), trial.replicas_max)


def _needed(trial: Trial) -> Ints:
    """At the profiled capacity, by ten seconds."""
    return needs(trial.workload, trial.profile.rate_rps, _BIN_S, work=work_of(trial))
