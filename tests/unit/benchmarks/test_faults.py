"""What the benchmark of faults counts: played by policies whose every word is known beforehand."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from benchmarks.fault_cases import COLD_START_S, FOR_EVER, NEVER, STUCK_S, Case, Fault, Row, cases, row_of, trial_of
from benchmarks.faults import POLICIES, report_of, verdicts
from controlplane.simulation.fleet.ours import NAME as OURS
from controlplane.simulation.fleet.policy import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Implements `ScalingPolicy`: wants each number from its second on."""

    steps: Sequence[tuple[float, int]]
    name: str = "said"
    tick_s: float = 1.0
    scrape_s: float = 1.0

    def start(self) -> None:
        return None

    def decide(self, seen: Seen, memory: None) -> tuple[int, None]:
        place = bisect_right([at_s for at_s, _ in self.steps], seen.at_s) - 1
        return self.steps[max(place, 0)][1], memory


ALL = cases(1)


def case_of(fault: Fault, load: str, lasts: str, number: int = 0) -> Case:
    found = [case for case in ALL if (case.fault, case.load.name, case.lasts) == (fault, load, lasts)]
    return found[number]


def played(case: Case, *steps: tuple[float, int], scrape_s: float = 1.0) -> Row:
    trial = trial_of(case)
    return row_of(case, trial, Said(steps=((0.0, trial.replicas_first), *steps), scrape_s=scrape_s))


def test_only_decisions_on_old_readings_count_as_blind() -> None:
    case = case_of(Fault.NO_METRICS, "fall", "2 min")
    begins_s, ends_s = case.span.start_s, case.span.end_s
    steps = ((begins_s + 2.0, 5), (begins_s + 20.0, 3), (ends_s - 1.0, 2), (ends_s, 1))
    row = played(case, *steps)
    assert (row.downs, row.given_back) == (2, 3)
    assert played(case, *steps, scrape_s=60.0).downs == 1, "20 s is no age where a reading comes once a minute"


def test_who_gives_back_under_load_drains_and_answers_all() -> None:
    row = played(case_of(Fault.SCALE_DOWN, "cliff", NEVER), (290.0, 3))
    assert (row.downs, row.given_back, row.unanswered) == (1, 3, 0)
    assert row.open_then > 50.0
    assert 1.0 < row.drained_s < 120.0


def test_who_asked_all_along_has_what_it_needs_a_start_after_gpus_are_back() -> None:
    row = played(case_of(Fault.NO_GPUS, "rise", "20 min"), (310.0, 8))
    assert (row.asked, row.kept, row.stuck) == (1.0, 1.0, False)
    assert row.settled_s == pytest.approx(COLD_START_S, rel=0.3)


def test_who_never_asks_is_stuck() -> None:
    row = played(case_of(Fault.NO_GPUS, "rise", "20 min"))
    assert (row.asked, row.settled_s, row.stuck) == (0.0, None, True)


def test_who_gives_back_in_a_shortage_has_kept_less() -> None:
    case = case_of(Fault.NO_GPUS, "rise", "20 min")
    first = trial_of(case).replicas_first
    assert played(case, (400.0, first - 1), (500.0, 8)).kept == pytest.approx((first - 1) / first)


@pytest.mark.parametrize(("withdrawn", "stuck"), [(True, False), (False, True)])
def test_an_order_that_cannot_come_true_is_to_be_withdrawn(withdrawn: bool, stuck: bool) -> None:
    case = case_of(Fault.NO_GPUS, "hill", FOR_EVER)
    row = played(case, (310.0, 8), *([(2400.0, 2)] if withdrawn else []))
    assert (row.unanswered, row.stuck) == (0, stuck)
    assert (row.settled_s is None) is stuck


def test_every_fault_is_played_at_several_moments() -> None:
    assert {case.fault for case in ALL} == set(Fault)
    for fault, lasts in ((Fault.NO_METRICS, "10 min"), (Fault.NO_GPUS, FOR_EVER)):
        assert len({case.from_s for case in ALL if (case.fault, case.lasts) == (fault, lasts)}) > 1
    assert {case.seed for case in cases(3)} == {0, 1, 2}
    assert POLICIES[0] == OURS


CALM = Row(
    fault=Fault.NO_METRICS,
    load="fall",
    seed=0,
    lasts="2 min",
    from_s=0.0,
    policy=OURS,
    attainment=1.0,
    unanswered=0,
    downs=0,
    given_back=0,
)


def test_the_verdict_counts_what_may_not_be() -> None:
    scaled = replace(CALM, fault=Fault.SCALE_DOWN, lasts=NEVER, downs=2, given_back=3)
    starved = replace(CALM, fault=Fault.NO_GPUS, lasts=FOR_EVER, settled_s=10.0)
    unharmed = replace(starved, lasts=NEVER, settled_s=None)
    assert all(said.endswith("aim 0: met") for said in verdicts([CALM, scaled, starved, unharmed]))
    bad = [replace(CALM, downs=1), replace(scaled, unanswered=4), replace(starved, settled_s=STUCK_S + 1.0)]
    said = verdicts(bad)
    assert all(each.endswith("aim 0: not met") for each in said)
    assert "4 requests never answered" in said[0]
    assert "1 of 1 runs stuck" in said[2]
    assert report_of([*bad, CALM]).results["results"][2]["stuck"] is True
