"""Evidence is looked for again: gone, changed, of another drill, out of its chain; and not known is not lost."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.backup.evidence_watch import look_for_evidence
from controlplane.adapters.evidence import EvidenceSigner, record_evidence
from controlplane.domain.recovery import Drill, DrillPhase, EvidenceSeen
from controlplane.kernel.errors import QuarterdeckError, RetryableError, TerminalError
from controlplane.recovery.evidence import evidence_key
from controlplane.recovery.proofs import UNSEEN_MAX, VERIFY_EVERY
from controlplane.testing.effects import FakeClock
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.evidence.bundles import OBJECTIVES, SOFTWARE, make_drill, make_manifest, make_signer

HOUR = timedelta(hours=1)
FIRST, SECOND = evidence_key("drill-1"), evidence_key("drill-2")


class Shelf:
    """Two bundles in a bucket; the second is of the drill that counts."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.calls: list[str] = []
        self.refusal: QuarterdeckError | None = None
        self.bucket = MemoryBucket(self._called, self.clock)
        self.signer = make_signer()
        self.record("drill-1")
        self.clock.jump(HOUR)
        self.drill = self.record("drill-2")
        self.seen: tuple[EvidenceSeen, ...] = ()
        self.calls.clear()

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal

    def record(self, name: str, *, failure: str = "", signer: EvidenceSigner | None = None) -> Drill:
        drill = replace(make_drill(name), phase=DrillPhase.PASSED, failure=failure, evidence_key=evidence_key(name))
        record_evidence(
            self.bucket, signer or self.signer, drill, make_manifest(), objectives=OBJECTIVES,
            recorded_at=self.clock.now(), software=SOFTWARE,
        )  # fmt: skip
        return drill

    def look(self, after: timedelta = HOUR) -> str:
        """What is wrong with it."""
        self.clock.jump(after)
        self.calls.clear()
        self.seen = look_for_evidence(
            self.bucket, lambda: self.signer.public_key, [self.drill], self.seen, self.clock.now()
        )
        return self.seen[0].problem if self.seen else "never seen"


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_it_is_read_when_it_is_new_and_then_once_a_day(shelf: Shelf) -> None:
    assert shelf.look() == ""
    assert shelf.calls == ["head", "get", "get"], "itself, and the one before it"
    verified_at = shelf.clock.now()
    assert shelf.look() == ""
    assert shelf.calls == ["head"]
    assert (shelf.seen[0].verified_at, shelf.seen[0].seen_at) == (verified_at, shelf.clock.now())
    assert shelf.look(VERIFY_EVERY - HOUR) == ""
    assert shelf.calls == ["head", "get", "get"]


def test_what_is_gone_is_lost_at_the_next_look_and_found_when_it_is_back(shelf: Shelf) -> None:
    shelf.look()
    bundle = shelf.bucket.peek(SECOND)
    shelf.bucket.lose(SECOND)
    assert shelf.look() == f"{SECOND} is not in main"
    shelf.bucket.put(SECOND, bundle)
    assert shelf.look() == ""


def test_one_that_was_hidden_by_a_delete_marker_is_lost_too(shelf: Shelf) -> None:
    shelf.look()
    shelf.bucket.delete(SECOND)
    assert shelf.look() == f"{SECOND} is not in main"


def test_another_file_is_read_at_once(shelf: Shelf) -> None:
    shelf.look()
    body = bytearray(shelf.bucket.peek(SECOND))
    body[len(body) // 2] ^= 1
    shelf.bucket.put(SECOND, bytes(body))
    assert SECOND in shelf.look()
    assert shelf.look(), "it stays lost without being read again"
    assert shelf.calls == ["head"]


def test_rot_that_no_listing_shows_is_found_within_a_day(shelf: Shelf) -> None:
    shelf.look()
    body = bytearray(shelf.bucket.peek(SECOND))
    body[len(body) // 2] ^= 1
    shelf.bucket.change(SECOND, bytes(body))
    assert shelf.look() == ""
    assert shelf.look(VERIFY_EVERY)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda shelf: shelf.bucket.lose(FIRST), "comes before it in the chain, is not in main"),
        (lambda shelf: shelf.bucket.change(FIRST, b"{}"), "is not the bundle whose hash it carries"),
        (lambda shelf: shelf.bucket.change(SECOND, shelf.bucket.peek(FIRST)), "is not the evidence of this drill"),
        (lambda shelf: shelf.bucket.change(SECOND, b"no json"), "is no JSON"),
        (lambda shelf: shelf.bucket.change(SECOND, b"[]"), "is no evidence"),
    ],
    ids=["chain is short", "chain is wrong", "of another drill", "noise", "other JSON"],
)
def test_it_has_to_prove_this_drill_within_its_chain(shelf: Shelf, spoil: Callable[[Shelf], None], words: str) -> None:
    spoil(shelf)
    assert words in shelf.look()


def test_a_bundle_of_a_drill_that_failed_proves_nothing(shelf: Shelf) -> None:
    shelf.drill = shelf.record("drill-3", failure="rows: 3, not 4")
    assert "not of a pass" in shelf.look()


def test_somebody_elses_signature_proves_nothing(shelf: Shelf) -> None:
    shelf.drill = shelf.record("drill-3", signer=make_signer(2))
    assert "is signed by" in shelf.look()


@pytest.mark.parametrize("error", [RetryableError("503"), TerminalError("AccessDenied")])
def test_a_bucket_that_does_not_tell_loses_nothing(shelf: Shelf, error: QuarterdeckError) -> None:
    shelf.look()
    seen_at = shelf.clock.now()
    shelf.refusal = error
    assert shelf.look(UNSEEN_MAX) == ""
    assert shelf.seen[0].seen_at == seen_at, "its age shows"
    shelf.refusal = None
    assert shelf.look() == ""
    assert shelf.seen[0].seen_at == shelf.clock.now()


def test_what_was_never_seen_and_cannot_be_is_nothing(shelf: Shelf) -> None:
    shelf.refusal = RetryableError("503")
    assert shelf.look() == "never seen"


def test_a_drill_that_counts_no_longer_is_forgotten(shelf: Shelf) -> None:
    shelf.look()
    shelf.drill = shelf.record("drill-3")
    assert shelf.look() == ""
    assert [one.drill for one in shelf.seen] == ["drill-3"]
