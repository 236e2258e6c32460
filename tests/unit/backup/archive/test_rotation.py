"""Another site key: manifests are rewritten, data are not, and nobody who could open a copy is locked out."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.keyring import BreakGlassPrivate, SiteKeyring
from controlplane.adapters.backup.rotation import rewrap
from controlplane.domain.dataset import KeyPurpose, LockMode
from controlplane.kernel.errors import DeniedError, RetryableError
from controlplane.kernel.ids import PointId
from controlplane.recovery.ports import Lock, SilentWatch, manifest_key
from controlplane.testing.effects import START
from tests.unit.backup.bucket import FailsAt, MemoryBucket
from tests.unit.backup.copies import (
    BREAK_GLASS,
    DATASET,
    KEYRING,
    LATER,
    POINT,
    SITE_KEY,
    STREAMS,
    read_copy,
    write_copy,
)

NEW_KEY = bytes(range(100, 132))
ROTATING = SiteKeyring(NEW_KEY, retired=[SITE_KEY], break_glass_public=BREAK_GLASS.public)
NEW_ONLY = SiteKeyring(NEW_KEY, break_glass_public=BREAK_GLASS.public)
POINTS = (POINT, LATER, PointId("20260105T100000.000Z-0a1d"))


@pytest.fixture
def store() -> MemoryBucket:
    bucket = MemoryBucket()
    for point in POINTS:
        write_copy(bucket, point=point)
    return bucket


def packs(store: MemoryBucket) -> set[tuple[str, str | None]]:
    return {(info.key, info.version) for info in store.everything() if not info.key.endswith("manifest.json")}


def test_only_the_keys_of_manifests_change(store: MemoryBucket) -> None:
    before = {
        point: open_archive(store, KEYRING, manifest_key(DATASET, point), watch=SilentWatch()) for point in POINTS
    }
    data = packs(store)

    rotation = rewrap(store, DATASET, ROTATING, ROTATING)

    assert (rotation.rewritten, rotation.already, rotation.problems) == (POINTS, (), ())
    assert packs(store) == data
    for point in POINTS:
        after = open_archive(store, NEW_ONLY, manifest_key(DATASET, point), watch=SilentWatch()).manifest
        assert after == replace(before[point].manifest, keys=after.keys)
        assert after.keys[1] == before[point].manifest.keys[1]
        assert read_copy(store, keyring=NEW_ONLY, point=point) == STREAMS
        with pytest.raises(DeniedError):
            read_copy(store, point=point)


def test_a_second_time_writes_nothing(store: MemoryBucket) -> None:
    rewrap(store, DATASET, ROTATING, ROTATING)
    before = [info.version for info in store.everything()]

    again = rewrap(store, DATASET, ROTATING, ROTATING)

    assert (again.rewritten, again.already) == ((), POINTS)
    assert [info.version for info in store.everything()] == before


@pytest.mark.parametrize("number", range(1, 11))
def test_cut_off_at_any_call_the_next_time_ends_it(store: MemoryBucket, number: int) -> None:
    store.trouble = FailsAt(number)
    with pytest.raises(RetryableError):
        rewrap(store, DATASET, ROTATING, ROTATING)
    for point in POINTS:
        assert read_copy(store, keyring=ROTATING, point=point) == STREAMS

    rewrap(store, DATASET, ROTATING, ROTATING)

    for point in POINTS:
        assert read_copy(store, keyring=NEW_ONLY, point=point) == STREAMS


def test_a_locked_manifest_gets_a_new_version_under_the_same_lock() -> None:
    store, lock = MemoryBucket(), Lock(mode=LockMode.COMPLIANCE, until=START + timedelta(days=30))
    write_copy(store, lock=lock)

    rewrap(store, DATASET, ROTATING, ROTATING)

    manifests = [info for info in store.everything() if info.key == manifest_key(DATASET, POINT)]
    assert [info.lock for info in manifests] == [lock, lock]
    assert read_copy(store, keyring=NEW_ONLY) == STREAMS


def test_a_keyring_without_a_break_glass_key_keeps_that_way_in(store: MemoryBucket) -> None:
    rewrap(store, DATASET, ROTATING, SiteKeyring(NEW_KEY))

    offline = SiteKeyring(None, break_glass_private=BREAK_GLASS)
    assert read_copy(store, keyring=offline, only=KeyPurpose.BREAK_GLASS) == STREAMS


def test_another_break_glass_key_takes_the_place_of_the_old_one(store: MemoryBucket) -> None:
    other = BreakGlassPrivate.generate()

    rewrap(store, DATASET, KEYRING, SiteKeyring(SITE_KEY, break_glass_public=other.public))

    assert read_copy(store, keyring=SiteKeyring(None, break_glass_private=other)) == STREAMS
    with pytest.raises(DeniedError):
        read_copy(store, keyring=SiteKeyring(None, break_glass_private=BREAK_GLASS))
    assert read_copy(store) == STREAMS


def test_what_cannot_be_opened_or_was_changed_is_left_alone_and_named(store: MemoryBucket) -> None:
    store.corrupt(manifest_key(DATASET, POINT), 300)
    stranger = SiteKeyring(bytes(32))
    write_copy(store, point=PointId("20260105T110000.000Z-0a1e"), keyring=stranger)

    rotation = rewrap(store, DATASET, ROTATING, ROTATING)

    assert rotation.rewritten == POINTS[1:]
    assert [problem.partition(":")[0] for problem in rotation.problems] == [
        manifest_key(DATASET, POINT),
        f"{DATASET}/points/20260105T110000.000Z-0a1e",
    ]
