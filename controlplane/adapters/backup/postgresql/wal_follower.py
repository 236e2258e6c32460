"""The log in a further bucket: whatever is durable in the first follows into it, proven, in the order of the log.

An epoch's wrapped key comes before anything sealed under it, a history before the log of its timeline, the head after
all that it vouches for: a reader there never sees a log that it cannot open, nor one with a hole that will be filled.

Where the two buckets stand is only ever known from their listings; they are compared at the start, once in a while,
and when news were lost. In between the stream's own news say what is new, which costs no listing of the first bucket.
Killed anywhere, the next comparison goes on where this one was.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from controlplane.adapters.backup.archive_reader import ahead
from controlplane.adapters.backup.postgresql.lsn import Position
from controlplane.adapters.backup.postgresql.wal_further import FurtherLog
from controlplane.adapters.backup.postgresql.wal_layout import HistoryObject, WalRange, epoch_key, head_key
from controlplane.adapters.backup.postgresql.wal_news import WalNews
from controlplane.adapters.backup.postgresql.wal_proven import ProvenLog
from controlplane.adapters.backup.postgresql.wal_pump import Clock
from controlplane.adapters.backup.postgresql.wal_steps import Step, by_segment, covering, replaces, steps_for
from controlplane.kernel.errors import (
    ConflictError,
    DeniedError,
    NotFoundError,
    QuarterdeckError,
    RetryableError,
    TerminalError,
)
from controlplane.recovery.phrases import count_of
from controlplane.recovery.ports import Keyring, Lock, ObjectStore

PASS_S: Final = 1.0
"""Between two looks at the news: the further bucket is about so much behind the first."""
COMPARE_S: Final = 3600.0
"""Between two comparisons of the listings, which cost a request for each thousand objects of both: they find what
somebody removed from the further bucket, or wrote into the first by hand."""
READERS: Final = 4
"""Objects read ahead of the one that is written. Writes go one after another, so that no hole is ever seen; while that
is slower than the source writes, whole segments take the place of their pieces, and it is 16 MiB at a time."""
STALLED_S: Final = 10.0
"""A bucket that fails for so long is told of; what heals sooner is nobody's business."""
REFUSED_MAX: Final = 100
"""So many objects that cannot be proven are no damage here and there: it stops, for a person."""

