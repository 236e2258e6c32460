"""The log that no copy is rolled forward with."""

from datetime import UTC, datetime, timedelta
from typing import Final

from controlplane.adapters.backup.postgresql.wal_layout import range_key, wal_prefix
from controlplane.adapters.backup.postgresql.wal_trim import trim_log
from controlplane.domain.dataset import DatasetKind
from controlplane.kernel.ids import DatasetName, PointId
from controlplane.recovery.manifest import FORMAT, Manifest
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3

NOW: Final = datetime(2026, 5, 1, tzinfo=UTC)
SEGMENT: Final = 16 * 1024 * 1024


def make_copy(*, age_days: int, log_since: str | None) -> Manifest:
    at = NOW - timedelta(days=age_days)
    return Manifest(
        format=FORMAT,
        point=PointId(f"p{age_days}"),
        dataset=DatasetName("orders"),
        kind=DatasetKind.POSTGRESQL,
        engine="postgresql 18",
        started_at=at,
        consistent_at=at,
        finished_at=at,
        parent=None,
        compression="zstd",
        streams=(),
        facts=() if log_since is None else (("log_since", log_since),),
    )


def bucket_with(*segments: int) -> FakeS3:
    store = FakeS3(FakeClock())
    for number in segments:
        start = number * SEGMENT
        key = range_key(
            "orders", timeline=1, start=start, end=start + SEGMENT, segment_bytes=SEGMENT, covered_us=0, epoch="e1"
        )
        store.put(key, b"sealed")
    return store


def left(store: FakeS3) -> list[int]:
    return [int(info.key.rpartition("/")[2][:16], 16) // SEGMENT for info in store.objects(wal_prefix("orders"))]


def test_the_log_from_the_oldest_copy_that_rolls_forward_on_stays() -> None:
    store = bucket_with(1, 2, 3, 4)
    copies = [make_copy(age_days=90, log_since="1:0/1000000"), make_copy(age_days=5, log_since="1:0/3000028")]
    assert trim_log(store, "orders", copies, since=NOW - timedelta(days=7)) == 2
    assert left(store) == [3, 4]
    assert trim_log(store, "orders", copies, since=NOW - timedelta(days=7)) == 0


def test_nothing_goes_when_no_copy_says_what_it_needs() -> None:
    store = bucket_with(1, 2)
    assert trim_log(store, "orders", [make_copy(age_days=5, log_since=None)], since=NOW - timedelta(days=7)) == 0
    assert trim_log(store, "orders", [make_copy(age_days=50, log_since="1:0/3000028")], since=NOW) == 0
    assert left(store) == [1, 2]
