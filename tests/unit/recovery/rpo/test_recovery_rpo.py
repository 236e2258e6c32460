"""The recovery-point age by what is in the store; what is not seen is never green."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.domain.dataset import WalMode
from controlplane.domain.recovery import LogCoverage, RecoveryPoint
from controlplane.kernel.ids import BucketName, PointId
from controlplane.recovery.rpo import RpoState, RpoTurn, RpoVerdict, judge_rpo, turn_of
from controlplane.testing.effects import START as NOW
from controlplane.testing.recovery_points import DAY, make_dataset, make_point

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
SPEC = make_dataset(rpo=24 * HOUR)
STREAMED = replace(make_dataset(rpo=timedelta(minutes=5)), wal=WalMode.STREAMING)


def log(covered_at: datetime, *gaps: str) -> LogCoverage:
    return LogCoverage(position="0/3000000", covered_at=covered_at, segments=3, stored_bytes=48 << 20, gaps=gaps)


def judge(*points: RecoveryPoint) -> RpoVerdict:
    return judge_rpo(SPEC, points, None, NOW, NOW)


@pytest.mark.parametrize(
    ("age", "state", "wants"),
    [
        (timedelta(0), RpoState.OK, False),
        (11.9 * HOUR, RpoState.OK, False),
        (12 * HOUR, RpoState.WARNING, True),
        (24 * HOUR, RpoState.WARNING, True),
        (24 * HOUR + SECOND, RpoState.BREACHED, True),
        (90 * DAY, RpoState.BREACHED, True),
    ],
)
def test_the_age_against_the_budget(age: timedelta, state: RpoState, wants: bool) -> None:
    verdict = judge(make_point(NOW - age))
    assert (verdict.state, verdict.age, verdict.wants_backup) == (state, age, wants)
    assert verdict.share == pytest.approx(age / SPEC.rpo)
    assert verdict.age_at(NOW + HOUR) == age + HOUR


def test_the_sentence_has_the_numbers() -> None:
    verdict = judge(make_point(NOW - 30 * HOUR))
    assert verdict.sentence == ("orders: RPO blown: 30h00m would be lost by the newest copy, 125% of the RPO of 24h00m")


def test_what_finished_later_but_holds_less_counts_by_what_it_holds() -> None:
    slow = replace(make_point(NOW - 20 * HOUR), finished_at=NOW)
    assert judge(slow).age == 20 * HOUR


def test_a_damaged_newest_one_counts_nothing_and_is_named() -> None:
    bad = make_point(NOW - HOUR, problems=("pack 2 is not there",))
    verdict = judge(make_point(NOW - 13 * HOUR), bad)
    assert verdict.age == 13 * HOUR
    assert verdict.notes == (f"{bad.point} does not count: pack 2 is not there",)


def test_an_increment_without_its_parent_counts_nothing() -> None:
    orphan = make_point(NOW - HOUR, parent=PointId("gone"))
    verdict = judge(make_point(NOW - 13 * HOUR), orphan)
    assert verdict.age == 13 * HOUR
    assert "gone or a link before it is damaged or not there" in verdict.notes[0]


def test_a_copy_from_the_future_counts_nothing() -> None:
    verdict = judge(make_point(NOW - HOUR), make_point(NOW + HOUR))
    assert verdict.age == HOUR
    assert "a clock is wrong" in verdict.notes[0]
    skewed = judge(make_point(NOW + SECOND))
    assert (skewed.state, skewed.age) == (RpoState.OK, timedelta(0))


def test_nothing_to_restore_is_never() -> None:
    for points in ((), (make_point(NOW - HOUR, problems=("empty",)),)):
        verdict = judge(*points)
        assert verdict.state is RpoState.NEVER
        assert verdict.age is None
        assert verdict.share is None
        assert verdict.wants_backup


def test_a_bucket_that_was_not_read_is_unknown_even_with_a_fresh_copy() -> None:
    points = [make_point(NOW)]
    unread = judge_rpo(SPEC, points, None, NOW, None)
    assert unread.state is RpoState.UNKNOWN
    assert not unread.wants_backup
    stale = judge_rpo(SPEC, points, None, NOW, NOW - timedelta(minutes=16))
    assert stale.state is RpoState.UNKNOWN
    assert "last read 16m00s ago" in stale.sentence
    assert judge_rpo(SPEC, points, None, NOW, NOW - timedelta(minutes=15)).state is RpoState.OK
    assert judge_rpo(SPEC, points, None, NOW, NOW - HOUR, stale_after=2 * HOUR).state is RpoState.OK


def test_a_short_rpo_wants_a_fresh_look() -> None:
    spec = replace(STREAMED, rpo=timedelta(seconds=20), warn_at=1.0)
    coverage, points = log(NOW), [make_point(NOW - HOUR)]
    assert judge_rpo(spec, points, coverage, NOW, NOW - timedelta(seconds=29)).state is RpoState.OK
    assert judge_rpo(spec, points, coverage, NOW, NOW - timedelta(seconds=31)).state is RpoState.UNKNOWN


def test_the_log_carries_a_copy_further() -> None:
    verdict = judge_rpo(STREAMED, [make_point(NOW - 20 * HOUR)], log(NOW - SECOND), NOW, NOW)
    assert (verdict.state, verdict.age, verdict.by_log) == (RpoState.OK, SECOND, True)
    assert "by the log" in verdict.sentence


@pytest.mark.parametrize(
    ("points", "coverage", "age", "says"),
    [
        ((), log(NOW), None, "counts nothing without a copy"),
        ((make_point(NOW - HOUR),), log(NOW, "0/2000000 to 0/3000000"), HOUR, "0/2000000 to 0/3000000 is missing"),
        ((make_point(NOW - HOUR),), log(NOW + HOUR), HOUR, "the source's clock is wrong"),
        ((make_point(NOW - HOUR),), None, HOUR, "no log was seen"),
        ((make_point(NOW - HOUR, problems=("empty",)),), log(NOW), None, "empty"),
    ],
)
def test_a_log_that_does_not_count(
    points: tuple[RecoveryPoint, ...], coverage: LogCoverage | None, age: timedelta | None, says: str
) -> None:
    verdict = judge_rpo(STREAMED, points, coverage, NOW, NOW)
    assert (verdict.age, verdict.by_log) == (age, False)
    assert any(says in note for note in verdict.notes)


def test_a_log_that_ends_before_the_copy_changes_nothing() -> None:
    verdict = judge_rpo(STREAMED, [make_point(NOW - SECOND)], log(NOW - HOUR), NOW, NOW)
    assert (verdict.age, verdict.by_log, verdict.notes) == (SECOND, False, ())


def test_a_lagging_log_asks_for_a_snapshot_only_after_a_minute() -> None:
    spec = replace(STREAMED, rpo=timedelta(seconds=5))
    point = make_point(NOW - HOUR)
    soon = judge_rpo(spec, [point], log(NOW - timedelta(seconds=59)), NOW, NOW)
    later = judge_rpo(spec, [point], log(NOW - timedelta(seconds=60)), NOW, NOW)
    assert (soon.state, soon.wants_backup) == (RpoState.BREACHED, False)
    assert (later.state, later.wants_backup) == (RpoState.BREACHED, True)


def test_each_bucket_is_judged_by_what_is_in_it() -> None:
    far = BucketName("far")
    points = [make_point(NOW - HOUR), make_point(NOW - 30 * HOUR, bucket=far)]
    spec = replace(SPEC, buckets=(*SPEC.buckets, far))
    assert judge_rpo(spec, points, None, NOW, NOW).state is RpoState.OK
    assert judge_rpo(spec, points, None, NOW, NOW, bucket=far).state is RpoState.BREACHED


@pytest.mark.parametrize(
    ("before", "age", "turn"),
    [
        (None, HOUR, None),
        (None, 13 * HOUR, RpoTurn.WARNED),
        (RpoState.OK, HOUR, None),
        (RpoState.OK, 13 * HOUR, RpoTurn.WARNED),
        (RpoState.WARNING, 25 * HOUR, RpoTurn.BREACHED),
        (RpoState.BREACHED, 25 * HOUR, None),
        (RpoState.BREACHED, 13 * HOUR, RpoTurn.WARNED),
        (RpoState.BREACHED, HOUR, RpoTurn.RECOVERED),
        (RpoState.NEVER, HOUR, RpoTurn.RECOVERED),
        (RpoState.UNKNOWN, HOUR, RpoTurn.RECOVERED),
    ],
)
def test_events_come_with_changes_of_state(before: RpoState | None, age: timedelta, turn: RpoTurn | None) -> None:
    verdict = judge(make_point(NOW - age))
    change = turn_of(before, verdict)
    assert (None if change is None else change.turn) is turn
    if change is not None:
        assert (change.before, change.after, change.sentence) == (before, verdict.state, verdict.sentence)


def test_losing_sight_and_losing_everything_are_events() -> None:
    blind = judge_rpo(SPEC, [make_point(NOW)], None, NOW, None)
    change = turn_of(RpoState.OK, blind)
    assert change is not None
    assert change.turn is RpoTurn.LOST_SIGHT
    assert turn_of(None, judge()) is None
    wiped = turn_of(RpoState.OK, judge())
    assert wiped is not None
    assert wiped.turn is RpoTurn.BREACHED
