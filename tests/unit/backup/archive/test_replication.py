"""The same copy in a second bucket, where versions have other names."""

from dataclasses import replace

import pytest

from controlplane.adapters.backup.archive_reader import verify_archive
from controlplane.adapters.backup.replication import replicate_archive
from controlplane.domain.dataset import StorageClass
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.recovery.manifest import Manifest
from controlplane.recovery.ports import SilentWatch, manifest_key
from tests.unit.backup.bucket import FailsAt, MemoryBucket
from tests.unit.backup.copies import DATASET, KEYRING, POINT, STREAMS, read_copy, write_copy

MANIFEST = manifest_key(DATASET, POINT)


def replicate(source: MemoryBucket, target: MemoryBucket) -> Manifest:
    return replicate_archive(
        source,
        target,
        KEYRING,
        MANIFEST,
        storage_class=StorageClass.GLACIER_IR,
        lock=None,
        watch=SilentWatch(),
    )


def test_the_copy_opens_by_itself_under_its_own_versions() -> None:
    source, target = MemoryBucket(), MemoryBucket()
    target.put("something/else", b"so that versions differ")
    original = write_copy(source)

    copy = replicate(source, target)

    assert read_copy(target) == STREAMS
    assert replace(copy, streams=original.streams, mac=original.mac) == original
    assert copy.streams[0].packs[0].version != original.streams[0].packs[0].version
    assert verify_archive(target, KEYRING, MANIFEST, watch=SilentWatch()).problems == ()
    classes = {info.key: info.storage_class for info in target.everything()}
    assert classes[MANIFEST] is StorageClass.STANDARD
    assert classes[copy.streams[0].packs[0].key] is StorageClass.GLACIER_IR


@pytest.mark.parametrize("number", range(1, 8))
def test_cut_off_anywhere_it_goes_on_where_it_was(number: int) -> None:
    source, target = MemoryBucket(), MemoryBucket(FailsAt(number))
    original = write_copy(source)
    with pytest.raises(RetryableError):
        replicate(source, target)
    assert MANIFEST not in target.listed()

    replicate(source, target)

    assert read_copy(target) == STREAMS
    packs = sum(len(stream.packs) for stream in original.streams)
    assert len(target.everything()) == packs + 1, "no pack was sent twice"


def test_a_damaged_pack_is_not_carried_on() -> None:
    source, target = MemoryBucket(), MemoryBucket()
    manifest = write_copy(source)
    source.corrupt(manifest.streams[0].packs[1].key, 40)

    with pytest.raises(TerminalError, match=f"^{manifest.streams[0].packs[1].key}: found SHA-256"):
        replicate(source, target)

    assert MANIFEST not in target.listed()


def test_another_manifest_in_the_target_is_not_written_over() -> None:
    source, target = MemoryBucket(), MemoryBucket()
    write_copy(source)
    write_copy(target, {"other": b"rows"})

    with pytest.raises(ConflictError):
        replicate(source, target)

    assert read_copy(target) == {"other": b"rows"}
