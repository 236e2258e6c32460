"""Where copies go, and how they are locked there."""

from datetime import datetime

from controlplane.domain.dataset import BucketSpec, DatasetSpec, LockMode, RecoverySpec
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import Lock


def buckets_of(dataset: DatasetSpec, declared: RecoverySpec) -> list[BucketSpec]:
    """The declared ones, in order; the first is written and read. TerminalError for none."""
    found = [bucket for name in dataset.buckets if (bucket := declared.bucket(name)) is not None]
    if not found:
        raise TerminalError(f"{dataset.name}: none of its buckets ({', '.join(dataset.buckets)}) is declared")
    return found


def lock_in(bucket: BucketSpec, until: datetime | None) -> Lock | None:
    if until is None or bucket.lock is LockMode.NONE:
        return None
    return Lock(mode=bucket.lock, until=until)
