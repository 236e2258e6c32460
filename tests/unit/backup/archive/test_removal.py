"""A recovery point goes object by object, its manifest first; cut off anywhere, it never looks whole again."""

from datetime import timedelta

import pytest

from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.manifests import encode_manifest
from controlplane.adapters.backup.removal import point_contents, remove_point
from controlplane.adapters.backup.rotation import rewrap
from controlplane.domain.dataset import LockMode
from controlplane.kernel.errors import ConflictError, RetryableError
from controlplane.kernel.ids import PointId
from controlplane.recovery.ports import Lock, manifest_key
from controlplane.testing.effects import START
from tests.unit.backup.bucket import FailsAt, MemoryBucket
from tests.unit.backup.copies import DATASET, KEYRING, LATER, POINT, SITE_KEY, read_copy, write_copy

KEY = manifest_key(DATASET, POINT)


@pytest.fixture
def store() -> MemoryBucket:
    """Two copies; of the first one the manifest was written over with garbage."""
    bucket = MemoryBucket()
    write_copy(bucket)
    write_copy(bucket, point=LATER)
    bucket.put(KEY, b'{"garbage"')
    return bucket


def points(store: MemoryBucket) -> set[PointId]:
    return {point.seen.manifest.point for point in inventory(store, DATASET, keyring=KEYRING).points}


def test_nothing_of_it_is_left_and_all_of_the_others(store: MemoryBucket) -> None:
    others = {key for key in store.listed() if str(LATER) in key}
    remove_point(store, DATASET, POINT)
    assert {info.key for info in store.everything()} == others
    found = inventory(store, DATASET, keyring=KEYRING)
    assert (found.unreadable, found.orphans) == ((), ())
    assert read_copy(store, point=LATER)


def test_cut_off_anywhere_it_never_looks_whole_and_the_same_again_ends_it(store: MemoryBucket) -> None:
    whole = store.twin()
    remove_point(counting := store.twin(), DATASET, POINT)
    calls = counting.calls - whole.calls
    assert calls > 5, "a listing, two versions of the manifest and several packs"
    for number in range(1, calls + 1):
        cut = store.twin()
        cut.trouble = FailsAt(number)
        with pytest.raises(RetryableError):
            remove_point(cut, DATASET, POINT)
        cut.trouble = lambda _call: None
        assert points(cut) == {LATER}, f"cut off at call {number}"
        remove_point(cut, DATASET, POINT)
        assert not [info for info in cut.everything() if str(POINT) in info.key]


def test_a_locked_one_is_left_as_it_is() -> None:
    bucket, until = MemoryBucket(), START + timedelta(days=30)
    write_copy(bucket, lock=Lock(mode=LockMode.COMPLIANCE, until=until))
    bucket.put(KEY, b'{"garbage"')
    before = bucket.everything()
    with pytest.raises(ConflictError, match="locked until"):
        remove_point(bucket, DATASET, POINT)
    assert bucket.everything() == before
    assert point_contents(bucket, DATASET, POINT).locked_until == until


def test_what_there_is_of_one_that_cannot_be_read(store: MemoryBucket) -> None:
    found = point_contents(store, DATASET, POINT)
    versions = [info for info in store.everything() if info.key == KEY]
    assert found.objects == len([info for info in store.everything() if str(POINT) in info.key])
    assert found.stored_bytes == sum(info.size_bytes for info in store.everything() if str(POINT) in info.key)
    assert found.manifest_problem.startswith(f"{KEY}: is no JSON")
    assert found.sound_version == versions[0].version, "the one that was written over"


def test_one_that_can_be_read_has_no_problem_however_often_its_key_was_turned(store: MemoryBucket) -> None:
    later = SiteKeyring(bytes(32), [SITE_KEY])
    assert rewrap(store, DATASET, later, later).rewritten
    found = point_contents(store, DATASET, LATER)
    assert (found.manifest_problem, found.sound_version) == ("", None)


def test_one_that_is_hidden_can_be_had_back() -> None:
    bucket = MemoryBucket()
    write_copy(bucket)
    version = bucket.head(KEY).version
    bucket.delete(KEY)
    found = point_contents(bucket, DATASET, POINT)
    assert (found.manifest_problem, found.sound_version) == ("its manifest is hidden by a delete marker", version)
    remove_point(bucket, DATASET, POINT)
    assert bucket.everything() == []


def test_packs_without_a_manifest_are_what_a_deletion_left(store: MemoryBucket) -> None:
    store.lose(KEY)
    found = point_contents(store, DATASET, POINT)
    assert found.manifest_problem == "it has no manifest: a copy that never ended, or what a deletion left"
    assert found.objects > 3


def test_of_one_that_is_not_there_is_nothing() -> None:
    found = point_contents(MemoryBucket(), DATASET, POINT)
    assert (found.objects, found.stored_bytes, found.locked_until) == (0, 0, None)


def test_a_manifest_of_another_one_is_no_manifest_of_it() -> None:
    bucket = MemoryBucket()
    other = write_copy(bucket, point=LATER)
    bucket.put(KEY, encode_manifest(other))
    found = point_contents(bucket, DATASET, POINT)
    assert "is the manifest of another recovery point" in found.manifest_problem
    assert found.sound_version is None
