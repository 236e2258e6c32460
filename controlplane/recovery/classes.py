"""What the storage classes of S3 promise and cost in time.

Source: AWS's S3 user guide and the texts of botocore 1.44.5's `RestoreObject`. Prices are in `cost`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlplane.domain.dataset import RetrievalTier, StorageClass
from controlplane.kernel.units import KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    rank: int
    """0 is the hottest. Lifecycles go towards higher ranks only."""
    minimum: timedelta = timedelta()
    """What is deleted or moved sooner is billed for so long all the same."""
    billed_at_least_bytes: int = 0
    """Of each object."""
    standard_overhead_bytes: int = 0
    """Added to each object, at the price of STANDARD."""
    archive_overhead_bytes: int = 0
    """Added to each object, at the price of the class."""
    waits: tuple[tuple[RetrievalTier, timedelta], ...] = ()
    """How long until an archived object can be read, at worst, slowest tier first; empty: a read is answered at once.

    Tiers without a guarantee are in `unsure`.
    """
    unsure: tuple[tuple[RetrievalTier, timedelta], ...] = ()
    """Fast when it is granted: an RTO cannot lean on it."""


_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)

CLASS_FACTS: Final[Mapping[StorageClass, ClassFacts]] = {
    StorageClass.STANDARD: ClassFacts(rank=0),
    StorageClass.STANDARD_IA: ClassFacts(rank=1, minimum=30 * _DAY, billed_at_least_bytes=128 * KIB),
    StorageClass.GLACIER_IR: ClassFacts(rank=2, minimum=90 * _DAY, billed_at_least_bytes=128 * KIB),
    StorageClass.GLACIER: ClassFacts(
        rank=3,
        minimum=90 * _DAY,
        standard_overhead_bytes=8 * KIB,
        archive_overhead_bytes=32 * KIB,
        waits=((RetrievalTier.BULK, 12 * _HOUR), (RetrievalTier.STANDARD, 5 * _HOUR)),
        # 1 to 5 minutes for objects below 250 MB; without provisioned capacity it may be refused with 503.
        unsure=((RetrievalTier.EXPEDITED, timedelta(minutes=5)),),
    ),
    StorageClass.DEEP_ARCHIVE: ClassFacts(
        rank=4,
        minimum=180 * _DAY,
        standard_overhead_bytes=8 * KIB,
        archive_overhead_bytes=32 * KIB,
        waits=((RetrievalTier.BULK, 48 * _HOUR), (RetrievalTier.STANDARD, 12 * _HOUR)),
    ),
}


def retrieval_wait(storage_class: StorageClass, tier: RetrievalTier) -> timedelta | None:
    """At worst; zero where nothing has to be thawed; None where the class does not have the tier."""
    facts = CLASS_FACTS[storage_class]
    if not facts.waits:
        return timedelta()
    return dict((*facts.waits, *facts.unsure)).get(tier)


def guaranteed_tiers(storage_class: StorageClass) -> tuple[RetrievalTier, ...]:
    """Tiers that an RTO may lean on, cheapest first; empty where nothing has to be thawed."""
    return tuple(tier for tier, _ in CLASS_FACTS[storage_class].waits)


def is_archive(storage_class: StorageClass) -> bool:
    """Its objects are to be thawed before a byte can be read."""
    return bool(CLASS_FACTS[storage_class].waits)


def rank(storage_class: StorageClass) -> int:
    return CLASS_FACTS[storage_class].rank


def coldest(classes: Iterable[StorageClass]) -> StorageClass:
    """The one that a restore waits for; STANDARD where nothing is known to be in any."""
    return max(classes, key=rank, default=StorageClass.STANDARD)
