"""Whatever happens to a copy in its bucket is detected, and the error names the object."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final

import pytest

from controlplane.adapters.backup.archive_reader import open_archive, verify_archive
from controlplane.adapters.backup.inventory import inventory
from controlplane.adapters.backup.keyring import SiteKeyring
from controlplane.adapters.backup.manifests import encode_manifest, key_context, mac_of
from controlplane.adapters.backup.packing import LENGTH, PACK_HEADER, chunks_of
from controlplane.adapters.backup.sealing import HEADER_BYTES
from controlplane.kernel.errors import DeniedError, NotFoundError, QuarterdeckError, TerminalError
from controlplane.recovery.manifest import Manifest, PackRecord
from controlplane.recovery.ports import SilentWatch, manifest_key
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.copies import DATASET, KEYRING, LATER, POINT, STREAMS, mixed_bytes, read_copy, write_copy

MANIFEST: Final = manifest_key(DATASET, POINT)
REGIONS: Final = {
    "magic": 0,
    "version": 4,
    "padding": 6,
    "length of a chunk": len(PACK_HEADER),
    "magic of a chunk": len(PACK_HEADER) + LENGTH.size,
    "version of a chunk": len(PACK_HEADER) + LENGTH.size + 4,
    "flags of a chunk": len(PACK_HEADER) + LENGTH.size + 5,
    "nonce": len(PACK_HEADER) + LENGTH.size + 6,
    "ciphertext": len(PACK_HEADER) + LENGTH.size + HEADER_BYTES,
    "tag of the last chunk": -1,
}

type Chunks = list[bytes]


@pytest.fixture
def store() -> MemoryBucket:
    bucket = MemoryBucket()
    write_copy(bucket)
    write_copy(bucket, point=LATER)
    return bucket


def packs_of(store: MemoryBucket, point: str = POINT, stream: str = "base.tar") -> list[PackRecord]:
    manifest = open_archive(
        store, KEYRING, manifest_key(DATASET, LATER if point == LATER else POINT), watch=SilentWatch()
    )
    return [pack for record in manifest.manifest.streams if record.name == stream for pack in record.packs]


def forge(store: MemoryBucket, change: Callable[[Manifest], Manifest]) -> None:
    """A manifest that fits what was changed, with a right MAC: what is below it must hold by itself."""
    archive = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
    manifest = change(archive.manifest)
    data_key, _ = KEYRING.open(manifest.keys, key_context(DATASET, POINT))
    store.change(MANIFEST, encode_manifest(replace(manifest, mac=mac_of(manifest, data_key))))


def repack(store: MemoryBucket, number: int, edit: Callable[[Chunks], Chunks]) -> str:
    """Other chunks in a pack of the first stream, and a manifest that says so. The pack's key."""
    pack = packs_of(store)[number]
    body = memoryview(store.get(pack.key))
    chunks = edit([bytes(chunk) for chunk in chunks_of(pack.key, body, pack.chunks)])
    changed = PACK_HEADER + b"".join(LENGTH.pack(len(chunk)) + chunk for chunk in chunks)
    store.change(pack.key, changed)
    record = replace(pack, stored_bytes=len(changed), sha256=sha256(changed).hexdigest(), chunks=len(chunks))

    def with_record(manifest: Manifest) -> Manifest:
        first = manifest.streams[0]
        packs = tuple(record if old.key == pack.key else old for old in first.packs)
        return replace(manifest, streams=(replace(first, packs=packs), *manifest.streams[1:]))

    forge(store, with_record)
    return pack.key


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_in_any_region_of_any_pack(store: MemoryBucket, region: str) -> None:
    for stream in STREAMS:
        for pack in packs_of(store, stream=stream):
            whole = store.get(pack.key)
            damaged = bytearray(whole)
            damaged[REGIONS[region]] ^= 1
            store.change(pack.key, bytes(damaged))

            with pytest.raises(TerminalError, match=f"^{pack.key}: found SHA-256 "):
                read_copy(store)
            verified = verify_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
            assert [problem.partition(":")[0] for problem in verified.problems] == [pack.key]
            store.change(pack.key, whole)
    assert read_copy(store) == STREAMS


