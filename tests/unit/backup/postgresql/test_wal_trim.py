"""The log that no copy needs."""

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from controlplane.adapters.backup.postgresql.wal_layout import WalRange
from controlplane.adapters.backup.postgresql.wal_trim import Need, needs_of, unneeded
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import FORMAT, Manifest

NOW: Final = datetime(2026, 5, 1, tzinfo=UTC)


def make_range(start: int, end: int, *, timeline: int = 1) -> WalRange:
    return WalRange(
        key=f"k{timeline}-{start}", timeline=timeline, segment="0" * 24, start=start, end=end, covered_ms=0, epoch="e"
    )


def make_manifest(*facts: tuple[str, str], age_days: int) -> Manifest:
    at = NOW - timedelta(days=age_days)
    return Manifest(
        format=FORMAT,
        point=PointId("p"),
        dataset=DatasetName("orders"),
        kind=DatasetKind.POSTGRESQL,
        engine="postgresql 18",
        started_at=at,
        consistent_at=at,
        finished_at=at,
        parent=None,
        compression="zstd",
        streams=(),
        facts=facts,
    )


RANGES: Final = [make_range(start, start + 100) for start in range(0, 1000, 100)]


def kept(*needs: Need) -> list[int]:
    gone = {found.start for found in unneeded(RANGES, needs)}
    return [found.start for found in RANGES if found.start not in gone]


def test_all_that_follows_the_oldest_copy_that_rolls_forward_stays() -> None:
    assert kept(Need(timeline=1, start=350, stop=None)) == [300, 400, 500, 600, 700, 800, 900]


def test_an_archive_keeps_what_makes_it_consistent_and_no_more() -> None:
    archive = Need(timeline=1, start=120, stop=210)
    assert kept(archive, Need(timeline=1, start=800, stop=None)) == [100, 200, 800, 900]


def test_later_timelines_belong_to_what_follows_and_earlier_ones_do_not() -> None:
    ranges = [make_range(0, 100, timeline=1), make_range(50, 100, timeline=2), make_range(100, 200, timeline=3)]
    need = Need(timeline=2, start=60, stop=None)
    assert [found.timeline for found in unneeded(ranges, [need])] == [1]


def test_nothing_goes_when_nobody_knows_what_is_needed() -> None:
    assert list(unneeded(RANGES, [])) == []


@pytest.mark.parametrize(("age_days", "stop"), [(3, None), (30, 0x200)])
def test_only_young_copies_roll_forward(age_days: int, stop: int | None) -> None:
    manifest = make_manifest(("start_lsn", "0/100"), ("stop_lsn", "0/200"), ("timeline", "4"), age_days=age_days)
    assert list(needs_of([manifest], open_since=NOW - timedelta(days=7))) == [Need(timeline=4, start=0x100, stop=stop)]


def test_a_copy_without_positions_needs_nothing_here() -> None:
    assert list(needs_of([make_manifest(age_days=1)], open_since=NOW)) == []
