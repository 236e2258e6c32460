"""May risky work proceed? Every reason against it is a sentence with a number and a next step."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import Cadence, DrillSelection, DrillSpec, RetentionPeriod, RetentionRule, StorageClass
from controlplane.domain.recovery import Drill, DrillPhase, DrillTimes, Override, RiskyAction
from controlplane.recovery.gate import (
    OVERRIDE_MAX,
    DatasetSituation,
    Permission,
    Situation,
    may_proceed,
    override_problem,
    rpo_grace_until,
)
from controlplane.recovery.rpo import judge_rpo
from controlplane.testing.effects import START as NOW
from controlplane.testing.recovery_points import DATASET, DAY, make_dataset, make_drill, make_point

HOUR = timedelta(hours=1)
SPEC = make_dataset()
DRILL = DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=DAY))
FRESH = judge_rpo(SPEC, [make_point(NOW - HOUR)], None, NOW, NOW)
GOOD = DatasetSituation(
    spec=SPEC, added_at=NOW - 90 * DAY, verdict=FRESH, drills=(DRILL,), history=(make_drill(NOW - HOUR),)
)


def ask(
    *datasets: DatasetSituation, action: RiskyAction = RiskyAction.DEPLOY, by: Override | None = None
) -> Permission:
    return may_proceed(action, Situation(now=NOW, datasets=datasets, overrides=() if by is None else (by,)))


def refused(*datasets: DatasetSituation) -> tuple[str, ...]:
    permission = ask(*datasets)
    assert permission.allowed is (not permission.reasons)
    return permission.reasons


@pytest.mark.parametrize("action", RiskyAction)
def test_all_is_well(action: RiskyAction) -> None:
    permission = ask(GOOD, action=action)
    assert (permission.allowed, permission.reasons, permission.notes) == (True, (), ())
    assert permission.sentence == f"{action} may proceed"


def test_a_site_without_datasets_risks_none() -> None:
    assert ask().allowed


def test_what_could_not_be_read_is_a_no() -> None:
    permission = may_proceed(RiskyAction.CHAOS, Situation(now=NOW, datasets=(GOOD,), unread="the store is down"))
    assert not permission.allowed
    assert permission.reasons == ("the state of recovery could not be read: the store is down; try again",)


@pytest.mark.parametrize("action", RiskyAction)
def test_a_blown_rpo(action: RiskyAction) -> None:
    blown = replace(GOOD, verdict=judge_rpo(SPEC, [make_point(NOW - 30 * HOUR)], None, NOW, NOW))
    permission = ask(blown, action=action)
    assert not permission.allowed
    assert permission.sentence == f"{action} may not proceed"
    (reason,) = permission.reasons
    assert reason == (
        "orders: RPO blown: 30h00m would be lost by the newest copy, 125% of the RPO of 24h00m; "
        "run `quarterdeck backup now orders`"
    )


def test_a_warning_lets_pass() -> None:
    assert ask(replace(GOOD, verdict=judge_rpo(SPEC, [make_point(NOW - 20 * HOUR)], None, NOW, NOW))).allowed


def test_blindness_is_a_no() -> None:
    (reason,) = refused(replace(GOOD, verdict=judge_rpo(SPEC, [make_point(NOW)], None, NOW, None)))
    assert "the bucket could not be read" in reason
    assert "quarterdeck bucket plan" in reason


def test_no_copy_at_all_and_no_verdict_at_all() -> None:
    (never,) = refused(replace(GOOD, verdict=judge_rpo(SPEC, [], None, NOW, NOW)))
    assert "nothing in the bucket can be restored" in never
    (unjudged,) = refused(replace(GOOD, verdict=None))
    assert "never judged" in unjudged


def test_a_new_dataset_has_a_grace_that_is_stated_and_ends() -> None:
    never = judge_rpo(SPEC, [], None, NOW, NOW)
    new = replace(GOOD, added_at=NOW - HOUR, verdict=never, history=())
    permission = ask(new)
    assert permission.allowed
    assert permission.notes == (
        "orders: declared 1h00m ago, its first copy may take until 2026-01-06 07:00:00 UTC",
        "orders: the drill orders-daily has not run yet; it has until 2026-01-07 07:00:00 UTC",
    )
    assert refused(replace(new, added_at=NOW - DAY))
    assert ask(replace(new, verdict=None)).allowed


def test_grace_is_no_excuse_for_a_copy_that_grew_too_old() -> None:
    blown = judge_rpo(SPEC, [make_point(NOW - 30 * HOUR)], None, NOW, NOW)
    assert refused(replace(GOOD, added_at=NOW - HOUR, verdict=blown))


@pytest.mark.parametrize(
    ("rpo", "grace"),
    [(timedelta(seconds=5), timedelta(minutes=15)), (3 * HOUR, 3 * HOUR), (30 * DAY, 24 * HOUR)],
)
def test_the_grace_is_one_rpo_within_bounds(rpo: timedelta, grace: timedelta) -> None:
    new = replace(GOOD, spec=make_dataset(rpo=rpo), added_at=NOW)
    assert rpo_grace_until(new) == NOW + grace


def failed(at_hours_ago: float, name: str = "orders-daily") -> Drill:
    why = "row counts of orders.lines differ: 40 of 41 rows."
    return make_drill(NOW - at_hours_ago * HOUR, name=name, phase=DrillPhase.FAILED, failure=why)


def test_a_failed_drill() -> None:
    (reason,) = refused(replace(GOOD, history=(failed(1), make_drill(NOW - 2 * HOUR))))
    assert reason == (
        "orders: the last drill orders-daily (orders-daily-20260105T070000) failed: "
        "row counts of orders.lines differ: 40 of 41 rows; "
        "see `quarterdeck drill show orders-daily-20260105T070000`, repair it, and run it again"
    )


def test_a_later_pass_settles_a_failure() -> None:
    assert ask(replace(GOOD, history=(make_drill(NOW - HOUR), failed(2)))).allowed


def test_a_pass_of_another_drill_does_not_settle_it() -> None:
    cold = DrillSpec(name="orders-cold", dataset=DATASET, cadence=Cadence(every=90 * DAY))
    both = replace(GOOD, drills=(DRILL, cold), history=(make_drill(NOW - HOUR), failed(2, "orders-cold")))
    (reason,) = refused(both)
    assert "orders-cold" in reason


def test_a_failure_by_hand_counts_until_anything_passes() -> None:
    assert refused(replace(GOOD, history=(make_drill(NOW - 2 * HOUR), failed(1, "by hand"))))
    assert ask(replace(GOOD, history=(failed(2, "by hand"), make_drill(NOW - HOUR)))).allowed


def test_a_drill_that_runs_changes_nothing_yet() -> None:
    running = make_drill(NOW, phase=DrillPhase.RESTORING)
    assert ask(replace(GOOD, history=(make_drill(NOW - HOUR), running))).allowed


def test_a_stale_drill() -> None:
    (reason,) = refused(replace(GOOD, history=(make_drill(NOW - 50 * HOUR),)))
    assert reason == (
        "orders: the drill orders-daily last passed 2.1 d ago and counted until 2026-01-05 06:00:00 UTC; "
        "run `quarterdeck drill run orders-daily`"
    )
    assert ask(replace(GOOD, history=(make_drill(NOW - 47 * HOUR),))).allowed


def test_stale_by_its_own_word_and_by_cron() -> None:
    short = replace(DRILL, stale_after=2 * HOUR)
    assert refused(replace(GOOD, drills=(short,), history=(make_drill(NOW - 3 * HOUR),)))
    weekly = replace(DRILL, cadence=Cadence(cron="0 3 * * SUN"))
    passed = make_drill(NOW - 13 * DAY)
    assert ask(replace(GOOD, drills=(weekly,), history=(passed,))).allowed is False
    assert ask(replace(GOOD, drills=(weekly,), history=(make_drill(NOW - 8 * DAY),))).allowed


def test_a_drill_that_never_ran_is_stale_after_its_time() -> None:
    (reason,) = refused(replace(GOOD, history=()))
    assert "never passed" in reason
    assert ask(replace(GOOD, added_at=NOW - DAY, history=())).allowed


def test_evidence_that_is_missing() -> None:
    unwritten = make_drill(NOW - HOUR, evidence_key=None)
    (reason,) = refused(replace(GOOD, history=(unwritten,)))
    assert "evidence is missing (none was written)" in reason
    (lost,) = refused(replace(GOOD, evidence_lost=frozenset({GOOD.history[0].drill})))
    assert "evidence/drill.json is gone or does not verify" in lost


def test_a_pass_that_took_longer_than_the_rto() -> None:
    slow = make_drill(NOW - HOUR, times=DrillTimes(fetch_and_restore_s=5 * 3600.0))
    (reason,) = refused(replace(GOOD, history=(slow,)))
    assert "took 5h00m, the RTO is 4h00m" in reason


def test_an_archived_point_has_the_rto_of_its_rule() -> None:
    yearly = RetentionRule(
        period=RetentionPeriod.YEARLY, keep=3650 * DAY, storage_class=StorageClass.DEEP_ARCHIVE, rto=24 * HOUR
    )
    spec = make_dataset(retention=(*SPEC.retention, yearly))
    cold = make_drill(
        NOW - HOUR,
        selection=DrillSelection.OLDEST,
        storage_class=StorageClass.DEEP_ARCHIVE,
        times=DrillTimes(retrieval_wait_s=12 * 3600.0),
    )
    assert ask(replace(GOOD, spec=spec, history=(cold,))).allowed
    assert refused(replace(GOOD, spec=spec, history=(replace(cold, selection=DrillSelection.LATEST),)))


def test_a_restore_that_runs() -> None:
    (reason,) = refused(replace(GOOD, restoring=("restore-7",)))
    assert reason == "orders: the restore restore-7 is running; wait for it, or stop it"


def test_a_dataset_without_a_drill_is_noted() -> None:
    permission = ask(replace(GOOD, drills=(), history=()))
    assert permission.allowed
    assert permission.notes == ("orders: no drill is declared, so nothing proves that it can be restored",)


def test_every_reason_of_every_dataset_is_named() -> None:
    blown = replace(
        GOOD,
        verdict=judge_rpo(SPEC, [make_point(NOW - 30 * HOUR)], None, NOW, NOW),
        history=(failed(1), make_drill(NOW - 60 * HOUR, evidence_key=None)),
        restoring=("restore-7",),
    )
    reasons = refused(GOOD, blown)
    assert len(reasons) == 5
    assert all(reason.startswith("orders: ") for reason in reasons)


def override(action: RiskyAction = RiskyAction.DEPLOY, *, hours: float = 2.0, since: float = 1.0) -> Override:
    at = NOW - since * HOUR
    return Override(action=action, by="ada", reason="the fix for the outage", at=at, until=at + hours * HOUR)


def test_an_override_lets_its_action_pass_and_says_so() -> None:
    bad = replace(GOOD, history=(failed(1), make_drill(NOW - 2 * HOUR)))
    permission = ask(bad, by=override())
    assert permission.allowed
    assert permission.overridden_by == override()
    assert len(permission.reasons) == 1
    assert permission.sentence == (
        "deploy may proceed, overridden by ada until 2026-01-05 09:00:00 UTC (the fix for the outage)"
    )


@pytest.mark.parametrize(
    "by",
    [
        override(RiskyAction.CHAOS),
        override(hours=1.0),
        override(since=-1.0),
        replace(override(), by=" "),
        replace(override(), reason=""),
        override(hours=48.0),
    ],
)
def test_an_override_that_does_not_hold(by: Override) -> None:
    assert not ask(replace(GOOD, history=(failed(1),)), by=by).allowed


def test_no_override_is_named_where_none_was_needed() -> None:
    assert ask(GOOD, by=override()).overridden_by is None


@pytest.mark.parametrize(
    ("by", "says"),
    [
        (override(), None),
        (override(hours=OVERRIDE_MAX / HOUR), None),
        (override(hours=OVERRIDE_MAX / HOUR + 0.1), "lasts 24h00m at most"),
        (override(hours=0.0), "ends after it begins"),
        (replace(override(), by=""), "names the person"),
        (replace(override(), reason="  "), "says why"),
    ],
)
def test_what_an_override_must_have(by: Override, says: str | None) -> None:
    problem = override_problem(by)
    assert (problem is None) is (says is None)
    assert says is None or (problem is not None and says in problem)
