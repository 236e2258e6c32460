"""Verdicts about restored data."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.adapters.backup.assertions import (
    Value,
    compare_bytes,
    compare_counts,
    judge,
    listed,
    moment_of,
)
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import Verdict
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import VerifyRequest
from controlplane.testing.backups import MemorySink, RecordingWatch
from controlplane.testing.effects import START

REQUEST = VerifyRequest(manifest=MemorySink().source().manifest, point_at=START)


@pytest.mark.parametrize(
    ("check", "value", "holds"),
    [
        (CheckSpec(name="c", sql="q"), "anything", True),
        (CheckSpec(name="c", sql="q"), None, False),
        (CheckSpec(name="c", sql="q", equals="7"), 7, True),
        (CheckSpec(name="c", sql="q", equals="7"), b"7", True),
        (CheckSpec(name="c", sql="q", equals="7"), 7.0, False),
        (CheckSpec(name="c", sql="q", at_least=7), 7, True),
        (CheckSpec(name="c", sql="q", at_least=7), "6.9", False),
        (CheckSpec(name="c", sql="q", at_most=7), 7.1, False),
        (CheckSpec(name="c", sql="q", at_least=1, at_most=7), b"3", True),
        (CheckSpec(name="c", sql="q", at_least=1, at_most=7), "many", False),
        (CheckSpec(name="c", sql="q", at_least=1), START, False),
        (CheckSpec(name="c", sql="q", at_least=1), float("nan"), False),
        (CheckSpec(name="c", sql="q", at_most=1), float("nan"), False),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), START - timedelta(minutes=5), True),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), START - timedelta(minutes=6), False),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), "2026-01-05 07:59:00", True),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), "2026-01-05T08:59:00+01:00", True),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), START.timestamp() - 301, False),
        (CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5)), "yesterday", False),
        (CheckSpec(name="c", sql="q", equals="7", at_most=3), 7, False),
    ],
)
def test_an_assertion_holds_when_all_it_says_holds(check: CheckSpec, value: Value, holds: bool) -> None:
    outcome = judge(check, value, REQUEST)
    assert (outcome.verdict is Verdict.PASSED) is holds
    assert outcome.sentence


def test_freshness_without_a_moment_is_measured_from_the_copy() -> None:
    check = CheckSpec(name="c", sql="q", fresh_within=timedelta(minutes=5))
    request = VerifyRequest(manifest=REQUEST.manifest)
    stale = judge(check, request.manifest.consistent_at - timedelta(minutes=6), request)
    assert "6m00s before the recovery point" in stale.sentence
    assert "at most 5m00s" in stale.sentence


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (datetime(2026, 1, 5, 8, 0, tzinfo=UTC), START),
        (datetime.fromisoformat("2026-01-05 08:00"), START),
        ("2026-01-05", datetime(2026, 1, 5, tzinfo=UTC)),
        (str(int(START.timestamp())), START),
        (int(START.timestamp()), START),
        (b"2026-01-05 08:00:00Z", START),
        (1e30, None),
        (float("nan"), None),
        ("soon", None),
        (None, None),
    ],
)
def test_times_as_engines_print_them(value: Value, moment: datetime | None) -> None:
    assert moment_of(value) == moment


def test_counts_name_what_is_missing_or_off() -> None:
    expected = (Count(name="a", rows=3), Count(name="b", rows=0), Count(name="c", rows=5))
    outcome = compare_counts(expected, {"a": 2, "b": 0})
    assert outcome.verdict is Verdict.FAILED
    assert "a: 2 rows, expected 3" in outcome.sentence
    assert "c: not there" in outcome.sentence
    assert "b:" not in outcome.sentence


def test_counts_that_need_not_be_exact_must_still_be_of_things_that_are_there() -> None:
    expected = (Count(name="a", rows=3),)
    assert compare_counts(expected, {"a": 9}, exact=False).verdict is Verdict.PASSED
    assert compare_counts(expected, {}, exact=False).verdict is Verdict.FAILED


def test_a_long_list_of_differences_stays_a_sentence() -> None:
    assert listed(tuple("abcdefgh"), between=", ") == "a, b, c, d, e, and 3 more"
    assert listed(("name-\udcff",)) == "name-\\udcff"


def test_bytes_of_a_stream_that_the_manifest_does_not_know_fail(tmp_path: Path) -> None:
    outcome = compare_bytes("bytes", tmp_path / "x", "nothing", REQUEST.manifest, RecordingWatch())
    assert outcome.verdict is Verdict.FAILED
    assert "no stream nothing" in outcome.sentence