_SEGMENTS_MAX: Final = 10_000
"""To be copied, while the further bucket is away: 160 GB of log. Beyond it a comparison is cheaper than remembering."""
_BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
_UNPROVEN: Final = (TerminalError, DeniedError, ConflictError, NotFoundError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerStatus:
    flows: bool | None = None
    """None: it has only just begun. False: it fails, or something could not be proven; the sentence says what."""
    sentence: str = "compares what the buckets have"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """Of the first bucket, for a step: its bytes, proven, or why there are none."""

    step: Step
    body: bytes = b""
    problem: QuarterdeckError | None = None


class WalFollower:
    """`run` blocks until told to stop; `status` may be asked from any thread."""

    def __init__(
        self,
        *,
        dataset: str,
        source: Callable[[], ObjectStore],
        target: Callable[[], ObjectStore],
        keyring: Keyring,
        clock: Clock,
        news: WalNews,
        lock_until: Callable[[], Lock | None] = lambda: None,
        kept_since: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`source`, `target`: asked before each turn. `lock_until`: of whole segments in the target, as in the first.

        `kept_since`: the position that no copy in the target needs log from before; None: all of it is needed.
        """
        self._dataset = dataset
        self._open_source = source
        self._open_target = target
        self._keyring = keyring
        self._clock = clock
        self._news = news
        self._lock_until = lock_until
        self._kept_since = kept_since
        self._stores: tuple[ObjectStore, ObjectStore] | None = None
        self._status = FollowerStatus()
        self._failing_since_s: float | None = None
        self._compare_at_s = clock.monotonic()
        self._ranges: dict[str, list[WalRange]] = {}
        """To be copied, by segment."""
        self._histories: list[HistoryObject] = []
        self._head_due = False
        self._refused: dict[str, tuple[str, WalRange | None]] = {}
        """Objects of the source that were not copied, and why."""

    def status(self) -> FollowerStatus:
        return self._status

    def run(self, stop: threading.Event) -> None:
        """Once more after it was told to stop: what the stream wrote last follows too."""
        failures = 0
        while True:
            last, began_s = stop.is_set(), self._clock.monotonic()
            try:
                self.turn(stop)
                failures = 0
            except QuarterdeckError as error:
                self._tell_failure(error, began_s)
                failures += 1
            if last or (stop.is_set() and failures):
                return
            stop.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1] if failures else PASS_S)

    def turn(self, stop: threading.Event | None = None) -> None:
        """Everything that is new. Errors of the buckets are raised, and the next turn goes on.

        `stop`: ends a comparison before its end.
        """
        self._gather()
        self._open()
        if self._clock.monotonic() >= self._compare_at_s and not self._compare(stop or threading.Event()):
            return
        self._follow()
        self._tell()

    # -- where things stand
    def _gather(self) -> None:
        news = self._news.take()
        for found in news.ranges:
            self._ranges[found.segment] = covering((*self._ranges.get(found.segment, ()), found))
        self._histories += news.histories
        self._head_due = self._head_due or news.head
        if news.lost or len(self._ranges) > _SEGMENTS_MAX:
            self._ranges.clear()
            self._compare_at_s = self._clock.monotonic()

    def _open(self) -> None:
        """An embedded store may answer somewhere else by now: then nothing is known of it either."""
        stores = self._open_source(), self._open_target()
        if self._stores is None or any(one is not other for one, other in zip(stores, self._stores, strict=True)):
            self._source = ProvenLog(stores[0], self._keyring, self._dataset)
            self._target = FurtherLog(stores[1], self._keyring, self._dataset)
            self._stores, self._compare_at_s = stores, self._clock.monotonic()

    def _compare(self, stop: threading.Event) -> bool:
        """Whether it came to its end."""
        self._refused.clear()
        self._refuse_foreign(self._source.system(), self._target.look())
        there = self._target.histories()
        for history in self._source.histories():
            if history.key not in there:
                self._give_history(history)
        keep_since = self._kept_since()
        ranges = self._target.ranges()
        steps = self._missing(self._source.ranges(), ranges, Position.parse(keep_since) if keep_since else None)
        for _ in self._carried(steps):
            if stop.is_set():
                return False
        for _ in ranges:
            pass  # Beyond the end of the first bucket's log: noted all the same.
        for epoch in self._target.keys_missing():
            self._give_key(epoch)
        self._head_due = True
        self._compare_at_s = self._clock.monotonic() + COMPARE_S
        return True

    def _refuse_foreign(self, ours: str | None, theirs: str | None) -> None:
        """TerminalError: a reader there could not tell the logs of two clusters apart."""
        if ours is not None and theirs is not None and ours != theirs:
            raise TerminalError(
                f"it has the log of system {theirs} as dataset {self._dataset}, the first bucket has that of system "
                f"{ours}: another cluster needs another dataset name"
            )

    def _missing(
        self, source: Iterable[WalRange], target: Iterable[WalRange], keep_since: Position | None
    ) -> Iterator[Step]:
        for segment, found, there in by_segment(source, target):
            self._target.remember(segment, there)
            yield from steps_for(segment, found, there, keep_since=keep_since)

    # -- carrying
    def _follow(self) -> None:
        while self._histories:
            self._give_history(self._histories[0])
            del self._histories[0]
        steps = (step for name in sorted(self._ranges) for step in self._steps(name, self._ranges[name]))
        for _ in self._carried(steps):
            pass
        self._ranges.clear()
        if self._head_due:
            self._head_due = not self._give_head()

    def _steps(self, segment: str, found: Iterable[WalRange]) -> Iterator[Step]:
        return steps_for(segment, tuple(found), self._target.segment(segment))

    def _carried(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Each once it is done: read side by side, written one after another."""
        pool = ThreadPoolExecutor(READERS, thread_name_prefix=f"wal-follow-{self._dataset}")
        try:
            for read in ahead((pool.submit(self._read, step) for step in steps), READERS):
                self._do(read)
                yield read.step
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: Step) -> _Read:
        if step.copy is None:
            return _Read(step=step)
        try:
            return _Read(step=step, body=self._source.body(step.copy))
        except _UNPROVEN as error:
            return _Read(step=step, problem=error)

    def _do(self, read: _Read) -> None:
        step = read.step
        if isinstance(read.problem, NotFoundError):
            self._look_again(step)
            return
        if read.problem is not None:
            assert step.copy is not None, "only what is to be copied is read"
            self._refuse(step.copy.key, read.problem, step.copy)
            return
        copy = step.copy
        if copy is not None and any(replaces(one, copy) for one in self._target.segment(step.segment)):
            return  # Read ahead, before something longer came.
        if copy is not None and not self._give_range(copy, read.body):
            return
        for gone in step.removes:
            self._target.remove(gone)

    def _look_again(self, step: Step) -> None:
        """It was there a moment ago: its segment is being written whole. RetryableError while that goes on."""
        fresh, lost = self._source.segment(step.segment), step.copy
        if lost is not None and not any(one.key == lost.key or replaces(one, lost) for one in fresh):
            problem = NotFoundError(f"{lost.key}: is gone from the first bucket, and nothing replaces it")
            self._refuse(lost.key, problem, lost)
        for again in self._steps(step.segment, fresh):
            read = self._read(again)
            if isinstance(read.problem, NotFoundError):
                raise RetryableError(f"{step.segment}: it is being written anew just now")
            self._do(read)

    def _give_range(self, found: WalRange, body: bytes) -> bool:
        if not self._give_key(found.epoch):
            self._refuse(found.key, TerminalError(f"{found.key}: its epoch's key could not be copied"), found)
            return False
        self._target.give_range(found, body, self._lock_until() if self._source.is_whole(found) else None)
        for key, (_, other) in list(self._refused.items()):
            if key == found.key or (other is not None and replaces(found, other)):
                del self._refused[key]
        return True

    def _give_key(self, epoch: str) -> bool:
        """Whether it is there."""
        if self._target.has_key(epoch):
            return True
        key = epoch_key(self._dataset, epoch)
        try:
            body = self._source.wrapped_key(epoch)
        except _UNPROVEN as error:
            self._refuse(key, error)
            return False
        self._target.give_key(epoch, body)
        self._refused.pop(key, None)
        return True

    def _give_history(self, history: HistoryObject) -> None:
        if not self._give_key(history.epoch):
            return
        try:
            body = self._source.history(history)
        except _UNPROVEN as error:
            self._refuse(history.key, error)
            return
        self._target.give_history(history, body)

    def _give_head(self) -> bool:
        """Whether the one there is as new as can be. It comes after all that it vouches for."""
        key = head_key(self._dataset)
        try:
            head = self._source.head()
        except _UNPROVEN as error:
            self._refuse(key, error)
            return True
        self._refused.pop(key, None)
        if head is None or not self._target.wants(head):
            return True
        if not self._target.reaches(head) or not self._give_key(head.epoch):
            return False
        self._target.give_head(head)
        return True

    # -- telling
    def _refuse(self, key: str, problem: QuarterdeckError, found: WalRange | None = None) -> None:
        """TerminalError when there is too much of it."""
        self._refused[key] = (_line(problem), found)
        if len(self._refused) > REFUSED_MAX:
            raise TerminalError(f"more than {REFUSED_MAX} objects of the first bucket cannot be proven: {problem}")

    def _tell(self) -> None:
        self._failing_since_s = None
        if not self._refused:
            self._status = FollowerStatus(flows=True, sentence="follows")
            return
        first, _ = next(iter(self._refused.values()))
        told = f"{count_of(len(self._refused), 'object')} of the first bucket not copied: {first}"
        self._status = FollowerStatus(flows=False, sentence=told)

    def _tell_failure(self, error: QuarterdeckError, began_s: float) -> None:
        since_s = self._failing_since_s = began_s if self._failing_since_s is None else self._failing_since_s
        stalled = self._clock.monotonic() - since_s >= STALLED_S
        waiting = f", {count_of(len(self._ranges), 'segment')} to go" if self._ranges else ""
        told = f"does not follow{waiting}: {_line(error)}; tried again"
        self._status = FollowerStatus(flows=False if stalled else self._status.flows, sentence=told)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
