"""The log follows into a further bucket: in order, proven, through kills and outages, and never less than it had."""

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import pytest

from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.postgresql.wal_coverage import wal_coverage
from controlplane.adapters.backup.postgresql.wal_follower import COMPARE_S, STALLED_S, WalFollower
from controlplane.adapters.backup.postgresql.wal_layout import WalRange, epoch_key, head_key, parse_range, wal_prefix
from controlplane.adapters.backup.postgresql.wal_news import NEWS_MAX, WalNews
from controlplane.adapters.backup.rotation import rewrap
from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.ids import DatasetName
from controlplane.recovery.ports import Lock
from controlplane.testing.effects import FakeClock
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.postgresql.written_log import DATASET, PIECE, RING, SEGMENT, WrittenLog, holes, readable

CALLS_SWEPT_MIN: Final = 35
"""Fewer calls of the two buckets than this, and the sweep has not swept what it says."""


class KilledHereError(BaseException):
    """SIGKILL: nothing catches it."""


@dataclass
class Lab:
    """Two buckets, a stream into the first, what follows into the second."""

    clock: FakeClock = field(default_factory=FakeClock)
    first: MemoryBucket = field(init=False)
    second: MemoryBucket = field(init=False)
    ring: SiteKeyring = RING
    lock: Lock | None = None
    kept_since: str | None = None
    news_most: int = NEWS_MAX

    def __post_init__(self) -> None:
        self.first, self.second = MemoryBucket(clock=self.clock), MemoryBucket(clock=self.clock)
        self.log = WrittenLog(self.first)
        self.begin()

    def begin(self) -> WalFollower:
        """Another process: it knows nothing."""
        self.news = WalNews(most=self.news_most)
        self.log.wrote = self.news.wrote
        self.follower = WalFollower(
            dataset=DATASET,
            source=lambda: self.first,
            target=lambda: self.second,
            keyring=self.ring,
            clock=self.clock,
            news=self.news,
            lock_until=lambda: self.lock,
            kept_since=lambda: self.kept_since,
        )
        return self.follower

    def compare(self) -> None:
        """As an hour later."""
        self.clock.jump(timedelta(seconds=COMPARE_S))
        self.follower.turn()

    def try_turn(self) -> None:
        """One turn of the thread, whatever comes of it."""
        stop = threading.Event()
        stop.set()
        self.follower.run(stop)

    def keys(self, bucket: MemoryBucket) -> list[str]:
        return [key for key in bucket.listed() if key.startswith(wal_prefix(DATASET))]

    def must_be_the_same(self) -> None:
        assert {key: self.second.peek(key) for key in self.keys(self.second)} == {
            key: self.first.peek(key) for key in self.keys(self.first)
        }
        assert holes(readable(self.second)) == 0


def pieces(found: list[WalRange]) -> list[WalRange]:
    return [one for one in found if one.end - one.start < SEGMENT]


def test_what_was_there_before_and_what_comes_follows() -> None:
    lab = Lab()
    lab.log.segment()
    lab.log.piece()
    lab.log.head()
    lab.follower.turn()
    lab.must_be_the_same()
    assert lab.follower.status().flows is True
    lab.log.piece()
    lab.log.head()
    lab.follower.turn()
    lab.must_be_the_same()
    lab.log.whole()
    lab.follower.turn()
    lab.must_be_the_same()
    assert not pieces(readable(lab.second)), "its pieces went with the first bucket's"
    assert {info.storage_class for info in lab.second.everything()} == {StorageClass.STANDARD}


def test_the_age_is_that_of_the_bucket_that_is_asked() -> None:
    lab = Lab()
    lab.log.piece()
    lab.follower.turn()
    since = f"1:0/{2 * SEGMENT:X}"
    for _ in range(3):
        lab.log.piece()
    ahead, behind = (wal_coverage(one, DATASET, RING, since=since) for one in (lab.first, lab.second))
    assert ahead is not None
    assert behind is not None
    assert ahead.covered_at - behind.covered_at == timedelta(seconds=3)
    assert behind.gaps == ()
    head = lab.log.head(after=timedelta(minutes=1))
    lab.follower.turn()
    followed = wal_coverage(lab.second, DATASET, RING, since=since)
    assert followed is not None
    assert followed.covered_at == head.covered_at


