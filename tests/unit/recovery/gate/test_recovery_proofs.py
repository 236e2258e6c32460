"""Which evidence counts, how often it is looked for, and what becomes of restores and evidence at the gate."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.dataset import Cadence, DrillSpec
from controlplane.domain.recovery import DrillPhase, EvidenceSeen, Inventory, RestoreSeen, RiskyAction
from controlplane.kernel.ids import BucketName, DatasetName
from controlplane.recovery.gate import DatasetSituation, Situation, may_proceed
from controlplane.recovery.proofs import (
    UNSEEN_MAX,
    VERIFY_EVERY,
    WATCH_EVERY,
    evidence_lost,
    evidence_unseen,
    last_passed,
    proofs_in,
    restores_now,
    verify_due,
    watch_due,
)
from controlplane.recovery.rpo import judge_rpo
from controlplane.testing.effects import START as NOW
from controlplane.testing.recovery_points import BUCKET, DATASET, DAY, make_dataset, make_drill, make_point

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
SPEC = make_dataset()
DAILY = DrillSpec(name="orders-daily", dataset=DATASET, cadence=Cadence(every=DAY))
SEEN = EvidenceSeen(drill="d-1", key="evidence/d-1.json", seen_at=NOW, file="1 2", verified_at=NOW)
BLANK = Inventory(dataset=DATASET, bucket=BUCKET, observed_at=NOW, points=())


def test_the_last_pass_of_each_declared_drill_counts_where_its_evidence_lies() -> None:
    old, new = (replace(make_drill(NOW - age), drill=name) for age, name in ((DAY, "old"), (HOUR, "new")))
    failed = replace(make_drill(NOW, phase=DrillPhase.FAILED), drill="failed")
    by_hand = replace(make_drill(NOW), drill="hand", name="by hand")
    history = [old, failed, new, by_hand]
    assert last_passed(DAILY, history) == new
    assert last_passed(DAILY, [failed]) is None
    assert proofs_in(BUCKET, SPEC, [DAILY], history) == [new]
    assert proofs_in(BucketName("far"), SPEC, [DAILY], history) == []
    assert proofs_in(BUCKET, SPEC, [replace(DAILY, dataset=DatasetName("other"))], history) == []
    assert proofs_in(BUCKET, SPEC, [DAILY], [replace(new, evidence_key=None)]) == []


def test_restores_and_evidence_are_looked_for_less_often_than_copies() -> None:
    assert watch_due(None, NOW)
    assert watch_due(BLANK, NOW)
    assert not watch_due(replace(BLANK, watched_at=NOW - WATCH_EVERY + SECOND), NOW)
    assert watch_due(replace(BLANK, watched_at=NOW - WATCH_EVERY), NOW)


@pytest.mark.parametrize(
    ("before", "file", "age", "due"),
    [
        (None, "1 2", timedelta(0), True),
        (replace(SEEN, verified_at=None), "1 2", timedelta(0), True),
        (SEEN, "1 2", VERIFY_EVERY - SECOND, False),
        (SEEN, "1 2", VERIFY_EVERY, True),
        (SEEN, "1 3", SECOND, True),
    ],
)
def test_a_bundle_is_read_when_new_when_changed_and_daily(
    before: EvidenceSeen | None, file: str, age: timedelta, *, due: bool
) -> None:
    assert verify_due(before, file, NOW + age) is due


def test_claims_run_out_by_themselves_whatever_the_row_says() -> None:
    two = replace(BLANK, restoring=(RestoreSeen(name="b", until=NOW + HOUR), RestoreSeen(name="dead", until=NOW)))
    far = replace(BLANK, bucket=BucketName("far"), restoring=(RestoreSeen(name="a", until=NOW + SECOND),))
    assert list(restores_now([two, far], NOW)) == ["a", "b"]
    assert list(restores_now([two, far], NOW + HOUR)) == []


def situation(*seen: EvidenceSeen) -> DatasetSituation:
    rows = [replace(BLANK, evidence=seen)]
    passed = replace(make_drill(NOW - HOUR), drill="d-1")
    return DatasetSituation(
        spec=SPEC,
        added_at=NOW - 90 * DAY,
        verdict=judge_rpo(SPEC, [make_point(NOW - HOUR)], None, NOW, NOW),
        drills=(DAILY,),
        history=(passed,),
        evidence_lost=frozenset(one.drill for one in evidence_lost(rows)),
        evidence_unseen=frozenset(one.drill for one in evidence_unseen(rows, NOW)),
    )


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ((), ""),
        ((SEEN,), ""),
        ((replace(SEEN, seen_at=NOW - UNSEEN_MAX),), ""),
        ((replace(SEEN, problem="gone"),), "but its evidence is missing"),
        ((replace(SEEN, seen_at=NOW - UNSEEN_MAX - SECOND),), "could not tell for more than"),
        ((replace(SEEN, problem="gone", seen_at=NOW - 9 * DAY),), "but its evidence is missing"),
    ],
    ids=["never looked for", "there", "not readable now", "lost", "not readable for long", "lost, then not readable"],
)
def test_unknown_is_not_lost_but_not_for_ever(seen: tuple[EvidenceSeen, ...], words: str) -> None:
    permission = may_proceed(RiskyAction.DEPLOY, Situation(now=NOW, datasets=(situation(*seen),)))
    assert permission.allowed is (not words)
    assert len(permission.reasons) == (1 if words else 0)
    assert all(words in reason for reason in permission.reasons)
