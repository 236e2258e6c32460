"""What a look into the bucket tells: whole copies, broken ones, and what belongs to none."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.backup.inventory import inventory, recovery_points
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.manifests import encode_manifest
from controlplane.domain.dataset import LockMode, StorageClass
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.recovery.ports import Lock, manifest_key
from controlplane.testing.effects import START
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import DATASET, KEYRING, LATER, POINT, make_writer, mixed_bytes, write_copy

BUCKET = BucketName("main")
THIRD = PointId("20260105T100000.000Z-0a1d")


@pytest.fixture
def store() -> MemoryBucket:
    bucket = MemoryBucket()
    write_copy(bucket)
    write_copy(bucket, point=LATER, parent=POINT)
    return bucket


def test_whole_copies_are_recovery_points() -> None:
    store, until = MemoryBucket(), START + timedelta(days=30)
    manifest = write_copy(
        store, lock=Lock(mode=LockMode.COMPLIANCE, until=until), storage_class=StorageClass.GLACIER_IR
    )

    (point,) = recovery_points(inventory(store, DATASET, keyring=KEYRING), BUCKET)

    assert point.complete
    assert (point.point, point.dataset, point.bucket, point.parent) == (POINT, DATASET, BUCKET, None)
    assert (point.plain_bytes, point.stored_bytes) == (manifest.plain_bytes, manifest.stored_bytes)
    assert point.storage_classes == {StorageClass.GLACIER_IR}
    assert point.key_ids == KEYRING.holders
    assert point.locked_until == until
    assert point.consistent_at == START


def test_manifests_are_read_once(store: MemoryBucket) -> None:
    first = inventory(store, DATASET, keyring=KEYRING)
    before = store.calls
    second = inventory(store, DATASET, keyring=KEYRING, known=first.known)

    assert store.calls == before + 1
    assert second.points == first.points


def test_a_manifest_that_changed_is_read_again(store: MemoryBucket) -> None:
    first = inventory(store, DATASET, keyring=KEYRING)
    manifest = first.points[0].seen.manifest
    store.put(manifest_key(DATASET, POINT), encode_manifest(replace(manifest, engine="forged 1")))

    again = inventory(store, DATASET, keyring=KEYRING, known=first.known)

    assert [point.seen.manifest.point for point in again.points] == [LATER]
    assert again.unreadable[0][0] == POINT
    assert "its fields are not those that were written" in again.unreadable[0][1]
    assert not again.orphans


def test_a_forged_newer_copy_does_not_make_a_dataset_look_protected(store: MemoryBucket) -> None:
    manifest = inventory(store, DATASET, keyring=KEYRING).points[0].seen.manifest
    forged = replace(manifest, point=THIRD, consistent_at=START + timedelta(days=9))
    store.put(manifest_key(DATASET, THIRD), encode_manifest(forged))

    seen = inventory(store, DATASET, keyring=KEYRING)

    assert [point.seen.manifest.point for point in seen.points] == [POINT, LATER]
    assert [point for point, _ in seen.unreadable] == [THIRD]


def test_a_missing_or_shortened_pack_and_what_stands_on_it(store: MemoryBucket) -> None:
    packs = inventory(store, DATASET, keyring=KEYRING).points[0].seen.manifest.streams[0].packs
    store.lose(packs[0].key)
    store.truncate(packs[1].key, 10)

    full, increment = recovery_points(inventory(store, DATASET, keyring=KEYRING), BUCKET)

    assert full.problems == (
        f"{packs[0].key}: is not there, its manifest names it",
        f"{packs[1].key}: found 10 bytes, expected {packs[1].stored_bytes}",
    )
    assert increment.problems == (f"stands on {POINT}: {full.problems[0]}",)


def test_an_increment_without_its_full_copy(store: MemoryBucket) -> None:
    for info in store.everything():
        if f"/{POINT}/" in info.key:
            store.lose(info.key)

    (increment,) = recovery_points(inventory(store, DATASET, keyring=KEYRING), BUCKET)

    assert increment.problems == (f"stands on {POINT}, which is not in the bucket",)


def test_what_hides_a_pack_does_not_harm_a_copy_whose_version_is_pinned(store: MemoryBucket) -> None:
    packs = inventory(store, DATASET, keyring=KEYRING).points[0].seen.manifest.streams[0].packs
    store.delete(packs[0].key)
    store.put(packs[1].key, b"overwritten")

    assert all(point.complete for point in recovery_points(inventory(store, DATASET, keyring=KEYRING), BUCKET))


def test_a_copy_under_way_is_no_copy_and_its_objects_are_orphans(store: MemoryBucket) -> None:
    writer = make_writer(store, point=THIRD)
    with writer.stream("a") as stream:
        stream.write(mixed_bytes(9_000))
    packs = [pack.key for record in writer._streams.values() for pack in record.record().packs]
    store.put(f"{DATASET}/points/{POINT}/stray/000000", b"of a stream that was given up")

    seen = inventory(store, DATASET, keyring=KEYRING)

    assert [point.seen.manifest.point for point in seen.points] == [POINT, LATER]
    assert [info.key for info in seen.orphans] == [f"{DATASET}/points/{POINT}/stray/000000", *packs]
    writer.abandon()
    assert len(inventory(store, DATASET, keyring=KEYRING).orphans) == 1


def test_the_packs_of_a_hidden_manifest_are_no_orphans(store: MemoryBucket) -> None:
    store.delete(manifest_key(DATASET, POINT))

    seen = inventory(store, DATASET, keyring=KEYRING)

    assert not seen.orphans
    assert seen.unreadable == (
        (
            POINT,
            f"{manifest_key(DATASET, POINT)}: is hidden by a delete marker; remove the marker to have the copy back",
        ),
    )


def test_a_copy_that_nobody_here_can_open_is_not_complete(store: MemoryBucket) -> None:
    (point, _) = recovery_points(inventory(store, DATASET, keyring=SiteKeyring(bytes(32))), BUCKET)

    assert "opens with site:" in point.problems[0]


def test_a_rotten_break_glass_copy_of_the_key_is_seen_without_that_key(store: MemoryBucket) -> None:
    manifest = inventory(store, DATASET, keyring=KEYRING).points[0].seen.manifest
    site, safe = manifest.keys
    rotten = replace(safe, blob=safe.blob[:100] + ("A" if safe.blob[100] != "A" else "B") + safe.blob[101:])
    store.put(manifest_key(DATASET, POINT), encode_manifest(replace(manifest, keys=(site, rotten))))

    point, _ = recovery_points(inventory(store, DATASET, keyring=KEYRING), BUCKET)

    assert len(point.problems) == 1
    assert point.problems[0].startswith(
        f"{DATASET}/points/{POINT}: its data key, wrapped for {safe.key_id}, was changed"
    )


def test_nothing_there_is_nothing(store: MemoryBucket) -> None:
    seen = inventory(store, DatasetName("other"), keyring=None)

    assert (seen.points, seen.unreadable, seen.orphans) == ((), (), ())