def test_a_promotion_follows_with_its_history() -> None:
    lab = Lab()
    lab.log.segment()
    lab.log.piece()
    lab.follower.turn()
    history = lab.log.promote()
    lab.log.begin_epoch()
    lab.log.piece()
    lab.log.head()
    lab.follower.turn()
    lab.must_be_the_same()
    assert history in lab.keys(lab.second)


class Trouble:
    """Of both buckets, in the turns alone: the call of this number, counted over both from 1, ends as is asked."""

    def __init__(self, number: int, error: BaseException) -> None:
        self._number = number
        self._error = error
        self._mutex = threading.Lock()
        self.calls = 0

    def __call__(self, _call: str) -> None:
        with self._mutex:
            self.calls += 1
            if self.calls == self._number:
                raise self._error


def story(lab: Lab, trouble: Trouble | None = None, *, tries: int = 1) -> None:
    """Everything that a stream does, a turn now and then."""

    def turn() -> None:
        if trouble is not None:
            lab.first.trouble = lab.second.trouble = trouble
        try:
            for _ in range(tries - 1):
                with suppress(RetryableError):
                    lab.follower.turn()
                    return
            lab.follower.turn()
        finally:
            lab.first.trouble = lab.second.trouble = lambda _call: None

    lab.log.segment()
    lab.log.piece()
    lab.log.piece()
    lab.log.head()
    turn()
    lab.log.piece()
    lab.log.whole()
    lab.log.begin_epoch()
    lab.log.piece()
    turn()
    lab.log.promote()
    lab.log.segment()
    lab.log.piece()
    lab.log.head()
    turn()


def survives(number: int) -> bool:
    """A kill at that call; whether there was such a call."""
    lab, killed = Lab(), False
    try:
        story(lab, Trouble(number, KilledHereError()))
    except KilledHereError:
        killed = True
    assert holes(readable(lab.second)) == 0, f"killed at call {number}: a reader there would stumble"
    lab.begin()
    lab.follower.turn()
    lab.must_be_the_same()
    writes = lab.second.calls_by_name["put"] + lab.second.calls_by_name["delete"]
    lab.begin()
    lab.follower.turn()
    again = lab.second.calls_by_name["put"] + lab.second.calls_by_name["delete"]
    assert again == writes, f"killed at call {number}: nothing is left to be done"
    return killed


def test_killed_at_every_call_the_next_process_goes_on() -> None:
    number = 1
    while survives(number):
        number += 1
    assert number > CALLS_SWEPT_MIN, number


def test_one_failure_at_every_call_and_the_same_process_goes_on() -> None:
    quiet = Trouble(0, RetryableError("never"))
    story(Lab(), quiet)
    assert quiet.calls > CALLS_SWEPT_MIN
    for number in range(1, quiet.calls + 1):
        lab = Lab()
        story(lab, Trouble(number, RetryableError("503 Slow Down")), tries=2)
        lab.must_be_the_same()
        assert lab.follower.status().flows is True


def test_an_answer_of_the_further_bucket_that_is_lost() -> None:
    quiet = Lab()
    story(quiet)
    for number in range(1, quiet.second.calls + 1):
        lab = Lab()
        lab.second.fail_call(number, RetryableError("503 Slow Down"), applied=True)
        story(lab, tries=2)
        lab.must_be_the_same()
        versions = [info.key for info in lab.second.everything() if info.key != head_key(DATASET)]
        assert len(versions) == len(set(versions)), f"call {number}: something was written twice"


def test_a_bucket_that_is_away_is_told_of_and_catches_up() -> None:
    lab = Lab()
    lab.log.segment()
    lab.follower.turn()

    def away(call: str) -> None:
        raise RetryableError(f"{call}: no route to host")

    lab.second.trouble = away
    lab.log.piece()
    lab.try_turn()
    assert lab.follower.status().flows is True, "for a moment that is nobody's business"
    for _ in range(3):
        lab.log.segment()
        lab.clock.jump(timedelta(seconds=STALLED_S))
        lab.try_turn()
    status = lab.follower.status()
    assert status.flows is False
    assert status.sentence == "does not follow, 3 segments to go: objects: no route to host; tried again"
    assert len(readable(lab.first)) == 4, "the stream went on"
    lab.second.trouble = lambda _call: None
    listed = lab.first.calls_by_name["objects"]
    lab.try_turn()
    assert lab.follower.status().flows is True
    assert lab.first.calls_by_name["objects"] == listed, "what is new was known all the time"
    lab.must_be_the_same()


