"""Copies in a real S3 server: versions, locks, conditional puts and listings as they really are."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.adapters.backup.archive_reader import verify_archive
from controlplane.adapters.backup.inventory import inventory, recovery_points
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.replication import replicate_archive
from controlplane.adapters.backup.rotation import rewrap
from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.ids import BucketName
from controlplane.recovery.ports import Lock, SilentWatch, manifest_key
from tests.seaweedfs import RunningSeaweed, running_seaweedfs
from tests.unit.backup.copies import (
    DATASET,
    KEYRING,
    LATER,
    POINT,
    SITE_KEY,
    STREAMS,
    make_writer,
    mixed_bytes,
    read_copy,
    write_copy,
)

MANIFEST = manifest_key(DATASET, POINT)


@pytest.fixture(scope="module")
def seaweed() -> Iterator[RunningSeaweed]:
    with running_seaweedfs() as running:
        yield running


def test_a_copy_written_seen_read_and_rotated(seaweed: RunningSeaweed) -> None:
    store = seaweed.store(seaweed.new_bucket(), prefix="site/")
    write_copy(store)

    (point,) = recovery_points(inventory(store, DATASET, keyring=KEYRING), BucketName("main"))
    assert point.complete
    assert read_copy(store) == STREAMS
    with pytest.raises(ConflictError):
        write_copy(store, {"other": b"rows"})
    new = SiteKeyring(bytes(32), retired=[SITE_KEY])
    assert rewrap(store, DATASET, new, new).rewritten == (POINT,)
    assert read_copy(store, keyring=new) == STREAMS
    assert verify_archive(store, new, MANIFEST, watch=SilentWatch()).problems == ()


def test_what_hides_packs_hides_nothing_and_what_was_given_up_is_gone(seaweed: RunningSeaweed) -> None:
    store = seaweed.store(seaweed.new_bucket())
    manifest = write_copy(store)
    store.delete(manifest.streams[0].packs[0].key)
    store.put(manifest.streams[0].packs[1].key, b"overwritten")
    writer = make_writer(store, point=LATER)
    with writer.stream("a") as stream:
        stream.write(mixed_bytes(20_000))
    assert writer.abandon() == ()

    seen = inventory(store, DATASET, keyring=KEYRING)

    assert [point.problems for point in seen.points] == [()]
    assert not seen.orphans
    assert read_copy(store) == STREAMS


def test_a_locked_copy_stays_and_has_a_second_one_in_another_bucket(seaweed: RunningSeaweed) -> None:
    store, other = seaweed.store(seaweed.new_bucket()), seaweed.store(seaweed.new_bucket())
    until = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    manifest = write_copy(store, lock=Lock(mode=LockMode.COMPLIANCE, until=until))

    with pytest.raises(ConflictError):
        store.delete(manifest.streams[0].packs[0].key, version=manifest.streams[0].packs[0].version)
    (point,) = recovery_points(inventory(store, DATASET, keyring=KEYRING), BucketName("main"))
    assert point.locked_until == until

    replicate_archive(
        store, other, KEYRING, MANIFEST, storage_class=StorageClass.STANDARD, lock=None, watch=SilentWatch()
    )
    assert read_copy(other) == STREAMS