@pytest.mark.parametrize("region", [region for region in REGIONS if region != "padding"])
def test_a_flipped_bit_is_found_below_the_digest_as_well(store: MemoryBucket, region: str) -> None:
    """As if SHA-256 were broken, or the writer had hashed a buffer that was damaged already."""
    pack = packs_of(store)[1]
    damaged = bytearray(store.get(pack.key))
    damaged[REGIONS[region]] ^= 1
    store.change(pack.key, bytes(damaged))

    def with_digest(manifest: Manifest) -> Manifest:
        first = manifest.streams[0]
        record = replace(pack, sha256=sha256(damaged).hexdigest())
        packs = tuple(record if old.key == pack.key else old for old in first.packs)
        return replace(manifest, streams=(replace(first, packs=packs), *manifest.streams[1:]))

    forge(store, with_digest)
    with pytest.raises(TerminalError, match=f"^{pack.key}: "):
        read_copy(store)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_pack_cut_off(store: MemoryBucket, kept: int) -> None:
    pack = packs_of(store)[0]
    store.change(pack.key, store.get(pack.key)[:kept])

    with pytest.raises(TerminalError, match=rf"^{pack.key}: found \d+ bytes, expected {pack.stored_bytes}"):
        read_copy(store)
    (seen,) = [
        point for point in inventory(store, DATASET, keyring=KEYRING).points if point.seen.manifest.point == POINT
    ]
    assert seen.problems[0].startswith(f"{pack.key}: found ")


def test_a_pack_that_is_gone(store: MemoryBucket) -> None:
    pack = packs_of(store)[2]
    store.lose(pack.key)

    with pytest.raises(TerminalError, match=rf"^{pack.key} \(version v\d+\): is not there, its manifest names it"):
        read_copy(store)


@pytest.mark.parametrize("other", ["another pack of its stream", "a pack of another stream", "a pack of another copy"])
def test_a_pack_of_elsewhere(store: MemoryBucket, other: str) -> None:
    """With a manifest that takes it: the chunks themselves know where they belong."""
    pack = packs_of(store)[0]
    foreign = {
        "another pack of its stream": packs_of(store)[1],
        "a pack of another stream": packs_of(store, stream="wal/0001")[0],
        "a pack of another copy": packs_of(store, LATER)[0],
    }[other]
    own, body = store.get(pack.key), store.get(foreign.key)
    store.change(pack.key, body)
    with pytest.raises(TerminalError, match=f"^{pack.key}: found "):
        read_copy(store)
    store.change(pack.key, own)

    repack(store, 0, lambda _: [bytes(chunk) for chunk in chunks_of(pack.key, memoryview(body), foreign.chunks)])
    with pytest.raises(TerminalError, match=f"^{pack.key}: .* chunk 0: its bytes were changed, or they were sealed"):
        read_copy(store)


EDITS: Final[dict[str, Callable[[Chunks], Chunks]]] = {
    "swapped": lambda chunks: [chunks[1], chunks[0], *chunks[2:]],
    "repeated": lambda chunks: [chunks[0], chunks[0], *chunks[1:]],
    "repeated in place of another": lambda chunks: [chunks[0], chunks[0], *chunks[2:]],
    "dropped": lambda chunks: chunks[1:],
    "dropped in the middle": lambda chunks: [chunks[0], *chunks[2:]],
    "added behind": lambda chunks: [*chunks, chunks[-1]],
}


@pytest.mark.parametrize("edit", EDITS)
def test_chunks_in_another_order_or_number(store: MemoryBucket, edit: str) -> None:
    key = repack(store, 0, EDITS[edit])

    with pytest.raises(TerminalError, match=r"points/.*base\.tar/00000\d: .* chunk \d+.*: its bytes were changed"):
        read_copy(store)
    verified = verify_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
    assert verified.problems
    assert key.startswith(f"{DATASET}/points/{POINT}/base.tar/")


def test_a_stream_without_its_end(store: MemoryBucket) -> None:
    """Its last pack is gone, and the manifest says that this is how it was."""

    def shorter(manifest: Manifest) -> Manifest:
        first = manifest.streams[0]
        return replace(manifest, streams=(replace(first, packs=first.packs[:-1]), *manifest.streams[1:]))

    forge(store, shorter)
    with pytest.raises(TerminalError, match=r"chunk \d+, the last: its bytes were changed"):
        read_copy(store)


def test_a_frame_that_does_not_fit(store: MemoryBucket) -> None:
    pack = packs_of(store)[0]
    body = memoryview(store.get(pack.key))

    for wrong, words in ((pack.chunks + 1, "ends inside chunk"), (pack.chunks - 1, "bytes behind its")):
        with pytest.raises(TerminalError, match=f"^{pack.key}: .*{words}"):
            list(chunks_of(pack.key, body, wrong))


