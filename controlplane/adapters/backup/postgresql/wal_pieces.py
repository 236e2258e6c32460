"""From the server's messages to pieces for the bucket, and from uploaded pieces to what is durable. Pure.

What makes a moment "covered": the server says with each message how far it had flushed (`server_end`) and when it sent
the message. A message's `server_end` was read after the one before was sent. So every commit that was acknowledged by
the time of the message before lies below the `server_end` of this one: that pair is a claim, and it holds in the bucket
as soon as everything below that position is durable.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from controlplane.adapters.backup.postgresql.lsn import segment_start
from controlplane.kernel.errors import TerminalError

CHUNK_BYTES: Final = 1024 * 1024
"""A piece is cut when it has so much: under load uploads begin early and run side by side."""
LINGER_S: Final = 0.25
"""A piece is cut when its first byte is so old, in streaming mode: at most four objects a second (0.00002 USD)."""
LINGER_SYNCHRONOUS_S: Final = 0.01
"""Every commit waits for this and the upload. Commits that come meanwhile share the object."""

_CLAIMS_MAX: Final = 4096
"""Claims above the durable position; beyond it every second one is dropped, which costs precision only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of one segment. `data` is a view of the segment's buffer: it stays valid and unchanged."""

    timeline: int
    start: int
    end: int
    covered_us: int
    """Every commit acknowledged by then lies below `end`; 0: nothing is known yet."""
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSegment:
    """A segment that is complete: it replaces its pieces."""

    timeline: int
    start: int
    end: int
    data: memoryview


class Claims:
    """(position, moment) pairs, both ascending."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, int]] = deque()
        self._sent_at_us: int | None = None

    def hear(self, server_end: int, sent_at_us: int) -> None:
        """A message arrived."""
        before, self._sent_at_us = self._sent_at_us, sent_at_us
        if before is None:
            return
        if self._pairs and self._pairs[-1][0] >= server_end:
            self._pairs[-1] = (self._pairs[-1][0], max(before, self._pairs[-1][1]))
            return
        self._pairs.append((server_end, before))
        if len(self._pairs) > _CLAIMS_MAX:
            self._pairs = deque(list(self._pairs)[::2])

    def at(self, lsn: int) -> int:
        """The newest moment that is covered once everything below the position is durable; 0: none."""
        found = 0
        for position, moment in self._pairs:
            if position > lsn:
                break
            found = moment
        return found

    def forget_below(self, lsn: int) -> None:
        """All but the newest claim at or below the position."""
        while len(self._pairs) > 1 and self._pairs[1][0] <= lsn:
            self._pairs.popleft()


class WalCutter:
    """Takes the log in order; gives pieces that never cross a segment's end."""

    def __init__(
        self,
        *,
        timeline: int,
        begin: int,
        durable: int,
        segment_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        linger_s: float = LINGER_S,
        live: bool = True,
    ) -> None:
        """`begin`: a segment's first byte. What lies below `durable` is received again, but not cut again.

        `live`: the server still writes this timeline; of an ended one its messages claim nothing.
        """
        assert begin % segment_bytes == 0, "the log is taken from a segment's start on"
        self.timeline = timeline
        self.received = begin
        self._segment_bytes = segment_bytes
        self._chunk_bytes = chunk_bytes
        self._linger_s = linger_s
        self._base = begin
        self._buffer = memoryview(bytearray(segment_bytes))
        self._cut = durable
        self._first_at_s: float | None = None
        self._behind = False
        self._live = live
        self.claims = Claims()

    def feed(
        self, *, start: int, data: memoryview, server_end: int, sent_at_us: int, now_s: float
    ) -> list[Piece | FullSegment]:
        """TerminalError when the server skips bytes: that would be a gap."""
        if start != self.received:
            raise TerminalError(f"the server sent its log from {start:X} on, expected {self.received:X}")
        self.hear(server_end, sent_at_us)
        self._behind = server_end - (start + len(data)) > self._segment_bytes
        out: list[Piece | FullSegment] = []
        while data:
            room = self._base + self._segment_bytes - self.received
            part, data = data[:room], data[room:]
            at = self.received - self._base
            self._buffer[at : at + len(part)] = part
            self.received += len(part)
            if self._first_at_s is None and self.received > self._cut:
                self._first_at_s = now_s
            out += self._after_part()
        return out

    @property
    def next_cut(self) -> int:
        """Where the next piece begins."""
        return self._cut

    def hear(self, server_end: int, sent_at_us: int) -> None:
        """A message without data, or the head of one with."""
        if self._live:
            self.claims.hear(server_end, sent_at_us)

    def due(self, now_s: float) -> Piece | None:
        """What has waited long enough."""
        wait_s = self.wait_s(now_s)
        return self.flush() if wait_s is not None and wait_s <= 0 else None

    def wait_s(self, now_s: float) -> float | None:
        """Until something is due; None: nothing waits."""
        return None if self._first_at_s is None else self._first_at_s + self._linger_s - now_s

    def flush(self) -> Piece | None:
        """Everything that was received and not cut."""
        if self.received <= self._cut:
            return None
        start, self._cut, self._first_at_s = self._cut, self.received, None
        view = self._buffer[start - self._base : self.received - self._base]
        covered = self.claims.at(self.received)
        return Piece(timeline=self.timeline, start=start, end=self.received, covered_us=covered, data=view)

    def _after_part(self) -> list[Piece | FullSegment]:
        if self.received == self._base + self._segment_bytes:
            return self._end_segment()
        if self.received - self._cut >= self._chunk_bytes and not self._behind:
            piece = self.flush()
            return [piece] if piece else []
        return []

    def _end_segment(self) -> list[Piece | FullSegment]:
        piece = self.flush()
        full = FullSegment(timeline=self.timeline, start=self._base, end=self.received, data=self._buffer)
        self._base = self.received
        self._buffer = memoryview(bytearray(self._segment_bytes))
        if piece is None:
            return [full]
        # A segment that came in one go, as when catching up, is its own single piece.
        return [piece] if piece.start == full.start else [piece, full]


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Which pieces are on their way, and up to where everything is durable."""

    durable: int
    covered_us: int = 0
    """Of the newest durable piece."""
    pending_bytes: int = 0
    _pieces: deque[Piece] = field(default_factory=deque)
    _done: set[int] = field(default_factory=set)

    def sent(self, piece: Piece) -> None:
        assert not self._pieces or piece.start == self._pieces[-1].end, "pieces are sent in order"
        self._pieces.append(piece)
        self.pending_bytes += piece.end - piece.start

    def arrived(self, piece: Piece) -> bool:
        """True when the durable position moved: only then may the server be told."""
        self._done.add(piece.start)
        moved = False
        while self._pieces and self._pieces[0].start in self._done:
            first = self._pieces.popleft()
            self._done.discard(first.start)
            self.pending_bytes -= first.end - first.start
            self.durable = first.end
            self.covered_us = max(self.covered_us, first.covered_us)
            moved = True
        return moved

    @property
    def idle(self) -> bool:
        return not self._pieces


def begin_of(durable: int, segment_bytes: int) -> int:
    """From where to receive, so that the segment can be written whole."""
    return segment_start(durable, segment_bytes)
