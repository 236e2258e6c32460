"""Drills tell the truth: whatever is damaged turns one red and is named, and what is good stays green."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.manifests import encode_manifest
from controlplane.adapters.backup.packing import LENGTH, PACK_HEADER, chunks_of
from controlplane.domain.dataset import DatasetKind
from controlplane.domain.recovery import DrillPhase
from controlplane.recovery.manifest import Manifest, PackRecord
from controlplane.recovery.ports import manifest_key
from controlplane.recovery.rpo import RpoState
from tests.integration.recovery_lab import NAME, RecoveryLab, declare, must_fail
from tests.integration.recovery_sources import fill

HOUR: Final = timedelta(hours=1)
LOG_N: Final = 10
"""Of scrypt, for keys that protect nothing."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "shop.sqlite3"
    fill(path)
    return path


@pytest.fixture
def lab(database: Path, tmp_path: Path) -> RecoveryLab:
    own = Path(shutil.copy(database, tmp_path))
    return RecoveryLab(tmp_path / "state", declare(DatasetKind.SQLITE, own))


async def seen_anew(lab: RecoveryLab, folder: Path) -> str:
    """All that a control plane with the same keys says which looks into the bucket for the first time."""
    shutil.copytree(lab.folder / "keys", folder / "keys")
    inventory = await lab.elsewhere(folder).look()
    assert inventory is not None
    said = [inventory.problem, *inventory.unreadable]
    return "; ".join([*said, *(problem for point in inventory.points for problem in point.problems)])


# -- damage in the bucket
type Damaging = Callable[[RecoveryLab, Manifest], None]


@dataclass(frozen=True, kw_only=True)
class Damage:
    name: str
    do: Damaging
    says: str
    """What the drill says, as a pattern."""
    seen: str = ""
    """What a first look into the bucket says already, without reading data; empty: it cannot know."""


def pack_of(manifest: Manifest, at: float) -> PackRecord:
    packs = manifest.streams[0].packs
    return packs[round(at * (len(packs) - 1))]


def flip_pack(at: float, offset: int, *, noticed: bool = False) -> Damaging:
    """`at`: which pack, as a share; a negative offset counts from its end."""

    def do(lab: RecoveryLab, manifest: Manifest) -> None:
        pack = pack_of(manifest, at)
        lab.objects.corrupt(pack.key, offset % pack.stored_bytes, noticed=noticed)

    return do


def flip_manifest(share: float) -> Damaging:
    def do(lab: RecoveryLab, manifest: Manifest) -> None:
        key = manifest_key(NAME, manifest.point)
        lab.objects.corrupt(key, int(share * (lab.objects.head(key).size_bytes - 1)))

    return do


def in_every_field(lab: RecoveryLab, manifest: Manifest) -> None:
    """One digit of a count: still a manifest in its usual form."""
    counts = tuple(replace(count, rows=count.rows - 1) for count in manifest.counts)
    lab.objects.change(manifest_key(NAME, manifest.point), encode_manifest(replace(manifest, counts=counts)))