def test_news_that_do_not_fit_are_found_by_a_comparison() -> None:
    lab = Lab(news_most=3)
    lab.log.segment()
    lab.follower.turn()
    for _ in range(3):
        lab.log.segment()
    lab.log.head()
    lab.follower.turn()
    lab.must_be_the_same()


def test_keeping_up_lists_nothing_of_the_first_bucket() -> None:
    lab = Lab()
    lab.log.segment()
    lab.follower.turn()
    listed = lab.first.calls_by_name["objects"]
    calls = lab.first.calls + lab.second.calls
    for _ in range(5):
        lab.follower.turn()
    assert lab.first.calls + lab.second.calls == calls, "nothing new costs nothing"
    for _ in range(10):
        lab.log.piece()
        lab.log.head()
        lab.follower.turn()
    assert lab.first.calls_by_name["objects"] == listed
    lab.must_be_the_same()


def test_one_head_is_left_of_many() -> None:
    lab = Lab()
    lab.log.piece()
    for seconds in range(5):
        lab.log.head(after=timedelta(seconds=seconds))
        lab.follower.turn()
    assert len([info for info in lab.second.everything() if info.key == head_key(DATASET)]) == 1


def test_what_was_changed_in_the_first_bucket_is_not_copied_and_the_whole_segment_heals_it() -> None:
    lab = Lab()
    lab.log.piece()
    lab.follower.turn()
    changed = lab.log.piece()
    lab.first.corrupt(changed, 30)
    lab.log.piece()
    lab.follower.turn()
    status = lab.follower.status()
    assert status.flows is False
    assert status.sentence.startswith(f"1 object of the first bucket not copied: {changed}: its bytes were changed")
    assert changed not in lab.keys(lab.second)
    assert holes(readable(lab.second)) == 1, "an honest hole: no reader passes it"
    lab.log.whole()
    lab.follower.turn()
    assert lab.follower.status().flows is True
    lab.must_be_the_same()


def test_a_piece_under_another_name_is_not_copied() -> None:
    lab = Lab()
    key = lab.log.piece()
    found = parse_range(lab.first.head(key))
    assert found is not None
    later = key.replace(f".{found.covered_ms}.", f".{found.covered_ms + 3_600_000}.")
    lab.first.put(later, lab.first.peek(key))
    lab.follower.turn()
    assert later not in lab.keys(lab.second)
    assert lab.follower.status().flows is False


@pytest.mark.parametrize("what", ["head", "key", "history"])
def test_neither_a_changed_head_nor_a_changed_key_nor_a_changed_history_is_copied(what: str) -> None:
    lab = Lab()
    lab.log.piece()
    lab.log.head()
    lab.follower.turn()
    epoch = lab.log.begin_epoch()
    history = lab.log.promote()
    lab.log.piece()
    lab.log.head()
    key = {"head": head_key(DATASET), "key": epoch_key(DATASET, epoch.name), "history": history}[what]
    body = lab.first.peek(key)
    lab.first.change(key, body[:-40] + (b"0" if body[-40:-39] != b"0" else b"1") + body[-39:])
    before = lab.second.peek(head_key(DATASET))
    lab.follower.turn()
    status = lab.follower.status()
    assert status.flows is False
    assert key in status.sentence
    assert lab.second.peek(head_key(DATASET)) == before or what == "history"
    assert what == "head" or key not in lab.keys(lab.second)
    lab.first.change(key, body)
    lab.compare()
    lab.must_be_the_same()
    assert lab.follower.status().flows is True


def test_one_changed_key_does_not_hold_up_the_rest() -> None:
    lab = Lab()
    first = lab.log.begin_epoch()
    lab.log.segment()
    lab.follower.turn()
    second = lab.log.begin_epoch()
    under_it = lab.log.segment()
    lab.first.change(epoch_key(DATASET, second.name), b"{}")
    lab.log.begin_epoch()
    after = lab.log.segment()
    lab.begin().turn()
    assert lab.follower.status().flows is False
    keys = lab.keys(lab.second)
    assert epoch_key(DATASET, first.name) in keys
    assert after in keys
    assert under_it not in keys


def test_of_a_bucket_full_of_garbage_it_makes_no_list() -> None:
    lab = Lab()
    for _ in range(110):
        lab.first.change(lab.log.segment(), b"garbage")
    with pytest.raises(TerminalError, match="more than 100 objects"):
        lab.follower.turn()


