"""The best knobs of a peer on a load, by trying all that its search names.

Tried with a seed of their own, so that the runs which are reported did not choose them. On a recorded trace that is the
same load with other cold starts: a favour to the peer, which no operator has.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from controlplane.simulation.fleet.comparison import Case, Entry, Result, Task
from controlplane.simulation.fleet.outcome import Outcome
from controlplane.simulation.peers.knobs import combinations
from controlplane.simulation.peers.registry import PEERS

TUNING_SEED: Final = 1_000_003
"""No reported run has it: seeds count from 0."""


def tunable(policies: Sequence[str]) -> tuple[str, ...]:
    """Those of them that have knobs which a search may turn."""
    return tuple(policy for policy in policies if policy in PEERS and PEERS[policy].search)


def tuning_tasks(case: Case, policies: Sequence[str]) -> list[Task]:
    return [
        Task(
            case=case,
            entry=Entry(policy=policy, knobs=tuple((name, float(value)) for name, value in knobs.items())),
            seed=TUNING_SEED,
        )
        for policy in tunable(policies)
        for knobs in combinations(PEERS[policy])
    ]


def tuned(results: Sequence[Result], percentile: float) -> Iterator[Entry]:
    """Of each policy the entry that met the objective with the fewest GPU-hours; where none did, the nearest to it."""
    for policy in dict.fromkeys(result.entry.policy for result in results):
        own = [result for result in results if result.entry.policy == policy]
        yield min(own, key=lambda result: _badness(result.outcome, percentile)).entry


def _badness(outcome: Outcome, percentile: float) -> tuple[bool, float, float]:
    if outcome.attainment >= percentile:
        return False, outcome.gpu_hours, -outcome.attainment
    return True, -outcome.attainment, outcome.gpu_hours
