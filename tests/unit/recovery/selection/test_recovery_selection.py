"""Chains of recovery points, and which one a drill takes."""

from datetime import timedelta

import pytest

from controlplane.domain.dataset import DrillSelection, RetentionPeriod
from controlplane.domain.recovery import RecoveryPoint
from controlplane.kernel.ids import BucketName, PointId
from controlplane.recovery.lineage import BrokenChain, Chain, Lineage, chain_of
from controlplane.recovery.selection import NoneQualifies, Selected, select_point
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import BUCKET, DATASET, DAY, make_point

FULL = make_point(START)
FIRST = make_point(START + DAY, parent=FULL.point)
SECOND = make_point(START + 2 * DAY, parent=FIRST.point)
LONE = make_point(START + 3 * DAY)
ALL = (SECOND, LONE, FULL, FIRST)


def pick(selection: DrillSelection, points: tuple[RecoveryPoint, ...] = ALL, draw: float = 0.0) -> PointId | str:
    found = select_point(selection, points, DATASET, BUCKET, draw=draw)
    return found.point.point if isinstance(found, Selected) else found.sentence


def test_a_chain_is_the_full_copy_and_then_its_increments() -> None:
    chain = chain_of(SECOND, ALL)
    assert isinstance(chain, Chain)
    assert chain.links == (FULL, FIRST, SECOND)
    assert chain.point is SECOND
    assert chain.plain_bytes == 3 * FULL.plain_bytes
    assert chain.stored_bytes == 3 * FULL.stored_bytes
    assert chain.storage_classes == FULL.storage_classes


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ((FULL, SECOND), f"{SECOND.point} needs {FIRST.point}, and {FIRST.point} is not in the bucket"),
        ((FIRST, SECOND), f"{SECOND.point} needs {FULL.point}, and {FULL.point} is not in the bucket"),
        (
            (make_point(START, problems=("pack 7 is not there",)), FIRST, SECOND),
            f"{SECOND.point} needs {FULL.point}, which is damaged: pack 7 is not there",
        ),
        (
            (make_point(START, parent=SECOND.point), FIRST, SECOND),
            f"{SECOND.point} needs {SECOND.point}, and its parents go round in a circle",
        ),
    ],
)
def test_a_broken_chain_names_its_link(points: tuple[RecoveryPoint, ...], problem: str) -> None:
    chain = chain_of(SECOND, points)
    assert isinstance(chain, BrokenChain)
    assert chain.problem == problem
    assert SECOND.point not in Lineage(points).usable_ids


def test_a_chain_does_not_reach_into_another_bucket() -> None:
    far = make_point(START, bucket=BucketName("far"))
    assert isinstance(chain_of(FIRST, (far, FIRST)), BrokenChain)


def test_a_damaged_point_is_its_own_problem() -> None:
    bad = make_point(START, problems=("no manifest",))
    chain = chain_of(bad, (bad,))
    assert isinstance(chain, BrokenChain)
    assert chain.problem == f"{bad.point} is damaged: no manifest"


def test_latest_oldest_and_random() -> None:
    assert pick(DrillSelection.LATEST) == LONE.point
    assert pick(DrillSelection.OLDEST) == FULL.point
    drawn = [pick(DrillSelection.RANDOM, draw=draw) for draw in (0.0, 0.25, 0.5, 0.999, 1.0)]
    assert drawn == [FULL.point, FIRST.point, SECOND.point, LONE.point, LONE.point]


def test_only_usable_ones_qualify() -> None:
    newest = make_point(START + 9 * DAY, problems=("empty",))
    assert pick(DrillSelection.LATEST, (*ALL, newest)) == LONE.point
    assert pick(DrillSelection.OLDEST, (FIRST, SECOND, LONE)) == LONE.point
    drawn = {pick(DrillSelection.RANDOM, (*ALL, newest), draw=number / 100) for number in range(100)}
    assert drawn == {point.point for point in ALL}


def test_quarterly_takes_what_the_daily_rule_has_let_go() -> None:
    daily, quarterly, yearly = RetentionPeriod.DAILY, RetentionPeriod.QUARTERLY, RetentionPeriod.YEARLY
    older = make_point(START - 400 * DAY, kept_by=(yearly,))
    old = make_point(START - 100 * DAY, kept_by=(quarterly,))
    newest = make_point(START, kept_by=(daily, quarterly, yearly))
    assert pick(DrillSelection.QUARTERLY, (older, old, newest)) == old.point
    assert pick(DrillSelection.QUARTERLY, (older, newest)) == older.point
    assert pick(DrillSelection.QUARTERLY, (newest,)) == newest.point
    assert "none of 4 usable recovery points is kept by a quarterly or yearly rule" in pick(DrillSelection.QUARTERLY)


@pytest.mark.parametrize("selection", DrillSelection)
def test_where_none_qualifies_it_says_why(selection: DrillSelection) -> None:
    assert pick(selection, ()) == "orders in main: there is no recovery point yet"
    orphan = make_point(START, parent=PointId("gone"))
    assert pick(selection, (orphan,)) == (
        f"orders in main: none of 1 recovery point is usable; the newest is {orphan.point}: "
        "gone, which it needs, is damaged or not there"
    )


def test_a_person_names_one() -> None:
    named = select_point(DrillSelection.LATEST, ALL, DATASET, BUCKET, wanted=FIRST.point)
    assert isinstance(named, Selected)
    assert named.chain.links == (FULL, FIRST)
    missing = select_point(DrillSelection.LATEST, ALL, DATASET, BUCKET, wanted=PointId("x"))
    assert isinstance(missing, NoneQualifies)
    assert "x is not in main" in missing.sentence
    broken = select_point(DrillSelection.LATEST, (FIRST,), DATASET, BUCKET, wanted=FIRST.point)
    assert isinstance(broken, NoneQualifies)
    assert "is not in the bucket" in broken.sentence


def test_points_of_one_moment_are_told_apart_by_their_names() -> None:
    at = START + timedelta(days=1)
    twins = [make_point(at, point=PointId(name)) for name in ("b", "a", "c")]
    assert [point.point for point in Lineage(twins).points] == ["a", "b", "c"]