def test_a_piece_that_its_segment_replaces_while_it_is_read() -> None:
    lab = Lab()
    lab.log.piece()
    lab.follower.turn()
    lab.log.piece()
    lab.log.piece()
    taken = False

    def meanwhile(call: str) -> None:
        nonlocal taken
        if call == "get" and not taken:
            taken = True
            lab.log.whole()

    lab.first.trouble = meanwhile
    lab.follower.turn()
    lab.first.trouble = lambda _call: None
    lab.must_be_the_same()
    assert lab.follower.status().flows is True
    lab.follower.turn()
    lab.must_be_the_same()


def test_a_piece_that_is_gone_and_nothing_replaces_it_is_told_of() -> None:
    lab = Lab()
    lab.log.piece()
    lab.follower.turn()
    lost = lab.log.piece()
    lab.log.piece()
    lab.first.lose(lost)
    lab.follower.turn()
    assert lab.follower.status().flows is False
    assert "is gone from the first bucket" in lab.follower.status().sentence


def test_whoever_empties_the_first_bucket_empties_that_one_alone() -> None:
    lab = Lab()
    story(lab)
    kept = lab.keys(lab.second)
    for key in lab.keys(lab.first):
        lab.first.lose(key)
    lab.compare()
    lab.begin().turn()
    assert lab.keys(lab.second) == kept
    readable(lab.second)


def test_what_somebody_removed_or_damaged_in_the_further_bucket_comes_back() -> None:
    lab = Lab()
    story(lab)
    ranges = readable(lab.second)
    lab.second.delete(ranges[0].key)
    lab.second.truncate(ranges[1].key)
    lab.second.lose(epoch_key(DATASET, ranges[0].epoch))
    lab.second.change(head_key(DATASET), b"{}")
    lab.compare()
    lab.must_be_the_same()


def test_what_retention_deleted_there_does_not_come_back() -> None:
    lab = Lab()
    for _ in range(4):
        lab.log.segment()
    lab.follower.turn()
    old, kept = readable(lab.second)[:2], readable(lab.second)[2:]
    for gone in old:
        lab.second.delete(gone.key, version=gone.version)
    lab.kept_since = f"1:0/{kept[0].start + 40:X}"
    lab.compare()
    assert readable(lab.second) == kept
    fresh = Lab(kept_since=lab.kept_since)
    fresh.first = lab.first
    fresh.begin().turn()
    assert [one.key for one in readable(fresh.second)] == [one.key for one in kept]


def test_whole_segments_are_locked_as_that_bucket_locks() -> None:
    clock = FakeClock()
    until = clock.now() + timedelta(days=30)
    lab = Lab(clock=clock, lock=Lock(mode=LockMode.GOVERNANCE, until=until))
    whole, piece = lab.log.segment(), lab.log.piece()
    lab.follower.turn()
    assert lab.first.head(whole).lock is None
    assert lab.second.head(whole).lock == lab.lock
    assert lab.second.head(piece).lock is None


def test_another_clusters_log_is_kept_out() -> None:
    lab = Lab()
    other = WrittenLog(lab.second, system_id="8")
    other.segment()
    lab.log.segment()
    with pytest.raises(TerminalError, match="it has the log of system 8 as dataset shop, the first bucket"):
        lab.follower.turn()
    assert len(readable(lab.second)) == 1


def test_a_new_site_key_opens_the_log_in_both_buckets_and_none_undoes_that() -> None:
    lab = Lab()
    lab.log.segment()
    lab.log.piece()
    lab.log.head()
    lab.follower.turn()
    new = SiteKeyring(b"n" * 32, [bytes(range(32))])
    for bucket in (lab.first, lab.second):
        assert rewrap(bucket, DatasetName(DATASET), new, new).logs == 1
    lab.ring = new
    lab.begin().turn()
    lab.log.piece()
    lab.follower.turn()
    assert lab.follower.status().flows is True
    for bucket in (lab.first, lab.second):
        readable(bucket, ring=SiteKeyring(b"n" * 32))


def test_the_last_words_of_a_stream_follow_after_it_was_told_to_stop() -> None:
    lab = Lab()
    lab.log.segment()
    lab.follower.turn()
    lab.log.piece()
    lab.log.head()
    lab.try_turn()
    lab.must_be_the_same()


def test_a_comparison_that_is_told_to_stop_ends_and_says_nothing_is_done() -> None:
    lab = Lab()
    for _ in range(6):
        lab.log.segment()
    lab.try_turn()
    assert lab.follower.status().flows is None
    assert len(readable(lab.second)) < 6
    lab.begin().turn()
    lab.must_be_the_same()
    assert PIECE < SEGMENT
