"""From a server's messages to pieces, and from uploads in any order to a durable position."""

import random
from dataclasses import dataclass, field

import pytest

from controlplane.adapters.backup.postgresql.wal_pieces import Claims, FullSegment, Ledger, Piece, WalCutter
from controlplane.kernel.errors import TerminalError

SEGMENT = 1000


def cutter(
    *, begin: int = 0, durable: int = 0, chunk: int = 300, linger_s: float = 1.0, live: bool = True
) -> WalCutter:
    return WalCutter(
        timeline=1,
        begin=begin,
        durable=durable,
        segment_bytes=SEGMENT,
        chunk_bytes=chunk,
        linger_s=linger_s,
        live=live,
    )


def body(start: int, length: int) -> memoryview:
    return memoryview(bytes((start + offset) % 251 for offset in range(length)))


def feed(to: WalCutter, length: int, *, now_s: float = 0.0, server_end: int | None = None) -> list[Piece | FullSegment]:
    start = to.received
    end = start + length if server_end is None else server_end
    return to.feed(start=start, data=body(start, length), server_end=end, sent_at_us=end, now_s=now_s)


def test_a_piece_is_cut_when_it_is_large_or_old_enough() -> None:
    log = cutter()
    assert feed(log, 100, now_s=5.0) == []
    assert log.due(5.9) is None
    piece = log.due(6.0)
    assert piece is not None
    assert (piece.start, piece.end) == (0, 100)
    assert bytes(piece.data) == bytes(body(0, 100))
    assert log.due(100.0) is None
    (large,) = feed(log, 300)
    assert (large.start, large.end) == (100, 400)
    assert log.wait_s(0.0) is None


def test_no_piece_crosses_a_segment_and_a_full_one_comes_whole() -> None:
    log = cutter(chunk=600)
    feed(log, 700)
    found = feed(log, 500)
    assert [(type(part), part.start, part.end) for part in found] == [(Piece, 700, 1000), (FullSegment, 0, 1000)]
    assert bytes(found[1].data) == bytes(body(0, 1000))
    rest = log.flush()
    assert rest is not None
    assert (rest.start, rest.end) == (1000, 1200)


def test_one_that_catches_up_cuts_whole_segments() -> None:
    log = cutter(chunk=100)
    found = feed(log, 2500, server_end=50_000)
    assert [(type(part), part.start, part.end) for part in found] == [(Piece, 0, 1000), (Piece, 1000, 2000)]


def test_what_is_durable_is_received_again_but_not_cut_again() -> None:
    log = cutter(begin=1000, durable=1500)
    assert feed(log, 500) == []
    assert log.flush() is None
    (piece,) = feed(log, 300)
    assert (piece.start, piece.end) == (1500, 1800)
    full = feed(log, 200)[-1]
    assert isinstance(full, FullSegment)
    assert bytes(full.data) == bytes(body(1000, 1000))


def test_a_hole_in_what_the_server_sends_is_refused() -> None:
    log = cutter()
    with pytest.raises(TerminalError, match="expected 0"):
        log.feed(start=5, data=body(5, 5), server_end=10, sent_at_us=0, now_s=0.0)


def test_a_claim_needs_the_message_after_the_moment() -> None:
    claims = Claims()
    claims.hear(100, 1)
    assert claims.at(10_000) == 0
    claims.hear(150, 2)  # read after moment 1: everything acknowledged by then lies below 150
    assert claims.at(149) == 0
    assert claims.at(150) == 1
    claims.hear(150, 3)  # still nothing new: moment 2 is covered as well
    assert claims.at(150) == 2
    claims.hear(400, 4)
    assert claims.at(399) == 2
    assert claims.at(400) == 3
    claims.forget_below(400)
    assert claims.at(400) == 3


def test_an_ended_timeline_claims_nothing() -> None:
    log = cutter(live=False)
    feed(log, 100)
    feed(log, 100)
    assert log.claims.at(10_000) == 0


def test_many_claims_cost_precision_only() -> None:
    claims = Claims()
    for number in range(20_000):
        claims.hear(number * 10, number)
    assert 0 < claims.at(150_000) <= 15_000
    assert claims.at(199_990) >= 19_990


def test_only_what_is_contiguous_is_durable() -> None:
    ledger = Ledger(durable=0)
    pieces = [Piece(timeline=1, start=at, end=at + 10, covered_us=at, data=body(at, 10)) for at in (0, 10, 20)]
    for piece in pieces:
        ledger.sent(piece)
    assert ledger.pending_bytes == 30
    assert not ledger.arrived(pieces[1])
    assert not ledger.arrived(pieces[2])
    assert ledger.durable == 0
    assert ledger.arrived(pieces[0])
    assert (ledger.durable, ledger.covered_us, ledger.pending_bytes, ledger.idle) == (30, 20, 0, True)


@dataclass(slots=True)
class World:
    """A server that commits, and a client that remembers when each commit was acknowledged."""

    rng: random.Random
    flushed: int = 0
    now_us: int = 0
    acknowledged: list[tuple[int, int]] = field(default_factory=list)

    def commit(self) -> None:
        self.now_us += self.rng.randrange(1, 50)
        self.flushed += self.rng.randrange(1, 400)
        self.now_us += self.rng.randrange(50)
        self.acknowledged.append((self.now_us, self.flushed))


@pytest.mark.parametrize("seed", range(40))
def test_no_commit_acknowledged_by_a_covered_moment_is_missing(seed: int) -> None:
    """Any order of commits, messages, questions and uploads: what is covered is durable, and all bytes arrive."""
    rng = random.Random(seed)
    world = World(rng)
    log, ledger = cutter(chunk=250), Ledger(durable=0)
    arrived: dict[int, bytes] = {}
    on_the_way: list[Piece] = []
    for _ in range(400):
        match rng.choice(("commit", "message", "keepalive", "upload", "flush")):
            case "commit":
                world.commit()
            case "message" if world.flushed > log.received:
                server_end = world.flushed
                length = min(server_end - log.received, rng.randrange(1, 300))
                while rng.random() < 0.5:
                    world.commit()  # between the look at its position and at its clock
                world.now_us += 1
                start = log.received
                found = log.feed(
                    start=start, data=body(start, length), server_end=server_end, sent_at_us=world.now_us, now_s=0.0
                )
                on_the_way += _send(ledger, found)
            case "keepalive" if world.flushed == log.received:
                while rng.random() < 0.5:
                    world.commit()
                world.now_us += 1
                log.hear(log.received, world.now_us)
            case "upload" if on_the_way:
                piece = on_the_way.pop(rng.randrange(len(on_the_way)))
                arrived[piece.start] = bytes(piece.data)
                ledger.arrived(piece)
            case "flush":
                waiting = log.flush()
                on_the_way += _send(ledger, [] if waiting is None else [waiting])
        covered_us = max(ledger.covered_us, log.claims.at(ledger.durable))
        newest = max((lsn for at, lsn in world.acknowledged if at <= covered_us), default=0)
        assert newest <= ledger.durable
    stored = b"".join(arrived[start] for start in sorted(arrived) if start < ledger.durable)
    assert stored[: ledger.durable] == bytes(body(0, ledger.durable))


def _send(ledger: Ledger, found: list[Piece | FullSegment] | list[Piece]) -> list[Piece]:
    pieces = [part for part in found if isinstance(part, Piece)]
    for piece in pieces:
        ledger.sent(piece)
    return pieces
