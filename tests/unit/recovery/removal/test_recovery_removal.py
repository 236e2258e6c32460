"""May a person delete one recovery point? Each thing that speaks against it, and what an override is good for."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest

from controlplane.domain.dataset import BucketSpec, RetentionPeriod, RetentionRule
from controlplane.domain.recovery import Inventory, Override, RecoveryPoint, RiskyAction
from controlplane.kernel.ids import PointId
from controlplane.recovery.gate import Permission
from controlplane.recovery.removal import RemovalPlan, RemovalSituation, plan_removal
from controlplane.recovery.workshop import PointContents
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import BUCKET, DATASET, make_dataset, make_point

HOUR: Final = timedelta(hours=1)
NOW: Final = START + timedelta(days=40)
ROTTEN: Final = "orders/points/x/manifest.json: is no JSON"
ORDERS: Final = replace(
    make_dataset(), retention=(RetentionRule(period=RetentionPeriod.DAILY, keep=timedelta(days=10)),)
)
OLD: Final = make_point(NOW - timedelta(days=20))
"""Beyond every rule."""
BAD: Final = make_point(NOW - timedelta(days=3), problems=(ROTTEN,))
KEPT: Final = make_point(NOW - timedelta(days=2))
NEWEST: Final = make_point(NOW - HOUR)
READABLE: Final = PointContents(objects=3, stored_bytes=4096, locked_until=None, manifest_problem="")
UNREADABLE: Final = replace(READABLE, manifest_problem=ROTTEN)
OVERRIDE: Final = Override(action=RiskyAction.RETENTION, by="ada", reason="bit rot", at=NOW - HOUR, until=NOW + HOUR)


def situation(point: PointId, *points: RecoveryPoint, contents: PointContents = READABLE) -> RemovalSituation:
    return RemovalSituation(
        dataset=ORDERS,
        bucket=BucketSpec(name=BUCKET, bucket="acme", prefix="lab/"),
        inventory=Inventory(
            dataset=DATASET,
            bucket=BUCKET,
            observed_at=NOW,
            points=points or (OLD, BAD, KEPT, NEWEST),
            unreadable=(ROTTEN,),
        ),
        point=point,
        contents=contents,
        in_use=frozenset(),
        writing=frozenset(),
        permission=Permission(action=RiskyAction.RETENTION, allowed=True, reasons=()),
        override=None,
        now=NOW,
    )


def test_one_that_cannot_be_read_may_go_although_it_is_all_of_its_day() -> None:
    plan = plan_removal(situation(BAD.point, contents=UNREADABLE))
    assert (plan.allowed, plan.refusals, plan.objections) == (True, (), ())
    assert plan.state == f"unreadable: {ROTTEN}"
    assert plan.done_sentence("ada", "bit rot") == (
        f"{BAD.point} deleted by ada: bit rot (it was unreadable: {ROTTEN}; 3 objects, 4.0 KiB)"
    )


def test_one_that_no_rule_keeps_may_go() -> None:
    plan = plan_removal(situation(OLD.point))
    assert (plan.allowed, plan.state) == (True, "readable, and whole as far as a look can tell")


def test_one_that_no_list_shows_may_go() -> None:
    plan = plan_removal(situation(PointId("not-ours"), contents=UNREADABLE))
    assert (plan.allowed, plan.row) == (True, None)


type Change = Callable[[RemovalSituation], RemovalSituation]


def locked(asked: RemovalSituation) -> RemovalSituation:
    return replace(asked, contents=replace(asked.contents, locked_until=NOW + HOUR))


def once_locked(asked: RemovalSituation) -> RemovalSituation:
    return replace(asked, contents=replace(asked.contents, locked_until=NOW - HOUR))


def used(asked: RemovalSituation) -> RemovalSituation:
    return replace(asked, in_use=frozenset({asked.point}))


def written(asked: RemovalSituation) -> RemovalSituation:
    return replace(asked, writing=frozenset({asked.point}))


def unread(asked: RemovalSituation) -> RemovalSituation:
    return replace(asked, inventory=replace(asked.inventory, problem="503"))


def built_on(asked: RemovalSituation) -> RemovalSituation:
    increment = make_point(NOW - HOUR / 2, parent=asked.point)
    return replace(asked, inventory=replace(asked.inventory, points=(*asked.inventory.points, increment)))


def proven(asked: RemovalSituation) -> RemovalSituation:
    points = (replace(row, drilled_at=NOW) if row.point == asked.point else row for row in asked.inventory.points)
    return replace(asked, inventory=replace(asked.inventory, points=tuple(points)))


@pytest.mark.parametrize(
    ("point", "change", "said"),
    [
        (OLD, locked, "it is locked in the bucket until 2026-02-14 09:00:00 UTC"),
        (OLD, used, "a drill restores it, or a copy builds on it; wait for its end"),
        (OLD, written, "it is being written; wait for its end"),
        (OLD, unread, "main could not be read lately (503); try again when it can"),
        (OLD, built_on, "which can be restored; delete what builds on it first"),
        (OLD, proven, "`quarterdeck drill run orders` proves a newer one, then it may go"),
        (NEWEST, lambda asked: asked, "`quarterdeck backup now orders` makes a newer one, then it may go"),
    ],
    ids=["locked", "used", "written", "unread", "chain", "proven", "newest"],
)
def test_what_nothing_overrides(point: RecoveryPoint, change: Change, said: str) -> None:
    plan = plan_removal(replace(change(situation(point.point)), override=OVERRIDE))
    assert not plan.allowed
    assert len(plan.refusals) == 1
    assert said in plan.refusals[0]
    assert said in plan.why_not
    assert "recovery override" not in plan.why_not, "it would not help"


def test_a_lock_that_ended_holds_nothing() -> None:
    assert plan_removal(once_locked(situation(OLD.point))).allowed


def test_the_newest_stays_also_when_it_cannot_be_read_unless_its_name_is_ahead_of_the_clock() -> None:
    rotten = replace(NEWEST, problems=(ROTTEN,))
    plan = plan_removal(situation(rotten.point, KEPT, rotten, contents=UNREADABLE))
    assert [one[:33] for one in plan.refusals] == ["the newest recovery point is neve"]
    ahead = make_point(NOW + timedelta(days=3650), problems=(ROTTEN,))
    assert plan_removal(situation(ahead.point, KEPT, NEWEST, ahead, contents=UNREADABLE)).allowed


def test_what_builds_on_one_that_cannot_be_read_is_told_and_no_hindrance() -> None:
    increment = make_point(NOW - 2 * HOUR, parent=BAD.point, problems=(f"stands on {BAD.point}",))
    plan = plan_removal(situation(BAD.point, BAD, increment, NEWEST, contents=UNREADABLE))
    assert (plan.allowed, plan.dependants) == (True, (increment.point,))


def promised() -> RemovalSituation:
    return situation(KEPT.point)


def refused_by_the_gate() -> RemovalSituation:
    refused = Permission(action=RiskyAction.RETENTION, allowed=False, reasons=("orders: RPO blown",))
    return replace(situation(OLD.point), permission=refused)


def damaged() -> RemovalSituation:
    return situation(BAD.point)


def recoverable() -> RemovalSituation:
    return situation(BAD.point, contents=replace(UNREADABLE, sound_version="v1"))


def without_rules() -> RemovalSituation:
    asked = situation(OLD.point)
    return replace(asked, dataset=replace(asked.dataset, retention=()))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (promised, "retention promises it: daily rule: the newest of 2026-02-12, kept 10 d"),
        (refused_by_the_gate, "orders: RPO blown"),
        (damaged, "damaged, and still all there is: daily rule"),
        (recoverable, "delete what lies above it in acme, lab/orders/points/"),
        (without_rules, "no retention rule is declared, so everything is kept"),
    ],
)
def test_what_an_override_is_good_for(ask: Callable[[], RemovalSituation], said: str) -> None:
    plan = plan_removal(ask())
    assert not plan.allowed
    assert plan.refusals == ()
    assert said in plan.objections[0]
    assert plan.why_not.endswith('`quarterdeck recovery override retention --reason "..."` lets it go all the same')
    named: RemovalPlan = plan_removal(replace(ask(), override=OVERRIDE))
    assert named.allowed
    assert ", over 1 objection: because (" in named.done_sentence("ada", "because")