def test_plaintext_that_is_not_what_was_hashed(store: MemoryBucket) -> None:
    forge(
        store,
        lambda manifest: replace(
            manifest, streams=(replace(manifest.streams[0], sha256="0" * 64), *manifest.streams[1:])
        ),
    )

    with pytest.raises(TerminalError, match=rf"{POINT}/base\.tar: found 12345 bytes with SHA-256"):
        read_copy(store)


def test_any_byte_of_a_manifest(store: MemoryBucket) -> None:
    """Of the wrapped keys, those of holders who are not here count as well: a checksum tells without the key."""
    whole = store.get(MANIFEST)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        store.change(MANIFEST, bytes(damaged))

        try:
            open_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
        except QuarterdeckError as error:
            assert str(error).startswith(f"{DATASET}/points/{POINT}"), (at, error)  # noqa: PT017 - not all of them raise
        else:
            verified = verify_archive(store, KEYRING, MANIFEST, watch=SilentWatch())
            assert "its data key, wrapped for" in verified.problems[0], at


def test_a_manifest_cut_off_or_gone(store: MemoryBucket) -> None:
    whole = store.get(MANIFEST)
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        store.change(MANIFEST, whole[:kept])
        with pytest.raises(TerminalError, match=f"^{MANIFEST}: "):
            read_copy(store)
    store.lose(MANIFEST)
    with pytest.raises(NotFoundError, match=MANIFEST):
        read_copy(store)


def test_the_manifest_of_an_older_copy_in_its_place(store: MemoryBucket) -> None:
    store.change(manifest_key(DATASET, LATER), store.get(MANIFEST))

    with pytest.raises(TerminalError, match=rf"{LATER}/manifest\.json: is the manifest of another .* {MANIFEST}"):
        read_copy(store, point=LATER)


def test_the_streams_of_an_older_copy_in_a_manifest(store: MemoryBucket) -> None:
    """A copy that passes for a newer one: everything is genuine, but for the place."""
    older = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch()).manifest
    newer = open_archive(store, KEYRING, manifest_key(DATASET, LATER), watch=SilentWatch()).manifest
    store.change(
        manifest_key(DATASET, LATER), encode_manifest(replace(older, point=LATER, keys=newer.keys, mac=newer.mac))
    )

    with pytest.raises(TerminalError, match=rf"{LATER}/manifest\.json: its fields are not those that were written"):
        read_copy(store, point=LATER)


def test_keys_of_another_copy(store: MemoryBucket) -> None:
    older = open_archive(store, KEYRING, MANIFEST, watch=SilentWatch()).manifest
    newer = open_archive(store, KEYRING, manifest_key(DATASET, LATER), watch=SilentWatch()).manifest
    store.change(MANIFEST, encode_manifest(replace(older, keys=newer.keys)))

    with pytest.raises(TerminalError, match=f"data key of {DATASET}/points/{POINT} for site:"):
        read_copy(store)


def test_a_manifest_of_a_newer_format(store: MemoryBucket) -> None:
    store.change(MANIFEST, store.get(MANIFEST).replace(b'"format": 1', b'"format": 2'))

    with pytest.raises(
        TerminalError, match=f"^{MANIFEST}: found format 2, this program reads up to 1: use a newer one"
    ):
        read_copy(store)


def test_another_key(store: MemoryBucket) -> None:
    stranger = SiteKeyring(bytes(32))

    with pytest.raises(DeniedError, match=r"opens with site:\w{8}, break-glass:\w{8}; here site:\w{8}\. Give the key"):
        read_copy(store, keyring=stranger)


def test_verification_names_every_damaged_pack(store: MemoryBucket) -> None:
    damaged = [packs_of(store)[0], packs_of(store)[2], packs_of(store, stream="wal/0001")[0]]
    for pack in damaged:
        store.change(pack.key, mixed_bytes(pack.stored_bytes))

    verified = verify_archive(store, KEYRING, MANIFEST, watch=SilentWatch())

    assert [problem.partition(":")[0] for problem in verified.problems] == [pack.key for pack in damaged]
    assert verified.stored_bytes == verified.manifest.stored_bytes - sum(pack.stored_bytes for pack in damaged)
