"""What a listing tells of a log, where a stream goes on, and what a restore fetches."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.lsn import Position, Switch, segment_name
from controlplane.adapters.backup.postgresql.replication import ServerFacts
from controlplane.adapters.backup.postgresql.wal_coverage import (
    WalListing,
    coverage_of,
    obsolete_ranges,
    ranges_in,
    wal_coverage,
)
from controlplane.adapters.backup.postgresql.wal_keys import EpochKeys, new_epoch
from controlplane.adapters.backup.postgresql.wal_layout import (
    EpochFile,
    HeadFile,
    WalRange,
    decode,
    epoch_key,
    parse_history_key,
    parse_range,
    range_key,
)
from controlplane.adapters.backup.postgresql.wal_reader import Leg, ranges_for, way
from controlplane.adapters.backup.postgresql.wal_resume import resume_after_loss, resume_at
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import ObjectInfo
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.s3 import FakeS3

SEGMENT = 0x1000000
MOMENT = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


def found(start: int, end: int, *, timeline: int = 1, covered_s: int = 0) -> WalRange:
    covered_us = int((MOMENT + timedelta(seconds=covered_s)).timestamp() * 1e6)
    key = range_key(
        "shop", timeline=timeline, start=start, end=end, segment_bytes=SEGMENT, covered_us=covered_us, epoch="e"
    )
    info = ObjectInfo(key=key, version=None, size_bytes=10, modified_at=MOMENT)
    parsed = parse_range(info)
    assert parsed is not None
    return parsed


def listing(*ranges: WalRange, head: HeadFile | None = None) -> WalListing:
    return WalListing(ranges=ranges, head=head)


def head(position: str, covered_s: int) -> HeadFile:
    return HeadFile(epoch="e", position=position, covered_at=MOMENT + timedelta(seconds=covered_s))


def test_a_name_says_all_that_a_listing_needs() -> None:
    one = found(0x3000028, 0x3100000, timeline=2, covered_s=7)
    assert one.segment == segment_name(2, 0x3000028, SEGMENT)
    assert (one.timeline, one.start, one.end, one.epoch) == (2, 0x3000028, 0x3100000, "e")
    assert one.covered_ms == int((MOMENT + timedelta(seconds=7)).timestamp() * 1000)
    other = ObjectInfo(key="shop/wal/head.json", version=None, size_bytes=1, modified_at=MOMENT)
    assert list(ranges_in([other])) == []
    history = parse_history_key("shop/wal/history/00000002.e")
    assert history is not None
    assert history.timeline == 2
    assert parse_history_key("shop/wal/history/2") is None


def test_pieces_and_whole_segments_join() -> None:
    told = coverage_of(
        listing(
            found(0x2000000, 0x3000000, covered_s=1),
            found(0x2F00000, 0x3000000, covered_s=1),
            found(0x3000000, 0x3000100, covered_s=3),
            found(0x3000100, 0x3000200, covered_s=2),
        )
    )
    assert told is not None
    assert told.gaps == ()
    assert told.position == "1:0/3000200"
    assert told.covered_at == MOMENT + timedelta(seconds=3)
    assert told.segments == 2
    assert told.stored_bytes == 40


def test_nothing_there_is_no_coverage() -> None:
    assert coverage_of(listing()) is None


def test_the_head_counts_only_when_its_position_is_there() -> None:
    ranges = (found(0x2000000, 0x2000100, covered_s=1),)
    for position, covered_s in (("1:0/2000100", 9), ("1:0/2000101", 1), ("2:0/2000100", 1), ("1:0/1FFFFFF", 1)):
        told = coverage_of(listing(*ranges, head=head(position, 9)))
        assert told is not None
        assert told.covered_at == MOMENT + timedelta(seconds=covered_s)


def test_a_gap_ends_what_a_copy_before_it_can_reach() -> None:
    ranges = (
        found(0x2000000, 0x3000000, covered_s=1),
        found(0x3000000, 0x3000100, covered_s=2),
        found(0x5000000, 0x6000000, covered_s=9),
    )
    before = coverage_of(listing(*ranges), since=Position(1, 0x2000000))
    after = coverage_of(listing(*ranges), since=Position(1, 0x5000000))
    unknown = coverage_of(listing(*ranges))
    assert before is not None
    assert after is not None
    assert unknown is not None
    assert before.gaps == ("timeline 1: 0/3000100 to 0/5000000",)
    assert before.covered_at == MOMENT + timedelta(seconds=2)
    assert before.position == "1:0/3000100"
    assert after.gaps == ()
    assert after.covered_at == unknown.covered_at == MOMENT + timedelta(seconds=9)
    assert unknown.gaps == before.gaps


def test_a_log_that_begins_too_late_covers_nothing_of_a_copy() -> None:
    told = coverage_of(listing(found(0x5000000, 0x6000000, covered_s=9)), since=Position(1, 0x2000000))
    assert told is not None
    assert told.gaps == ("timeline 1: 0/2000000 to 0/5000000",)
    assert told.covered_at.year == 1970


def test_nothing_written_since_the_copy_is_vouched_for_by_the_head() -> None:
    old = found(0x2000000, 0x3000000, covered_s=1)
    told = coverage_of(listing(old, head=head("1:0/3000000", 9)), since=Position(1, 0x3000000))
    assert told is not None
    assert told.gaps == ()
    assert told.covered_at == MOMENT + timedelta(seconds=9)


def test_a_new_timeline_continues_an_old_one() -> None:
    ranges = (found(0x2000000, 0x3000100), found(0x3000000, 0x3000200, timeline=2, covered_s=5))
    told = coverage_of(listing(*ranges), since=Position(1, 0x2000000))
    assert told is not None
    assert (told.position, told.gaps) == ("2:0/3000200", ())
    late = (found(0x2000000, 0x2000100), found(0x3000000, 0x3000200, timeline=2, covered_s=5))
    told = coverage_of(listing(*late), since=Position(1, 0x2000000))
    assert told is not None
    assert told.gaps == ("before timeline 2: 0/2000100 to 0/3000000",)
    assert told.position == "1:0/2000100"


def test_what_no_copy_needs_is_named() -> None:
    old, part, new = found(0x2000000, 0x3000000), found(0x3000000, 0x3000100), found(0x4000000, 0x5000000)
    forked = found(0x3000000, 0x4000000, timeline=2)
    assert obsolete_ranges((new, part, old, forked), keep_since="1:0/3000000") == (old,)
    assert set(obsolete_ranges((new, part, old, forked), keep_since="2:0/4000000")) == {old, part, forked}


# -- going on
SERVER = ServerFacts(system_id="7", timeline=1, flushed=0x5000100, version=180006, segment_bytes=SEGMENT)
KEPT = Position(1, 0x4000028)


def test_a_first_stream_begins_where_the_slot_does() -> None:
    first = resume_at(None, KEPT, SERVER, ())
    assert (first.timeline, first.begin, first.durable, first.live) == (1, 0x4000000, 0x4000000, True)


def test_a_later_one_where_the_bucket_ends() -> None:
    later = resume_at(Position(1, 0x5000080), KEPT, SERVER, ())
    assert (later.begin, later.durable, later.gap) == (0x5000000, 0x5000080, "")


def test_a_server_behind_the_bucket_is_refused() -> None:
    with pytest.raises(TerminalError, match="set back without a new timeline"):
        resume_at(Position(1, 0x5000101), KEPT, SERVER, ())
    with pytest.raises(TerminalError, match="older copy"):
        resume_at(Position(2, 0x5000000), KEPT, SERVER, ())


def test_an_old_timeline_is_finished_before_the_next_begins() -> None:
    promoted = replace(SERVER, timeline=3)
    history = (Switch(1, 0x4800000), Switch(2, 0x4900000))
    unfinished = resume_at(Position(1, 0x4700000), KEPT, promoted, history)
    assert (unfinished.timeline, unfinished.durable, unfinished.live) == (1, 0x4700000, False)
    following = resume_at(Position(1, 0x4800000), KEPT, promoted, history)
    assert (following.timeline, following.begin, following.durable) == (2, 0x4000000, 0x4000000)
    last = resume_at(Position(2, 0x4900000), KEPT, promoted, history)
    assert (last.timeline, last.begin, last.live) == (3, 0x4000000, True)


def test_strange_ancestors_and_lost_log_are_gaps() -> None:
    stranger = resume_at(Position(2, 0x4700000), KEPT, replace(SERVER, timeline=3), (Switch(1, 0x4800000),))
    assert "does not descend" in stranger.gap
    assert (stranger.timeline, stranger.durable) == (3, 0x4000000)
    lost = resume_after_loss(Position(1, 0x3000000), KEPT, SERVER)
    assert "0/3000000 to 0/4000000" in lost.gap
    assert lost.durable == 0x4000000


# -- fetching
def test_the_way_leads_over_every_timeline_to_the_newest_descendant() -> None:
    histories = {
        2: (Switch(1, 0x3000100),),
        3: (Switch(1, 0x3000100), Switch(2, 0x4000100)),
        4: (Switch(1, 0x2000000),),
    }
    assert way(Position(1, 0x3000000), histories, ()) == [
        Leg(timeline=1, start=0x3000000, end=0x3000100),
        Leg(timeline=2, start=0x3000100, end=0x4000100),
        Leg(timeline=3, start=0x4000100, end=None),
    ]
    assert way(Position(5, 0x3000000), histories, ()) == [Leg(timeline=5, start=0x3000000, end=None)]
    assert way(Position(2, 0x5000000), histories, ()) == [Leg(timeline=2, start=0x5000000, end=None)]


def test_whole_segments_are_preferred_to_their_pieces() -> None:
    whole, piece = found(0x3000000, 0x4000000), found(0x3000000, 0x3000100)
    tail, before = found(0x4000000, 0x4000100), found(0x2000000, 0x3000000)
    leg = Leg(timeline=1, start=0x3000000, end=None)
    chosen = ranges_for(leg, (tail, piece, before, whole), None, segment_bytes=SEGMENT)
    assert chosen == [whole, tail]


def test_ranges_of_two_streams_overlap() -> None:
    first, second = found(0x3000000, 0x3000200), found(0x3000100, 0x3000300)
    leg = Leg(timeline=1, start=0x3000050, end=None)
    assert ranges_for(leg, (second, first), None, segment_bytes=SEGMENT) == [first, second]


def test_a_hole_on_the_way_is_named() -> None:
    leg = Leg(timeline=1, start=0x3000000, end=None)
    with pytest.raises(TerminalError, match="missing from 0/3000100 to 0/3000200"):
        ranges_for(leg, (found(0x3000000, 0x3000100), found(0x3000200, 0x3000300)), None, segment_bytes=SEGMENT)
    with pytest.raises(TerminalError, match="missing from 0/3000000 to 0/4000000"):
        ranges_for(leg, (found(0x4000000, 0x4000100),), None, segment_bytes=SEGMENT)
    with pytest.raises(TerminalError, match="forks off"):
        ranges_for(replace(leg, end=0x3000200), (found(0x3000000, 0x3000100),), None, segment_bytes=SEGMENT)


def test_a_moment_needs_no_more_of_the_log_than_shortly_after_it() -> None:
    ranges = [found(0x3000000 + index * 0x100, 0x3000100 + index * 0x100, covered_s=index * 10) for index in range(9)]
    leg = Leg(timeline=1, start=0x3000000, end=None)
    chosen = ranges_for(leg, ranges, MOMENT + timedelta(seconds=12), segment_bytes=SEGMENT)
    assert chosen == ranges[:3]
    holed = [*ranges[:4], *ranges[5:]]
    assert ranges_for(leg, holed, MOMENT + timedelta(seconds=12), segment_bytes=SEGMENT) == chosen


# -- keys
def test_an_epochs_key_is_durable_before_it_is_used_and_opens_again() -> None:
    bucket = FakeS3(FakeClock())
    ring = SiteKeyring(bytes(range(32)))
    epoch = new_epoch(bucket, ring, "shop", system_id="7", segment_bytes=SEGMENT, now=START)
    keys = EpochKeys(bucket, ring, "shop")
    assert keys.key(epoch.name) == epoch.data_key
    assert keys.file(epoch.name).system_id == "7"
    assert new_epoch(bucket, ring, "shop", system_id="7", segment_bytes=SEGMENT, now=START).name != epoch.name
    gets = bucket.calls_by_name["get"]
    keys.key(epoch.name)
    assert bucket.calls_by_name["get"] == gets
    with pytest.raises(TerminalError, match=epoch_key("shop", epoch.name)):
        decode(EpochFile, epoch_key("shop", epoch.name), b"{}")


def test_a_head_that_somebody_changed_is_refused() -> None:
    bucket = FakeS3(FakeClock())
    ring = SiteKeyring(bytes(range(32)))
    epoch = new_epoch(bucket, ring, "shop", system_id="7", segment_bytes=SEGMENT, now=START)
    genuine = HeadFile(epoch=epoch.name, position="1:0/2000100", covered_at=MOMENT).sealed(epoch.data_key)
    one = found(0x2000000, 0x2000100, covered_s=-60)
    bucket.put(one.key, b"sealed")
    bucket.put("shop/wal/head.json", genuine.model_dump_json().encode())
    told = wal_coverage(bucket, "shop", ring)
    assert told is not None
    assert told.covered_at == MOMENT
    later = genuine.model_copy(update={"covered_at": MOMENT + timedelta(days=1)})
    bucket.put("shop/wal/head.json", later.model_dump_json().encode())
    with pytest.raises(TerminalError, match="somebody changed it"):
        wal_coverage(bucket, "shop", ring)