def newer_format(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.objects.change(manifest_key(NAME, manifest.point), encode_manifest(replace(manifest, format=2)))


def manifest_of_another(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.fake_clock.jump(HOUR)
    other = lab.copy()
    lab.objects.change(manifest_key(NAME, manifest.point), encode_manifest(other))


def forged_copy_of_another(lab: RecoveryLab, manifest: Manifest) -> None:
    """Its streams and its keys, under this one's name."""
    lab.fake_clock.jump(HOUR)
    other = lab.copy()
    forged = replace(other, point=manifest.point)
    lab.objects.change(manifest_key(NAME, manifest.point), encode_manifest(forged))


def hide_manifest(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.objects.delete(manifest_key(NAME, manifest.point))


def truncate(keep: int | None) -> Damaging:
    def do(lab: RecoveryLab, manifest: Manifest) -> None:
        lab.objects.truncate(pack_of(manifest, 0.5).key, keep)

    return do


def lose(at: float) -> Damaging:
    def do(lab: RecoveryLab, manifest: Manifest) -> None:
        lab.objects.lose(pack_of(manifest, at).key)

    return do


def swap_packs(lab: RecoveryLab, manifest: Manifest) -> None:
    one, other = pack_of(manifest, 0.25), pack_of(manifest, 0.5)
    bodies = lab.objects.get(one.key), lab.objects.get(other.key)
    lab.objects.change(one.key, bodies[1])
    lab.objects.change(other.key, bodies[0])


def swap_packs_and_sign(lab: RecoveryLab, manifest: Manifest) -> None:
    """By somebody who holds the data key."""
    packs = list(manifest.streams[0].packs)
    packs[1], packs[2] = packs[2], packs[1]
    lab.forge(with_packs(manifest, packs))


def swap_chunks_and_sign(lab: RecoveryLab, manifest: Manifest) -> None:
    pack = pack_of(manifest, 0.5)
    chunks = [bytes(chunk) for chunk in chunks_of(pack.key, memoryview(lab.objects.get(pack.key)), pack.chunks)]
    chunks[0], chunks[1] = chunks[1], chunks[0]
    replace_pack(lab, manifest, pack, PACK_HEADER + b"".join(LENGTH.pack(len(chunk)) + chunk for chunk in chunks))


def pack_of_another_and_sign(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.fake_clock.jump(HOUR)
    other = lab.copy()
    replace_pack(lab, manifest, pack_of(manifest, 0.5), lab.objects.get(pack_of(other, 0.5).key))


def end_early_and_sign(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.forge(with_packs(manifest, list(manifest.streams[0].packs[:-1])))


def replace_pack(lab: RecoveryLab, manifest: Manifest, pack: PackRecord, body: bytes) -> None:
    lab.objects.change(pack.key, body)
    told = replace(pack, stored_bytes=len(body), sha256=sha256(body).hexdigest())
    lab.forge(with_packs(manifest, [told if one is pack else one for one in manifest.streams[0].packs]))


def with_packs(manifest: Manifest, packs: list[PackRecord]) -> Manifest:
    return replace(manifest, streams=(replace(manifest.streams[0], packs=tuple(packs)), *manifest.streams[1:]))


def claim_another_row(lab: RecoveryLab, manifest: Manifest) -> None:
    counts = tuple(replace(count, rows=count.rows + 1, sha256=None) for count in manifest.counts)
    lab.forge(replace(manifest, counts=counts))


def claim_another_parent(lab: RecoveryLab, manifest: Manifest) -> None:
    lab.forge(replace(manifest, parent=manifest.point))


_ALTERED: Final = "found SHA-256 .*use another copy"
_ELSEWHERE: Final = "changed, or they were sealed under another key or for another place"

IN_THE_BUCKET: Final = (
    Damage(name="first-byte-of-the-manifest", do=flip_manifest(0.0), says="is no JSON", seen="is no JSON"),
    Damage(name="amid-the-manifest", do=flip_manifest(0.5), says="manifest", seen="manifest"),
    Damage(name="last-byte-of-the-manifest", do=flip_manifest(1.0), says="manifest", seen="manifest"),
    Damage(name="a-field-of-the-manifest", do=in_every_field, says=r"\(MAC\)", seen=r"\(MAC\)"),
    Damage(name="manifest-of-a-newer-program", do=newer_format, says="format 2", seen="format 2"),
    Damage(
        name="manifest-of-another-point", do=manifest_of_another, says="of another recovery point", seen="of another"
    ),
    Damage(name="manifest-renamed", do=forged_copy_of_another, says="sealed under another key|changed", seen="changed"),
    Damage(name="manifest-hidden", do=hide_manifest, says="is not there", seen="hidden by a delete marker"),
    Damage(name="header-of-the-first-pack", do=flip_pack(0.0, 0), says=_ALTERED),
    Damage(name="length-of-the-first-chunk", do=flip_pack(0.0, 8), says=_ALTERED),
    Damage(name="nonce-of-the-first-chunk", do=flip_pack(0.0, 20), says=_ALTERED),
    Damage(name="body-of-a-middle-pack", do=flip_pack(0.5, 4_000), says=_ALTERED),
    Damage(name="tag-of-a-middle-pack", do=flip_pack(0.5, -1), says=_ALTERED),
    Damage(name="body-of-the-last-pack", do=flip_pack(1.0, -100), says=_ALTERED),
    Damage(name="rot-that-the-store-notices", do=flip_pack(0.5, 4_000, noticed=True), says="checksum"),
    Damage(name="truncated-pack", do=truncate(None), says=r"found \d+ bytes, expected \d+", seen=r"found \d+ bytes"),
    Damage(name="emptied-pack", do=truncate(0), says=r"found 0 bytes|fewer bytes", seen="found 0 bytes"),
    Damage(name="pack-missing", do=lose(0.5), says="is not there, its manifest names it", seen="is not there"),
    Damage(name="last-pack-missing", do=lose(1.0), says="is not there, its manifest names it", seen="is not there"),
    Damage(name="packs-swapped", do=swap_packs, says=f"{_ALTERED}|found .* bytes", seen="found .* bytes"),
    Damage(name="packs-swapped-and-signed", do=swap_packs_and_sign, says=_ELSEWHERE),
    Damage(name="chunks-swapped-and-signed", do=swap_chunks_and_sign, says=_ELSEWHERE),
    Damage(name="pack-of-another-point-and-signed", do=pack_of_another_and_sign, says=_ELSEWHERE),
    Damage(name="end-cut-off-and-signed", do=end_early_and_sign, says=_ELSEWHERE),
    Damage(name="more-rows-promised", do=claim_another_row, says=r"orders: 600 rows, expected 601"),
    Damage(name="its-own-parent", do=claim_another_parent, says="builds on .*, expected nothing", seen="stands on"),
)


@pytest.mark.parametrize("damage", IN_THE_BUCKET, ids=lambda damage: damage.name)
async def test_damage_in_the_bucket(damage: Damage, lab: RecoveryLab, tmp_path: Path) -> None:
    manifest = lab.copy()
    await lab.look()  # The damage comes behind the back of who looked already.
    damage.do(lab, manifest)
    must_fail(await lab.drill(point=manifest.point), damage.says)
    said = await seen_anew(lab, tmp_path / "another")
    assert re.search(damage.seen, said) if damage.seen else not said, f"a first look says: {said}"


async def test_what_hides_nothing(lab: RecoveryLab) -> None:
    """Delete markers and newer versions above the packs: the copy names the versions that it is made of."""
    manifest = lab.copy()
    lab.objects.delete(pack_of(manifest, 0.5).key)
    lab.objects.put(pack_of(manifest, 1.0).key, b"something else")
    assert (await lab.verdict()).state is RpoState.OK
    drill = await lab.drill()
    assert drill.phase is DrillPhase.PASSED, drill.sentence


async def test_a_damaged_copy_beside_a_good_one(lab: RecoveryLab, tmp_path: Path) -> None:
    """The good one is restored; the other is named and does not vanish, and nothing is deleted on such grounds."""
    lab.copy()
    lab.fake_clock.jump(HOUR)
    later = lab.copy()
    await lab.look()
    hide_manifest(lab, later)
    for site in (lab, lab.elsewhere(tmp_path / "another")):
        shutil.copytree(lab.folder / "keys", tmp_path / "another" / "keys", dirs_exist_ok=True)
        inventory = await site.look()
        assert inventory is not None
        assert [point.complete for point in inventory.points] == [True, False]
        assert "hidden by a delete marker" in inventory.unread[0]
    drill = await lab.drill()
    assert drill.phase is DrillPhase.PASSED
    assert drill.point != later.point
