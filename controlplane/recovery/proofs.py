"""What beside copies is looked for in a bucket: evidence of the drills that count, and restores by hand that run."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain.dataset import DatasetSpec, DrillSpec
from controlplane.domain.recovery import Drill, DrillPhase, EvidenceSeen, Inventory
from controlplane.kernel.ids import BucketName

WATCH_EVERY: Final = timedelta(seconds=15)
"""A listing and a HEAD for each proof: copies are looked at more often, but nobody decides about a deploy so fast."""
VERIFY_EVERY: Final = timedelta(days=1)
"""Evidence that is there is read and verified so often, and at once when the store shows another file."""
UNSEEN_MAX: Final = timedelta(days=2)
"""A bucket that does not answer is no proof that evidence is lost, and after so long none that it is there."""


def watch_due(before: Inventory | None, now: datetime) -> bool:
    return before is None or before.watched_at is None or now - before.watched_at >= WATCH_EVERY


def verify_due(before: EvidenceSeen | None, file: str, now: datetime) -> bool:
    """`file`: as the store tells it now."""
    if before is None or before.verified_at is None or before.file != file:
        return True
    return now - before.verified_at >= VERIFY_EVERY


def last_passed(spec: DrillSpec, history: Sequence[Drill]) -> Drill | None:
    """The run of a declared drill that counts, as the gate has it. `history`: in any order."""
    passed = [one for one in history if one.name == spec.name and one.phase is DrillPhase.PASSED]
    return max(passed, key=lambda one: one.asked_at, default=None)


def proofs_in(
    bucket: BucketName, dataset: DatasetSpec, drills: Sequence[DrillSpec], history: Sequence[Drill]
) -> Sequence[Drill]:
    """Drills whose evidence in the bucket is what the gate goes by. `history`: of the dataset."""
    found = (last_passed(spec, history) for spec in drills if spec.dataset == dataset.name)
    return [one for one in found if one is not None and one.bucket == bucket and one.evidence_key is not None]


def restores_now(inventories: Sequence[Inventory], now: datetime) -> Iterator[str]:
    """Those whose claim holds. `inventories`: of one dataset."""
    yield from sorted({one.name for seen in inventories for one in seen.restoring if one.until > now})


def evidence_lost(inventories: Sequence[Inventory]) -> Iterator[EvidenceSeen]:
    yield from (one for seen in inventories for one in seen.evidence if one.problem)


def evidence_unseen(inventories: Sequence[Inventory], now: datetime) -> Iterator[EvidenceSeen]:
    yield from (one for seen in inventories for one in seen.evidence if now - one.seen_at > UNSEEN_MAX)
